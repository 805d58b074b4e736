"""Networks written out in the configuration: what is built, how it is written again, and what is refused."""

import tomllib

import numpy as np
import pytest
from model_examples import OUTPUTS, WRITTEN, built, forward, noise

from mpinn.config import InputError, difference, load
from mpinn.models.layers import Chain, Layers
from mpinn.nn.dense import Dense
from mpinn.nn.flatten import Flatten
from mpinn.nn.layers import LAYERS
from mpinn.nn.network import Network
from mpinn.run.checks import Start
from mpinn.training.choices import CHOICES, DEFAULTS, build_model

TEXT = """
[model]
name = "layers"

[[model.layers]]
kind = "conv"
outputs = 4
kernel = 3
bias = false

[[model.layers]]
kind = "batch_norm"
name = "norm"
momentum = 0.2

[[model.layers]]
kind = "activation"
activation = "elu"

[[model.layers]]
kind = "max_pool"
kernel = 3
stride = 2
padding = 1

[[model.layers]]
kind = "residual"
name = "sum"
body = [
    { kind = "conv", outputs = 6, kernel = [3, 1], stride = 2, padding = [1, 0], activation = "tanh" },
    { kind = "conv", outputs = 6, bias = false, name = "again" },
]
projection = [{ kind = "padded_identity", outputs = 6, stride = 2 }]

[[model.layers]]
kind = "residual"

[[model.layers.body]]
kind = "dropout"
rate = 0.1

[[model.layers.body]]
kind = "conv"
outputs = 6
kernel = 1

[[model.layers]]
kind = "global_average_pool"

[[model.layers]]
kind = "dense"
outputs = 5
initial = "lecun"
"""
SHAPE = (8, 8, 2)


def read(text, *overrides):
    return load(text, overrides, CHOICES, DEFAULTS)


def refusals(layers):
    with pytest.raises(InputError) as caught:
        load({"model": {"name": "layers", "layers": layers}}, (), CHOICES, DEFAULTS)
    return str(caught.value).splitlines()


def test_the_network_is_the_one_that_was_written():
    assert read(TEXT).model == Layers(layers=Chain(WRITTEN))
    model = build_model(read(TEXT), SHAPE, OUTPUTS)
    assert (model.network, model.stem, model.head) == (WRITTEN, 0, 1)


def test_it_computes_what_the_same_network_in_python_computes():
    model, part = built(read(TEXT).model, SHAPE)
    _, other = built(Layers(layers=Chain(WRITTEN)), SHAPE)
    x = noise(3, *SHAPE)
    np.testing.assert_array_equal(part.weights, other.weights)
    np.testing.assert_array_equal(forward(model.network, part, x)[0], forward(WRITTEN, other, x)[0])


def test_it_is_written_with_every_option_and_read_again():
    config = read(TEXT)
    tables = config.tables()
    assert tomllib.loads(config.toml()) == tables
    assert read(config.toml()) == config
    assert Start.decode(Start(config, None, False, (), None).encode()).config == config
    written = tables["model"]["layers"]
    assert written[0] == {
        "kind": "conv", "name": "conv1", "outputs": 4, "kernel": 3, "stride": 1, "padding": "same", "bias": False,
        "activation": "identity", "initial": "he",
    }  # fmt: skip
    assert written[4]["body"][0]["kernel"] == [3, 1]
    assert "projection" not in written[5]
    assert [layer["name"] for layer in written[2:6]] == ["activation1", "max_pool1", "sum", "residual2"]


def test_every_kind_of_layer_can_be_written():
    needed = {
        "conv": {"outputs": 3},
        "dense": {"outputs": 3},
        "padded_identity": {"outputs": 3},
        "residual": {"body": [{"kind": "dropout"}]},
    }
    tables = [{"kind": kind, **needed.get(kind, {})} for kind in LAYERS]
    config = load({"model": {"name": "layers", "layers": tables}}, (), CHOICES, DEFAULTS)
    network = config.model.layers.network
    assert [type(layer) for _, layer in network.layers] == list(LAYERS.values())
    assert network.names == tuple(f"{kind}1" for kind in LAYERS)
    assert read(config.toml()) == config


def test_layers_of_a_kind_are_numbered_and_may_be_named():
    kinds = [{"kind": "dense", "outputs": 2, "name": name} for name in ("first", "dense2_wide")]
    kinds.insert(1, {"kind": "dense", "outputs": 2})
    config = load({"model": {"name": "layers", "layers": kinds}}, (), CHOICES, DEFAULTS)
    assert config.model.layers.network.names == ("first", "dense2", "dense2_wide")


def test_an_override_writes_them_too():
    override = 'model.layers=[{kind = "flatten"}, {kind = "dense", outputs = 5}]'
    assert read("", "model.name=layers", override).model == Layers(
        layers=Chain(Network((("flatten1", Flatten()), ("dense1", Dense(5)))))
    )


def test_a_difference_names_the_option_of_the_layer():
    old = read(TEXT).tables()
    changed = TEXT.replace("kernel = [3, 1]", "kernel = [1, 3]").replace("rate = 0.1", "rate = 0.2")
    new = read(changed.replace('kind = "dense"', 'kind = "dense"\nname = "out"')).tables()
    assert difference(old, old) == []
    assert difference(old, new) == [
        ("model.layers[4].body[0].kernel", [3, 1], [1, 3]),
        ("model.layers[5].body[0].rate", 0.1, 0.2),
        ("model.layers[7].name", "dense1", "out"),
    ]
    shorter = read('[model]\nname = "layers"\nlayers = [{kind = "flatten"}, {kind = "dense", outputs = 5}]').tables()
    paths = [path for path, _, found in difference(new, shorter) if found is None]
    assert {"model.layers[0].outputs", "model.layers[7].kind"} <= set(paths)


CONV = {"kind": "conv", "outputs": 4}
WAY = "expected a list of tables, one for each layer, got "


@pytest.mark.parametrize(
    ("layers", "messages"),
    [
        ([], [f"model.layers: {WAY}[]"]),
        ("conv", [f"model.layers: {WAY}'conv'"]),
        (CONV, [f"model.layers: {WAY}{CONV}"]),
        ([CONV, 3], [f"model.layers: {WAY}[{CONV}, 3]"]),
        ([CONV, {}], [f"model.layers[1].kind: '' is not one of {', '.join(LAYERS)}"]),
        ([{"kind": "cov"}], [f"model.layers[0].kind: 'cov' is not one of {', '.join(LAYERS)} (did you mean conv?)"]),
        ([{"kind": ["conv"]}], [f"model.layers[0].kind: ['conv'] is not one of {', '.join(LAYERS)}"]),
        ([CONV, {"kind": "dense"}], ["model.layers[1].outputs: is missing, and a layer of kind dense needs it"]),
        ([{**CONV, "outputs": "16"}], ["model.layers[0].outputs: expected an integer, got '16'"]),
        ([{**CONV, "outputs": True}], ["model.layers[0].outputs: expected an integer, got true"]),
        ([{**CONV, "outputs": 0}], ["model.layers[0].outputs: is 0, it must be at least 1"]),
        (
            [{**CONV, "kernel": [3, 3, 3]}],
            [
                "model.layers[0].kernel: expected an integer or a list of 2: an integer, an integer, got [3, 3, 3]",
            ],
        ),
        (
            [{**CONV, "padding": "some"}],
            [
                "model.layers[0].padding: expected one of same, valid or an integer or a list of 2: an integer, an "
                "integer, got 'some'",
            ],
        ),
        ([{**CONV, "kernel": 4}], ["model.layers[0].padding: 'same' needs an odd kernel, not 4x4"]),
        (
            [{**CONV, "initial": "hee"}],
            ["model.layers[0].initial: 'hee' is not one of he, lecun, uniform (did you mean he?)"],
        ),
        (
            [{**CONV, "width": 3}],
            [
                "model.layers[0].width: unknown key; a layer of kind conv knows: outputs, kernel, stride, padding, "
                "bias, activation, initial",
            ],
        ),
        ([{"kind": "flatten", "x": 1}], ["model.layers[0].x: unknown key; a layer of kind flatten has no options"]),
        (
            [{"kind": "max_pool", "stride": "x"}],
            ["model.layers[0].stride: expected an integer or a list of 2: an integer, an integer, got 'x'"],
        ),
        ([{"kind": "dropout", "rate": 1.5}], ["model.layers[0].rate: is 1.5, it must be at least 0 and less than 1"]),
        (
            [{"kind": "dropout", "rate": float("nan")}],
            [
                "model.layers[0].rate: expected a finite number, got nan",
            ],
        ),
        (
            [CONV, {"kind": "residual", "body": [CONV, {"kind": "max_pool", "stride": 0}]}],
            ["model.layers[1].body[1].stride: is 0, it must be at least 1"],
        ),
        ([{"kind": "batch_norm", "momentum": 1.5}], ["model.layers[0].momentum: is 1.5, it must be at most 1"]),
        (
            [{**CONV, "name": "a/b"}],
            [
                "model.layers[0].name: expected a name of letters, digits and underscores, got 'a/b'",
            ],
        ),
        ([{**CONV, "name": 3}], ["model.layers[0].name: expected a name of letters, digits and underscores, got 3"]),
        ([CONV, CONV, {**CONV, "name": "conv2"}], ["model.layers[2].name: model.layers[1] is already called conv2"]),
        ([{"kind": "residual"}], ["model.layers[0].body: is missing, and a layer of kind residual needs it"]),
        ([{"kind": "residual", "body": []}], [f"model.layers[0].body: {WAY}[]"]),
        ([{"kind": "residual", "body": [CONV], "projection": {}}], [f"model.layers[0].projection: {WAY}{{}}"]),
        (
            [CONV, {"kind": "residual", "body": [CONV, {"kind": "conv", "stride": 2.5}]}],
            [
                "model.layers[1].body[1].outputs: is missing, and a layer of kind conv needs it",
                "model.layers[1].body[1].stride: expected an integer or a list of 2: an integer, an integer, got 2.5",
            ],
        ),
        (
            [{"kind": "cov"}, {**CONV, "name": ""}, {"kind": "dropout", "rate": -1}],
            [
                "model.layers[1].name: expected a name of letters, digits and underscores, got ''",
                f"model.layers[0].kind: 'cov' is not one of {', '.join(LAYERS)} (did you mean conv?)",
                "model.layers[2].rate: is -1.0, it must be at least 0 and less than 1",
            ],
        ),
    ],
    ids=repr,
)
def test_what_is_wrong_is_said_with_its_path(layers, messages):
    assert refusals(layers) == messages


def test_a_model_of_no_layers_is_refused():
    with pytest.raises(InputError) as caught:
        read("", "model.name=layers")
    assert str(caught.value) == "model.layers: is missing: write one [[model.layers]] with its kind for each layer"


@pytest.mark.parametrize(
    ("change", "outputs", "message"),
    [
        (("outputs = 5", "outputs = 7"), 5, "model.layers[7]: the last layer gives samples of shape (7,), but the "),
        (("outputs = 5", "outputs = 5"), 10, "model.layers[7]: the last layer gives samples of shape (5,), but the "),
        (
            ("global_average_pool", "dropout"),
            5,
            "model.layers[7]: dense1: a dense layer takes samples of one dimension",
        ),
        (
            ("kernel = 3\nstride", "kernel = 12\nstride"),
            5,
            "model.layers[3]: max_pool1: a 12x12 kernel is larger than ",
        ),
        (
            ("outputs = 6, bias", "outputs = 3, bias"),
            5,
            "model.layers[4]: sum: the body gives samples of shape (2, 2, ",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused_with_their_place(change, outputs, message):
    with pytest.raises(InputError) as caught:
        build_model(read(TEXT.replace(*change)), SHAPE, outputs)
    assert str(caught.value).startswith(message)
