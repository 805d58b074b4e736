import json

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
from launch import alone
from nn.layer_examples import EXAMPLES, IMAGE, title
from onnx import TensorProto, helper
from safetensors import safe_open
from train_jobs import SMALL, here, train
from trained import CLASSES, draw, save_model

import mpinn
from mpinn.analysis.export import describe, export
from mpinn.analysis.onnx_graph import Graph, Value
from mpinn.analysis.onnx_layers import emit
from mpinn.array.activations import ACTIVATIONS
from mpinn.config import InputError
from mpinn.nn.activation import Activation
from mpinn.nn.layer import Pass
from mpinn.nn.layers import LAYERS
from mpinn.nn.norm import BatchNorm
from mpinn.nn.part import build_part

TOLERANCE = 1e-5


def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": x.astype(np.float32)})
    return y


def agree(found, expected):
    """To 1e-5 of the largest output, and of 1."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * max(1, np.abs(expected).max())


def samples(shape, count=5):
    return np.random.default_rng(3).normal(1, 2, (count, *shape))


EVERY = [(layer, shape) for kind in LAYERS for layer, shape in EXAMPLES[kind]]
EVERY += [(Activation(name), shape) for name in ACTIVATIONS for shape in ((6,), IMAGE)]
EVERY += [(BatchNorm(activation="elu"), (4, 3))]


@pytest.mark.parametrize(("layer", "shape"), EVERY, ids=title)
def test_every_layer_is_the_same_in_onnx(layer, shape, tmp_path):
    part = build_part("network", layer, shape, np.dtype("float32"), ())
    draw(part, 7)
    x = samples(shape).astype(np.float32)
    expected, _ = layer.forward(part.weight_views, part.state_views, x, Pass(training=False))
    graph = Graph()
    y = graph.channels_last(emit(graph, layer, "layer", part.weight_views, part.state_views, Value("x", shape)))
    assert y.shape == layer.output_shape(shape)
    graph.nodes.append(helper.make_node("Identity", [y.name], ["y"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *ends])
        for name, ends in (("x", shape), ("y", y.shape))
    ]
    whole = helper.make_graph(graph.nodes, "layer", ends[:1], ends[1:], [*graph.constants.values()])
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "layer.onnx")
    agree(run(tmp_path / "layer.onnx", x), expected)


LISTED = [
    {"kind": "conv", "outputs": 6, "kernel": [3, 1], "stride": 2, "activation": "mish"},
    {"kind": "layer_norm"},
    {"kind": "residual", "body": [{"kind": "conv", "outputs": 6}, {"kind": "batch_norm"}]},
    {"kind": "average_pool", "kernel": 3, "stride": 1, "padding": 1},
    {"kind": "padded_identity", "outputs": 8},
    {"kind": "max_pool"},
    {"kind": "dropout", "rate": 0.4},
    {"kind": "activation", "activation": "gelu"},
    {"kind": "flatten"},
    {"kind": "dense", "outputs": CLASSES},
]
MODELS = {
    "mlp": ({"name": "mlp", "widths": [9, 8], "norm": "batch", "dropout": 0.3, "activation": "gelu"}, (4, 3)),
    "cnn": ({"name": "cnn", "channels": [5, 7], "widths": [11]}, (13, 12, 2)),
    "vgg": ({"name": "vgg", "depth": 16}, (32, 32, 3)),
    "resnet": ({"name": "resnet", "depth": 20}, (32, 32, 3)),
    "bottlenecks": ({"name": "resnet", "depth": 20, "block": "bottleneck", "shortcut": "pad"}, (9, 8, 3)),
    "layers": ({"name": "layers", "layers": LISTED}, (12, 9, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_predicts_the_same_in_onnx(name, tmp_path):
    table, shape = MODELS[name]
    path = save_model(tmp_path / "a.h5", {"model": table}, shape)
    export(path, "onnx", tmp_path / "a.onnx", None, False)
    x = samples(shape)
    with mpinn.open(path) as saved:
        agree(run(tmp_path / "a.onnx", x), saved.predict(x))


SWEEPS = [(1, "residual"), (2, "residual"), (2, "difference"), (3, "residual")]


@pytest.mark.parametrize(
    ("name", "iterations", "form"),
    [*(("mlp", *sweeps) for sweeps in SWEEPS), ("vgg", *SWEEPS[0]), ("resnet", *SWEEPS[2])],
)
def test_every_parareal_network_predicts_the_same_in_onnx(name, iterations, form, tmp_path):
    tables = {
        "mlp": ({"name": "mlp", "widths": [9, 8, 7, 6], "activation": "tanh"}, (4, 3)),
        "vgg": ({"name": "vgg", "depth": 11}, (32, 32, 3)),
        "resnet": ({"name": "resnet", "depth": 14}, (16, 16, 3)),
    }
    table, shape = tables[name]
    schedule = {"name": "parareal", "form": form, "iterations": iterations, "blocks": 3}
    layers = {"mlp": 6, "vgg": 10, "resnet": 9}[name]
    bounds = (0, 2, 4, layers)
    path = save_model(tmp_path / "a.h5", {"model": table, "schedule": schedule}, shape, bounds)
    export(path, "onnx", tmp_path / "a.onnx", None, False)
    x = samples(shape)
    with mpinn.open(path) as saved:
        agree(run(tmp_path / "a.onnx", x), saved.predict(x))


@pytest.mark.parametrize("replica", [None, 0, 1])
def test_merged_and_single_replicas_are_exported(replica, tmp_path):
    table, shape = MODELS["cnn"]
    path = save_model(tmp_path / "a.h5", {"model": table}, shape, replicas=2)
    export(path, "onnx", tmp_path / "a.onnx", replica, False)
    x = samples(shape)
    found = run(tmp_path / "a.onnx", x)
    for other in (None, 0, 1):
        with mpinn.open(path, replica=other) as saved:
            expected = saved.predict(x)
        if other == replica:
            agree(found, expected)
        else:
            assert np.abs(found - expected).max() > 0.01


def test_a_trained_run_predicts_what_evaluate_measures(tmp_path):
    directory = tmp_path / "run"
    done = train(2, directory, *SMALL, "model.norm=batch", "train.epochs=12")
    assert done.returncode == 0, done.stderr
    done = alone("-m", "mpinn", "export", str(directory))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{directory}/model.onnx: <mlp of ")
    with h5py.File("data/digits.h5", "r", locking=False) as data:
        x, target = data["test/x"][:], data["test/target"][:]
    y = run(directory / "model.onnx", x).astype(np.float64)
    loss = (np.log(np.exp(y).sum(axis=1)) - y[np.arange(len(y)), target]).mean()
    accuracy = (y.argmax(axis=1) == target).mean()
    assert f"accuracy {accuracy:.4f}, loss {loss:.4f}" in alone("-m", "mpinn", "evaluate", str(directory)).stdout


def test_float64_is_exported_as_float32(tmp_path):
    table, shape = MODELS["mlp"]
    path = save_model(tmp_path / "a.h5", {"model": table, "run": {"dtype": "float64"}}, shape)
    export(path, "onnx", tmp_path / "a.onnx", None, False)
    x = samples(shape)
    with mpinn.open(path) as saved:
        assert saved.predict(x).dtype == np.float64
        agree(run(tmp_path / "a.onnx", x), saved.predict(x))


def test_onnx_says_what_it_takes(tmp_path):
    table, shape = MODELS["cnn"]
    path = save_model(tmp_path / "a.h5", {"model": table}, shape)
    export(path, "onnx", tmp_path / "a.onnx", None, False)
    model = onnx.load(tmp_path / "a.onnx")
    (x,) = model.graph.input
    assert [size.dim_value for size in x.type.tensor_type.shape.dim] == [0, *shape]
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["input"] == "channels-last, as the data set has it, before normalisation"
    assert json.loads(facts["configuration"])["model"]["channels"] == [5, 7]


@pytest.mark.parametrize(("shape", "said"), [((64,), "as the data"), ((8, 8, 1), "channels-last, as the data")])
def test_only_images_have_channels(shape, said, tmp_path):
    path = save_model(tmp_path / "a.h5", {"model": MODELS["mlp"][0]}, shape)
    with mpinn.open(path) as model:
        assert describe(model)["input"] == f"{said} set has it, before normalisation"


@pytest.mark.parametrize("to", ["npz", "safetensors"])
def test_arrays_are_exported_by_name_with_what_they_are(to, tmp_path):
    table, shape = MODELS["cnn"]
    path = save_model(tmp_path / "a.h5", {"model": table}, shape)
    export(path, to, tmp_path / f"a.{to}", None, False)
    if to == "npz":
        with np.load(tmp_path / "a.npz") as file:
            arrays = dict(file)
        facts = json.loads(str(arrays.pop("mpinn")))
    else:
        with safe_open(tmp_path / "a.safetensors", "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["mpinn"])
    with mpinn.open(path) as saved:
        expected = {**saved.weights, **saved.state}
        expected |= {f"normalisation.{name}": getattr(saved.normalisation, name) for name in ("mean", "std")}
        assert facts["configuration"] == saved.configuration
    assert {*arrays} == {*expected}
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values)
    assert facts["sample_shape"] == [*shape]


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path):
    path = save_model(tmp_path / "a.h5", {"model": MODELS["mlp"][0]}, (4, 3))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"'onx' is not one of onnx, safetensors, npz \(did you mean onnx\?\)"):
        export(path, "onx", None, None, False)
    with pytest.raises(InputError, match=r"expected the name of a \.onnx file"):
        export(path, "onnx", path, None, False)
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        export(path, "npz", tmp_path / "nowhere" / "a.npz", None, False)
    with pytest.raises(InputError, match="no such file"):
        export(tmp_path / "b.h5", "npz", None, None, False)
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_file_is_not_exported(tmp_path):
    """Damage in a text, which has no checksum of its own: the digest in checkpoints.json tells."""
    assert here(tmp_path / "run", *SMALL) == 0
    (file,) = (tmp_path / "run").glob("checkpoint-*.h5")
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"activation": "relu"', b'"activation": "gelu"'))
    assert file.read_bytes() != content
    with pytest.raises(InputError, match=r"damaged: its digest is not that of checkpoints\.json"):
        export(file, "npz", tmp_path / "model.npz", None, False)
    assert not (tmp_path / "model.npz").exists()
