"""What a rank sends in training, exactly as `mpinn.comm.meter` counts it: calls and bytes by channel and operation.

Sums, gathers and broadcasts count the array of this rank, whatever the algorithm makes of it. A receive answers a send
and is not counted again. Every schedule and every consensus of the registries is here.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from mpinn.consensus.graphs import GRAPHS
from mpinn.scaling.ownership import Piece, Vectors

Sent: TypeAlias = dict[tuple[str, str], tuple[int, int]]
"""(channel, operation) -> (calls, bytes); channels are ``stages`` and ``replicas``."""
NUMBER = 8
"""Bytes of a score, and of a norm."""
Message: TypeAlias = tuple[int, int]
"""How often in a batch, and how many numbers of each sample altogether."""


@dataclass(frozen=True)
class Seat:
    """A stage of K, counted from 0, in its replica."""

    piece: Piece
    number: int
    stages: int

    @property
    def last(self) -> bool:
        """Whether the depth ends here."""
        return self.number == self.stages - 1


def _neighbours(options: Any, seat: Seat, count: int) -> list[Message]:
    """An activation on, a gradient back, for each micro-batch."""
    pieces = min(getattr(options, "micro_batches", 1), count)
    on = [] if seat.last else [(pieces, seat.piece.after)]
    return on + ([(pieces, seat.piece.before)] if seat.number else [])


def _onward(options: Any, seat: Seat, count: int) -> list[Message]:
    """An activation on, nothing back."""
    return [] if seat.last else [(1, seat.piece.after)]


def _nothing(options: Any, seat: Seat, count: int) -> list[Message]:
    return []


def _abreast(options: Any, seat: Seat, count: int) -> list[Message]:
    """Fine and coarse values on, adjoints back; or guesses and values to the last stage, which answers all."""
    piece = seat.piece
    if piece.gathered:
        return [(1, size) for size in piece.gathered]
    on = [] if seat.last else [(piece.right, piece.right * piece.after)]
    return on + ([(piece.left, piece.left * piece.before)] if seat.number else [])


STAGES: Mapping[str, Callable[[Any, Seat, int], list[Message]]] = {
    "serial": _nothing,
    "naive": _neighbours,
    "gpipe": _neighbours,
    "1f1b": _neighbours,
    "fdg": _neighbours,
    "ddg": _neighbours,
    "fr": _neighbours,
    "layerwise": _neighbours,
    "local": _onward,
    "parareal": _abreast,
}
"""(options, seat, samples of the replica in the batch) -> what a stage sends for a batch."""
ALONE = ("fdg", "ddg", "fr", "layerwise", "local")
"""Schedules under which each stage measures the norm of its gradient for itself."""


def stage_sent(schedule: str, options: Any, seat: Seat, counts: Sequence[int], item: int, clip: bool,
               layers: int) -> Sent:  # fmt: skip
    """Of one stage for batches in which its replica has so many samples.

    ``item``: bytes of a number of an activation, or of its gradient; ``layers``: the most that learn on a stage. With
    ``clip`` stages that apply the gradient of the same batch tell each other the norms of their layers.
    """
    calls = size = 0
    for count in counts:
        for often, numbers in STAGES[schedule](options, seat, count) if count else []:
            calls, size = calls + often, size + numbers * count * item
    found: Sent = {("stages", "send"): (calls, size)} if calls else {}
    steps = sum(count > 0 for count in counts)
    if clip and seat.stages > 1 and schedule not in ALONE and steps:
        found["stages", "all_gather"] = (steps + 1, NUMBER * (1 + layers * steps))
    return found


@dataclass(frozen=True)
class Course:
    """So many steps of R replicas, of which ``period`` is one round of the consensus, that end a run or do not.

    ``accumulate``: gradients for one update.
    """

    steps: int
    replicas: int
    period: int
    accumulate: int = 1

    @property
    def updates(self) -> int:
        """How often the optimizer steps; what is in flight is finished."""
        return -(-self.steps // self.accumulate)

    @property
    def meetings(self) -> int:
        """One after each period, and after the last step."""
        return -(-self.steps // self.period)

    @property
    def mixes(self) -> int:
        """Updates with the last batch of a period among theirs."""
        ends = [min(update * self.accumulate, self.steps) // self.period for update in range(self.updates + 1)]
        return sum(before < after for before, after in pairwise(ends))


Exchanged: TypeAlias = Callable[[Any, Sequence[Vectors], Course, int, int], list[tuple[str, int, int]]]


def _gradients(options: Any, parts: Sequence[Vectors], course: Course, item: int, slots: int) -> list[Any]:
    """One sum of every gradient, in buckets."""
    bucket = max(1, int(options.bucket * 2**20) // item)
    each = [(-(-part.weights // bucket), part.weights * item) for part in parts]
    return [("all_sum", course.updates * calls, course.updates * size) for calls, size in each]


def _meetings(options: Any, parts: Sequence[Vectors], course: Course, item: int, slots: int) -> list[Any]:
    """Scores of each, and the vectors; those of the best one alone, or with their information."""
    rounds = course.meetings
    averaged = slots if getattr(options, "slots", "keep") == "average" else 0
    found = [("all_gather", rounds, rounds * NUMBER * parts[0].groups)]
    for part in parts:
        size = packed(part, averaged) * item
        operation = "broadcast" if options.score == "best" and part.groups == 1 else "all_sum"
        found.append((operation, rounds, rounds * size))
        if options.score == "fisher":
            found.append(("all_sum", rounds, rounds * part.weights * item))
    return found


def packed(part: Vectors, slots: int) -> int:
    """Elements of what is averaged of a part: see `mpinn.consensus.packing`."""
    return part.weights * (1 + slots) + part.state + part.extra


def degree(options: Any, replicas: int) -> int:
    """Neighbours of a replica; every replica of the graphs has as many."""
    return replicas - 1 if options.graph == "complete" else len(GRAPHS[options.graph](replicas, 0))


def _mixes(options: Any, parts: Sequence[Vectors], course: Course, item: int, slots: int) -> list[Any]:
    """The weights to every neighbour."""
    often = course.mixes * degree(options, course.replicas)
    return [("send", often, often * part.weights * item) for part in parts]


def _none(options: Any, parts: Sequence[Vectors], course: Course, item: int, slots: int) -> list[Any]:
    return []


REPLICAS: Mapping[str, Exchanged] = {
    "averaging": _meetings,
    "gossip": _mixes,
    "gradients": _gradients,
    "none": _none,
    "outer": _meetings,
}
"""(options, parts of the rank, course, bytes of a number, slots of the optimizer) -> (operation, calls, bytes)."""


def replica_sent(consensus: str, options: Any, parts: Sequence[Vectors], course: Course, item: int, slots: int) -> Sent:
    """Of one rank to the ranks with the same stage of other replicas; one replica sends nothing."""
    if course.replicas == 1:
        return {}
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for operation, calls, size in REPLICAS[consensus](options, parts, course, item, slots):
        if calls:
            totals["replicas", operation][0] += calls
            totals["replicas", operation][1] += size
    return {key: (calls, size) for key, (calls, size) in totals.items()}


def period_of(options: Any, steps_per_epoch: int) -> int:
    """Steps from one meeting or mix to the next; 1 where there is nothing of the kind."""
    period = getattr(options, "period", None)
    return 1 if period is None else int(period.steps(steps_per_epoch))


def bytes_of(sent: Sent) -> int:
    """Of all operations."""
    return sum(size for _, size in sent.values())
