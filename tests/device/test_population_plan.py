"""What the plan of a population says of a device's memory is what training allocates there."""

import gc

import cupy
import numpy as np
import pytest
from packs import Plainly, batches

from mpinn.array import cuda
from mpinn.commands.member_plan import shard_plans
from mpinn.datasets.batches import Batch
from mpinn.models.model import Model
from mpinn.models.population import shard_of
from mpinn.nn import fleet
from mpinn.nn.fleet import Fleet
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.optimizer import SGD
from mpinn.nn.part import build_part
from mpinn.schedules.members import Members
from mpinn.training.choices import build_model, read_config

BATCH, FEATURES, OUTPUTS = 96, 20, 10
UNIT = 512
"""Bytes of which a pool gives whole numbers."""
SETTINGS = ("model.name=population", "model.widths={from = 1, to = 50}", "model.activations=['relu', 'mish']",
            "model.repetitions=2")  # fmt: skip


def held(model: Model, shard: int, dtype: str, batch: Batch) -> tuple[int, list[Fleet]]:
    """Bytes that the steps of a shard take from the pools, besides its vectors; and its fleets."""
    part = build_part("network", shard_of(model, shard, 2), (FEATURES,), np.dtype(dtype), (), ops=cuda)
    part.initialize(0)
    update = Plainly(SGD(momentum=0.0), 0.01)
    update(part, batch)
    gc.collect()
    whole = cupy.get_default_memory_pool()
    before = whole.used_bytes()
    schedule = Members(part, CrossEntropy(), 0)
    for _ in range(3):
        schedule.step(batch, update)
    gc.collect()
    graphs, _ = schedule._recorder._shared
    return whole.used_bytes() - before + graphs.total_bytes(), schedule._fleets_of(schedule._names(), BATCH)


@pytest.mark.parametrize(
    ("layers", "dtype", "most"),
    [("[1]", "float64", None), ("[1, 2]", "float32", None), ("[1, 2]", "float32", 1300), ("[3]", "float64", 1300)],
)
def test_memory_is_what_was_predicted(
    layers: str, dtype: str, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what a pool gives beyond what it was asked for, and for the loss of the batch."""
    if most is not None:
        monkeypatch.setattr(fleet, "MOST", most * BATCH * np.dtype(dtype).itemsize)
    config = read_config(None, (*SETTINGS, f"model.layers={layers}", f"run.dtype={dtype}"))
    model = build_model(config, (FEATURES,), OUTPUTS)
    rng = np.random.default_rng(1)
    x, target = rng.normal(size=(BATCH, FEATURES)).astype(dtype), rng.integers(0, OUTPUTS, BATCH)
    (batch,) = batches(cuda.on_device(x), cuda.on_device(target), BATCH, 1)
    for row in shard_plans(config, model, 2, BATCH, gpu=True):
        found, fleets = held(model, row.shard, dtype, batch)
        assert row.fleets == len(fleets)
        assert (row.fleets > 1) == (most is not None)
        # of fleets two tables of each layer, heads and places; the batch; both buffers; losses; the sum, three times
        arrays = sum(2 * len(one.layers) + 2 for one in fleets) + 2 + 2 + len(fleets) + 3
        # losses of a fleet may find no room where those of another were
        losses = 8 * (sum(one.members for one in fleets) - max(one.members for one in fleets))
        assert row.buffers <= found <= row.buffers + UNIT * arrays + losses
