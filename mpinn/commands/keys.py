"""The reference of the configuration: every table with its keys, or those that paths name as ``--set`` names them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from textwrap import wrap
from typing import TypeAlias

from mpinn.commands.reference import Key, keys_of, summary, toml
from mpinn.config import CHOSEN, FIXED, ORDER, not_one_of
from mpinn.datasets.source import SOURCES
from mpinn.errors import InputError
from mpinn.models.layers import OPTIONS
from mpinn.training.choices import CHOICES, DEFAULTS
from mpinn.words import nearest

WIDTH = 80
DEEPER = " " * 6
Seen: TypeAlias = dict[tuple[str, str, str], str]
"""Where a key, with what is allowed and what it means, has been told."""
SOURCE = "one of " + ", ".join(SOURCES)


@dataclass(frozen=True)
class Section:
    """Keys that stand together: those of a table, of one ``name`` in it, or of one kind of layer."""

    title: str
    about: str
    keys: tuple[Key, ...]
    name: str = ""


def keys(paths: Sequence[str]) -> Iterator[str]:
    """Lines on what paths such as ``train``, ``train.clip`` and ``schedule.name=fdg`` name, or on everything.

    Raises InputError before the first line if one of them names nothing.
    """
    found = [section for path in paths or ORDER for section in _named(path)]
    seen: Seen = {}
    for number, section in enumerate(found):
        if number:
            yield ""
        yield from _lines(section, seen)


def sections(table: str) -> tuple[Section, ...]:
    """All of a table: first its ``name``, if the other keys depend on it, then the keys of each name."""
    if table in FIXED:
        told = keys_of(FIXED[table])
        if table == "data":
            told = tuple(replace(key, allowed=SOURCE) if key.name == "name" else key for key in told)
        return (Section(f"[{table}]", summary(FIXED[table]), told),)
    names = CHOICES[table]
    means = f"Which {table} is taken; each has keys of its own."
    name = Key("name", f"name = {toml(DEFAULTS[table])}", f"one of {', '.join(names)}", means)
    each = (_section(f"[{table}] name", value, type_, value) for value, type_ in names.items())
    return (Section(f"[{table}]", "", (name,)), *each)


def kinds() -> tuple[Section, ...]:
    """The kinds of layers that the model ``layers`` has tables for."""
    return tuple(_section("[[model.layers]] kind", kind, type_, "layers") for kind, type_ in OPTIONS.items())


def _section(title: str, value: str, type_: type, name: str) -> Section:
    return Section(f"{title} = {toml(value)}", summary(type_), keys_of(type_), name)


def _named(path: str) -> list[Section]:
    """The sections that a path names, with the keys that it names; InputError if there are none."""
    table, dot, rest = path.partition(".")
    key, equals, name = (part.strip(" \"'") for part in rest.partition("="))
    if table not in ORDER:
        hint = nearest(table, ORDER) or _elsewhere(table)
        raise InputError(path, f"there is no such table{hint}; the tables are {', '.join(ORDER)}")
    if equals:
        return _of_name(path, table, key, name)
    return _of_key(path, table, key) if dot else _with_kinds(sections(table))


def _of_name(path: str, table: str, key: str, name: str) -> list[Section]:
    if key != "name" or table not in CHOSEN:
        raise InputError(path, f"a value is only given to the name of {', '.join(CHOSEN)}: write {table}.{key}")
    if name not in CHOICES[table]:
        raise not_one_of(path, name, tuple(CHOICES[table]))
    return _with_kinds([section for section in sections(table) if section.name == name])


def _of_key(path: str, table: str, key: str) -> list[Section]:
    found = sections(table)
    known = tuple(dict.fromkeys(entry.name for section in found for entry in section.keys))
    if key not in known:
        names = tuple(CHOICES.get(table, ()))
        hint = nearest(key, known) or _meant(table, key.partition(".")[0], names)
        raise InputError(path, f"there is no such key{hint}; [{table}] knows: {', '.join(known)}")
    named = [replace(section, keys=tuple(entry for entry in section.keys if entry.name == key)) for section in found]
    return [replace(section, about="") for section in named if section.keys]


def _with_kinds(found: Sequence[Section]) -> list[Section]:
    return [each for section in found for each in ((section, *kinds()) if section.name == "layers" else (section,))]


def _elsewhere(word: str) -> str:
    """A hint at the name or the key that a word is which is no table."""
    if word in OPTIONS:
        return _meant("model", "layers", ("layers",))
    for table in ORDER:
        if word in CHOICES.get(table, ()):
            return _meant(table, word, (word,))
        if any(key.name == word for section in sections(table) for key in section.keys):
            return f" (did you mean {table}.{word}?)"
    return ""


def _meant(table: str, word: str, names: Sequence[str]) -> str:
    """A hint at the name of a table that a word is or is nearest to."""
    found = get_close_matches(word, names, 1)
    return f" (did you mean {table}.name={found[0]}?)" if found else ""


def _lines(section: Section, seen: Seen) -> Iterator[str]:
    """What one section says; of a key that was told in the same words before it says where."""
    yield section.title
    if section.about:
        yield from wrap(section.about, WIDTH)
    for key in section.keys:
        yield ""
        yield f"  {key.written}"
        told = (key.name, key.allowed, key.meaning)
        if told in seen:
            yield f"{DEEPER}as under {seen[told]}"
            continue
        seen[told] = section.title
        for text in (key.allowed, key.meaning):
            yield from wrap(text, WIDTH, initial_indent=DEEPER, subsequent_indent=DEEPER, break_on_hyphens=False)
