"""Steps of parareal networks on 1, 2 and 4 ranks, beside what their costs say; and what those say of more ranks.

All take turns in one run. `mpinn.partition.abreast.forecast` makes the time of a step from the measured processor time
of each predictor, fine block and coarse network apart: max fine + sum coarse + messages. What a step really takes is
given twice: wall time, which on fewer cores than ranks, or beside other programs, says little; and replayed (see
`mpinn.bench.replay`), from the processor time that each rank spends between its messages. Efficiency is the forecast
over that.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

import numpy as np

from mpinn.array.device import choose_kernels
from mpinn.bench.replay import Entry, Journal, replay
from mpinn.bench.timing import Spread, seconds_text
from mpinn.bench.turns import Contestant, in_turns, random_batch, training
from mpinn.comm.channel import NullChannel
from mpinn.comm.grid import World
from mpinn.models.model import Model, ModelOptions
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.optimizer import SGD
from mpinn.nn.parareal import Parareal
from mpinn.nn.part import Part, build_part
from mpinn.partition.abreast import Wanted, abreast, choose, forecast, head_of
from mpinn.partition.costs import ASSUMED
from mpinn.partition.cuts import joined
from mpinn.partition.profile import Cost, measure, together, units
from mpinn.partition.sides import Sides, sides_of
from mpinn.schedules.parareal import PararealOptions
from mpinn.schedules.stage import Place
from mpinn.trace import SILENT

SHAPE, CLASSES, BATCH = (32, 32, 3), 10, 64
ROUNDS, SAMPLE = 7, 0.6
MEASURED, PREDICTED = (1, 2, 4), (2, 4, 8, 16, 32, 64)
"""Numbers of blocks: in measured steps, and in forecasts."""
DTYPE = np.dtype(np.float32)
OPTIMIZER = SGD(rate=1e-3, decay="constant")


@dataclass(frozen=True)
class Work:
    """A model, and a deeper one of the same kind, the costs of whose blocks are known when those of the first are."""

    name: str
    options: ModelOptions
    deep: ModelOptions | None = None
    batch: int = BATCH
    shape: tuple[int, ...] = SHAPE

    def model(self) -> Model:
        """The network that is cut."""
        return self.options.build(self.shape, CLASSES)


WORKS = (
    Work("VGG-16 with batch norm", VGG(depth=16)),
    Work("ResNet-20", ResNet(depth=20), ResNet(depth=110)),
    Work("ResNet-29 of bottlenecks", ResNet(depth=29, block="bottleneck"), ResNet(depth=1001), 32),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A step of one work on N ranks: wall seconds, replayed ones, the forecast, and of each rank processor seconds and
    bytes: of weights, gradients and slots, and of buffers.
    """

    work: str
    count: int
    wall: Spread
    replayed: Spread
    forecast: float
    processor: tuple[float, ...]
    vectors: tuple[int, ...]
    buffers: tuple[int, ...]
    starts: str

    @property
    def efficiency(self) -> tuple[float, float]:
        """Of the replayed step and of the wall's."""
        return self.forecast / self.replayed.median, self.forecast / self.wall.median


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Of a work: seconds of a step with N blocks; 1 is the network that is cut."""

    work: str
    seconds: dict[int, float]


@dataclass(frozen=True)
class Known:
    """The measured costs of a work."""

    units: list[Cost]
    sides: Sides
    beside: list[Cost]


def run(world: World, works: Sequence[Work] = WORKS, rounds: int = ROUNDS, sample: float = SAMPLE,
        predicted: Sequence[int] = PREDICTED) -> tuple[list[Row], list[Forecasts]]:  # fmt: skip
    """Measure on all ranks; called by all, and the same comes back on all."""
    rows: list[Row] = []
    forecasts: list[Forecasts] = []
    for work in works:
        told = json.loads(world.verdict(lambda work=work: _planned(work, world.size, predicted)))  # type: ignore[misc]
        rows += _measured(work, world, {int(count): plan for count, plan in told["plans"].items()}, rounds, sample)
        forecasts += [Forecasts(name, {int(n): t for n, t in line.items()}) for name, line in told["forecasts"].items()]
    return rows, forecasts


def print_rows(found: tuple[Sequence[Row], Sequence[Forecasts]]) -> None:
    """Print both tables; called on rank 0 only."""
    rows, forecasts = found
    print(f"{'N':>3}  {'replayed step':>24}  {'wall':>24}  {'forecast':>9}  {'efficiency, wall':>16}  "
          f"{'x, forecast':>11}  processor time + ..., MiB of vectors and buffers on each rank")  # fmt: skip
    alone = rows[0]
    for row in rows:
        if row.count == 1:
            alone = row
            print(row.work)
        faster = f"{alone.replayed.median / row.replayed.median:.2f} {alone.forecast / row.forecast:.2f}"
        efficient = " ".join(f"{share:.2f}" for share in row.efficiency)
        times = " + ".join(f"{1e3 * seconds:.3g}" for seconds in row.processor)
        memory = ", ".join(
            f"{vectors / 2**20:.1f} and {buffers / 2**20:.1f}"
            for vectors, buffers in zip(row.vectors, row.buffers, strict=True)
        )
        starts = f", from {row.starts}" if row.starts else ""
        print(
            f"{row.count:3}  {seconds_text(row.replayed):>24}  {seconds_text(row.wall):>24}  "
            f"{1e3 * row.forecast:6.1f} ms  {efficient:>16}  {faster:>11}  "
            f"{times} ms; {memory}{starts}"
        )
    print("\nforecast speed-up over one rank with the network that is cut, from measured costs")
    for line in forecasts:
        one = line.seconds[1]
        told = "  ".join(f"{count}: {one / seconds:.2f}" for count, seconds in line.seconds.items() if count > 1)
        print(f"  {line.work}  {told}")


# Costs


def _planned(work: Work, ranks: int, predicted: Sequence[int]) -> bytes:
    """Measure what everything costs, cut, and forecast; on one rank, while the others sleep."""
    ops, model = choose_kernels("auto")[0], work.model()
    known = _known(work.options, model, work.batch, ops)
    plans, lines = {}, {work.name: {1: _serial(known)}}
    for count in {*(n for n in MEASURED if n <= ranks), *predicted}:
        if 1 < count <= _most(model):
            bounds, seconds = _forecast(work.options, model, known, count)
            lines[work.name][count] = seconds
            if count <= ranks and count in MEASURED:
                plans[count] = (bounds, seconds)
    if work.deep is not None:
        deep = work.deep.build(work.shape, CLASSES)
        further = _stretched(work.deep, deep, model, known)
        title = f"the same costs in the depth of {getattr(work.deep, 'depth', 0)}"
        lines[f"{work.name}: {title}"] = {1: _serial(further)} | {
            count: _forecast(work.deep, deep, further, count)[1] for count in predicted if count <= _most(deep)
        }
    plans[1] = ((0, len(model.network)), _serial(known))
    ordered = {name: dict(sorted(line.items())) for name, line in lines.items()}
    return json.dumps({"plans": dict(sorted(plans.items())), "forecasts": ordered}).encode()


def _known(options: ModelOptions, model: Model, batch: int, ops: object) -> Known:
    ends = [unit.stop for unit in units(_frame(model))]
    sides = sides_of(options, model, ends[:-1], ends)
    beside = [together(measure(side.model, batch, DTYPE, ops, wanted=side.wanted)) for side in sides.networks.values()]
    return Known(measure(model, batch, DTYPE, ops), sides, beside)


def _frame(model: Model) -> Model:
    return PararealOptions().frame(model)


def _most(model: Model) -> int:
    """Into how many blocks it can be cut."""
    return len(units(_frame(model)))


def _serial(known: Known) -> float:
    return sum(cost.forward + cost.backward for cost in known.units)


def _forecast(options: ModelOptions, model: Model, known: Known, count: int) -> tuple[tuple[int, ...], float]:
    """The best cuts into so many blocks, and seconds of a step."""
    framed, head = joined(known.units, _frame(model)), head_of(model, known.units)
    bounds = choose(Wanted(count, "residual", 1), framed, head, known.sides, known.beside, ASSUMED).bounds
    network = PararealOptions(blocks=count).network(options, model, bounds)
    if not isinstance(network, Parareal):
        raise TypeError("a network of several blocks is a parareal one")
    return bounds, forecast(abreast(network, model, known.units, bounds, known.sides, known.beside), ASSUMED).seconds


def _stretched(options: ModelOptions, deep: Model, model: Model, known: Known) -> Known:
    """The costs of a deeper model, whose units and whose networks beside them are all among those of this one."""
    costs = dict(zip(_kinds(model), known.units, strict=True))
    ends = [unit.stop for unit in units(_frame(deep))]
    sides = sides_of(options, deep, ends[:-1], ends)
    beside = dict(zip(known.sides.names, known.beside, strict=True))
    found = [
        replace(costs[kind], name=" ".join(deep.network[unit].names))
        for kind, unit in zip(_kinds(deep), units(deep), strict=True)
    ]
    return Known(found, sides, [beside[name] for name in sides.names])


def _kinds(model: Model) -> list[str]:
    """What each unit is, apart from its name."""
    return [
        f"{[layer for _, layer in model.network[unit].layers]} {model.network[: unit.start].output_shape(model.shape)}"
        for unit in units(model)
    ]


# Steps


def _measured(
    work: Work, world: World, plans: dict[int, tuple[Sequence[int], float]], rounds: int, sample: float
) -> list[Row]:
    racers = [_Racer(work, world, count, tuple(bounds)) for count, (bounds, _) in plans.items()]
    samples = in_turns(world, [racer.contestant for racer in racers], rounds, sample)
    rows = []
    for number, (racer, (count, (_, seconds))) in enumerate(zip(racers, plans.items(), strict=True)):
        told = [json.loads(text) for text in world.gather_text(json.dumps(racer.told()))][:count]
        steps = replay([[Entry(*entry) for entry in rank["entries"]] for rank in told], ASSUMED)
        rows.append(
            Row(
                f"{work.name}, batch {work.batch}",
                count,
                Spread.of(samples[:, number, :, 0].max(axis=1)),
                Spread.of(np.array(steps)),
                seconds,
                tuple(median(samples[:, number, rank, 1].tolist()) for rank in range(count)),
                tuple(rank["vectors"] for rank in told),
                tuple(rank["buffers"] for rank in told),
                ", ".join(racer.model.network.names[bound] for bound in racer.bounds[1:-1]),
            )
        )
        racer.contestant.end()
    return rows


class _Racer:
    """A parareal network of ``count`` blocks on the first ranks, one of them on this rank if that is among them."""

    def __init__(self, work: Work, world: World, count: int, bounds: tuple[int, ...]):
        self.model, self.bounds, self.contestant = work.model(), bounds, Contestant()
        taking = world.rank < count
        channel = world.channel(f"{count} blocks", int(taking)) if count > 1 else NullChannel("alone")
        aside = world.channel("aside", int(taking)) if count > 1 else NullChannel("alone")
        self._journal, self._part = Journal(channel), None
        if taking:
            self._part = _part(work, self.model, bounds, world.rank, count)
            place = Place(self._journal, aside, (), (), SILENT)
            schedule = PararealOptions(blocks=count).build(self._part, CrossEntropy(), 0, place)
            step = training(schedule, OPTIMIZER, random_batch(work.shape, CLASSES, work.batch, DTYPE))
            self.contestant = replace(step, step=lambda: self._noted(step), waited=self._journal.skip)

    def _noted(self, contestant: Contestant) -> None:
        self._journal.skip()
        if contestant.step is not None:
            contestant.step()
        self._journal.note("step")

    def told(self) -> dict[str, object]:
        """What this rank has to tell of it, for JSON."""
        part = self._part
        if part is None:
            return {}
        vectors = (part.weights, part.grads, part.state, *part.slots.values())
        entries = [[*asdict(entry).values()] for entry in self._journal.entries]
        return {"entries": entries, "vectors": sum(v.nbytes for v in vectors), "buffers": part.pool.nbytes}


def _part(work: Work, model: Model, bounds: tuple[int, ...], stage: int, count: int) -> Part:
    options, size = PararealOptions(blocks=count), work.batch * DTYPE.itemsize
    network, shape = options.share(options.network(work.options, model, bounds), model, bounds, stage, count, size)
    part = build_part("network", network, shape, DTYPE, OPTIMIZER.slots, ops=choose_kernels("auto")[0])
    part.initialize(0)
    return part
