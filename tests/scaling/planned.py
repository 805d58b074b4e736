"""Planners for the tests: of models whose costs are made up, on clusters that are easy to calculate."""

from math import inf
from typing import Any

from mpinn.models.mlp import MLP
from mpinn.models.model import Model
from mpinn.partition.costs import Link
from mpinn.partition.cuts import Costs
from mpinn.partition.profile import Cost, units
from mpinn.partition.sides import sides_of
from mpinn.scaling.check import Subject
from mpinn.scaling.cluster import Cluster
from mpinn.scaling.predict import Planner, Samples, Scaling
from mpinn.scaling.work import Rest, Work
from mpinn.schedules.parareal import PararealOptions
from mpinn.training.choices import build_model, read_config

FREE = Link(inf, 0.0)
EVEN = ("model.widths=[32,32,32,32,32,32,32]", "data.batch=64")
"""Eight units that can be cut."""


def cluster(
    link: Link = FREE, between: Link | None = None, ranks: int = 2**30, cores: int = 2**30, **more: Any
) -> Cluster:
    """As given; without links messages take no time."""
    return Cluster("test", "made up", ranks, cores, link, between or link, **more)


def even(model: Model, batch: int, update: float = 0.0, samples: float = 0.0) -> Work:
    """Every unit takes a millisecond forward and two backward for the batch, in proportion to its samples.

    A network beside a fine block of a parareal one takes a hundredth of that.
    """
    costs, ends = {}, [unit.stop for unit in units(PararealOptions().frame(model))]
    sides = sides_of(MLP(widths=(32,) * 7), model, ends[:-1], ends)
    for size in (1, batch):
        shares = [
            Cost("+".join(model.network[unit].names), unit.stop - unit.start, 1e-3 * size / batch, 2e-3 * size / batch,
                 100 * size, 100 * size, 300 * size, 4000)
            for unit in units(model)
        ]  # fmt: skip
        beside = [
            Cost(name, 1, 1e-5 * size / batch, 2e-5 * size / batch, 100 * size, 100 * size, 100 * size, 400)
            for name in sides.names
        ]
        costs[size] = Costs(shares, "made up", sides, beside)
    return Work(costs, Rest({1: samples / batch, batch: samples}, update, {1: 1.0, batch: 1.0}), "made up")


def subject(
    *settings: str, train: int = 10_000_000, validation: int = 0, update: float = 0.0, samples: float = 0.0
) -> Subject:
    """The default model, or that of the settings, with even units."""
    config = read_config(None, (*EVEN, *settings))
    model = build_model(config, (64,), 10)
    return Subject(config, model, even(model, config.data.batch, update, samples), Samples(train, validation))


def planner(*settings: str, on: Cluster | None = None, scaling: Scaling = "strong", **more: Any) -> Planner:
    """For a subject."""
    found = subject(*settings, **more)
    return Planner(found.config, found.model, found.work, on or cluster(), found.samples, scaling)
