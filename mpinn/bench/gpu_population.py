"""A population's training step on a GPU, beside the authors' formulation in PyTorch on the same device."""

from dataclasses import replace
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.bench.farias import RATE, Arrays, Scattered
from mpinn.bench.gpu_programs import WARM, Peer, Program, free_bytes, on_device
from mpinn.bench.gpu_roofline import PASSES, VECTORS, Demand, Precision
from mpinn.bench.population import OPTIMIZER, Work, part_of
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.nn.part import Part
from mpinn.population.update import MemberUpdate
from mpinn.schedules.members import Members

POPULATIONS = (Work(10, 10, 32, 2), Work(10, 100, 256, 2))
"""Ten thousand members."""
SINGLE = np.dtype(np.float32)


def demand(work: Work) -> Demand:
    """The least of a training step with SGD without momentum."""
    units, outputs = work.units, len(work.members) * work.outputs
    weights = units * (work.features + 1 + work.outputs) + outputs
    operations = 2.0 * work.batch * units * (2 * work.features + 3 * work.outputs)
    activations = work.batch * (PASSES * (units + outputs) + 2 * work.features)
    return Demand(operations, float(activations), float((VECTORS - 2) * weights))


def ours(work: Work, start: Part, ops: Any) -> tuple[Program, Array]:
    """Our step, recorded and played, and its gradient at the weights of ``start``, a part on the host."""
    from mpinn.array import cuda_timing

    before = free_bytes()
    part, batch = part_of(work.model, ops=ops), on_device(work.data(), ops, SINGLE)
    ops.fill(part.weights, start.weights)
    schedule = Members(part, work.loss, 0)
    update = MemberUpdate(Independent(NullChannel("bench")), OPTIMIZER, lambda step: RATE, 0.0, schedule.parts)
    schedule.gradient(batch)
    gradient = Arrays.of(part, ops.on_host(part.grads)).vector
    for _ in range(WARM):
        schedule.step(batch, update)
    memory = before - free_bytes()

    def step() -> object:
        return schedule.step(batch, update)

    return Program(step, cuda_timing.seconds, cuda_timing.launch_seconds, memory), gradient


def theirs(work: Work, start: Part, peer: Peer, precision: Precision, compiled: bool = False) -> tuple[Program, Array]:
    """The authors' step and its gradient."""
    before, batch = peer.free_bytes(), work.data()
    weights = Arrays.of(start, start.weights).copy()
    program = Scattered(weights, work.members, batch.x, batch.target, peer.torch, peer.device, compiled)
    with peer.at(precision):
        program.step()
        gradient = program.grads.vector
    return peer.timed(program.step, precision, before), gradient


def exact(work: Work, start: Part, ops: Any) -> Array:
    """The gradient in float64, on the device, at the weights of a part on the host."""
    part, batch = part_of(work.model, "float64", ops), on_device(work.data(), ops, np.dtype(np.float64))
    weights = ops.on_host(part.weights)
    for own, given in zip(part.layout, start.layout, strict=True):
        weights[own.slice] = start.weights[given.slice]
    ops.fill(part.weights, weights)
    if batch.target.dtype.kind == "f":
        batch = replace(batch, target=batch.target.astype(np.float64))
    Members(part, work.loss, 0).gradient(batch)
    return Arrays.of(part, ops.on_host(part.grads)).vector
