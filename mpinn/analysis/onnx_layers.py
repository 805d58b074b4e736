"""Every kind of layer as ONNX nodes, as it is in evaluation."""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any, TypeAlias

import numpy as np

from mpinn.analysis.onnx_graph import Graph, Value
from mpinn.array.activations import LEAK, SELU_ALPHA, SELU_SCALE, SHRINK
from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.flatten import Flatten
from mpinn.nn.identity import PaddedIdentity
from mpinn.nn.layer import EMPTY, Tree
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm, LayerNorm
from mpinn.nn.parareal import Parareal
from mpinn.nn.pool import AveragePool2d, GlobalAveragePool, MaxPool2d
from mpinn.nn.residual import Residual

END = 2**31 - 1

Emit: TypeAlias = Callable[[Graph, Any, str, Tree, Tree, Value], Value]
"""(graph, layer, its name, weights, state, x) to y."""


def emit(graph: Graph, layer: Any, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    """The nodes of a layer, with whatever stands inside it; ValueError for one that has no form in ONNX."""
    if type(layer) not in LAYERS:
        raise ValueError(f"{name or 'the network'}: a {type(layer).__name__} has no form in ONNX")
    return LAYERS[type(layer)](graph, layer, name, weights, state, x)


def _dense(graph: Graph, layer: Dense, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    inputs = [x.name, graph.constant(f"{name}/weight", weights["weight"])]
    if layer.bias:
        inputs.append(graph.constant(f"{name}/bias", weights["bias"]))
    return _activated(graph, layer.activation, Value(graph.add("Gemm", *inputs), (layer.outputs,)))


def _conv(graph: Graph, layer: Conv2d, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    stride, padding = layer.steps
    # (KH, KW, C, O) to (O, C, KH, KW)
    inputs = [
        graph.channels_first(x).name,
        graph.constant(f"{name}/weight", weights["weight"].transpose(3, 2, 0, 1)),
    ]
    if layer.bias:
        inputs.append(graph.constant(f"{name}/bias", weights["bias"]))
    y = graph.add("Conv", *inputs, strides=[*stride], pads=[*padding, *padding])
    return _activated(graph, layer.activation, Value(y, layer.output_shape(x.shape), first=True))


def _batch_norm(graph: Graph, layer: BatchNorm, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    x = graph.channels_first(x)
    arrays = {**weights, **state}
    if x.first or len(x.shape) == 1:
        places = [graph.constant(f"{name}/{kind}", arrays[kind]) for kind in ("scale", "shift", "mean", "variance")]
        y = graph.add("BatchNormalization", x.name, *places, epsilon=layer.epsilon)
    else:
        factor = arrays["scale"] / np.sqrt(arrays["variance"] + layer.epsilon)
        centred = graph.add("Sub", x.name, graph.constant(f"{name}/mean", arrays["mean"]))
        scaled = graph.add("Mul", centred, graph.constant(f"{name}/factor", factor))
        y = graph.add("Add", scaled, graph.constant(f"{name}/shift", arrays["shift"]))
    return _activated(graph, layer.activation, Value(y, x.shape, x.first))


def _layer_norm(graph: Graph, layer: LayerNorm, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    places = [graph.constant(f"{name}/{kind}", weights[kind]) for kind in ("scale", "shift")]
    x = graph.channels_last(x)
    return Value(graph.add("LayerNormalization", x.name, *places, axis=-1, epsilon=layer.epsilon), x.shape)


def _max_pool(graph: Graph, layer: MaxPool2d, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    return _pool(graph, "MaxPool", layer, x)


def _average_pool(graph: Graph, layer: AveragePool2d, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    return _pool(graph, "AveragePool", layer, x, count_include_pad=1)


def _pool(graph: Graph, kind: str, layer: MaxPool2d | AveragePool2d, x: Value, **attributes: int) -> Value:
    kernel, stride, padding = layer.window
    y = graph.add(
        kind, graph.channels_first(x).name, kernel_shape=[*kernel], strides=[*stride], pads=[*padding, *padding],
        **attributes,
    )  # fmt: skip
    return Value(y, layer.output_shape(x.shape), first=True)


def _global_average_pool(
    graph: Graph, layer: GlobalAveragePool, name: str, weights: Tree, state: Tree, x: Value
) -> Value:
    y = graph.add("GlobalAveragePool", graph.channels_first(x).name)
    return Value(graph.add("Flatten", y, axis=1), layer.output_shape(x.shape))


def _padded_identity(graph: Graph, layer: PaddedIdentity, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    x = graph.channels_first(x)
    chosen = [graph.integers(*numbers) for numbers in ((0, 0), (END, END), (2, 3), layer.strides)]
    y = graph.add("Slice", x.name, *chosen)
    if more := layer.outputs - x.shape[2]:
        y = graph.add("Pad", y, graph.integers(0, 0, 0, 0, 0, more, 0, 0))
    return Value(y, layer.output_shape(x.shape), first=True)


def _flatten(graph: Graph, layer: Flatten, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    return Value(graph.add("Flatten", graph.channels_last(x).name, axis=1), layer.output_shape(x.shape))


def _dropout(graph: Graph, layer: Dropout, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    return x


def _activation(graph: Graph, layer: Activation, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    return _activated(graph, layer.activation, x)


def _residual(graph: Graph, layer: Residual, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    body = _inside(graph, layer.body, f"{name}/body", "body", weights, state, x)
    other = x if layer.projection is None else _inside(
        graph, layer.projection, f"{name}/projection", "projection", weights, state, x
    )  # fmt: skip
    return graph.binary("Add", body, other)


def _network(graph: Graph, layer: Network, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    for inside, inner in layer.layers:
        x = _inside(graph, inner, f"{name}/{inside}" if name else inside, inside, weights, state, x)
    return x


def _inside(graph: Graph, layer: Any, name: str, key: str, weights: Tree, state: Tree, x: Value) -> Value:
    return emit(graph, layer, name, weights.get(key, EMPTY), state.get(key, EMPTY), x)


def _parareal(graph: Graph, layer: Parareal, name: str, weights: Tree, state: Tree, x: Value) -> Value:
    """What `mpinn.nn.sweeps` computes, block by block; each block has what the one before it sends."""
    letters: dict[tuple[str, int, int], Value] = {}
    y = x
    for block in layer.blocks:
        number, residual = block.number, block.form == "residual"

        def through(kind: str, network: Network, value: Value, number: int = number) -> Value:
            title = f"{kind}{number}"
            return _inside(graph, network, title, title, weights, state, value)

        guess = through("predictor", block.predictor, x) if block.predictor else x
        for sweep in block.rounds:
            if sweep in block.sweeps:
                y = letters["fine", number, sweep] = through("fine", block.fine, guess)
            if sweep not in block.heard:
                continue
            better = fine = letters["fine", number - 1, sweep]
            coarse = letters["coarse", number - 1, sweep] if block.corrected(sweep) else None
            if coarse is not None:
                better = graph.binary("Add", fine, coarse)
            if sweep in block.sweeps and block.coarse is not None:
                if residual:
                    correction = through("coarse", block.coarse, graph.binary("Sub", better, guess))
                else:
                    new, old = (through("coarse", block.coarse, value) for value in (better, guess))
                    correction = graph.binary("Sub", new, old)
                letters["coarse", number, sweep] = correction
                y = graph.binary("Add", y, correction) if block.last else y
            guess = better
        y = emit(graph, block.head, name, weights, state, y)
    return y


def _activated(graph: Graph, activation: str, x: Value) -> Value:
    return Value(ACTIVATIONS[activation](graph, x.name), x.shape, x.first)


def _gelu(graph: Graph, z: str) -> str:
    share = graph.add("Erf", graph.add("Mul", z, graph.number(1 / sqrt(2))))
    half = graph.add("Mul", graph.add("Add", share, graph.number(1.0)), graph.number(0.5))
    return graph.add("Mul", z, half)


def _mish(graph: Graph, z: str) -> str:
    # softplus(z) = max(z, 0) + log(1 + exp(-|z|)), which does not overflow
    small = graph.add("Log", graph.add("Add", graph.add("Exp", graph.add("Neg", graph.add("Abs", z))),
                                       graph.number(1.0)))  # fmt: skip
    return graph.add("Mul", z, graph.add("Tanh", graph.add("Add", graph.add("Relu", z), small)))


ACTIVATIONS: Mapping[str, Callable[[Graph, str], str]] = {
    "identity": lambda graph, z: z,
    "sigmoid": lambda graph, z: graph.add("Sigmoid", z),
    "tanh": lambda graph, z: graph.add("Tanh", z),
    "relu": lambda graph, z: graph.add("Relu", z),
    "leaky_relu": lambda graph, z: graph.add("LeakyRelu", z, alpha=LEAK),
    "elu": lambda graph, z: graph.add("Elu", z, alpha=1.0),
    "selu": lambda graph, z: graph.add("Selu", z, alpha=SELU_ALPHA, gamma=SELU_SCALE),
    "gelu": _gelu,
    "hardshrink": lambda graph, z: graph.add("Shrink", z, lambd=SHRINK, bias=0.0),
    "mish": _mish,
}

LAYERS: Mapping[type[Any], Emit] = {
    Activation: _activation,
    AveragePool2d: _average_pool,
    BatchNorm: _batch_norm,
    Conv2d: _conv,
    Dense: _dense,
    Dropout: _dropout,
    Flatten: _flatten,
    GlobalAveragePool: _global_average_pool,
    LayerNorm: _layer_norm,
    MaxPool2d: _max_pool,
    Network: _network,
    PaddedIdentity: _padded_identity,
    Parareal: _parareal,
    Residual: _residual,
}
