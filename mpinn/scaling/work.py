"""What the work of a training step takes on one rank, for every size of a batch: measured, or estimated.

The units of a model, and what may stand beside the fine blocks of a parareal network, are measured with several sizes
of a batch, and the lines between them give the others: small batches take more time for a sample. Besides the passes a
step takes, for the samples, the loss and the making of a batch, and, for the parameters, the update.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import perf_counter, process_time
from types import ModuleType
from typing import Any

import numpy as np

from mpinn.array.pool import Pool
from mpinn.array.precision import activations
from mpinn.array.typing import Array
from mpinn.comm.channel import NullChannel
from mpinn.config import Config
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch, Batches
from mpinn.datasets.samples import Source
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.layer import Pass
from mpinn.nn.loss import Loss
from mpinn.nn.part import WHOLE, Part, build_part, in_memory
from mpinn.partition.cuts import Costs, learn, remark
from mpinn.partition.profile import OPERATIONS, Cost
from mpinn.partition.sides import Sides
from mpinn.schedules.registry import SCHEDULES
from mpinn.training.choices import outputs_of
from mpinn.training.measure import EVALUATION_BATCH
from mpinn.training.update import OptimizerUpdate

STEP = 4
"""By which factor one size of a batch is below the next."""
LARGEST = 256
"""Samples that are measured at most; the line through the last two sizes gives what larger batches take."""
REPEATS = 9


@dataclass(frozen=True)
class Rest:
    """Of a step besides its passes: ``samples``, seconds for a batch of some size, ``update`` for all parameters.

    ``buffers``: bytes that a step works in, by size, over those that it keeps from its forward to its backward pass;
    ``evaluation``: bytes in which the whole model predicts the validation split.
    """

    samples: dict[int, float]
    update: float
    buffers: dict[int, float]
    evaluation: int = 0


@dataclass(frozen=True)
class Work:
    """Costs by the size of the batch of a replica."""

    costs: dict[int, Costs]
    rest: Rest
    source: str

    @property
    def sizes(self) -> list[int]:
        """Those that are known, rising."""
        return sorted(self.costs)

    @property
    def sides(self) -> Sides | None:
        """What stands beside the fine blocks of a parareal network; None if the model cannot be one."""
        return self.costs[self.sizes[-1]].sides

    def units(self, batch: float) -> list[Cost]:
        """Of the units of the model."""
        return self._between(batch, lambda costs: costs.units)

    def beside(self, batch: float) -> list[Cost]:
        """Of the networks beside fine blocks."""
        return self._between(batch, lambda costs: costs.beside)

    def samples(self, batch: float) -> float:
        """Seconds of the loss, and of making the batch."""
        low, high, share = self._around(batch)
        return float(_mix(self.rest.samples[low], self.rest.samples[high], share))

    def buffers(self, batch: float) -> float:
        """Bytes that a step works in over those that it keeps."""
        low, high, share = self._around(batch)
        return max(1.0, float(_mix(self.rest.buffers[low], self.rest.buffers[high], share)))

    def _around(self, batch: float) -> tuple[int, int, float]:
        """Two sizes that are known, and how far the batch is from the first to the second."""
        sizes = self.sizes
        if len(sizes) == 1:
            return sizes[0], sizes[0], 0.0
        place = min(max(1, bisect_left(sizes, batch)), len(sizes) - 1)
        low, high = sizes[place - 1 : place + 1]
        return low, high, (batch - low) / (high - low)

    def _between(self, batch: float, of: Callable[[Costs], Sequence[Cost]]) -> list[Cost]:
        low, high, share = self._around(batch)
        return [_cost(one, other, share) for one, other in zip(of(self.costs[low]), of(self.costs[high]), strict=True)]


MIXED = tuple(entry.name for entry in fields(Cost) if entry.name not in ("name", "layers", "parameter_bytes"))


def _cost(one: Cost, other: Cost, share: float) -> Cost:
    return replace(one, **{name: _mix(getattr(one, name), getattr(other, name), share) for name in MIXED})


def _mix(one: float, other: float, share: float) -> Any:
    return max(0.0, one + share * (other - one))


def sizes_of(batch: int) -> list[int]:
    """Sizes of a batch that are measured, from 1 to the whole, or to `LARGEST`."""
    found = [min(batch, LARGEST)]
    while found[-1] > 1:
        found.append(max(1, found[-1] // STEP))
    return found[::-1]


def work_of(
    config: Config, model: Model, source: Source, ops: ModuleType, measured: bool, file: Path | None = None
) -> Work:
    """Learn it for the batch of the configuration and smaller ones; profiles are kept, see `mpinn.partition.profile`.

    Profiles are those of ``file`` with the size of the batch in its name, if one is given.
    """
    outputs, costs = outputs_of(source.summary()), {}
    wanted = _with_sides(config, model, ops, outputs)
    for size in sizes_of(config.data.batch):
        path = file.with_stem(f"{file.stem}-{size}") if file else None
        costs[size] = learn(wanted, model, outputs, size, ops, measured, path)
    if not measured:
        said = f"estimated: {OPERATIONS:.0e} multiply-adds a second; loss, batches and updates are not counted"
        said += remark(config)
        return Work(costs, Rest(dict.fromkeys(costs, 0.0), 0.0, dict.fromkeys(costs, 1.0)), said)
    rest = _rest(config, model, source, ops, costs)
    made = sum(cost.source.startswith("measured now") for cost in costs.values())
    when = "now" if made == len(costs) else "before" if not made else "before and now"
    where = ops.device_name() or "one core of this machine"
    return Work(costs, rest, f"measured {when} on {where}, batches of {', '.join(map(str, sorted(costs)))}")


def _with_sides(config: Config, model: Model, ops: ModuleType, outputs: int) -> Config:
    """The configuration under which what a parareal network needs is learnt too, where the model can be one."""
    if config.names["schedule"] == "parareal":
        return replace(config, schedule=replace(config.schedule, blocks=0))
    names = {**config.names, "schedule": "parareal"}
    other = replace(config, schedule=SCHEDULES["parareal"](), names=names)
    try:
        learn(other, model, outputs, 1, ops, measure=False)
    except (InputError, ValueError):
        return config
    return other


def _rest(config: Config, model: Model, source: Source, ops: ModuleType, costs: Mapping[int, Costs]) -> Rest:
    dtype, compute = np.dtype(config.run.dtype), activations(config.run.dtype, config.run.bf16)
    samples, buffers = {}, {}
    for size, known in costs.items():
        slots = config.optimizer.slots
        with in_memory(model.network, model.shape, WHOLE):
            part = build_part("network", model.network, model.shape, dtype, slots, ops=ops, compute_dtype=compute)
        part.initialize(config.run.seed)
        batches = Batches(source, config.run.seed, size, 1, 0, "redealt", dtype, ops=ops, compute=compute)
        y = _step(part, config.loss, batches.batch(0))
        kept = known.units[0].input_bytes + sum(cost.kept_bytes for cost in known.units)
        buffers[size] = part.pool.nbytes / kept

        def once(batches: Batches = batches, y: Array = y, part: Part = part) -> None:
            config.loss(y, batches.batch(0).target, Pass(part.pool, ops))

        samples[size] = seconds_of(once, ops)
    alone, batch = Independent(NullChannel("alone")), batches.batch(0)
    update = OptimizerUpdate(alone, config.optimizer, lambda step: 0.0, config.train.clip, {part.name: part})
    return Rest(samples, seconds_of(lambda: update(part, batch), ops), buffers, _evaluation(part, batches))


def _evaluation(part: Part, batches: Batches) -> int:
    """Bytes of the buffers in which the validation split is predicted."""
    pool = Pool(part.ops.LIBRARY)
    for batch in batches.evaluation("validation", EVALUATION_BATCH):
        part.network.forward(part.weight_views, part.state_views, batch.x, Pass(pool, part.ops, training=False))
    return pool.nbytes


def _step(part: Part, loss: Loss, batch: Batch) -> Array:
    """Both passes, which fill the pool of the part with all buffers that they need; the outputs."""
    context = Pass(part.pool, part.ops)
    y, saved = part.network.forward(part.weight_views, part.state_views, batch.x, context)
    _, dy = loss(y, batch.target, context)
    _, finish = part.network.backward(part.weight_views, saved, dy, context)
    finish(part.grad_views)
    return y


def seconds_of(work: Callable[[], object], ops: ModuleType) -> float:
    """The median, after one to warm up; processor time, or that until a device is done."""

    def now() -> float:
        ops.synchronize()
        return process_time() if ops.LIBRARY is np else perf_counter()

    work()
    found = []
    for _ in range(REPEATS):
        begun = now()
        work()
        found.append(now() - begun)
    return float(np.median(found))
