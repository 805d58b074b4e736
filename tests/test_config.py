"""The configuration: what it accepts, what it refuses and in which words, and that it survives being written."""

import tomllib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from mpinn.config import (
    CHOSEN,
    FIXED,
    MAY_CHANGE,
    Cadence,
    Config,
    InputError,
    Length,
    Period,
    difference,
    load,
    read_toml,
)


@dataclass(frozen=True)
class MLP:
    widths: tuple[Annotated[int, Meta(ge=1)], ...] = (64, 64)
    activation: Literal["relu", "tanh"] = "relu"


@dataclass(frozen=True)
class Nothing:
    pass


@dataclass(frozen=True)
class SGD:
    rate: Annotated[float, Meta(gt=0)] = 0.1
    momentum: float = 0.9
    decay: Literal["constant", "step", "cosine"] = "cosine"
    milestones: tuple[Length, ...] = field(default=(Length("30 epochs"), Length("45 epochs")))
    warmup: Length = field(default=Length("1 epoch"))
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.momentum >= 1:
            raise ValueError("momentum must stay below 1")


@dataclass(frozen=True)
class Averaging:
    every: Period = field(default=Period("1 epoch"))
    score: Literal["accuracy", "best"] = "accuracy"


CHOICES: dict[str, dict[str, type]] = {
    "model": {"mlp": MLP},
    "loss": {"cross_entropy": Nothing},
    "optimizer": {"sgd": SGD},
    "schedule": {"serial": Nothing},
    "consensus": {"averaging": Averaging, "none": Nothing},
}
DEFAULTS = {table: next(iter(types)) for table, types in CHOICES.items()}


def read(text: str = "", *overrides: str) -> Config:
    return load(text, overrides, CHOICES, DEFAULTS)


def refusal(text: str = "", *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        read(text, *overrides)
    return str(caught.value)


def test_empty_file_is_a_valid_run():
    config = read()
    assert config.run.directory == "runs/digits"
    assert config.data.batch == 128
    assert config.optimizer == SGD()
    assert config.names == DEFAULTS


def test_file_and_overrides_are_read_into_types():
    text = '[model]\nwidths = [8]\n[consensus]\nname = "none"\n[data]\nbatch = 32\n[optimizer]\nrate = 1'
    overrides = ("data.batch=64", "run.directory=runs/a=b", "train.evaluate=20 steps", 'optimizer.decay="step"')
    config = read(text, *overrides, "optimizer.milestones=['5 epochs']", "run.deterministic=true")
    assert config.model.widths == (8,)
    assert config.consensus == Nothing()
    assert config.names["consensus"] == "none"
    assert (config.data.batch, config.run.directory, config.run.deterministic) == (64, "runs/a=b", True)
    assert config.train.evaluate.steps(1000) == 20
    assert config.optimizer == SGD(rate=1.0, decay="step", milestones=(Length("5 epochs"),))
    assert isinstance(config.optimizer.milestones[0], Length)


def test_an_override_may_pick_another_choice():
    assert read("", "consensus.name=none").consensus == Nothing()


REFUSED = [
    ("[data]\nbatch = -5", "data.batch: expected an integer of at least 1, got -5"),
    ("[data]\nbatch = true", "data.batch: expected an integer of at least 1, got true"),
    ("[data]\nbatch = 1.5", "data.batch: expected an integer of at least 1, got 1.5"),
    ('[data]\nbatch = "64"', "data.batch: expected an integer of at least 1, got '64'"),
    ("[data]\npath = 3", "data.path: expected a string, got 3"),
    ("[run]\ndeterministic = 1", "run.deterministic: expected true or false, got 1"),
    ("[run]\nseed = -1", "run.seed: expected an integer of at least 0 and at most 9223372036854775807, got -1"),
    ('[run]\ndtype = "float23"', "run.dtype: 'float23' is not one of float32, float64 (did you mean float32?)"),
    ("[run]\ndtype = 32", "run.dtype: expected one of float32, float64, got 32"),
    ('[run]\ndirectory = " "', "run.directory: expected the path of a directory, got an empty string"),
    ("[train]\nclip = nan", "train.clip: expected a number of at least 0, got nan"),
    ("[train]\nclip = inf", "train.clip: expected a finite number, got inf"),
    ("[train]\nclip = -1", "train.clip: expected a number of at least 0, got -1"),
    ("[optimizer]\nmomentum = nan", "optimizer.momentum: expected a finite number, got nan"),
    ("[optimizer]\nbetas = [0.9, inf]", "optimizer.betas: expected a finite number, got [0.9, inf]"),
    ("[optimizer]\nbetas = [0.9]", "optimizer.betas: expected a list of 2: a number, a number, got [0.9]"),
    ("[optimizer]\nrate = 0", "optimizer.rate: expected a number above 0, got 0"),
    ("[optimizer]\nmomentum = 1", "optimizer.momentum: must stay below 1"),
    (
        '[optimizer]\ndecay = "cosin"',
        "optimizer.decay: 'cosin' is not one of constant, step, cosine (did you mean cosine?)",
    ),
    ("[model]\nwidths = 64", "model.widths: expected a list, each an integer of at least 1, got 64"),
    ("[model]\nwidths = [64, 0]", "model.widths: expected a list, each an integer of at least 1, got [64, 0]"),
    (
        "[optimizer]\nratee = 1",
        "optimizer.ratee: unknown key (did you mean rate?); "
        "[optimizer] sgd knows: rate, momentum, decay, milestones, warmup, betas; "
        "python -m mpinn keys optimizer says more",
    ),
    (
        "[grid]\nranks = 4",
        "grid.ranks: unknown key; [grid] knows: replicas, stages, shards; python -m mpinn keys grid says more",
    ),
    (
        '[consensus]\nname = "none"\nscore = "best"',
        "consensus.score: unknown key (it goes with consensus.name = averaging); [consensus] none has no options",
    ),
    ("[loss]\nsmoothing = 0.1", "loss.smoothing: unknown key; [loss] cross_entropy has no options"),
    (
        '[run]\nname = "x"',
        "run.name: unknown key; [run] knows: directory, seed, dtype, transport, collectives, deterministic, device, "
        "tf32, bf16, kernels, survive, patience; python -m mpinn keys run says more",
    ),
    (
        '[consensus]\nname = "average"',
        "consensus.name: 'average' is not one of averaging, none (did you mean averaging?)",
    ),
    ("[consensus]\nname = 1", "consensus.name: 1 is not one of averaging, none"),
    (
        '[run]\ndtype = "float64"\nbf16 = true',
        "run.bf16: beside bfloat16 stand weights in float32, got run.dtype = 'float64'",
    ),
    (
        '[run]\ncollectives = "nccl"\nsurvive = true',
        "run.collectives: nccl: NCCL does not survive the death of a rank: choose mpi",
    ),
    ("[run]\ncollectives = 1", "run.collectives: expected one of mpi, nccl, got 1"),
    ("run = 1", "run: expected a table, got 1"),
    ("consensus = 1", "consensus: expected a table, got 1"),
    ("[[train]]\nepochs = 1", "train: expected a table, got [{'epochs': 1}]"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message.partition(":")[0] for _, message in REFUSED])
def test_what_is_wrong_is_said_with_its_path(text: str, message: str):
    assert refusal(text) == message


def test_unknown_tables_are_named():
    tables = "the tables are run, data, model, loss, optimizer, grid, schedule, consensus, train, checkpoint"
    assert refusal("[optimiser]\nrate = 1") == f"optimiser: unknown table (did you mean optimizer?); {tables}"
    assert refusal("seed = 3") == f"seed: unknown table (did you mean run.seed?); {tables}"
    assert refusal("[wandb]\nkey = 3") == f"wandb: unknown table; {tables}"


def test_all_problems_of_a_file_are_in_one_message():
    message = refusal('[data]\nbatch = 0\nbath = 1\n[run]\ndtype = "int8"\n[schedule]\nname = "x"\n[zoo]\n')
    assert [line.partition(":")[0] for line in message.splitlines()] == [
        "zoo",
        "schedule.name",
        "run.dtype",
        "data.batch",
        "data.bath",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch", "expected table.key=value, such as data.batch=64"),
        ("batch=3", "expected table.key=value, such as data.batch=64"),
        ("=3", "expected table.key=value, such as data.batch=64"),
        ("model.widths=[64,", "the value is not TOML: "),
        ('data.path="abc', "the value is not TOML: "),
    ],
)
def test_an_override_that_cannot_be_read(override: str, message: str):
    assert refusal("", override).startswith(f"--set {override}: {message}")


def test_an_override_is_one_value_and_never_a_second_key():
    assert read("", "data.path=1\nbatch=7").data.path == "1\nbatch=7"
    assert refusal("", "data.batch=") == "data.batch: expected an integer of at least 1, got ''"
    assert refusal("", "data.batch=many") == "data.batch: expected an integer of at least 1, got 'many'"
    assert refusal("", "data.a.b=1").startswith("data.a.b: unknown key")
    assert refusal("run = 1", "run.seed=2") == "run: expected a table, got 1"


def test_files_that_cannot_be_read(tmp_path):
    broken, latin = tmp_path / "broken.toml", tmp_path / "latin.toml"
    broken.write_text("[run]\nseed = = 1\n")
    latin.write_bytes('[run]\ndirectory = "é"'.encode("latin-1"))
    for path, message in [
        (broken, "is not TOML: Invalid value (at line 2, column 8)"),
        (latin, "is not UTF-8 text (byte 19)"),
        (tmp_path / "none.toml", "there is no such file"),
        (tmp_path, "cannot be read: Is a directory"),
    ]:
        with pytest.raises(InputError) as caught:
            read_toml(path)
        assert str(caught.value) == f"{path}: {message}"
    assert refusal("[run\n").startswith("the configuration is not TOML: ")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbf[run]\nseed = 7\n")
    assert read_toml(tmp_path / "run.toml") == {"run": {"seed": 7}}


def test_a_file_is_read(tmp_path):
    (tmp_path / "run.toml").write_text("[run]\nseed = 7\n")
    assert load(read_toml(tmp_path / "run.toml"), (), CHOICES, DEFAULTS).run.seed == 7


@pytest.mark.parametrize(
    ("text", "shown", "steps"),
    [
        ("100 steps", "100 steps", 100),
        ("1 step", "1 step", 1),
        ("1 steps", "1 step", 1),
        (" 2  epochs ", "2 epochs", 20),
        ("1 epoch", "1 epoch", 10),
        ("0 epochs", "0 epochs", 0),
        ("0.5 epochs", "0.5 epochs", 5),
        ("0.25 epochs", "0.25 epochs", 3),
        ("0.7 epochs", "0.7 epochs", 7),
        ("007 steps", "7 steps", 7),
    ],
)
def test_lengths(text: str, shown: str, steps: int):
    length = Length(text)
    assert str(length) == shown
    assert length.steps(10) == steps
    assert Length(str(length)) == length


@pytest.mark.parametrize(
    "text", ["", "3", "steps", "-1 steps", "1.5 steps", "1 week", "1e3 steps", "² steps", ". epochs"]
)
def test_what_is_no_length(text: str):
    with pytest.raises(ValueError, match=r'expected a length such as "100 steps" or "2 epochs"'):
        Length(text)


def test_only_a_cadence_is_counted_in_minutes():
    cadence = Cadence("15 minutes")
    assert (cadence.number, cadence.unit) == (15, "minute")
    with pytest.raises(ValueError, match="is not a number of steps"):
        cadence.steps(10)
    for type_ in (Length, Period):
        with pytest.raises(ValueError, match="expected a length"):
            type_("15 minutes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[checkpoint]\nevery = 10",
            'checkpoint.every: expected a length above zero such as "100 steps" or "2 epochs" or "15 minutes", '
            'got 10 (did you mean "10 epochs" or "10 steps"?)',
        ),
        (
            '[consensus]\nevery = "0 epochs"',
            'consensus.every: expected a length above zero such as "100 steps" or "2 epochs", got \'0 epochs\'',
        ),
        (
            '[train]\nlog = "5 minutes"',
            'train.log: expected a length above zero such as "100 steps" or "2 epochs", got \'5 minutes\'',
        ),
        (
            '[optimizer]\nwarmup = "soon"',
            'optimizer.warmup: expected a length such as "100 steps" or "2 epochs", got \'soon\'',
        ),
        (
            '[optimizer]\nmilestones = ["1 epoch", 3]',
            'optimizer.milestones: expected a list, each a length such as "100 steps" or "2 epochs", '
            "got ['1 epoch', 3]",
        ),
    ],
)
def test_a_length_that_is_refused_says_what_a_length_is(text: str, message: str):
    assert refusal(text) == message


def test_difference_names_the_keys():
    old, new = read().tables(), read("", "data.batch=64", "consensus.name=none", "train.epochs=3").tables()
    assert difference(old, old) == []
    assert difference(old, new) == [
        ("data.batch", 128, 64),
        ("consensus.name", "averaging", "none"),
        ("consensus.every", "1 epoch", None),
        ("consensus.score", "accuracy", None),
        ("train.epochs", 60, 3),
    ]
    assert {path for path, _, _ in difference(old, new)} & MAY_CHANGE == {"train.epochs"}


def test_only_length_cadence_grid_and_place_may_change():
    known = {f"{table}.{key}" for table, content in read().tables().items() for key in content}
    assert known >= MAY_CHANGE
    assert known - MAY_CHANGE >= {"run.seed", "run.dtype", "data.batch", "data.deal", "train.clip", "consensus.score"}


lengths = st.one_of(st.integers(0, 10**6).map("{} steps".format), st.decimals(0, 99, places=2).map("{} epochs".format))
periods = lengths.filter(lambda text: float(text.split()[0]) > 0)
numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
tables = st.fixed_dictionaries(
    {
        "run": st.fixed_dictionaries(
            {}, optional={"seed": st.integers(0, 2**63 - 1), "directory": texts.filter(str.strip)}
        ),
        "data": st.fixed_dictionaries({}, optional={"path": texts, "batch": st.integers(1, 10**6)}),
        "model": st.fixed_dictionaries({}, optional={"widths": st.lists(st.integers(1, 999))}),
        "optimizer": st.fixed_dictionaries(
            {},
            optional={
                "rate": numbers.filter(lambda rate: rate > 0),
                "warmup": lengths,
                "milestones": st.lists(lengths),
                "betas": st.tuples(numbers, numbers).map(list),
            },
        ),
        "consensus": st.one_of(
            st.just({"name": "none"}), st.fixed_dictionaries({"name": st.just("averaging"), "every": periods})
        ),
        "checkpoint": st.fixed_dictionaries({}, optional={"every": periods, "keep": st.integers(1, 99)}),
    }
)


@given(tables)
def test_what_is_written_is_what_was_read(given_tables: dict[str, dict[str, object]]):
    config = load(given_tables, (), CHOICES, DEFAULTS)
    written = config.tables()
    assert load(written, (), CHOICES, DEFAULTS) == config
    assert load(config.toml(), (), CHOICES, DEFAULTS) == config
    assert tomllib.loads(config.toml()) == written
    assert set(written) == {*FIXED, *CHOSEN}


@given(st.sampled_from([*FIXED, *CHOSEN]), st.text(st.characters(categories=["L", "N"]), min_size=1), st.integers())
def test_an_unknown_key_anywhere_is_refused_with_its_path(table: str, key: str, value: int):
    known = read().tables()[table]
    content = {key if key not in known else f"{key}x": value}
    with pytest.raises(InputError) as caught:
        load({table: content}, (), CHOICES, DEFAULTS)
    assert caught.value.path == f"{table}.{next(iter(content))}"
    assert "unknown key" in str(caught.value)
