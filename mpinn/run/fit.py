"""A parareal network that begins as a trained network: fine blocks are taken over, what is beside them is fitted.

The network that was cut has interfaces u_0 = x, u_j = g^j(u_{j-1}). On batches of training data, by Adam,

    predictor j         the least mean |C^j(x) - u_{j-1}|^2
    coarse network j    then the least mean |c_j - (u_j - g^j(v_j))|^2, where v_j = C^j(x) as fitted, and c_j its
                        correction of the error u_{j-1} - v_j

so that what each carries on makes y_j what it was in the trained network. Every block is fitted on its own, where its
networks are: nothing is sent, samples come in the order of a single replica, and the result is that of one rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np

from mpinn.array import ops as plain
from mpinn.array.typing import Array, Shape
from mpinn.config import Config, InputError, Length
from mpinn.datasets.batches import Batch, Batches
from mpinn.datasets.samples import Source
from mpinn.models.model import Model
from mpinn.nn.block import Block, Way
from mpinn.nn.layer import EMPTY, Finish, Pass, Saved, Tree
from mpinn.nn.network import Network, Whole
from mpinn.nn.optimizer import Adam
from mpinn.nn.parareal import Parareal
from mpinn.nn.part import Part, build_part
from mpinn.nn.sweeps import BackwardSweeps, ForwardSweeps, all_of
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import Log, checkpoint_of

ADAM = Adam(rate=5e-3, decay="cosine", warmup=Length("0 steps"))
KEY = "schedule.warm"

Step: TypeAlias = Callable[[Batch, Pass], tuple[Array, Finish]]
"""From a batch to the error of a fit, (B, ...), and the finish of its gradient."""


def warm_checkpoint(config: Config, log: Log) -> Path:
    """The checkpoint from which fine blocks are taken, of the file or the run that is configured; else InputError."""
    try:
        return checkpoint_of(Path(config.schedule.warm), False, log)
    except InputError as error:
        raise InputError(KEY, str(error)) from None


def check_warm(config: Config, model: Model, log: Log) -> None:
    """A warm start that is asked for must be of this model; raises InputError. Says which checkpoints are damaged."""
    if config.schedule.warm:
        _trained(warm_checkpoint(config, log), config, model, None)


def _trained(path: Path, config: Config, model: Model, ops: ModuleType | None) -> Part:
    """The network that is cut, with the weights of a checkpoint; without ``ops`` it is only looked whether it fits."""
    part = build_part("network", model.network, model.shape, np.dtype(config.run.dtype), (), ops=ops or plain)
    try:
        with Checkpoint(path) as checkpoint:
            for layout, vector, kind in (
                (part.layout, part.weights, "model"),
                (part.state_layout, part.state, "state"),
            ):
                if ops is None:
                    checkpoint.check(layout, f"{kind}/network")
                else:
                    values = np.zeros(layout.size, layout.dtype)
                    checkpoint.fill(layout, values, f"{kind}/network")
                    ops.fill(vector, values)
    except InputError as error:
        raise InputError(KEY, f"{error}: it is no checkpoint of the model that is cut") from None
    return part


def warm_start(path: Path, config: Config, model: Model, network: Whole, part: Part, source: Source) -> None:
    """Begin as the trained network in the file, with as much of a parareal network as ``part`` has. No messages."""
    trained = _trained(path, config, model, part.ops)
    if not isinstance(network, Parareal):
        _copy(part.weight_views, trained.weight_views)
        _copy(part.state_views, trained.state_views)
        return
    for block in network.blocks:
        fine = f"fine{block.number}"
        _copy(part.weight_views.get(fine, EMPTY), trained.weight_views)
        _copy(part.state_views.get(fine, EMPTY), trained.state_views)
        if block.last:
            for own, known in ((part.weight_views, trained.weight_views), (part.state_views, trained.state_views)):
                _copy({name: own[name] for name in block.head.names if name in own}, known)
    for block in network.blocks:
        if {f"predictor{block.number}", f"coarse{block.number}"} & part.weight_views.keys():
            _Fit(config, trained, model.shape, block, source).into(part)


def _copy(tree: Tree, source: Tree) -> None:
    for name, item in tree.items():
        if isinstance(item, Mapping):
            _copy(item, source[name])
        else:
            item[...] = source[name]


@dataclass
class _Fit:
    """One block with its predictor and coarse network."""

    config: Config
    trained: Part
    sample: Shape
    block: Block
    source: Source

    @property
    def start(self) -> int:
        """The layer of the trained network with which its fine block begins."""
        return self.block.fine.start

    def into(self, part: Part) -> None:
        """Fit, and put what the part has of it there."""
        guess = self._part("predictor", self.block.predictor, self.sample)
        self._least(guess, lambda batch, context: self._guess_error(guess, batch, context))
        small = self._part("coarse", self.block.coarse, self.block.inputs)
        if small.name in part.weight_views:
            self._least(small, lambda batch, context: self._correction_error(guess, small, batch, context))
        for fitted in (guess, small):
            _copy(part.weight_views.get(fitted.name, EMPTY), fitted.weight_views)
            _copy(part.state_views.get(fitted.name, EMPTY), fitted.state_views)

    def _part(self, kind: str, network: Network | None, shape: Shape) -> Part:
        if network is None:
            raise AssertionError("with one sweep every block but the first has both")
        own = self.trained
        part = build_part(f"{kind}{self.block.number}", network, shape, own.layout.dtype, ADAM.slots, own.pool, own.ops)
        part.initialize(self.config.run.seed)
        return part

    def _least(self, part: Part, step: Step) -> None:
        """Steps along the gradient of half the squared error, for the epochs that are wanted."""
        run, data, segments = self.config.run, self.config.data, part.ops.prepared(ADAM.segments(part.layout))
        batches = Batches(self.source, run.seed, data.batch, 1, 0, "redealt", part.layout.dtype, ops=part.ops)
        steps = self.config.schedule.fit * batches.steps_per_epoch
        rate = ADAM.course(batches.steps_per_epoch, steps)
        for number in range(steps):
            batch = batches.batch(number)
            context = Pass(part.pool, part.ops, seed=run.seed, batch=number, rows=batch.rows)
            error, finish = step(batch, context)
            finish(part.grad_views)
            ADAM.apply(part, segments, rate(number), 1 / len(error))

    def _guess_error(self, guess: Part, batch: Batch, context: Pass) -> tuple[Array, Finish]:
        v, saved = guess.network.forward(guess.weight_views, guess.state_views, batch.x, context)
        error = v - self._through(self.trained.chain[: self.start], batch.x)
        return error, guess.network.backward(guess.weight_views, saved, error, context)[1]

    def _correction_error(self, guess: Part, small: Part, batch: Batch, context: Pass) -> tuple[Array, Finish]:
        stop = self.start + len(self.block.fine)
        fine = self.trained.chain[self.start : stop]
        u = self._through(self.trained.chain[: self.start], batch.x)
        quiet = Pass(guess.pool, guess.ops, training=False)
        v, _ = guess.network.forward(guess.weight_views, guess.state_views, batch.x, quiet)
        wanted = self._through(fine, u) - self._through(fine, v)
        weights: Tree = {small.name: small.weight_views}
        kept: list[Saved] = []
        links = _Exact(u)
        _, correction = ForwardSweeps(self.block, weights, EMPTY, context, links).correct(1, v, kept)
        error = correction - wanted
        finishes: list[Finish] = []
        BackwardSweeps(self.block, weights, context, links).back_coarse(kept.pop(), error, finishes)
        return error, all_of(finishes, small.pool)

    def _through(self, layers: Network, x: Array) -> Array:
        """As the trained network does where nothing is learnt."""
        own = self.trained
        context = Pass(own.pool, own.ops, training=False)
        return layers.forward(own.weight_views, own.state_views, x, context)[0]


@dataclass(frozen=True)
class _Exact:
    """Links on which the interface before a block is exactly right, so nothing is carried on to it."""

    u: Array

    def send(self, way: Way, sweep: int, array: Array) -> None:
        """To nobody."""

    def receive(self, way: Way, sweep: int) -> Array:
        return self.u if way == "fine" else np.zeros_like(self.u)
