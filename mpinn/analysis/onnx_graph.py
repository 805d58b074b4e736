"""An ONNX graph under construction: values with their shapes and layouts, constants, and nodes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mpinn.array.typing import Array, Shape


@dataclass(frozen=True)
class Value:
    """One array of the graph: (B, *shape), or, if ``first``, an image (B, C, H, W) of the ``shape`` (H, W, C)."""

    name: str
    shape: Shape
    first: bool = False


@dataclass
class Graph:
    """Nodes in an order in which they can run; a constant of one name is stored once."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output; its name, by which others use it."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [*inputs], [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Array) -> str:
        """An array in float32, or in int64 if it is one of integers."""
        if name not in self.constants:
            kind = np.int64 if values.dtype.kind == "i" else np.float32
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values, dtype=kind), name)
        return name

    def integers(self, *values: int) -> str:
        """A constant list of integers."""
        return self.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant number."""
        return self.constant(f"number_{value!r}", np.array(value, np.float64))

    def channels_first(self, value: Value) -> Value:
        """An image as ONNX's own layers take it."""
        if value.first or len(value.shape) != 3:
            return value
        return Value(self.add("Transpose", value.name, perm=[0, 3, 1, 2]), value.shape, first=True)

    def channels_last(self, value: Value) -> Value:
        """An image as mpinn's layers take it."""
        if not value.first:
            return value
        return Value(self.add("Transpose", value.name, perm=[0, 2, 3, 1]), value.shape)

    def binary(self, kind: str, one: Value, other: Value) -> Value:
        """Add or Sub of two arrays of the same shape."""
        other = self.channels_first(other) if one.first else self.channels_last(other)
        return Value(self.add(kind, one.name, other.name), one.shape, one.first)
