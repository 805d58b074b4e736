"""Compiled kernels before the first step: one rank of each machine compiles, the others load what it has compiled."""

from types import ModuleType

import numpy as np

from mpinn.array import ops as plain
from mpinn.comm.channel import NullChannel
from mpinn.comm.grid import World
from mpinn.config import Config
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.models.model import Model
from mpinn.nn.part import build_part
from mpinn.schedules.serial import Serial
from mpinn.update import OptimizerUpdate


def warm(world: World, ops: ModuleType, config: Config, model: Model, target_shape: tuple[int, ...]) -> None:
    """Rehearse a step, on the first rank of each machine before the others; called by all ranks.

    target_shape: of one sample's target, () for class numbers.
    """
    if ops is plain:
        return
    if world.local_rank == 0:
        rehearse(ops, config, model, target_shape)
    world.control.barrier()
    if world.local_rank != 0:
        rehearse(ops, config, model, target_shape)


def rehearse(ops: ModuleType, config: Config, model: Model, target_shape: tuple[int, ...]) -> None:
    """One step of a copy of the model, thrown away afterwards: it calls every kernel that a step calls."""
    dtype = np.dtype(config.run.dtype)
    part = build_part("rehearsal", model.network, model.shape, dtype, config.optimizer.slots, ops=ops)
    schedule = Serial(part, config.loss, config.run.seed)
    alone = Independent(NullChannel("rehearsal"))
    update = OptimizerUpdate(alone, config.optimizer, lambda step: 0.0, config.train.clip, schedule.parts)
    target = np.zeros((2, *target_shape), dtype if target_shape else np.int64)
    schedule.step(Batch(0, 0, np.zeros((2, *model.shape), dtype), target, 2, 2, (0, 1), np.arange(2)), update)
