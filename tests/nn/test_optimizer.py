"""Optimizers against the formulas of PyTorch's documentation, and what they leave alone."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import formulas
import numpy as np
import pytest

from mpinn.array.pool import SMALL
from mpinn.config import Length
from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import OPTIMIZERS, SGD, Adam, AdamW, Optimizer
from mpinn.nn.part import Part, build_part

CHOICES: dict[str, Optimizer] = {
    "plain": SGD(momentum=0.0),
    "plain with decay": SGD(momentum=0.0, weight_decay=0.1),
    "heavy ball": SGD(momentum=0.9),
    "heavy ball with decay": SGD(momentum=0.7, weight_decay=0.1),
    "nesterov": SGD(nesterov=True),
    "nesterov with decay": SGD(nesterov=True, weight_decay=0.1),
    "adam": Adam(),
    "adam with decay": Adam(weight_decay=0.1, betas=(0.8, 0.99), epsilon=1e-4),
    "adamw": AdamW(),
    "adamw with decay": AdamW(weight_decay=0.3, betas=(0.8, 0.99), epsilon=1e-4),
}
RATES = [0.1, 0.05, 0.2, 0.01, 0.1, 0.3]
SAMPLES = 8


def build(optimizer: Optimizer, dtype: str = "float64", widths: tuple[int, ...] = (150, 9), inputs: int = 70) -> Part:
    model = MLP(widths=widths, norm="batch").build((inputs,), 5)
    part = build_part("network", model.network, model.shape, np.dtype(dtype), optimizer.slots)
    part.initialize(0)
    return part


def gradients(part: Part, count: int = len(RATES)) -> list[np.ndarray]:
    """Mean gradients with zero padding."""
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(count):
        vector = np.zeros(part.layout.size)
        for entry in part.layout:
            vector[entry.slice] = rng.normal(size=entry.size) * 10.0 ** rng.integers(-3, 2)
        drawn.append(vector)
    return drawn


def train(part: Part, optimizer: Optimizer, means: Sequence[np.ndarray]) -> None:
    segments = optimizer.segments(part.layout)
    for mean, rate in zip(means, RATES, strict=True):
        part.grads[:] = mean * SAMPLES
        optimizer.apply(part, segments, rate, 1 / SAMPLES)


def expected(optimizer: Optimizer, start: np.ndarray, means: list[np.ndarray], decay: float) -> np.ndarray:
    match optimizer:
        case SGD():
            return formulas.sgd(start, means, RATES, optimizer.momentum, decay, optimizer.nesterov)
        case Adam() | AdamW():
            decoupled = isinstance(optimizer, AdamW)
            return formulas.adam(start, means, RATES, optimizer.betas, optimizer.epsilon, decay, decoupled)
    raise AssertionError(f"no oracle for {optimizer}")


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-13), ("float32", 3e-5)])
def test_steps_follow_the_formulas(name: str, dtype: str, limit: float, decay_all: bool) -> None:
    optimizer = replace(CHOICES[name], decay_all=decay_all)
    part = build(optimizer, dtype)
    start = part.weights.astype("f8")
    means = gradients(part)
    train(part, optimizer, means)
    for entry in part.layout:
        decay = optimizer.weight_decay if decay_all or entry.path[-1] == "weight" else 0.0
        wanted = expected(optimizer, start[entry.slice], [mean[entry.slice] for mean in means], decay)
        np.testing.assert_allclose(part.weights[entry.slice], wanted, rtol=limit, atol=limit, err_msg=entry.name)


@pytest.mark.parametrize("name", CHOICES)
def test_padding_stays_zero(name: str) -> None:
    part = build(CHOICES[name])
    train(part, CHOICES[name], gradients(part))
    padding = np.ones(part.layout.size, bool)
    for entry in part.layout:
        padding[entry.slice] = False
    assert padding.any()
    for vector in (part.weights, *part.slots.values()):
        assert not vector[padding].any()
        assert vector[~padding].any()


@pytest.mark.parametrize("decay_all", [False, True])
def test_segments_cover_the_vector(decay_all: bool) -> None:
    optimizer = SGD(weight_decay=0.5, decay_all=decay_all)
    layout = build(optimizer).layout
    segments = list(optimizer.segments(layout).pieces())
    assert (segments[0][0], segments[-1][1]) == (0, layout.size)
    assert all(left[1] == right[0] and left[2] != right[2] for left, right in pairwise(segments))
    for entry in layout:
        (decay,) = (d for start, stop, d, _ in segments if start <= entry.start and entry.slice.stop <= stop)
        assert decay == (0.5 if decay_all or entry.path[-1] == "weight" else 0.0)
    assert list(SGD().segments(layout).pieces()) == [(0, layout.size, 0.0, 1.0)]


@pytest.mark.parametrize("optimizer", [Adam(), AdamW()])
def test_after_a_reset_adam_counts_from_one(optimizer: Adam | AdamW) -> None:
    used, fresh = build(optimizer), build(optimizer)
    means = gradients(used)
    train(used, optimizer, means)
    assert used.counters[0] == len(RATES)
    used.reset_slots()
    used.weights[:] = fresh.weights
    for part in (used, fresh):
        train(part, optimizer, means)
    assert used.weights.tobytes() == fresh.weights.tobytes()
    assert used.counters[0] == fresh.counters[0] == len(RATES)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_steady_step_allocates_nothing_large(name: str, dtype: str) -> None:
    optimizer = CHOICES[name]
    part = build(optimizer, dtype, widths=(400, 300), inputs=500)
    segments = optimizer.segments(part.layout)
    optimizer.apply(part, segments, 0.1, 1.0)
    tracemalloc.start()
    optimizer.apply(part, segments, 0.1, 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert part.weights.nbytes > 16 * SMALL
    # two blocks of scratch, each of them not large
    assert peak < SMALL + 8192


def test_a_network_without_parameters_can_be_stepped() -> None:
    from mpinn.nn.flatten import Flatten
    from mpinn.nn.network import Network

    for optimizer in (SGD(), Adam()):
        part = build_part("empty", Network((("flatten", Flatten()),)), (3,), np.dtype("f8"), optimizer.slots)
        optimizer.apply(part, optimizer.segments(part.layout), 0.1, 1.0)
        assert part.weights.size == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_are_those_that_are_used(name: str) -> None:
    optimizer = OPTIMIZERS[name]()
    part = build(optimizer)
    assert tuple(part.slots) == optimizer.slots
    train(part, optimizer, gradients(part))
    assert all(slot.any() for slot in part.slots.values())


def test_course_counts_in_steps_of_this_run() -> None:
    optimizer = SGD(
        rate=0.4, decay="step", warmup=Length("2 epochs"), milestones=(Length("3 epochs"), Length("40 steps"))
    )
    course = optimizer.course(steps_per_epoch=10, total=100)
    assert [course(step) for step in (0, 19, 20, 29)] == pytest.approx([0.4 / 21, 0.4 * 20 / 21, 0.4, 0.4])
    assert [course(step) for step in (30, 39, 40, 99)] == pytest.approx([0.04, 0.04, 0.004, 0.004])
