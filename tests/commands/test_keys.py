"""The reference of keys: all that a configuration may have, as it is read and as it counts when nothing is given."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from launch import ROOT

from mpinn.commands.keys import WIDTH, keys, kinds, sections
from mpinn.commands.reference import keys_of
from mpinn.config import FIXED, ORDER, load
from mpinn.datasets.source import SOURCES
from mpinn.errors import InputError
from mpinn.models.layers import OPTIONS
from mpinn.training.choices import CHOICES, DEFAULTS

ALL = {
    **{f"[{table}]": type_ for table, type_ in FIXED.items()},
    **{f'[{table}] name = "{name}"': type_ for table, names in CHOICES.items() for name, type_ in names.items()},
    **{f'[[model.layers]] kind = "{kind}"': type_ for kind, type_ in OPTIONS.items()},
}
"""Every dataclass of keys, by its title."""
LAYER = {"kind": "flatten"}
NEEDED: dict[str, dict[str, Any]] = {
    **{kind: {"outputs": 3} for kind in ("dense", "conv", "padded_identity")},
    "residual": {"body": [LAYER]},
}
"""What a kind of layer cannot be without."""


def printed(*paths: str) -> dict[str, dict[str, Any]]:
    """By title: the keys that are printed with a default, and that."""
    found: dict[str, dict[str, Any]] = {}
    for line in keys(paths):
        if line.startswith("["):
            title = line
            found[title] = {}
        elif line.startswith("  ") and line[2] != " " and not line.endswith(")"):
            found[title] |= tomllib.loads(line)
    return found


def counts(title: str) -> dict[str, Any]:
    """What the program itself takes where nothing is given."""
    table, _, name = title.partition(" = ")
    if table == "[[model.layers]] kind":
        kind = name.strip('"')
        layer = {"kind": kind, **NEEDED.get(kind, {})}
        read = load({"model": {"name": "layers", "layers": [layer]}}, [], CHOICES, DEFAULTS).tables()
        (values,) = read["model"]["layers"]
        return {key: value for key, value in values.items() if key not in ("kind", "name", *NEEDED.get(kind, {}))}
    table = table.strip("[]").removesuffix("] name")
    given = {"name": name.strip('"')} if name else {}
    if given == {"name": "layers"}:
        return {"layers": []}
    values = load({table: given}, [], CHOICES, DEFAULTS).tables()[table]
    return {key: value for key, value in values.items() if table in FIXED or key != "name"}


@pytest.mark.parametrize("title", ALL)
def test_every_key_has_a_meaning(title: str) -> None:
    told = {key.name: key.meaning for key in keys_of(ALL[title])}
    assert [name for name, said in told.items() if not said] == []
    for said in told.values():
        assert said[-1] == "."
        assert (said[0].isupper() or not said[0].isalpha()) or said.startswith("auto "), said
        assert "`" not in said


@pytest.mark.parametrize("title", ALL)
def test_a_default_that_is_shown_is_the_one_that_counts(title: str) -> None:
    told = printed()[title]
    if title == '[[model.layers]] kind = "residual"':
        assert told == {"projection": []}
        return
    assert told == counts(title)


def test_all_is_there_and_fits_a_terminal() -> None:
    lines = list(keys(()))
    titles = [line for line in lines if line.startswith("[")]
    assert titles == [section.title for table in ORDER for section in _in_order(table)]
    assert {*titles} == {*ALL, *(f"[{table}]" for table in CHOICES)}
    assert max(map(len, lines)) <= WIDTH == 80
    for table, default in DEFAULTS.items():
        assert printed()[f"[{table}]"] == {"name": default}


def _in_order(table: str) -> Iterator[Any]:
    for section in sections(table):
        yield section
        yield from kinds() if section.name == "layers" else ()


def choices() -> Iterator[str]:
    """As overrides, every choice that is printed."""
    for table in ORDER:
        for section in sections(table):
            name = f"{table}.name={section.name} " if section.name else ""
            for key in section.keys:
                if key.allowed.startswith("one of ") and " or " not in key.allowed:
                    yield from (f"{name}{table}.{key.name}={value}" for value in key.allowed[7:].split(", "))


def test_every_choice_that_is_shown_is_allowed() -> None:
    found = set(choices()) - {"model.name=layers"}
    assert {"data.name=npz", "run.kernels=plain", "schedule.name=fdg schedule.versions=mixed"} <= found
    assert {f"data.name={name}" for name in SOURCES} == {one for one in found if one.startswith("data.name")}
    for override in found:
        load({}, override.split(" "), CHOICES, DEFAULTS)


@dataclass(frozen=True, kw_only=True)
class Inherited:
    rate: float = 1.0
    """How fast.

    No more of it is told."""
    count: int = field(default=3)
    """How ``many``
    there are."""
    silent: bool = False

    def rest(self) -> None:
        """Nothing that is told."""


@dataclass(frozen=True, kw_only=True)
class Inheriting(Inherited):
    rate: float = 0.5
    count: int = 4
    """How many others."""
    last: str | None = None


def test_meanings_stand_below_the_fields_and_are_inherited() -> None:
    first = {key.name: (key.written, key.meaning) for key in keys_of(Inherited)}
    assert first == {
        "rate": ("rate = 1.0", "How fast."),
        "count": ("count = 3", "How many there are."),
        "silent": ("silent = false", ""),
    }
    second = {key.name: (key.written, key.meaning) for key in keys_of(Inheriting)}
    assert second == {
        "rate": ("rate = 0.5", "How fast."),
        "count": ("count = 4", "How many others."),
        "silent": ("silent = false", ""),
        "last": ("last (may be left out)", ""),
    }


def test_what_is_allowed_is_said_in_words() -> None:
    lines = list(keys(("train.evaluate", "checkpoint.every", "schedule.shrink", "consensus.in_flight", "run.seed")))
    for said in (
        '      a length above zero such as "100 steps" or "2 epochs"',
        '      a length above zero such as "100 steps" or "2 epochs" or "15 minutes"',
        "      a number above 0 and at most 1",
        "      one of drain, keep",
        "      an integer of at least 0 and at most 9223372036854775807",
    ):
        assert lines.count(said) == 1


def test_paths_name_tables_keys_and_names() -> None:
    assert [*printed("grid")] == ["[grid]"]
    assert printed("schedule.name=fdg") == {'[schedule] name = "fdg"': counts('[schedule] name = "fdg"')}
    assert printed('schedule.name="fdg"') == printed("schedule.name=fdg")
    assert printed("optimizer.floor")['[optimizer] name = "adamw"'] == {"floor": 0.0}
    assert printed("consensus.name") == {"[consensus]": {"name": "averaging"}}
    orders = printed("schedule.order")
    assert {title: found["order"] for title, found in orders.items()} == {
        '[schedule] name = "fdg"': "backward_first",
        **{f'[schedule] name = "{name}"': "forward_first" for name in ("ddg", "fr", "layerwise")},
    }
    assert [*printed("train.clip", "grid.stages")] == ["[train]", "[grid]"]
    assert [*printed("model.name=layers")][1] == '[[model.layers]] kind = "activation"'
    assert [*printed("model.kernel")] == ['[model] name = "cnn"']


def test_a_key_that_was_explained_is_not_explained_again() -> None:
    lines = list(keys(("optimizer.rate",)))
    assert sum(line.startswith("      The learning rate") for line in lines) == 1
    assert lines[lines.index("  rate = 0.001") + 1] == '      as under [optimizer] name = "sgd"'


WRONG = {
    "scheduel": "scheduel: there is no such table (did you mean schedule?); the tables are run, data,",
    "averaging": "averaging: there is no such table (did you mean consensus.name=averaging?); the tables",
    "conv": "conv: there is no such table (did you mean model.name=layers?)",
    "floor": "floor: there is no such table (did you mean optimizer.floor?)",
    "train.epoch": "train.epoch: there is no such key (did you mean epochs?); [train] knows: epochs, evaluate, log, c",
    "train.": "train.: there is no such key; [train] knows",
    "schedule.fdg": "schedule.fdg: there is no such key (did you mean schedule.name=fdg?); [schedule] knows: name, cut",
    "loss.name=cross": "loss.name=cross: 'cross' is not one of cross_entropy, squared_error",
    "schedule.name=fgd": "parareal (did you mean fdg?)",
    "data.name=mnist": "data.name=mnist: a value is only given to the name of model, loss, optimizer, schedule, con",
    "train.clip=1": "write train.clip",
    "": "there is no such table; the tables are",
}


@pytest.mark.parametrize("path", WRONG)
def test_a_path_that_names_nothing_is_refused_before_the_first_line(path: str) -> None:
    lines = keys(("train", path))
    with pytest.raises(InputError) as refused:
        next(lines)
    assert WRONG[path] in str(refused.value)


def test_an_unknown_key_points_here() -> None:
    with pytest.raises(InputError, match=r"clip; python -m mpinn keys train says more$"):
        load({"train": {"epoch": 1}}, [], CHOICES, DEFAULTS)


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """``python -m mpinn keys``, which prints at the end which of the heavy libraries were imported."""
    program = (
        "import atexit, sys\n"
        "heavy = {'mpi4py', 'numba', 'matplotlib', 'cupy', 'torch'}\n"
        "atexit.register(lambda: print('heavy', *heavy & {*sys.modules}))\n"
        "from mpinn.cli.main import main\n"
        f"main({['keys', *arguments]!r})\n"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_command_prints_starts_no_mpi_and_refuses_with_code_2() -> None:
    done = command("schedule.name=fdg", "train")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "\n".join((*keys(("schedule.name=fdg", "train")), "heavy", ""))
    refused = command("train", "train.clips")
    assert (refused.returncode, refused.stdout) == (2, "heavy\n")
    assert refused.stderr.startswith("mpinn: train.clips: there is no such key (did you mean clip?)")
    assert refused.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_failure() -> None:
    program = [sys.executable, "-m", "mpinn", "keys"]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.close()
        assert (running.stderr.read(), running.wait(timeout=60)) == (b"", 0)
