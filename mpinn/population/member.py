"""One member of a population, read from its checkpoint as the network that it is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mpinn.array.typing import Array, Shape
from mpinn.config import Config, InputError, load
from mpinn.models.mlp import MLP
from mpinn.models.population import Population
from mpinn.nn.layer import Tree
from mpinn.nn.packed import Member, Packed
from mpinn.nn.part import Part, build_part
from mpinn.population.ranking import Ranking, population_in
from mpinn.storage.reader import Checkpoint
from mpinn.training.choices import CHOICES, DEFAULTS

BEST = "optimizer/best/network"
"""Where the best weights of members are that have patience."""


@dataclass(frozen=True)
class Extracted:
    """One member, with the configuration that trains it alone from where it is."""

    config: Config
    part: Part
    member: Member


def read_member(checkpoint: Checkpoint, number: int | None) -> Extracted:
    """A member of a population's checkpoint, the best one without a number, with the best weights that it had."""
    config = load(checkpoint.configuration, (), CHOICES, DEFAULTS)
    options = config.model
    if not isinstance(options, Population):
        raise InputError(str(checkpoint.path), f"has no members: its model is {config.names['model']}, not population")
    members = options.members()
    ranking = Ranking(len(members), int(checkpoint.data.get("classes", 0)))
    ranking.restore(checkpoint.scalars)
    number = ranking.best() if number is None else number
    if not 0 <= number < len(members):
        raise InputError("--member", f"the members are numbered from 0 to {len(members) - 1}, got {number}")
    if ranking.left[number]:
        raise InputError("--member", f"member {number} left after step {ranking.left[number]}; see ranking.csv")
    member = members[number]
    return Extracted(_alone(config, member), _part(checkpoint, config, members, member), member)


def _alone(config: Config, member: Member) -> Config:
    """The configuration of one member: what all have, and what it has for itself."""
    optimizer = config.optimizer
    optimizer = replace(
        optimizer,
        rate=optimizer.rate if member.rate is None else member.rate,
        weight_decay=optimizer.weight_decay if member.weight_decay is None else member.weight_decay,
    )
    model = MLP(widths=member.widths, activation=member.activation)  # type: ignore[arg-type]
    grid = replace(config.grid, replicas=0, shards=1)
    names = {**config.names, "model": "mlp"}
    return replace(config, model=model, optimizer=optimizer, grid=grid, names=names)


def _part(checkpoint: Checkpoint, config: Config, members: tuple[Member, ...], member: Member) -> Part:
    """The member's own weights, and what the optimizer remembers of them, in the layout of an mlp."""
    shape = _shape(checkpoint)
    population = population_in(checkpoint.scalars, members, _outputs(checkpoint))
    dtype = np.dtype(config.run.dtype)
    model = MLP(widths=member.widths, activation=member.activation).build(shape, population.outputs)  # type: ignore[arg-type]
    part = build_part("network", model.network, shape, dtype, config.optimizer.slots)
    kinds = {"model/network": part.weights}
    kinds |= {f"optimizer/{slot}/network": vector for slot, vector in part.slots.items()}
    if BEST in checkpoint.kinds():
        kinds[BEST] = part.weights
    for kind, vector in kinds.items():
        own = _own(checkpoint, population, member, kind)
        views = part.layout.views(vector)
        for name, arrays in own.items():
            weight = arrays["weight"] if name == "output" else arrays["weight"].T
            views[name]["weight"][...] = weight.reshape(views[name]["weight"].shape)
            views[name]["bias"][...] = arrays["bias"]
    part.counters[:] = checkpoint.weights("updates", "counters/network")
    return part


def _own(checkpoint: Checkpoint, population: Packed, member: Member, kind: str) -> Mapping[str, Mapping[str, Array]]:
    """The arrays of a member, of which only its panel is read."""
    name, panel = next((name, panel) for name, panel in population.panels if member in panel.members)
    tree: Tree = {
        layer: {leaf: checkpoint.weights(f"population/{name}/{layer}/{leaf}", kind) for leaf in ("weight", "bias")}
        for layer in (*(f"hidden{layer + 1}" for layer in range(panel.depth)), "output")
    }
    return panel.own(tree, panel.members.index(member))


def _shape(checkpoint: Checkpoint) -> Shape:
    return tuple(int(length) for length in str(checkpoint.data["sample_shape"]).split(" x "))


def _outputs(checkpoint: Checkpoint) -> int:
    classes = int(checkpoint.data.get("classes", 0))
    return classes or int(np.prod([int(length) for length in str(checkpoint.data["target_shape"]).split(" x ")]))
