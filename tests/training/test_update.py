"""From a complete gradient to new weights: division, clipping, and the order of events."""

from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import pytest
from oracles import Problem

from mpinn.datasets.batches import Batch
from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import SGD, Adam, Optimizer
from mpinn.nn.part import Part
from mpinn.training.update import OptimizerUpdate

PROBLEM = Problem(model=MLP(widths=(9, 7), norm="batch"), optimizer=SGD(rate=0.5, momentum=0.0))
BATCH = Batch(4, 0, np.zeros((3, 6)), np.zeros(3, int), 3, 8, (0, 1), np.arange(3))


@dataclass
class Recorded:
    """A consensus that says how many samples the gradient is over, and notes what it was called for."""

    samples: int = 8
    events: list[str] = field(default_factory=list)

    def ready(self, part: Part, span: slice) -> None:
        self.events.append(f"ready {span.start}")

    def gradients(self, part: Part, batch: Batch) -> int:
        self.events.append("gradients")
        return self.samples

    def combine(self, part: Part) -> None:
        self.events.append("combine")

    def adapted(self, part: Part) -> None:
        self.events.append("adapted")


def with_gradient(problem: Problem = PROBLEM, scale: float = 1.0) -> Part:
    part, rng = problem.part(), np.random.default_rng(0)
    for entry in part.layout:
        part.grads[entry.slice] = scale * rng.normal(size=entry.size)
    return part


def updated(part: Part, clip: float, samples: int = 8, optimizer: Optimizer = PROBLEM.optimizer) -> np.ndarray:
    """How far the update moves the weights."""
    before = part.weights.copy()
    update = OptimizerUpdate(Recorded(samples), optimizer, lambda index: 0.1 * index, clip, {part.name: part})
    update(part, BATCH)
    return part.weights - before


def test_the_sum_is_divided_and_the_rate_is_that_of_the_batch() -> None:
    part = with_gradient()
    np.testing.assert_allclose(updated(part, 0.0), -0.4 * part.grads / 8, rtol=1e-12, atol=1e-15)


def test_a_long_gradient_is_shortened_to_the_limit() -> None:
    part = with_gradient()
    moved = updated(part, 0.05)
    assert np.linalg.norm(part.grads) / 8 > 0.05
    assert np.linalg.norm(moved) == pytest.approx(0.4 * 0.05, rel=1e-12)
    direction = part.grads / np.linalg.norm(part.grads)
    np.testing.assert_allclose(moved, -0.4 * 0.05 * direction, rtol=1e-12, atol=1e-15)


def test_a_norm_below_the_limit_changes_no_bit() -> None:
    norm = np.linalg.norm(with_gradient().grads) / 8
    free = updated(with_gradient(), 0.0)
    assert updated(with_gradient(), norm * (1 + 1e-12)).tobytes() == free.tobytes()
    assert updated(with_gradient(), norm * (1 - 1e-12)).tobytes() != free.tobytes()
    assert not updated(with_gradient(scale=0.0), 0.1).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_shows(bad: float) -> None:
    part = with_gradient()
    part.grads[3] = bad
    with np.errstate(all="ignore"):
        moved = updated(part, 0.05)
    assert not np.isfinite(moved[3])
    assert np.isfinite(moved[0])
    assert moved[0] != 0


def test_a_norm_that_overflows_does_not_stop_training_silently() -> None:
    part = with_gradient(Problem(dtype="float32", optimizer=PROBLEM.optimizer), scale=1e25)
    with np.errstate(over="ignore"):
        moved = updated(part, 1.0)
    assert np.abs(moved).max() > 1e20


def test_the_norm_adds_up_layers_in_their_order() -> None:
    part = with_gradient()
    layers = [part.grads[part.layout.span((name,))] for name in part.weight_views]
    total = 0.0
    for layer in layers:
        total += float(layer @ layer)
    expected = sqrt(total) * (1 / 8)
    scale = 1 / 8 * (0.05 / expected)
    np.testing.assert_array_equal(updated(part, 0.05), with_step(part, scale))


def with_step(part: Part, scale: float) -> np.ndarray:
    fresh = with_gradient()
    before = fresh.weights.copy()
    fresh.weights -= part.grads * scale * (0.1 * BATCH.index)
    return fresh.weights - before


def test_without_samples_anywhere_nothing_changes() -> None:
    part = with_gradient(Problem(optimizer=Adam()))
    part.slots["first_moment"].fill(1)
    assert not updated(part, 1.0, samples=0, optimizer=Adam()).any()
    assert part.counters[0] == 0


def test_consensus_comes_before_the_optimizer() -> None:
    part, consensus = with_gradient(), Recorded()

    @dataclass(frozen=True, kw_only=True)
    class Watched(SGD):
        def apply(self, part: Part, segments, rate: float, scale: float) -> None:
            consensus.events.append("apply")

    update = OptimizerUpdate(consensus, Watched(), lambda index: 1.0, 1.0, {part.name: part})
    update.ready(part, slice(64, 128))
    update(part, BATCH)
    assert consensus.events == ["ready 64", "gradients", "combine", "apply", "adapted"]
