"""What a training step costs under each schedule on stages that need not be even: time, messages, what is in flight.

F_k and B_k are the seconds of the forward and backward pass of stage k for the local batch, from 1 to K. A message
occupies its sender, as it does through shared memory: with m micro-batches, and c_k the seconds that the message of one
takes across the cut after stage k (c_0 = c_K = 0),

    f_k = F_k / m + c_k      b_k = B_k / m + c_{k-1}      t_k = f_k + b_k

and m = 1 but for gpipe and 1f1b. A stage's own part of a step is t_k, or t_k' below, which `mpinn.partition.split`
makes even.

    serial      sum (F_k + B_k)                                 one rank, no messages
    naive       sum t_k
    gpipe       sum t_k + (m - 1) (max f_k + max b_k)           two flow shops, one after the other
    1f1b        the longest path through its passes: no formula for uneven stages; as gpipe where they are even
    decoupled   max t_k'                                        ddg, fr, fdg and layerwise
    local       max (f_k + B_k)                                 messages go right only; auxiliary heads are not counted

where t_k' = f_k + b_k', and b_k' = b_k + F_k on a stage that runs its forward pass again, else b_k: with ``recompute``,
as in fr and layerwise, all stages do but the last, which still has what it needs (`mpinn.partition.demands`).

The last two are the seconds from one step to the next once all stages have work: stages run ahead as far as their
messages let them. Every loop of dependencies through stages k..j takes t_k' + ... + t_j' in j - k + 1 steps, whether
the forward passes of a batch follow each other within a step (ddg, fr) or one step apart (fdg, layerwise), so the
slowest stage sets the pace. Where a step must end on all stages before the next one begins, in lock-step, ddg and fr
pay for their chain:

    ddg, fr     max_k (f_1 + ... + f_k + b_k')

If stages of ddg or fr run backward first (``order``), all but the last wait for the gradient before they take a batch:
the loop through stages k..K takes one step less, so that two stages are no faster than one rank,

    ddg, fr     max (max_k t_k', max_{k<K} (t_k' + ... + t_K') / (K - k))
                e_{K-1} + t_K, with e_k = max(e_{k-1}, b_k') + f_k and e_0 = 0, in lock-step

Passes that run side by side (``overlap``) are counted one after the other.

For even stages with B = 2F and messages that take no time the speed-up of ddg in lock-step is the usual 3K / (K + 2).
That of fr is usually given as 3K / (K + 3), for a last stage that runs its forward pass again as well; here it is also
3K / (K + 2), and 3K / 4 where stages run ahead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

from mpinn.partition.demands import DECOUPLED, demands
from mpinn.partition.profile import Cost
from mpinn.partition.split import BANDWIDTH, LATENCY, Demand, Partition, stage_bytes

PIPELINES = ("gpipe", "1f1b")
"""The schedules that cut a batch into micro-batches."""
SCHEDULES = ("serial", "naive", *PIPELINES, "ddg", "fr", "fdg", "layerwise", "local")


@dataclass(frozen=True)
class Link:
    """Messages between neighbours: bytes per second, and seconds of a message of no bytes."""

    bandwidth: float
    latency: float

    def seconds(self, size: float) -> float:
        """Of a message of ``size`` bytes."""
        return self.latency + size / self.bandwidth


ASSUMED = Link(BANDWIDTH, LATENCY)
"""Where nothing better is known."""
Links: TypeAlias = Link | Sequence[Link]
"""One for all cuts, or one for each, in order."""


@dataclass(frozen=True)
class Stage:
    """One stage, for the local batch: seconds, and the bytes that it sends to the stage before and to the one after."""

    costs: tuple[Cost, ...]
    before: int
    after: int

    @property
    def forward(self) -> float:
        """F_k."""
        return sum(cost.forward for cost in self.costs)

    @property
    def backward(self) -> float:
        """B_k."""
        return sum(cost.backward for cost in self.costs)

    @property
    def parameter_bytes(self) -> int:
        """Of one vector of its parameters."""
        return sum(cost.parameter_bytes for cost in self.costs)


@dataclass(frozen=True)
class Forecast:
    """A schedule on given stages: seconds from step to step, also in lock-step, and messages of all stages in a step.

    ``in_flight`` are the bytes that each stage holds besides its weights, gradients and slots: activations, inputs and
    old weights.
    """

    schedule: str
    seconds: float
    locked: float
    messages: int
    in_flight: tuple[float, ...]


def stages_of(costs: Sequence[Cost], partition: Partition) -> list[Stage]:
    """The stages of a partition of these units."""
    ends = list(accumulate(cost.layers for cost in costs))
    cuts = [0, *(ends.index(bound) + 1 for bound in partition.bounds[1:])]
    found = []
    for start, stop in pairwise(cuts):
        before = costs[start].input_bytes if start else 0
        after = costs[stop - 1].output_bytes if stop < len(costs) else 0
        found.append(Stage(tuple(costs[start:stop]), before, after))
    return found


def forecast(schedule: str, options: Any, stages: Sequence[Stage], link: Links, micro_batches: int) -> Forecast:
    """What a step takes under a schedule with its options; the number of micro-batches matters to pipelines only."""
    micro_batches = micro_batches if schedule in PIPELINES else 1
    rule = demands(schedule, options, micro_batches)
    asked = [rule(number, len(stages)) for number in range(1, len(stages) + 1)]
    seconds, locked = _seconds(schedule, options, stages, asked, link, micro_batches)
    cuts = 0 if schedule == "serial" else len(stages) - 1
    if schedule == "serial":
        stages, asked = [Stage(tuple(cost for stage in stages for cost in stage.costs), 0, 0)], [Demand()]
    held = tuple(map(_in_flight, stages, asked))
    ways = 1 if schedule == "local" else 2
    return Forecast(schedule, seconds, locked, ways * cuts * micro_batches, held)


def _in_flight(stage: Stage, demand: Demand) -> float:
    return stage_bytes(stage.costs, demand, 0) - 2 * stage.parameter_bytes


def _seconds(
    schedule: str, options: Any, stages: Sequence[Stage], asked: Sequence[Demand], link: Links, micro_batches: int
) -> tuple[float, float]:
    """Seconds from step to step, and those in lock-step."""
    forward, backward = _passes(stages, link, micro_batches)
    if schedule in DECOUPLED:
        again = [(demand.forwards - 1) * stage.forward for stage, demand in zip(stages, asked, strict=True)]
        return _decoupled(options, forward, [a + b for a, b in zip(again, backward, strict=True)])
    both = sum(forward) + sum(backward)
    rules: dict[str, Callable[[], float]] = {
        "serial": lambda: sum(stage.forward + stage.backward for stage in stages),
        "naive": lambda: both,
        "gpipe": lambda: both + (micro_batches - 1) * (max(forward) + max(backward)),
        "1f1b": lambda: one_forward_one_backward(forward, backward, micro_batches),
        "local": lambda: _largest(forward, [stage.backward for stage in stages]),
    }
    found = rules[schedule]()
    return found, found


def _decoupled(options: Any, forward: Sequence[float], backward: Sequence[float]) -> tuple[float, float]:
    """Of f_k and b_k'."""
    turns = [f + b for f, b in zip(forward, backward, strict=True)]
    pace = max(turns)
    if not options.chained:
        return pace, pace
    if options.order == "forward_first":
        return pace, _largest(list(accumulate(forward)), backward)
    loops = enumerate(accumulate(reversed(turns)))
    ended = 0.0
    for f, b in zip(forward[:-1], backward[:-1], strict=True):
        ended = max(ended, b) + f
    return max([pace, *(loop / steps for steps, loop in loops if steps)]), ended + turns[-1]


def _largest(*terms: Sequence[float]) -> float:
    return max(map(sum, zip(*terms, strict=True)))


def _passes(stages: Sequence[Stage], link: Links, micro_batches: int) -> tuple[list[float], list[float]]:
    """f_k and b_k."""
    last = len(stages) - 1
    cuts = [link] * last if isinstance(link, Link) else link
    forward = [
        stage.forward / micro_batches + (cuts[number].seconds(stage.after / micro_batches) if number < last else 0)
        for number, stage in enumerate(stages)
    ]
    backward = [
        stage.backward / micro_batches + (cuts[number - 1].seconds(stage.before / micro_batches) if number else 0)
        for number, stage in enumerate(stages)
    ]
    return forward, backward


def one_forward_one_backward(forward: Sequence[float], backward: Sequence[float], micro_batches: int) -> float:
    """Seconds of a step of m micro-batches in which stage k of K runs K - k forward passes ahead, then takes turns.

    Narayanan et al., PipeDream, 2019, in the form that is emptied before each update.
    """
    stages = len(forward)
    programs = [_program(min(stages - 1 - stage, micro_batches), micro_batches) for stage in range(stages)]
    ended: dict[tuple[str, int, int], float] = {("F", -1, piece): 0.0 for piece in range(micro_batches)}
    clocks, places = [0.0] * stages, [0] * stages
    while any(place < 2 * micro_batches for place in places):
        for stage, program in enumerate(programs):
            while places[stage] < 2 * micro_batches:
                kind, piece = program[places[stage]]
                needed = ("F", stage - 1, piece) if kind == "F" else ("B", stage + 1, piece)
                if kind == "B" and stage == stages - 1:
                    needed = ("F", stage, piece)
                if needed not in ended:
                    break
                took = forward[stage] if kind == "F" else backward[stage]
                clocks[stage] = ended[kind, stage, piece] = max(clocks[stage], ended[needed]) + took
                places[stage] += 1
    return max(clocks)


def _program(ahead: int, micro_batches: int) -> list[tuple[str, int]]:
    """The passes of a stage in order, with the micro-batch of each."""
    turns = [turn for piece in range(micro_batches - ahead) for turn in (("F", ahead + piece), ("B", piece))]
    return [
        *(("F", piece) for piece in range(ahead)),
        *turns,
        *(("B", micro_batches - ahead + piece) for piece in range(ahead)),
    ]
