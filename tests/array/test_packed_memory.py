"""A steady step of a population allocates no large array, forward, loss, backward and update."""

import gc
import tracemalloc

import numpy as np
import pytest

from mpinn.array import cpu
from mpinn.array.activations import ACTIVATIONS
from mpinn.array.pool import SMALL
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.population import Population
from mpinn.models.sweep import Widths
from mpinn.nn.loss import CrossEntropy, SquaredError
from mpinn.nn.optimizer import SGD
from mpinn.nn.part import build_part
from mpinn.population.update import MemberUpdate
from mpinn.schedules.members import Members

LOOSE = 3 * SMALL
"""What all small arrays may take together; the rows of a panel for a batch take 1 MiB."""


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(0.1), SquaredError()], ids=repr)
def test_no_large_array_is_allocated(loss, layers):
    widths = Widths({"from": 1, "to": 100, "step": 3})
    model = Population(widths=widths, layers=(layers,), activations=tuple(ACTIVATIONS)).build((20,), 10)
    optimizer = SGD(rate=1e-3, momentum=0.9)
    part = build_part("network", model.network, model.shape, np.dtype("f4"), optimizer.slots, ops=cpu)
    part.initialize(0)
    schedule = Members(part, loss, 0)
    update = MemberUpdate(Independent(NullChannel("alone")), optimizer, lambda step: 1e-3, 1.0, schedule.parts)
    rng = np.random.default_rng(0)
    x, values = rng.standard_normal((128, 20)).astype("f4"), rng.standard_normal((128, 10)).astype("f4")
    target = values if isinstance(loss, SquaredError) else rng.integers(0, 10, 128)
    batch = Batch(0, 0, x, target, 128, 128, (0, 1), np.arange(128))
    for _ in range(2):
        schedule.step(batch, update)
    held = part.pool.nbytes
    assert held > LOOSE
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(3):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            schedule.step(batch, update)
            assert tracemalloc.get_traced_memory()[1] - before < LOOSE
    finally:
        tracemalloc.stop()
        gc.enable()
    assert part.pool.nbytes == held
