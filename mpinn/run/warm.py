"""Compiled kernels before the first step: one rank of each machine compiles, the others load what it has compiled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Timer
from typing import TypeAlias

import numpy as np
from numpy.random import Generator

from mpinn.array import ops as plain
from mpinn.array.pool import Pool
from mpinn.array.typing import Array, Shape
from mpinn.comm.channel import NullChannel
from mpinn.comm.grid import World
from mpinn.comm.launch import say
from mpinn.config import Config
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import Pass
from mpinn.nn.layout import Layout
from mpinn.nn.loss import Loss
from mpinn.nn.part import Part
from mpinn.schedules.members import Members
from mpinn.schedules.members import alone as serial
from mpinn.training.update import OptimizerUpdate

Subject: TypeAlias = tuple[Part, Shape, Shape | None]
"""A part, the shape of a sample that enters it, and of its target: () for class numbers, None if no loss is there."""
SILENCE = 3.0
"""Seconds after which it is said what the start waits for."""


def warm(world: World, config: Config, subjects: Sequence[Subject]) -> None:
    """Rehearse a step of every part, on the first rank of each machine before the others; called by all ranks.

    The parts are as they were, but for their gradients, which are zero.
    """
    if all(part.ops is plain for part, _, _ in subjects):
        return
    with _told(world.rank == 0, SILENCE):
        for turn in (True, False):
            if (world.local_rank == 0) == turn:
                for part, shape, target_shape in subjects:
                    rehearse(config, part, shape, target_shape)
            if turn:
                world.control.barrier()


@contextmanager
def _told(here: bool, silence: float) -> Iterator[None]:
    """Say what is being done if it takes longer than so many seconds."""

    def tell() -> None:
        with suppress(OSError):
            say("preparing kernels: the first start of a network on a machine compiles them")

    timer = Timer(silence, tell)
    timer.daemon = True
    if here:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def rehearse(config: Config, part: Part, shape: Shape, target_shape: Shape | None) -> None:
    """A step on two samples, which calls every kernel that a step calls and needs no second copy of the model.

    Forward and backward read the part's own weights and write its gradients, the statistics are a copy, and the
    optimizer moves the few weights of a part of its own.
    """
    actor = replace(part, name="rehearsal", state=part.state.copy(), pool=Pool(part.ops.LIBRARY))
    zeros = part.ops.LIBRARY.zeros
    target = zeros((2, *(target_shape or ())), part.layout.dtype if target_shape else np.int64)
    loss: Loss = config.loss if target_shape is not None else _NoLoss()
    x = zeros((2, *shape), part.compute_dtype)
    with np.errstate(all="ignore"):
        batch, schedule = Batch(0, 0, x, target, 2, 2, (0, 1), np.arange(2)), serial(actor, loss, config.run.seed)
        schedule.step(batch, _UpdateElsewhere(config, part))
        part.ops.all_finite(actor.state)
        if isinstance(schedule, Members):
            # which is done with kernels of its own
            schedule.measure([batch])
    part.grads.fill(0)


class _NoLoss:
    """What comes back from a later stage."""

    def __call__(self, y: Array, target: Array, context: Pass) -> tuple[Array, Array]:
        return np.zeros_like(y, shape=()), np.zeros_like(y)

    def draw(self, y: Array, rng: Generator) -> Array:
        return y


class _UpdateElsewhere:
    """The update of a part of one parameter, in place of the part whose gradient is complete."""

    def __init__(self, config: Config, part: Part):
        layout = Layout({"rehearsal": {"weight": (1,)}}, part.layout.dtype)
        weights, grads, *slots = part.ops.LIBRARY.zeros((2 + len(part.slots), layout.size), layout.dtype)
        self._part = replace(
            part,
            layout=layout,
            weights=weights,
            grads=grads,
            slots=dict(zip(part.slots, slots, strict=True)),
            counters=part.counters.copy(),
            pool=Pool(part.ops.LIBRARY),
        )
        alone = Independent(NullChannel("rehearsal"))
        parts = {part.name: self._part}
        self._update = OptimizerUpdate(alone, config.optimizer, lambda step: 0.0, config.train.clip, parts)

    bucket = 0

    def ready(self, part: Part, span: slice) -> None:
        """Nobody waits for a slice of the gradient."""

    def __call__(self, part: Part, batch: Batch) -> None:
        self._update(self._part, batch)
