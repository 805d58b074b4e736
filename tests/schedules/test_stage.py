"""One stage with neighbours that only listen: what it sends when, and how it adds gradients up."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from depth import cut, shapes
from oracles import Problem

from mpinn.array import ops as plain
from mpinn.array.typing import Array
from mpinn.comm.channel import DONE, NullChannel, Pending
from mpinn.datasets.batches import Batch
from mpinn.models.mlp import MLP
from mpinn.nn.layer import Finish, Pass, Saved, Tree
from mpinn.nn.network import Network
from mpinn.nn.part import Part
from mpinn.schedules.flight import flatten, unflatten
from mpinn.schedules.stage import Place, Stage
from mpinn.schedules.versions import Stash
from mpinn.trace import Trace

DEEP = Problem(model=MLP(widths=(9, 8, 7, 6)))


class Middle(NullChannel):
    """The second of three stages, whose messages are noted."""

    def __init__(self, said: list[str]):
        super().__init__("stages")
        self.rank, self.size, self._said = 1, 3, said

    def send(self, array: Array, to: int, tag: int = 0) -> Pending:
        self._said.append(f"send to {to}")
        return DONE


@dataclass(frozen=True)
class Noted:
    """A layer that says when its weight gradient is written."""

    layer: Any
    name: str
    said: list[str] = field(compare=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Any, Finish]:
        dx, finish = self.layer.backward(weights, saved, dy, context)

        def noted(grads: Tree) -> None:
            self.said.append(f"finish {self.name}")
            finish(grads)

        return dx, noted


def middle(said: list[str]) -> Stage:
    """Two hidden layers between two others."""
    part, edges = cut(DEEP, (0, 2, 4, 6))[1], shapes(DEEP, (0, 2, 4, 6))
    layers = [(name, Noted(layer, name, said)) for name, layer in part.network.layers]
    part.network = Network(layers, part.network.start)
    place = Place(Middle(said), NullChannel("aside"), edges[1], edges[2], Trace())
    return Stage(part, DEEP.loss, DEEP.seed, place)


@dataclass
class Told:
    """An update that is only told what is ready."""

    ready: Callable[[Part, slice], None]
    bucket: int = 0

    def __call__(self, part: Part, batch: Batch) -> None:
        raise AssertionError("no stage updates by itself")


def through(stage: Stage, ready: Callable[..., None] = lambda part, span: None, **options: Any) -> None:
    """A batch forward and backward."""
    batch = DEEP.batches(1, 0).batch(0)
    x = np.random.default_rng(1).normal(size=(batch.count, 9))
    y, saved = stage.forward(batch, x)
    stage.pass_on(y, batch)
    stage.backward(batch, saved, np.ones_like(y), Told(ready), **options)


def test_the_input_gradient_leaves_before_the_weight_gradient_of_the_first_layer() -> None:
    said: list[str] = []
    through(middle(said))
    assert said[0] == "send to 2"
    assert sorted(said[1:]) == ["finish hidden2", "finish hidden3", "send to 0"]
    assert said.index("send to 0") < said.index("finish hidden2")


def test_slices_are_ready_once_from_the_end_when_the_last_gradient_is_added() -> None:
    stage = middle([])
    spans: list[slice] = []
    through(stage, lambda part, span: spans.append(span))
    alone, whole = stage.part.grads.copy(), list(spans)
    assert whole[0].stop == stage.part.layout.size
    assert whole[-1].start == 0
    spans.clear()
    total = stage.total()
    for number in range(3):
        total.first, total.last = number == 0, number == 2
        through(stage, lambda part, span: spans.append(span), total=total)
    assert spans == whole
    np.testing.assert_array_equal(stage.part.grads, alone + alone + alone)


def test_versions_are_copied_once_and_used_again() -> None:
    part = cut(DEEP, (0, 3, 6))[0]
    stash = Stash(part)
    first, same = stash.hold(4), stash.hold(4)
    assert first is same
    part.weights += 1
    second = stash.hold(5)
    np.testing.assert_array_equal(second.vector, first.vector + 1)
    stash.release(first)
    assert stash.hold(5) is second
    stash.release(first)
    third = stash.hold(6)
    assert third is first
    np.testing.assert_array_equal(third.vector, part.weights)


def test_what_layers_save_is_stored_and_found_again() -> None:
    tree = ([np.arange(6.0).reshape(2, 3)], None, (np.array([True, False]), 3, np.empty((0, 4))), 2.5, "relu")
    arrays: dict[str, Array] = {}
    spec = flatten(tree, "saved", arrays, plain)
    assert all(array.dtype != bool for array in arrays.values())
    found = unflatten(spec, arrays, plain)
    assert isinstance(found, tuple)
    assert isinstance(found[0], list)
    np.testing.assert_array_equal(found[0][0], tree[0][0])
    assert found[2][0].dtype == bool
    assert found[2][0].tolist() == [True, False]
    assert found[2][2].shape == (0, 4)
    assert (found[1], found[2][1], *found[3:]) == (None, 3, 2.5, "relu")


def test_what_cannot_be_stored_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match=r"saved\.0"):
        flatten((object(),), "saved", {}, plain)
