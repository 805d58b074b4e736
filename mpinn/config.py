"""Configuration: TOML and overrides to frozen, typed tables; what is wrong is said once, with the path of the key.

It knows the tables of `mpinn.tables` only. The options of a model, loss, optimizer, schedule or
consensus are a frozen dataclass beside the class that they configure; `load` is given all of them and picks one by the
table's ``name``.
"""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

from mpinn.errors import InputError as InputError
from mpinn.length import Cadence as Cadence
from mpinn.length import Length as Length
from mpinn.length import Period as Period
from mpinn.tables import FIXED as FIXED
from mpinn.tables import Checkpoint as Checkpoint
from mpinn.tables import Data as Data
from mpinn.tables import Grid as Grid
from mpinn.tables import Natural as Natural
from mpinn.tables import Positive as Positive
from mpinn.tables import Run as Run
from mpinn.tables import Train as Train
from mpinn.words import expected, nearest, show, writable, wrong_locale


class Nested(ABC):
    """The value of a key that holds tables of its own: its type reads them and writes them again."""

    @classmethod
    @abstractmethod
    def read(cls, path: str, value: Any, problems: list[InputError]) -> Self | None:
        """From what TOML gives; None if there was a problem, which is then among the ``problems``."""

    @abstractmethod
    def tables(self) -> Any:
        """What `read` makes the same value of: tables, lists, strings and numbers."""

    @classmethod
    @abstractmethod
    def expected(cls) -> str:
        """What a user may write, for messages."""


Deal = Literal["redealt", "fixed", "same", "skewed"]
CHOSEN = ("model", "loss", "optimizer", "schedule", "consensus")
"""The tables whose ``name`` picks the type of their options."""
ORDER = ("run", "data", "model", "loss", "optimizer", "grid", "schedule", "consensus", "train", "checkpoint")

KEPT = 2
"""Boundaries of which a rank that is to survive others has copies: none is further than one before another."""

MAY_CHANGE = frozenset(
    {
        "run.transport",
        "run.collectives",
        "run.device",
        "run.directory",
        "run.survive",
        "run.patience",
        "data.path",
        "data.memory",
        "train.epochs",
        "train.evaluate",
        "train.log",
    }
    | {f"{table}.{entry.name}" for table in ("grid", "checkpoint") for entry in fields(FIXED[table])}
)
"""Keys that a resumed run may give another value: its length, its cadences, its grid, and where it runs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration; a chosen table is an object of the options' own type, picked by ``names[table]``."""

    run: Run
    data: Data
    model: Any
    loss: Any
    optimizer: Any
    grid: Grid
    schedule: Any
    consensus: Any
    train: Train
    checkpoint: Checkpoint
    names: Mapping[str, str]

    @property
    def deal(self) -> Deal:
        """How samples are dealt to the replicas: as configured, or as the consensus prefers."""
        chosen: Deal = self.consensus.deal if self.data.deal == "auto" else self.data.deal
        return chosen

    def tables(self) -> dict[str, dict[str, Any]]:
        """Every table with every key, as strings, numbers and lists, from which `load` makes the same `Config`."""
        return {table: self._table(table) for table in ORDER}

    def toml(self) -> str:
        """`tables` as TOML."""
        import tomli_w

        return tomli_w.dumps(self.tables())

    def _table(self, table: str) -> dict[str, Any]:
        options = getattr(self, table)
        values = {entry.name: plain(getattr(options, entry.name)) for entry in fields(options)}
        return {"name": self.names[table], **values} if table in CHOSEN else values


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, which may begin with a byte order mark; InputError if it is missing or not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(str(path), "there is no such file") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"is not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(str(path), f"is not TOML: {error}") from None


def load(
    source: str | Mapping[str, Any],
    overrides: Sequence[str],
    choices: Mapping[str, Mapping[str, type]],
    defaults: Mapping[str, str],
) -> Config:
    """The configuration that TOML text or tables describe, after ``overrides`` such as "data.batch=64".

    ``choices[table][name]``, for each table of `CHOSEN`, is an options type: a frozen dataclass whose every field has a
    default; ``defaults[table]`` is the name that counts where none is given. InputError says all that is wrong.
    """
    problems: list[InputError] = []
    given = _override(_parse(source) if isinstance(source, str) else source, overrides)
    problems += _not_tables(given)
    given = {table: content for table, content in given.items() if isinstance(content, Mapping)}
    names = dict(_names(given, choices, defaults, problems))
    types = FIXED | {table: choices[table][name] for table, name in names.items()}
    options = {}
    for table, type_ in types.items():
        values = {key: value for key, value in given.get(table, {}).items() if table in FIXED or key != "name"}
        title = f"[{table}]" if table in FIXED else f"[{table}] {names[table]}"
        options[table] = read_options(table, title, values, type_, problems, choices.get(table, {}))
    if problems:
        raise problems[0] if len(problems) == 1 else InputError("", "\n".join(map(str, problems)))
    return Config(**options, names=names)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Where two results of `Config.tables` differ: (path, old, new), with None for a key that is missing."""
    before, after = _flat(old), _flat(new)
    paths = dict.fromkeys((*before, *after))
    return [(path, before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)]


def not_one_of(path: str, value: object, allowed: Sequence[str]) -> InputError:
    """The error for a ``value`` that is none of the ``allowed`` ones, with the nearest of them."""
    return InputError(path, f"{show(value)} is not one of {', '.join(allowed)}{nearest(value, allowed)}")


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError("", f"the configuration is not TOML: {error}") from None


def _override(tables: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``tables`` with each "table.key=value" put in."""
    given = {name: dict(table) if isinstance(table, Mapping) else table for name, table in tables.items()}
    for override in overrides:
        path, equals, text = override.partition("=")
        table, _, key = path.strip().partition(".")
        if not (equals and table and key):
            raise InputError(f"--set {override}", "expected table.key=value, such as data.batch=64")
        content = given.setdefault(table, {})
        if isinstance(content, dict):
            content[key] = _value(override, text.strip())
    return given


def _value(override: str, text: str) -> Any:
    """``text`` as a TOML value, or, if it is none, as the string itself: nobody quotes a path twice for the shell."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise InputError(f"--set {override}", f"the value is not TOML: {error}") from None
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _not_tables(given: Mapping[str, Any]) -> Iterator[InputError]:
    for table, content in given.items():
        if table not in ORDER:
            hint = nearest(table, ORDER) or _home(table)
            yield InputError(table, f"unknown table{hint}; the tables are {', '.join(ORDER)}")
        elif not isinstance(content, Mapping):
            yield InputError(table, f"expected a table, got {show(content)}")


def _home(key: str) -> str:
    """A hint for a key that stands before the first table."""
    homes = [f"{table}.{key}" for table, type_ in FIXED.items() for entry in fields(type_) if entry.name == key]
    return f" (did you mean {homes[0]}?)" if homes else ""


def _names(
    given: Mapping[str, Any],
    choices: Mapping[str, Mapping[str, type]],
    defaults: Mapping[str, str],
    problems: list[InputError],
) -> Iterator[tuple[str, str]]:
    """(table, name) of each choice that exists; the others are problems."""
    for table in CHOSEN:
        name = given.get(table, {}).get("name", defaults[table])
        if isinstance(name, str) and name in choices[table]:
            yield table, name
        else:
            problems.append(not_one_of(f"{table}.name", name, tuple(choices[table])))


def _owners(path: str, key: str, choices: Mapping[str, type]) -> str:
    """A hint at the choices that have the key."""
    *found, last = ["", *(name for name, type_ in choices.items() if any(entry.name == key for entry in fields(type_)))]
    others = ", ".join(found[1:])
    return f" (it goes with {path}.name = {others}{' or ' * bool(others)}{last})" if last else ""


def read_options(
    path: str,
    title: str,
    values: Mapping[str, Any],
    type_: type,
    problems: list[InputError],
    choices: Mapping[str, type] = MappingProxyType({}),
) -> Any:
    """The options object of a table, or None if there was a problem; ``title`` is the table's in messages.

    ``choices`` are all options types that the table may have, by its name.
    """
    hints = get_type_hints(type_, include_extras=True)
    known = {entry.name: hints[entry.name] for entry in fields(type_)}
    before, content = len(problems), {}
    problems += [
        InputError(f"{path}.{entry.name}", f"is missing, and {title} needs it")
        for entry in fields(type_)
        if entry.name not in values and entry.default is entry.default_factory is MISSING
    ]
    for key, value in values.items():
        if key not in known:
            more = f"; python -m mpinn keys {path} says more" if path in ORDER else ""
            knows = f"{title} knows: {', '.join(known)}{more}" if known else f"{title} has no options"
            hint = _owners(path, key, choices) or nearest(key, tuple(known))
            problems.append(InputError(f"{path}.{key}", f"unknown key{hint}; {knows}"))
            continue
        try:
            content[key] = _read(f"{path}.{key}", value, known[key], problems)
        except InputError as error:
            problems.append(error)
    try:
        return type_(**content) if len(problems) == before else None
    except ValueError as error:
        problems.append(_of_field(path, str(error), known))
    except InputError as error:
        problems.append(error)
    return None


def _of_field(path: str, said: str, fields: Mapping[str, Any]) -> InputError:
    """A problem of a whole table, as one of the key with whose name its sentence begins."""
    name, _, wrong = said.partition(" ")
    return InputError(f"{path}.{name}", wrong) if name in fields else InputError(path, said)


def _read(path: str, value: Any, type_: Any, problems: list[InputError]) -> Any:
    if isinstance(type_, type) and issubclass(type_, Nested):
        return type_.read(path, value, problems)
    return _convert(path, value, type_)


def _convert(path: str, value: Any, type_: Any) -> Any:
    """``value`` as ``type_``, strictly: no string becomes a number."""
    try:
        converted = msgspec.convert(value, type_, dec_hook=_hook)
    except msgspec.ValidationError:
        raise _mismatch(path, value, type_) from None
    if not _finite(converted):
        raise InputError(path, f"expected a finite number, got {show(value)}")
    if isinstance(converted, str) and not writable(converted):
        wrong = "" if "\0" in converted else wrong_locale(converted)
        raise InputError(path, wrong or f"expected a string in UTF-8 without NUL, got {show(value)}")
    return converted


def _hook(type_: type, value: Any) -> Any:
    if issubclass(type_, Length) and isinstance(value, str):
        return type_(value)
    raise ValueError(f"cannot make a {type_.__name__}")


def _finite(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_finite, value))
    return not isinstance(value, float) or isfinite(value)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """The keys of tables, and of tables in lists, by their path."""
    inside: dict[str, Any] = {}
    if isinstance(value, Mapping):
        inside = {f"{path}.{key}" if path else key: content for key, content in value.items()}
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        inside = {f"{path}[{index}]": item for index, item in enumerate(value)}
    if not inside:
        return {path: value}
    return {deeper: leaf for place, content in inside.items() for deeper, leaf in _flat(content, place).items()}


def plain(value: Any) -> Any:
    """A value as TOML has it: of strings, numbers, lists and tables."""
    if isinstance(value, Nested):
        return plain(value.tables())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def _mismatch(path: str, value: Any, type_: Any) -> InputError:
    if get_origin(type_) is Literal and isinstance(value, str):
        return not_one_of(path, value, get_args(type_))
    kind = inspect.type_info(type_)
    hint = ""
    if isinstance(kind, inspect.CustomType) and isinstance(value, int) and not isinstance(value, bool):
        hint = f' (did you mean "{value} epochs" or "{value} steps"?)'
    return InputError(path, f"expected {expected(kind)}, got {show(value)}{hint}")
