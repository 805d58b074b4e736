"""A block of a parareal network whose passes are recorded between messages computes the same to the last bit."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from recording import OPTIMIZER, SIZES, WAYS, Neighbours, Told, assert_same, batch, sizes_of, vectors
from staged import bounds_of

from mpinn.array import cuda, pool
from mpinn.comm.channel import NullChannel
from mpinn.models.mlp import MLP
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.part import build_part
from mpinn.schedules.parareal import PararealOptions, PararealStage
from mpinn.schedules.stage import Place
from mpinn.trace import SILENT

DEEP = MLP(widths=(12, 10, 9, 8), norm="batch", dropout=0.3)
CASES: dict[str, tuple[PararealOptions, int]] = {
    "residual, first": (PararealOptions(sweep="chain"), 0),
    "residual": (PararealOptions(sweep="chain"), 1),
    "residual, last": (PararealOptions(sweep="chain"), 2),
    "difference": (PararealOptions(form="difference", sweep="chain"), 1),
    "gathered": (PararealOptions(sweep="gather"), 1),
    "gathered, last": (PararealOptions(form="difference", sweep="gather"), 2),
    "two sweeps": (PararealOptions(iterations=2), 1),
    "two sweeps, last": (PararealOptions(iterations=2, form="difference"), 2),
    "three sweeps": (PararealOptions(iterations=3), 1),
}
"""What is trained, and which of three blocks."""
STEPS = 10


def block(options: PararealOptions, stage: int, transport: str, record: bool) -> tuple[PararealStage, Neighbours]:
    """One of three."""
    model = DEEP.build((7,), 5)
    bounds = bounds_of(len(model.network), 3)
    network = options.network(DEEP, model, bounds)
    share, shape = options.share(network, model, bounds, stage, 3, 6)
    part = build_part("network", share, shape, np.dtype("float32"), OPTIMIZER.slots, ops=cuda)
    part.initialize(3)
    channel = Neighbours(stage, 3, transport)
    schedule = options.build(part, CrossEntropy(0.1), 5, Place(channel, NullChannel("aside"), (), (), SILENT))
    assert isinstance(schedule, PararealStage)
    if not record:
        schedule._recorder = schedule._route.mail._kept = None
    return schedule, channel


def trained(
    case: str, record: bool, size: Any, *, transport: str = "staged", bucket: int = 0, clip: float = 0.0
) -> tuple[PararealStage, list[Any]]:
    """The schedule, and all that it has done."""
    schedule, channel = block(*CASES[case], transport, record)
    update, measured = Told(schedule.parts, bucket, clip), []
    for index in range(STEPS):
        measured += schedule.step(batch(index, size(index), (7,)), update)
    assert not schedule._route.mail._coming
    assert all("values" in note for note in channel.notes)
    (part,) = schedule.parts.values()
    losses = [(own.index, own.count, float(own.loss)) for own in measured]
    return schedule, [channel.notes, losses, update.gradients, vectors(part)]


@WAYS
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_block_is_the_block_to_the_last_bit(
    case: str, transport: str, clip: float, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SMALL", small)
    for name in ("two sizes", "none at times"):
        size = SIZES[name]
        (one, found), (_, other) = (
            trained(case, record, size, transport=transport, clip=clip) for record in (True, False)
        )
        assert_same(found, other)
        assert sizes_of(one._recorder) == {size(index) for index in range(STEPS)} - {0}, name
        assert bool(found[1]) == ("last" in case)
        assert found[0]
        assert all(np.abs(gradient).max() > 0 for gradient in found[2]) or name == "none at times"


@pytest.mark.parametrize("bucket", [1, 10**6])
@pytest.mark.parametrize("case", CASES)
def test_pieces_of_its_gradient_are_complete_when_they_are_told(case: str, bucket: int) -> None:
    found = [trained(case, record, SIZES["two sizes"], bucket=bucket)[1] for record in (True, False)]
    assert_same(*found)


def test_what_it_has_for_messages_does_not_grow() -> None:
    """Whatever comes and leaves has its place from the first batch of a size on."""
    schedule, _ = block(*CASES["two sweeps"], "staged", True)
    update, kept = Told(schedule.parts, 0, 0.0), []
    for index in range(20):
        schedule.step(batch(index, 5 + index % 2, (7,)), update)
        kept.append({key: array.data.ptr for key, array in schedule._route.mail._kept.items()})  # type: ignore[union-attr]
    assert kept[1]
    assert all(one == other for one, other in pairwise(kept[1:]))
