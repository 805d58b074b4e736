"""A stage whose auxiliary head is recorded learns what one does whose head is not, to the last bit."""

from typing import Any

import numpy as np
import pytest
from recording import OPTIMIZER, SIZES, WAYS, Neighbours, Told, assert_same, batch, sizes_of, vectors

from mpinn.array import cuda, pool
from mpinn.comm.channel import NullChannel
from mpinn.models.cnn import CNN
from mpinn.models.mlp import MLP
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.part import build_part
from mpinn.schedules.local import Local, LocalOptions
from mpinn.schedules.stage import Place
from mpinn.trace import SILENT

MODELS = {
    "mlp": (MLP(widths=(24, 20, 16, 12), dropout=0.3, norm="batch").build((7,), 5), (2, 4)),
    "cnn": (CNN(channels=(3, 4), kernel=3, widths=(6,), dropout=0.3).build((8, 8, 2), 5), (1, 2)),
}


def middle(name: str, width: int, transport: str, record: bool) -> tuple[Local, Neighbours]:
    """The second of three stages."""
    model, bounds = MODELS[name]
    network = model.network[slice(*bounds)]
    shapes = [model.network[:bound].output_shape(model.shape) for bound in bounds]
    part = build_part("network", network, shapes[0], np.dtype("float32"), OPTIMIZER.slots, ops=cuda)
    part.initialize(3)
    channel = Neighbours(1, 3, transport)
    place = Place(channel, NullChannel("aside"), shapes[0], shapes[1], SILENT, (5,))
    schedule = LocalOptions(width=width).build(part, CrossEntropy(0.1), 5, place)
    if not record:
        schedule._auxiliary._recorder = schedule._stage._recordings = None  # type: ignore[union-attr]
    return schedule, channel


def trained(
    name: str,
    record: bool,
    size: Any,
    *,
    width: int = 16,
    transport: str = "staged",
    bucket: int = 0,
    clip: float = 0.0,
) -> tuple[Local, list[Any]]:
    """The schedule, and all that it has done."""
    schedule, channel = middle(name, width, transport, record)
    update, steps = Told(schedule.parts, bucket, clip), 31 if size is SIZES["a last one"] else 10
    for index in range(steps):
        schedule.step(batch(index, size(index)), update)
    schedule.drain(update)
    assert len(update.gradients) == 2 * steps
    assert len(channel.notes) == sum(size(index) > 0 for index in range(steps))
    assert all("values" in note for note in channel.notes)
    return schedule, [channel.notes, update.gradients, [vectors(part) for part in schedule.parts.values()]]


@WAYS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_a_recorded_head_learns_the_same_to_the_last_bit(
    name: str, size: str, transport: str, clip: float, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SMALL", small)
    (one, found), (_, other) = (
        trained(name, record, SIZES[size], transport=transport, clip=clip) for record in (True, False)
    )
    assert_same(found, other)
    assert one._auxiliary is not None
    assert sizes_of(one._auxiliary._recorder) == {SIZES[size](index) for index in range(10)} - {0}


@pytest.mark.parametrize("width", [0, 16])
@pytest.mark.parametrize("bucket", [1, 10**6])
def test_pieces_of_its_gradient_are_complete_when_they_are_told(bucket: int, width: int) -> None:
    found = [trained("mlp", record, SIZES["a last one"], width=width, bucket=bucket)[1] for record in (True, False)]
    assert_same(*found)
    assert all(np.abs(gradient).max() > 0 for gradient in found[0][1])
