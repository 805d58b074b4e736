"""The network that a checkpoint holds, built from what the file says of itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mpinn.array.typing import Shape
from mpinn.config import InputError, not_one_of, read_options
from mpinn.models.model import Model
from mpinn.models.parareal import parareal
from mpinn.models.population import Population
from mpinn.models.registry import MODELS
from mpinn.nn.layer import Layer
from mpinn.nn.network import Network, Whole
from mpinn.nn.parareal import Parareal
from mpinn.nn.residual import Residual
from mpinn.storage.reader import Checkpoint


@dataclass(frozen=True)
class Trained:
    """What was trained: the network, the ``shape`` of a sample, and how many ``classes`` (0: a regression)."""

    network: Whole
    shape: Shape
    outputs: int
    classes: int


def trained_network(checkpoint: Checkpoint) -> Trained:
    """The network of a checkpoint: the model of its configuration, or the parareal network that was made of it.

    Raises InputError, which names the file, if it does not say what its model is.
    """
    place, data = str(checkpoint.path), checkpoint.data
    if "sample_shape" not in data or "classes" not in data:
        raise InputError(place, "it does not say what shape its samples have")
    shape = lengths(data["sample_shape"])
    classes = int(data["classes"])
    outputs = classes or prod(lengths(data["target_shape"]) if "target_shape" in data else ())
    configuration = checkpoint.configuration
    options = model_options(place, configuration.get("model", {}))
    if isinstance(options, Population):
        take = "take one member of it first, with python -m mpinn extract"
        raise InputError(place, f"its model is a population: {take}")
    model: Model = options.build(shape, outputs)
    schedule, bounds = configuration.get("schedule", {}), np.asarray(checkpoint.scalars.get("bounds", ())).tolist()
    if schedule.get("name") == "parareal" and len(bounds) > 2:
        network: Whole = parareal(options, model, bounds, schedule["form"], schedule["iterations"])
    else:
        network = model.network
    return Trained(network, shape, outputs, classes)


def lengths(text: str) -> Shape:
    """The shape that a checkpoint writes as "8 x 8 x 1"."""
    return tuple(int(length) for length in str(text).split(" x "))


def places(network: Any, path: tuple[int, ...] = (), name: str = "") -> Iterator[tuple[tuple[int, ...], str, Layer]]:
    """(path, name, layer) of every layer that has none inside it; the path is that of `Pass` while the layer runs."""
    if isinstance(network, Parareal):
        for block in network.blocks:
            for title, way in block.ways:
                yield from places(way, path, f"{title}/")
            yield from places(block.head, path, name)
    elif isinstance(network, Residual):
        yield from places(network.body, (*path, 0), f"{name}body/")
        if network.projection is not None:
            yield from places(network.projection, (*path, 1), f"{name}projection/")
    elif isinstance(network, Network):
        for index, (title, layer) in enumerate(network.layers, network.start):
            inside = isinstance(layer, Network | Residual)
            yield from places(layer, (*path, index), f"{name}{title}/" if inside else f"{name}{title}")
    else:
        yield path, name, network


def model_options(place: str, table: dict[str, Any]) -> Any:
    """The options of the model that a configuration's ``table`` describes; InputError names ``place``."""
    name, problems = table.get("name", ""), list[InputError]()
    if name not in MODELS:
        raise InputError(place, str(not_one_of("model.name", name, tuple(MODELS))))
    values = {key: value for key, value in table.items() if key != "name"}
    options = read_options("model", f"[model] {name}", values, MODELS[name], problems)
    if problems:
        raise InputError(place, "\n".join(map(str, problems)))
    return options
