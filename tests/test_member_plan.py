"""What the plan of a population says is what training it takes."""

import json

import numpy as np
import pytest
from launch import alone
from packs import batches

from mpinn.array import cpu
from mpinn.choices import CHOICES, DEFAULTS
from mpinn.config import Config, load
from mpinn.errors import InputError
from mpinn.member_plan import shard_plans
from mpinn.models.population import shard_of
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.part import Part, build_part
from mpinn.schedules.members import Members

BATCH = 128
SETTINGS = ("model.name=population", "model.widths={from = 1, to = 100}", "model.repetitions=2")


def configured(*settings: str) -> Config:
    return load({}, [*SETTINGS, *settings], CHOICES, DEFAULTS)


class Nothing:
    def ready(self, part: Part, span: slice) -> None: ...

    def __call__(self, part: Part, batch: object) -> None: ...


@pytest.mark.parametrize("layers", ["[1]", "[2, 3]"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_memory_is_what_was_predicted(layers: str, optimizer: str) -> None:
    config = configured(f"model.layers={layers}", f"optimizer.name={optimizer}")
    model = config.model.build((20,), 10)
    rows = shard_plans(config, model, 3, BATCH)
    rng = np.random.default_rng(1)
    (batch,) = batches(rng.normal(size=(BATCH, 20)).astype(np.float32), rng.integers(0, 10, BATCH), BATCH, 1)
    for row in rows:
        network = shard_of(model, row.shard, 3)
        part = build_part("network", network, (20,), np.dtype(np.float32), config.optimizer.slots, ops=cpu)
        vectors = [part.weights, part.grads, *part.slots.values()]
        assert row.vectors == sum(vector.nbytes for vector in vectors)
        schedule = Members(part, CrossEntropy(), 0)
        for _ in range(2):
            schedule.step(batch, Nothing())
        assert row.buffers == part.pool.nbytes
        assert (row.members, row.panels) == (len(schedule.population.members), len(schedule.population.panels))


def test_shards_together_are_the_whole_population() -> None:
    config = configured("model.layers=[1, 2]")
    model = config.model.build((20,), 10)
    (whole,), parts = shard_plans(config, model, 1, BATCH), shard_plans(config, model, 4, BATCH)
    assert whole.members == 2 * 2 * 2 * 100
    for name in ("members", "panels", "units", "parameters"):
        assert sum(getattr(row, name) for row in parts) == getattr(whole, name)
    assert sum(row.share for row in parts) == pytest.approx(1)
    assert max(row.share for row in parts) < 0.3


def test_more_shards_than_panels_are_refused() -> None:
    config = configured("model.widths=[2]")
    with pytest.raises(InputError, match=r"--shards: the population has 2 panels, got 3"):
        shard_plans(config, config.model.build((20,), 10), 3, BATCH)


def test_the_command_prints_a_row_for_each_shard() -> None:
    line = [word for setting in SETTINGS for word in ("--set", setting)]
    done = alone("-m", "mpinn", "plan", *line, "--shards", "2")
    assert done.returncode == 0, done.stderr
    assert "population of 400 members with 10 outputs each on digits, batch 128, float32" in done.stdout
    rows = json.loads(alone("-m", "mpinn", "plan", *line, "--shards", "2", "--json").stdout)
    assert [row["shard"] for row in rows] == [0, 1]
    assert f"{rows[1]['parameters']:,}" in done.stdout
