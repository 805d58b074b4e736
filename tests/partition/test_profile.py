"""Profiles: what is indivisible, what the clock and the buffers say of it, and how it is kept."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

import mpinn.partition.profile as module
from mpinn.array import cpu
from mpinn.array import ops as plain
from mpinn.array.typing import Array
from mpinn.errors import InputError
from mpinn.models.cnn import CNN
from mpinn.models.mlp import MLP
from mpinn.models.model import Model
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.dropout import Dropout
from mpinn.nn.flatten import Flatten
from mpinn.nn.layer import Pass
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm
from mpinn.nn.part import build_part
from mpinn.nn.pool import GlobalAveragePool, MaxPool2d
from mpinn.partition.profile import (
    ELEMENT,
    OPERATIONS,
    Cost,
    Subject,
    estimate,
    load,
    measure,
    profile,
    save,
    subject_of,
    units,
)
from mpinn.training.choices import read_config

F4, F8 = np.dtype("f4"), np.dtype("f8")
CIFAR = (32, 32, 3)
RESNET = ResNet(depth=8).build((8, 8, 3), 10)
SUBJECT = Subject({"name": "mlp", "widths": (3,)}, (4,), 10, 32, "float32", "plain", "a machine")
COSTS = [Cost("flatten+hidden1", 2, 0.1, 1 / 3, 4, 5, 6, 7), Cost("output", 1, 1e-7, 2e-7, 5, 9, 10, 11)]


def names(model: Model) -> list[str]:
    return ["+".join(model.network[unit].names) for unit in units(model)]


def written(*layers, stem=0, head=1, shape=(6, 6, 2)) -> Model:
    named = tuple((f"layer{number}", layer) for number, layer in enumerate(layers))
    return Model(Network(named), shape, stem, head)


def test_the_units_of_the_models():
    assert names(ResNet().build(CIFAR, 10)) == ["stem", *(f"block{n}" for n in range(1, 10)), "pool+output"]
    assert names(VGG().build(CIFAR, 10)) == [*(f"conv{n}" for n in range(1, 14)), "pool+output"]
    assert names(MLP(widths=(3, 4)).build((2, 5), 10)) == ["flatten+hidden1", "hidden2", "output"]
    assert names(MLP(widths=()).build((5,), 10)) == ["flatten+output"]
    assert names(CNN(channels=(2, 3), widths=(4,)).build((8, 8, 1), 10)) == [
        "conv1", "conv2+flatten", "hidden1", "output"
    ]  # fmt: skip


def test_a_unit_has_something_to_learn():
    layers = (Dropout(0.1), Conv2d(3), Activation(), MaxPool2d(), BatchNorm(), Flatten(), Dense(4), Activation("tanh"))
    assert names(written(*layers)) == ["layer0+layer1+layer2+layer3", "layer4+layer5", "layer6+layer7"]
    assert names(written(Flatten(), Activation(), shape=(3,))) == ["layer0+layer1"]
    assert names(written(Conv2d(2), BatchNorm(), Conv2d(3), BatchNorm(), Flatten(), Dense(1), stem=2, head=3)) == [
        "layer0+layer1", "layer2", "layer3+layer4+layer5"
    ]  # fmt: skip


@dataclass(frozen=True)
class Timed(Dense):
    """A dense layer during whose passes a clock advances."""

    forward_seconds: float = 0
    backward_seconds: float = 0
    clock: ClassVar[list[float]] = [0.0]
    wanted: ClassVar[dict[int, list[bool]]] = {}

    def forward(self, weights, state, x, context):
        self.clock[0] += self.forward_seconds
        return super().forward(weights, state, x, context)

    def backward(self, weights, saved, dy, context):
        self.wanted.setdefault(self.outputs, []).append(context.wants_dx)
        self.clock[0] += self.backward_seconds
        dx, finish = super().backward(weights, saved, dy, context)

        def later(grads):
            self.clock[0] += self.backward_seconds / 4
            finish(grads)

        return dx, later


def test_times_belong_to_their_unit_and_the_first_pass_does_not_count(monkeypatch):
    model = written(Timed(3, forward_seconds=1, backward_seconds=4), Timed(5, forward_seconds=2), Timed(2), shape=(7,))
    extra = iter([1000.0, 0.0, 0.5, 70.0, 0.0])
    monkeypatch.setattr(module, "process_time", lambda: Timed.clock[0])
    forward = Dense.forward

    def slower(self, weights, state, x, context):
        Timed.clock[0] += next(extra) if self.outputs == 3 else 0
        return forward(self, weights, state, x, context)

    monkeypatch.setattr(Dense, "forward", slower)
    Timed.wanted.clear()
    costs = measure(model, 4, F8, plain, repeats=3)
    assert [(cost.forward, cost.backward) for cost in costs] == [(1.5, 5.0), (2.0, 0.0), (0.0, 0.0)]
    assert Timed.wanted == {3: [False] * 4, 5: [True] * 4, 2: [True] * 4}


def test_bytes_of_a_perceptron():
    costs = measure(MLP(widths=(20, 30)).build((4, 4), 10), 8, F4, repeats=1)
    assert [(cost.input_bytes, cost.output_bytes, cost.kept_bytes, cost.parameter_bytes) for cost in costs] == [
        (8 * 16 * 4, 8 * 20 * 4, 8 * 20 * 4, (16 + 1) * 20 * 4),
        (8 * 20 * 4, 8 * 30 * 4, 8 * 30 * 4, (20 + 1) * 30 * 4),
        (8 * 30 * 4, 8 * 10 * 4, 8 * 10 * 4, (30 + 1) * 10 * 4),
    ]
    assert [cost.layers for cost in costs] == [2, 1, 1]


def test_bytes_of_what_the_next_unit_needs_are_those_of_the_unit_that_makes_it():
    model = written(Conv2d(4, activation="identity"), BatchNorm(), BatchNorm(), Flatten(), Dense(2), head=2)
    costs = measure(model, 5, F8, repeats=1)
    image, moments = 5 * 6 * 6 * 4 * 8, 2 * 4 * 8
    assert [cost.kept_bytes for cost in costs] == [image, image + moments, image + moments, 5 * 2 * 8]


@pytest.mark.parametrize(
    "model",
    [
        RESNET,
        CNN(channels=(3, 4), widths=(6,), dropout=0.3).build((8, 8, 1), 10),
        written(Conv2d(3), MaxPool2d(), GlobalAveragePool(), Dense(2), head=2),  # nobody keeps what the pool gives
    ],
)
@pytest.mark.parametrize("ops", [plain, cpu])
def test_bytes_of_the_units_add_up_to_those_of_a_pass(model, ops):
    costs = measure(model, 6, F4, ops, repeats=1)
    part = build_part("network", model.network, model.shape, F4, (), ops=ops)
    x = np.ones((6, *model.shape), F4)
    _, saved = part.network.forward(part.weight_views, part.state_views, x, Pass(part.pool, ops))
    owners = {}

    def visit(kept):
        if isinstance(kept, Array.__origin__):
            while isinstance(kept.base, np.ndarray):
                kept = kept.base
            owners[id(kept)] = kept.nbytes
        else:
            for inside in kept:
                visit(inside)

    visit(saved)
    owners.pop(id(x), None)
    assert sum(cost.kept_bytes for cost in costs) == sum(owners.values())
    assert [cost.output_bytes for cost in costs[:-1]] == [cost.input_bytes for cost in costs[1:]]
    assert sum(cost.parameter_bytes for cost in costs) == part.layout.count * 4
    assert all(cost.forward > 0 and cost.backward > 0 for cost in costs)


@pytest.mark.parametrize(
    "model", [RESNET, VGG(depth=11, norm="layer").build(CIFAR, 10), MLP(dropout=0.5).build((9,), 10)]
)
def test_an_estimate_is_always_the_same_and_finds_the_bytes_that_are_measured(model):
    costs = estimate(model, 3, F4)
    assert costs == estimate(model, 3, F4)
    measured = measure(model, 3, F4, repeats=1)
    assert [replace(cost, forward=0, backward=0) for cost in measured] == [
        replace(cost, forward=0, backward=0) for cost in costs
    ]


def test_what_an_estimate_counts():
    model = written(Conv2d(4, (3, 5), stride=2), BatchNorm(), MaxPool2d(3, 3), Flatten(), Dense(7))
    counts = [
        3 * 5 * 2 * 4 * 3 * 3,
        ELEMENT * 3 * (3 * 3 * 4) - ELEMENT * (3 * 3 * 4) + ELEMENT * 4,  # norm, pool by its input, flatten
        4 * 7,
    ]
    costs = estimate(model, 10, F4)
    np.testing.assert_allclose([cost.forward * OPERATIONS / 10 for cost in costs], counts)
    np.testing.assert_allclose([cost.backward * OPERATIONS / 20 for cost in costs], counts)


def test_an_estimate_counts_both_ways_of_a_block_and_their_sum():
    model = ResNet(depth=8).build((8, 8, 3), 10)
    block = estimate(model, 1, F4)[2]  # 16 to 32 channels, 8x8 to 4x4
    image = 4 * 4 * 32
    products = image * (9 * 16 + 9 * 32 + 16)
    elements = image * (2 + 1 + 1 + 1)  # norms of the body, norm of the projection, sum, activation
    assert block.forward * OPERATIONS == pytest.approx(products + ELEMENT * elements)


def test_a_profile_comes_back_as_it_was(tmp_path):
    path = tmp_path / "there/profile.json"
    assert load(path, SUBJECT) is None
    save(path, SUBJECT, COSTS)
    assert load(path, SUBJECT) == COSTS


def test_a_profile_of_something_else_is_refused(tmp_path):
    save(tmp_path / "p.json", SUBJECT, COSTS)
    other = replace(SUBJECT, batch=64, model={"name": "mlp", "widths": (4,)})
    with pytest.raises(InputError, match=r"p\.json: is the profile .*widths \(\[3\] -> \[4\]\).*batch \(32 -> 64\)"):
        load(tmp_path / "p.json", other)


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '{"units": []}', '{"subject": {}, "units": [{"name": "a"}]}', "\xff"]
)
def test_a_damaged_profile_is_refused(text, tmp_path):
    (tmp_path / "p.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"p\.json: is not a profile"):
        load(tmp_path / "p.json", SUBJECT)


def test_subjects_that_differ_in_anything_have_their_own_file():
    changes = {
        "model": {"name": "vgg"}, "shape": (5,), "outputs": 9, "batch": 8,
        "dtype": "float64", "kernels": "compiled", "machine": "another",
    }  # fmt: skip
    others = [replace(SUBJECT, **{name: value}) for name, value in changes.items()]
    assert len({subject.digest for subject in [SUBJECT, *others, replace(SUBJECT)]}) == 8


def test_the_subject_of_a_configuration():
    config = read_config(None, ("model.widths=[5]", "run.dtype=float64"))
    subject = subject_of(config, (8, 8), 10, 16, cpu)
    assert subject.model["widths"] == [5]
    assert (subject.batch, subject.dtype, subject.kernels) == (16, "float64", "compiled")
    assert subject.machine
    assert subject_of(config, (8, 8), 10, 16, plain).kernels == "plain"


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """A user without any profile, and a list of what has been measured for them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []

    def measured(model, batch, dtype, ops):
        calls.append(batch)
        return COSTS

    monkeypatch.setattr(module, "measure", measured)
    return calls


def test_what_is_known_is_not_measured_again(counted, tmp_path):
    assert profile(RESNET, SUBJECT, F4, plain)[1].startswith("measured now, kept in ")
    costs, source = profile(RESNET, SUBJECT, F4, plain)
    assert (costs, counted) == (COSTS, [32])
    kept = tmp_path / "cache/mpinn/profiles" / f"{SUBJECT.digest}.json"
    assert source == f"measured before: {kept}"
    assert json.loads(kept.read_text())["subject"]["batch"] == 32


def test_a_file_that_is_named_is_the_one_that_counts(counted, tmp_path):
    profile(RESNET, SUBJECT, F4, plain)
    named = tmp_path / "mine.json"
    for _ in range(2):
        assert profile(RESNET, SUBJECT, F4, plain, named)[0] == COSTS
    assert counted == [32, 32]
    assert load(named, SUBJECT) == COSTS


def test_where_nothing_can_be_kept(counted, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    costs, source = profile(RESNET, SUBJECT, F4, plain)
    assert costs == COSTS
    assert source.startswith("measured now, not kept: ")
    with pytest.raises(InputError, match=r"file/mine\.json: cannot be written"):
        profile(RESNET, SUBJECT, F4, plain, tmp_path / "file/mine.json")
