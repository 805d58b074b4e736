"""Parareal on ranks: stage j has fine block j, its predictor and its coarse network; all fine blocks run at once.

See `mpinn.nn.parareal` for what is computed. Every stage has the samples, so none waits before its fine block has run.
Messages of a sweep, and of a step with one sweep and N stages:

    y_j         to the stage after, as soon as it is there                              N - 1
    c_j         to the stage after, when c_{j-1} has come: the coarse chain             N - 2
    l_{j-1}     to the stage before, before the fine block runs backward                N - 1

Or the coarse networks are all on the last stage (`mpinn.nn.gathered`): the others send it y_j, and their guess before
that, 2N - 3 messages, and it sends back l_j, and what V_j loses, as many.

The last stage has the head and the loss. What it computes is what `mpinn.nn.parareal.Parareal` computes on one rank, to
the last bit, and nothing is reduced over the stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from mpinn.array.pool import Pool
from mpinn.array.recording import Cut, Keys
from mpinn.array.typing import Array, Shape
from mpinn.datasets.batches import Batch
from mpinn.errors import InputError
from mpinn.models.model import Model, ModelOptions
from mpinn.models.parareal import parareal
from mpinn.nn.block import Form
from mpinn.nn.gathered import Gathered
from mpinn.nn.layer import Pass, Tree
from mpinn.nn.loss import Loss
from mpinn.nn.network import Whole
from mpinn.nn.parareal import Parareal
from mpinn.nn.part import Part
from mpinn.partition.abreast import Wanted, waits
from mpinn.schedules.mail import MOST, Mail, Route, route
from mpinn.schedules.options import Bounds, StagedOptions
from mpinn.schedules.recorded import Ready, numbers_of, repeat
from mpinn.schedules.schedule import Measured, Update
from mpinn.schedules.serial import Serial
from mpinn.schedules.stage import Place, Stage
from mpinn.schedules.staged import Staged
from mpinn.trace import SILENT


@dataclass(frozen=True, kw_only=True)
class PararealOptions(StagedOptions):
    """Fine blocks of the network run at once, and coarse networks carry the error of predicted inputs on (arXiv
    2103.08802).

    See `mpinn.nn.parareal` for the formulas, and `mpinn.run.fit` for what is fitted.
    """

    form: Form = "residual"
    """The correction: the paper's, of the error of a guess (residual), or that of classical parareal (difference)."""
    iterations: Annotated[int, Meta(ge=1, le=MOST)] = 1
    """How many sweeps over the fine blocks correct the guesses, at most as many as there are blocks."""
    blocks: Annotated[int, Meta(ge=0)] = 0
    """Into how many fine blocks the network is cut, 0 for as many as there are stages. One rank trains all of them
    where ``grid.stages`` is 1; otherwise there is a stage for each."""
    sweep: Literal["auto", "chain", "gather"] = "auto"
    """Where the coarse networks are: each beside its fine block, and corrections go from one to the next (chain); all
    on the last stage, for one sweep only (gather); or where messages take less time (auto). Results are the same to
    the last bit."""
    warm: str = ""  # type: ignore[misc]
    """A run or a checkpoint of the network that is cut, trained; training begins with its fine blocks, and with
    predictors and coarse networks that are fitted to it."""
    fit: Annotated[int, Meta(ge=0)] = 5
    """Epochs in which predictors and coarse networks are fitted to the network of ``warm``."""

    sampled: ClassVar[bool] = True

    def settled(self, stages: int) -> "PararealOptions":
        """With the number of blocks written out; InputError where it does not fit."""
        blocks = self.blocks or stages
        if stages not in (1, blocks):
            raise InputError("schedule.blocks", f"{blocks} fine blocks need as many stages, or one, not {stages}")
        if self.iterations > blocks:
            raise InputError(
                "schedule.iterations", f"{blocks} fine blocks are exact after {blocks} sweeps, got {self.iterations}"
            )
        if self.sweep == "gather" and self.iterations > 1:
            why = "between several sweeps fine blocks run again on stages of their own"
            raise InputError("schedule.sweep", f"gather goes with one sweep, not {self.iterations}: {why}")
        if self.warm and self.iterations > 1:
            why = "what is fitted is the correction of a first guess"
            raise InputError("schedule.warm", f"goes with one sweep, not {self.iterations}: {why}")
        return replace(self, blocks=blocks)

    def pieces(self, stages: int) -> int:
        """As many as there are fine blocks."""
        return self.blocks or stages

    def frame(self, model: Model) -> Model:
        """With a block of the body in the first and in the last piece too: stem and head are no fine blocks.

        What follows that block without parameters, such as a flatten, is in the last piece with it.
        """
        parameters, names = model.network.parameters(model.shape), model.network.names
        head = model.head + 1
        while head < len(names) and names[-head] not in parameters:
            head += 1
        return replace(model, stem=model.stem + 1, head=head)

    def wanted(self, slots: int) -> Wanted:
        """What is made of the fine blocks."""
        return Wanted(self.blocks, self.form, self.iterations, slots)

    def network(self, options: ModelOptions, model: Model, bounds: Bounds) -> Whole:
        """The parareal network; with one fine block it is the model's own."""
        if len(bounds) == 2:
            return model.network
        return parareal(options, model, bounds, self.form, self.iterations)

    def share(
        self, network: Whole, model: Model, bounds: Bounds, stage: int, stages: int, size: int
    ) -> tuple[Whole, Shape]:
        """One block, or all, or what is gathered; samples enter every stage."""
        if stages == 1 or not isinstance(network, Parareal):
            return network, model.shape
        if self.gathers(network, size)[0]:
            return Gathered(network.blocks, stage + 1), model.shape
        return network[stage : stage + 1], model.shape

    def remarks(self, second_core: bool, network: Whole, size: int) -> Sequence[str]:
        """Where the coarse sweep is, and why."""
        if not isinstance(network, Parareal):
            return ()
        gathers, why = self.gathers(network, size)
        return (f"coarse sweep {'gathered on the last stage' if gathers else 'from stage to stage'}: {why}",)

    def gathers(self, network: Parareal, size: int) -> tuple[bool, str]:
        """Whether the coarse networks are all on the last stage, and why; ``size`` as for `share`."""
        if self.sweep != "auto":
            return self.sweep == "gather", f"schedule.sweep is {self.sweep}"
        if len(network.blocks) == 2:
            return False, "there is one coarse network"
        if self.iterations > 1:
            return False, f"there are {self.iterations} sweeps"
        chain, gather = (1e6 * seconds for seconds in waits(network.blocks, size))
        return gather < chain, f"its messages take about {chain:.0f} us in a chain, {gather:.0f} us gathered"

    def build(self, part: Part, loss: Loss, seed: int, place: Place) -> "Serial | PararealStage":
        """The schedule of one stage; on one rank the network is trained like any other."""
        if place.channel.size == 1:
            return Serial(part, loss, seed, place.trace)
        return PararealStage(part, loss, seed, place)


class PararealStage(Staged):
    """One fine block; nothing is in flight between steps."""

    def __init__(self, part: Part, loss: Loss, seed: int, place: Place):
        super().__init__(Stage(part, loss, seed, place))
        self._part, self._loss, self._seed = part, loss, seed
        self._recorder = None if place.trace.wanted else part.ops.recorder()
        self._route = route(part.network, Mail(place.channel, part, place.trace, stays=self._recorder is not None))
        self._aside = route(part.network, Mail(place.aside, part, SILENT))
        self._spans = {name: part.layout.span((name,)) for name in part.weight_views}
        self._order = part.network.order if isinstance(part.network, Gathered) else ()

    def step(self, batch: Batch, update: Update) -> Sequence[Measured]:
        """Forward, loss and backward of one batch on all stages, and the update."""
        measured = []
        if batch.count:
            loss = self._repeat(batch, update, self._recorder) if self._recorder else self._train(batch, update)
            if loss is not None:
                measured.append(Measured(batch.index, loss, batch.count))
        else:
            self._stage.nothing(update.ready)
        update(self._part, batch)
        self._route.mail.settle()
        self.staleness.add(0)
        return measured

    def _train(self, batch: Batch, update: Update) -> Array | None:
        """Forward and backward; the loss on the last stage."""
        context, route = self._context(batch), self._route
        context.poke = route.mail.poke
        self._expect(batch, route)
        return self._pass(batch.x, batch.target, context, route, update.ready)

    def _repeat(self, batch: Batch, update: Update, recorder: Any) -> Array | None:
        """The same, as it was recorded for the first batch of this size, in graphs that end at each message."""
        route, context = self._route, self._context(batch)

        def work(inputs: tuple[Array, ...], pool: Pool, keys: Keys | None, cut: Cut, ready: Ready) -> Array | None:
            x, target = inputs
            context.pool, context.keys, route.mail.cut = pool, keys, cut
            return self._pass(x, target, context, route, ready)

        self._expect(batch, route)
        numbers = numbers_of(self._seed, batch)
        loss = repeat(recorder, self._part, (batch.x, batch.target), numbers, update, work)
        return None if loss is None else loss.copy()

    def _context(self, batch: Batch) -> Pass:
        return Pass(self._part.pool, self._part.ops, seed=self._seed, batch=batch.index, rows=batch.rows)

    def _expect(self, batch: Batch, route: Route) -> None:
        route.mail.expect(batch.index, batch.count, route.letters(backward=True))

    def _pass(self, x: Array, target: Array, context: Pass, route: Route, ready: Ready) -> Array | None:
        part, mail, loss, dy = self._part, route.mail, None, None
        y, saved = route.forward(part.weight_views, part.state_views, x, context)
        if self._stage.last:
            loss, dy = self._loss(y, target, context)
        del y
        mail.done("backward")
        for name, _, finish in route.backward(part.weight_views, saved, dy, context):
            finish(part.grad_views.get(name, {}))
            if name in self._spans:
                ready(part, self._spans[name])
        mail.done()
        return loss

    def predict(self, x: Array, weights: Tree | None = None, state: Tree | None = None) -> Array | None:
        """Forward only, on all stages at once; x: (B, *shape) on each of them."""
        part, aside = self._part, self._aside
        context = Pass(part.pool, part.ops, training=False, poke=aside.mail.poke)
        aside.mail.expect(0, len(x), aside.letters(backward=False))
        y, _ = aside.forward(weights or part.weight_views, state or part.state_views, x, context)
        aside.mail.settle()
        return y if self._stage.last else None

    def gradient(self, batch: Batch) -> None:
        """The gradient of the batch's summed loss, with running statistics and no update."""
        mail = self._aside.mail
        context = Pass(self._part.pool, self._part.ops, training=False, gradients=True, poke=mail.poke)
        self._expect(batch, self._aside)
        self._pass(batch.x, batch.target, context, self._aside, lambda part, span: None)
        mail.settle()

    def chained(self, values: Sequence[float]) -> Sequence[float]:
        """All stages apply the gradient of the same batch; in the order of the blocks, wherever networks are."""
        found = self._stage.chained(values)
        return [found[place] for place in self._order] if self._order else found
