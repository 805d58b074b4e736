"""Sentences for the log about what follows from the choices of a run and may surprise."""

from math import prod

from mpinn.array.typing import Shape
from mpinn.config import Config
from mpinn.consensus.graphs import sides
from mpinn.consensus.outer import OuterOptions
from mpinn.models.model import Model
from mpinn.nn.layer import Layer
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm
from mpinn.nn.residual import Residual
from mpinn.run.summary import may_meet

DEALT = {
    "fixed": "each replica has a shard of its own",
    "redealt": "a replica sees other samples in each epoch",
    "same": "every replica sees all samples",
    "skewed": "each replica has a shard of few labels",
}


def remarks(config: Config, model: Model, replicas: int, stages: int) -> list[str]:
    """Those of a run on so many replicas and stages."""
    return [
        *_dealt(config, replicas),
        *_members(config, replicas),
        *_meetings(config, replicas),
        *_single(config, model, replicas),
        *_outer(config, replicas),
        *_steps(config, stages),
    ]


def _dealt(config: Config, replicas: int) -> list[str]:
    if replicas == 1:
        return []
    auto = config.data.deal == "auto"
    why = f", which the consensus {config.names['consensus']} prefers" if auto else ""
    return [f"data.deal is {config.deal}{why}: {DEALT[config.deal]}"]


def _members(config: Config, replicas: int) -> list[str]:
    """Ranks that were given no place in the grid are replicas, and whoever has many members may not mean that."""
    grid = config.grid
    if config.names["model"] != "population" or replicas == 1 or (grid.replicas, grid.shards) != (0, 1):
        return []
    said = f"each of the {replicas} replicas trains all members, on samples of its own"
    return [f"{said}: grid.shards = 0 deals members to the ranks, with the result of one rank"]


def _meetings(config: Config, replicas: int) -> list[str]:
    said = []
    if (
        replicas == 1
        and may_meet(config.names["model"], replicas)
        and config.names["consensus"] in ("averaging", "outer", "gossip")
    ):
        plain = config.names["schedule"] == "serial"
        said.append(f"one replica never meets{': this is plain training of one model' * plain}")
    graph = getattr(config.consensus, "graph", "")
    if graph == "torus" and sides(replicas)[0] == 1:
        said.append(f"{replicas} replicas make no rectangle: the torus is a ring")
    if replicas > 1 and config.names["consensus"] == "none":
        said.append("replicas train alone and are never joined: the model of the run is replica 0")
    if config.data.batch < replicas:
        said.append(f"warning: data.batch: {config.data.batch} leaves some of the {replicas} replicas without samples")
    return said


def _single(config: Config, model: Model, replicas: int) -> list[str]:
    """A batch norm takes its own mean from a single row, and nothing is left of it."""
    share, pieces = max(1, config.data.batch // replicas), getattr(config.schedule, "micro_batches", 1)
    if share // min(share, pieces) > 1 or not _norms_rows(model.network, model.shape):
        return []
    over = " and ".join(
        f"{number} {name}" for number, name in ((replicas, "replicas"), (pieces, "micro-batches")) if number > 1
    )
    dealt = f"{config.data.batch} over {over}" if over else f"{config.data.batch}"
    return [f"warning: data.batch: {dealt} leaves a batch norm single samples, all of which it normalises to zero"]


def _norms_rows(layer: Layer, shape: Shape) -> bool:
    """Whether a batch norm in it sees one row of each sample: (B, F), or images of one pixel."""
    if isinstance(layer, BatchNorm):
        return prod(shape[:-1]) == 1
    if isinstance(layer, Residual):
        return _norms_rows(layer.body, shape)
    if not isinstance(layer, Network):
        return False
    for _, inner in layer.layers:
        if _norms_rows(inner, shape):
            return True
        shape = inner.output_shape(shape)
    return False


def _outer(config: Config, replicas: int) -> list[str]:
    """The outer momentum adds up what replicas move, and an optimizer of large steps is carried away by it."""
    options = config.consensus
    if replicas == 1 or not isinstance(options, OuterOptions) or options.reach <= 1:
        return []
    said = f"outer steps add up to {options.reach:.3g} times what replicas have moved"
    return [f"{said}: if the validation gets worse at meetings, a smaller consensus.momentum helps"]


def _steps(config: Config, stages: int) -> list[str]:
    """What bears smaller steps only: seen as a loss that stalls or grows, which nothing else explains."""
    schedule, helps = config.schedule, "a smaller optimizer.rate or train.clip = 1 helps"
    if config.train.clip:
        return []
    if config.names["schedule"] == "parareal" and schedule.pieces(stages) > 1:
        return [f"a parareal network bears smaller steps than the network that is cut: if the loss grows, {helps}"]
    if delay := schedule.delay(stages):
        return [f"gradients are up to {delay:g} update{'s' * (delay != 1)} old: if the loss stalls, {helps}"]
    return []
