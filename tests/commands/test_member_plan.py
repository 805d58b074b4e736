"""What the plan of a population says is what training it takes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from launch import alone
from packs import batches

from mpinn.array import cpu
from mpinn.commands.member_plan import plan_members, shard_plans
from mpinn.config import Config, load
from mpinn.errors import InputError
from mpinn.models.population import shard_of
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.part import Part, build_part
from mpinn.run import target
from mpinn.schedules.members import Members
from mpinn.training.choices import CHOICES, DEFAULTS

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


def test_a_gpu_has_fleets_of_all_layers() -> None:
    """See tests/device/test_population_plan.py for the bytes."""
    config = configured("model.layers=[1, 2]")
    model = config.model.build((20,), 10)
    rows, before = (shard_plans(config, model, 3, BATCH, gpu=gpu) for gpu in (True, False))
    for row, other in zip(rows, before, strict=True):
        assert replace(row, buffers=0, fleets=0) == replace(other, buffers=0)
        assert (row.fleets, other.fleets) == (1, 0)
        # all units are kept, each once, and all outputs
        numbers = (row.units + 10 * row.members) * BATCH
        assert 4 * numbers < row.buffers < 4.1 * numbers


def test_the_device_of_the_run_is_planned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*settings: str) -> tuple[str, list[dict[str, int]]]:
        plan_members(None, (*SETTINGS, *settings), 2, False)
        text = capsys.readouterr().out
        plan_members(None, (*SETTINGS, *settings), 2, True)
        return text, json.loads(capsys.readouterr().out)

    monkeypatch.setattr(target, "count_devices", lambda: (0, "no GPU is visible"))
    text, rows = told()
    assert "float32, on a CPU\n" in text
    assert "fleets" not in text
    assert [row["fleets"] for row in rows] == [0, 0]
    asked, own = told("run.device=gpu")
    assert "float32, on a GPU\n" in asked
    assert "all fleets share the buffers of the largest" in asked
    assert [row["fleets"] for row in own] == [1, 1]
    assert all(row["buffers"] > other["buffers"] for row, other in zip(own, rows, strict=True))
    monkeypatch.setattr(target, "count_devices", lambda: (1, ""))
    assert told() == (asked, own)
    assert told("run.device=cpu") == (text, rows)
    with pytest.raises(InputError, match=r"^run\.bf16: a population is trained in float32 or float64"):
        told("run.bf16=true")


def test_the_command_prints_a_row_for_each_shard() -> None:
    line = [word for setting in SETTINGS for word in ("--set", setting)]
    done = alone("-m", "mpinn", "plan", *line, "--shards", "2")
    assert done.returncode == 0, done.stderr
    assert "population of 400 members with 10 outputs each on digits, batch 128, float32" in done.stdout
    rows = json.loads(alone("-m", "mpinn", "plan", *line, "--shards", "2", "--json").stdout)
    assert [row["shard"] for row in rows] == [0, 1]
    assert f"{rows[1]['parameters']:,}" in done.stdout
