"""The network that the configuration writes out, layer by layer."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from mpinn.array.typing import Shape
from mpinn.config import Nested, not_one_of, read_options
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.layer import Layer
from mpinn.nn.layers import LAYERS
from mpinn.nn.network import Network
from mpinn.nn.residual import Residual
from mpinn.words import show

KINDS = {type_: kind for kind, type_ in LAYERS.items()}


@dataclass(frozen=True)
class Chain(Nested):
    """A list of tables, each a layer: its ``kind``, its ``name`` (otherwise conv1, conv2, ...) and its options."""

    network: Network = field(default=Network(()))

    @classmethod
    def read(cls, path: str, value: Any, problems: list[InputError]) -> Self | None:
        if not (isinstance(value, list) and value and all(isinstance(table, Mapping) for table in value)):
            problems.append(InputError(path, f"expected {cls.expected()}, got {show(value)}"))
            return None
        before = len(problems)
        names = _names(path, value, problems)
        layers = [_layer(f"{path}[{index}]", table, problems) for index, table in enumerate(value)]
        return cls(Network(tuple(zip(names, layers, strict=True)))) if len(problems) == before else None

    def tables(self) -> list[dict[str, Any]]:
        return [_table(name, layer) for name, layer in self.network.layers]

    @classmethod
    def expected(cls) -> str:
        return "a list of tables, one for each layer"


@dataclass(frozen=True)
class Ways:
    """A residual layer as tables: body(x) + x, or body(x) + projection(x)."""

    body: Chain
    """The layers through which x goes, as tables of their own."""
    projection: Chain = Chain()
    """The layers through which x goes beside them, where the shape changes; without any x itself is added."""

    def layer(self) -> Residual:
        """The layer that they describe."""
        return Residual(self.body.network, self.projection.network if len(self.projection.network) else None)


OPTIONS: dict[str, type] = {kind: Ways if type_ is Residual else type_ for kind, type_ in LAYERS.items()}
"""What the table of a layer has besides ``kind`` and ``name``."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Any list of layers, the last of which gives the outputs: what is written is what is trained, and nothing else."""

    layers: Chain = Chain()
    """A [[model.layers]] for each layer, at least one: its ``kind``, its ``name`` (otherwise conv1, conv2, ...), and
    the keys of that kind."""

    def __post_init__(self) -> None:
        if not len(self.layers.network):
            raise InputError("model.layers", "is missing: write one [[model.layers]] with its kind for each layer")

    def build(self, shape: Shape, outputs: int) -> Model:
        """One block per layer, the last one for the head; InputError if the layers don't fit the data."""
        network = self.layers.network
        found = shape
        for index, (name, layer) in enumerate(network.layers):
            try:
                found = layer.output_shape(found)
            except ValueError as problem:
                raise InputError(f"model.layers[{index}]", f"{name}: {problem}") from None
        if found != (outputs,):
            wanted = f"the last layer gives samples of shape {found}, but the data asks for {(outputs,)}"
            raise InputError(f"model.layers[{len(network) - 1}]", wanted)
        return Model(network, shape, stem=0, head=1)


def _names(path: str, tables: list[Mapping[str, Any]], problems: list[InputError]) -> list[str]:
    counts: Counter[str] = Counter()
    names: list[str] = []
    for index, table in enumerate(tables):
        kind = str(table.get("kind"))
        counts[kind] += 1
        name = table.get("name", f"{kind}{counts[kind]}")
        if "name" in table and not (isinstance(name, str) and name.isidentifier()):
            expected = f"expected a name of letters, digits and underscores, got {show(name)}"
            problems.append(InputError(f"{path}[{index}].name", expected))
        elif name in names:
            problems.append(
                InputError(f"{path}[{index}].name", f"{path}[{names.index(name)}] is already called {name}")
            )
        names.append(name)
    return names


def _layer(path: str, table: Mapping[str, Any], problems: list[InputError]) -> Layer:
    """The layer that a table describes; whatever else it returns comes with a problem."""
    kind = table.get("kind", "")
    if not (isinstance(kind, str) and kind in LAYERS):
        problems.append(not_one_of(f"{path}.kind", kind, tuple(LAYERS)))
        return None  # type: ignore[return-value]
    values = {key: value for key, value in table.items() if key not in ("kind", "name")}
    options = read_options(path, f"a layer of kind {kind}", values, OPTIONS[kind], problems)
    return options.layer() if isinstance(options, Ways) else options


def _table(name: str, layer: Layer) -> dict[str, Any]:
    """The inverse of `_layer`: with every option but those that are None, which TOML can't say."""
    values = {entry.name: getattr(layer, entry.name) for entry in fields(layer)}  # type: ignore[arg-type]
    written = {key: Chain(value) if isinstance(value, Network) else value for key, value in values.items()}
    kind = KINDS[type(layer)]
    return {"kind": kind, "name": name, **{key: value for key, value in written.items() if value is not None}}
