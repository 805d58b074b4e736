"""Pipelines that agree with training on one rank: a batch is cut into micro-batches, and the update waits for all.

naive: the whole batch passes from stage to stage, and one stage computes at a time. GPipe (Huang et al., NeurIPS
2019): all micro-batches forward, then all backward. 1F1B (Narayanan et al., PipeDream, SOSP 2019, with a flush): a
stage starts with as many forward passes as there are stages from it to the end, then takes turns, so that it holds no
more than those.

Gradients of micro-batches add up in their order, so GPipe and 1F1B agree bit for bit with each other, and with training
on one rank to rounding; batch norms see micro-batches, and move their running statistics for each of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, TypeAlias

from msgspec import Meta

from mpinn.array.typing import Array
from mpinn.datasets.batches import Batch
from mpinn.nn.layer import Saved
from mpinn.nn.loss import Loss
from mpinn.nn.part import Part
from mpinn.schedules.options import StagedOptions
from mpinn.schedules.schedule import Measured, Update
from mpinn.schedules.stage import Message, Place, Stage, Total
from mpinn.schedules.staged import Staged

Order: TypeAlias = Literal["naive", "gpipe", "1f1b"]
Way: TypeAlias = Literal["forward", "backward"]
Turn: TypeAlias = tuple[Way, int]


@dataclass(frozen=True, kw_only=True)
class NaiveOptions(StagedOptions):
    """One stage computes at a time, with exact gradients."""

    order: ClassVar[Order] = "naive"
    micro_batches: ClassVar[int] = 1

    def build(self, part: Part, loss: Loss, seed: int, place: Place) -> "Pipeline":
        """The schedule of one stage."""
        return Pipeline(Stage(part, loss, seed, place), self.order, self.micro_batches)


@dataclass(frozen=True, kw_only=True)
class GPipeOptions(NaiveOptions):
    """All micro-batches of a batch pass forward, then all backward (Huang et al. 2019), with exact gradients."""

    micro_batches: Annotated[int, Meta(ge=1)] = 4  # type: ignore[misc]
    """Into how many pieces a replica's share of a batch is cut, where it has as many samples; a batch norm sees one
    of them at a time."""

    order: ClassVar[Order] = "gpipe"


@dataclass(frozen=True, kw_only=True)
class OneFOneBOptions(GPipeOptions):
    """As gpipe, with micro-batches forward and backward in turn, so that fewer of them are in memory."""

    order: ClassVar[Order] = "1f1b"


def turns(order: Order, stage: int, stages: int, pieces: int) -> Iterator[Turn]:
    """What ``stage`` (from 0) of ``stages`` does with micro-batches 0, 1, ... of a batch, in order."""
    ahead = min(stages - stage - 1, pieces) if order == "1f1b" else pieces
    yield from (("forward", piece) for piece in range(ahead))
    for piece in range(pieces):
        if ahead + piece < pieces:
            yield "forward", ahead + piece
        yield "backward", piece


def pieces_of(batch: Batch, count: int) -> list[Batch]:
    """The micro-batches of a replica's share: at most ``count``, none without samples, their sizes differ by one."""
    start, stride = batch.rows
    bounds = [batch.count * piece // count for piece in range(count + 1)]
    return [
        replace(
            batch, x=batch.x[low:high], target=batch.target[low:high], samples=batch.samples[low:high],
            count=high - low, rows=(start + low * stride, stride),
        )
        for low, high in pairwise(bounds)
        if high > low
    ]  # fmt: skip


class Pipeline(Staged):
    """One stage; nothing is in flight between steps."""

    def __init__(self, stage: Stage, order: Order, micro_batches: int):
        super().__init__(stage)
        self.most_in_flight = 0
        self._order = order
        self._micro_batches = micro_batches
        self._total: Total | None = stage.total() if micro_batches > 1 else None

    def step(self, batch: Batch, update: Update) -> Sequence[Measured]:
        """All micro-batches forward and backward, then the update."""
        stage, pieces = self._stage, pieces_of(batch, self._micro_batches)
        losses: list[Array] = []
        if pieces:
            self._run(pieces, update, losses)
        else:
            stage.nothing(update.ready)
        update(stage.part, batch)
        stage.version += 1
        stage.settle()
        self.staleness.add(0)
        return [Measured(batch.index, sum(losses[1:], start=losses[0]), batch.count)] if losses else []

    def _run(self, pieces: Sequence[Batch], update: Update, losses: list[Array]) -> None:
        stage, works = self._stage, {}
        following: dict[Way, int] = {"forward": 0, "backward": 0}
        coming: dict[Turn, Message | None] = {}
        for way, piece in turns(self._order, stage.number, stage.count, len(pieces)):
            following[way] = piece + 1
            # the messages of this turn and of the next of each kind are expected before the stage computes
            for turn in ((way, piece), *following.items()):
                if turn not in coming and turn[1] < len(pieces):
                    kind: Literal["activation", "gradient"] = "activation" if turn[0] == "forward" else "gradient"
                    coming[turn] = stage.receive(kind, pieces[turn[1]])
            message = coming.pop((way, piece))
            if way == "forward":
                works[piece] = self._forward(pieces[piece], message, losses)
                self.most_in_flight = max(self.most_in_flight, len(works))
            else:
                self._backward(pieces, piece, works.pop(piece), message, update)

    def _forward(self, piece: Batch, message: Message | None, losses: list[Array]) -> tuple[Saved, Array | None]:
        stage = self._stage
        y, saved = stage.forward(piece, stage.take(message, piece))
        if not stage.last:
            stage.pass_on(y, piece)
            return saved, None
        loss, dy = stage.loss(y, piece)
        losses.append(loss)
        return saved, dy

    def _backward(
        self,
        pieces: Sequence[Batch],
        piece: int,
        work: tuple[Saved, Array | None],
        message: Message | None,
        update: Update,
    ) -> None:
        stage, total = self._stage, self._total
        if total is not None:
            total.first, total.last = piece == 0, piece == len(pieces) - 1
        saved, dy = work
        if dy is None:
            dy = stage.take(message, pieces[piece])
        stage.backward(pieces[piece], saved, dy, update, total=total)
