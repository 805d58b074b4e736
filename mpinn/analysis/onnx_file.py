"""A saved model as an ONNX file."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import mpinn
from mpinn.analysis.saved import SavedModel
from mpinn.config import InputError
from mpinn.storage.schema import NETWORK

OPSET = 18
IR = 8
"""Old enough for the runtimes of 2023."""
MOST = 2**31 - 2**20
"""Bytes of weights: a protocol buffer holds less than 2 GiB."""


def write_onnx(path: Path, model: SavedModel, facts: Mapping[str, Any]) -> None:
    """Input ``x`` (B, *sample) float32, not normalised and channels-last; output ``y`` (B, O), before any softmax.

    The graph normalises with the numbers of the run, and computes in float32. ONNX's checker has passed it.
    """
    try:
        import onnx
        from onnx import TensorProto, helper

        from mpinn.analysis.onnx_graph import Graph, Value
        from mpinn.analysis.onnx_layers import emit
    except ImportError as error:
        raise InputError("--to", f"onnx needs pip install 'mpinn[export]' ({error})") from None
    place = str(model.checkpoint.path)
    if 4 * sum(prod(parameter.shape) for parameter in model.checkpoint.parameters(NETWORK)) > MOST:
        raise InputError(place, "the model is larger than the 2 GiB that an ONNX file holds: use safetensors")
    graph, trained = Graph(), model.trained
    weights, state = model.views
    mean = graph.constant("normalisation.mean", model.normalisation.mean)
    centred = graph.add("Sub", "x", mean)
    scaled = graph.add("Div", centred, graph.constant("normalisation.std", model.normalisation.std))
    try:
        y = emit(graph, trained.network, "", weights, state, Value(scaled, trained.shape))
    except ValueError as problem:
        raise InputError(place, str(problem)) from None
    graph.nodes.append(helper.make_node("Identity", [y.name], ["y"], name="y"))
    whole = helper.make_graph(
        graph.nodes,
        model.configuration["model"]["name"],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *trained.shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", trained.outputs])],
        [*graph.constants.values()],
    )
    proto = helper.make_model(
        whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR,
        producer_name="mpinn", producer_version=mpinn.__version__,
    )  # fmt: skip
    helper.set_model_props(proto, {name: _text(value) for name, value in facts.items()})
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
