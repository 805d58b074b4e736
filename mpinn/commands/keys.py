"""The reference of the configuration: every table with its keys, or those that paths name as ``--set`` names them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TypeAlias

from mpinn.commands.reference import Key, keys_of, summary, toml
from mpinn.config import CHOSEN, FIXED, ORDER
from mpinn.datasets.source import SOURCES
from mpinn.errors import InputError
from mpinn.models.layers import OPTIONS, Layers
from mpinn.training.choices import CHOICES, DEFAULTS
from mpinn.words import nearest

WIDTH = 80
Seen: TypeAlias = dict[tuple[str, str, str], str]
"""Where a key, with what is allowed and what it means, has been told."""
SOURCE = "one of " + ", ".join(SOURCES)


@dataclass(frozen=True)
class Section:
    """The keys that stand together in a table: all of it, what one ``name`` brings, or one kind of layer."""

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
    """All of a table: first its ``name``, if that brings the other keys, then what each of them brings."""
    if table in FIXED:
        told = keys_of(FIXED[table])
        if table == "data":
            told = tuple(Key(key.name, key.default, SOURCE, key.meaning) if key.name == "name" else key for key in told)
        return (Section(f"[{table}]", summary(FIXED[table]), told),)
    names = CHOICES[table]
    name = Key("name", toml(DEFAULTS[table]), f"one of {', '.join(names)}", "Which one; it brings keys of its own.")
    found = [Section(f"[{table}]", "", (name,))]
    for value, type_ in names.items():
        found.append(Section(f"[{table}] name = {toml(value)}", summary(type_), keys_of(type_), value))
        if type_ is Layers:
            found += [
                Section(f"[[model.layers]] kind = {toml(kind)}", summary(layer), keys_of(layer), value)
                for kind, layer in OPTIONS.items()
            ]
    return tuple(found)


def _named(path: str) -> list[Section]:
    """The sections that a path names, with the keys that it names; InputError if there are none."""
    table, dot, rest = path.partition(".")
    key, equals, name = (part.strip(" \"'") for part in rest.partition("="))
    if table not in ORDER:
        hint = nearest(table, ORDER) or _elsewhere(table)
        raise InputError(path, f"there is no such table{hint}; the tables are {', '.join(ORDER)}")
    whole = sections(table)
    if not dot:
        return list(whole)
    if equals:
        return _of_name(path, table, key, name, whole)
    known = tuple(dict.fromkeys(entry.name for section in whole for entry in section.keys))
    found = [
        Section(section.title, "", tuple(entry for entry in section.keys if entry.name == key)) for section in whole
    ]
    if key not in known:
        names = CHOICES.get(table, {})
        hint = _meant(table, key) if key in names else nearest(key, known) or nearest(key, tuple(names))
        raise InputError(path, f"there is no such key{hint}; [{table}] knows: {', '.join(known)}")
    return [section for section in found if section.keys]


def _of_name(path: str, table: str, key: str, name: str, whole: Sequence[Section]) -> list[Section]:
    names = CHOICES.get(table, {})
    if key != "name" or table not in CHOSEN:
        raise InputError(path, f"a value is only given to the name of {', '.join(CHOSEN)}: write {table}.{key}")
    if name not in names:
        raise InputError(path, f"{name!r} is not one of {', '.join(names)}{nearest(name, tuple(names))}")
    return [section for section in whole if section.name == name]


def _elsewhere(word: str) -> str:
    """A hint for a word that is no table: a name, or a key of one."""
    for table in ORDER:
        if word in CHOICES.get(table, {}):
            return _meant(table, word)
        if any(key.name == word for section in sections(table) for key in section.keys):
            return f" (did you mean {table}.{word}?)"
    return ""


def _meant(table: str, name: str) -> str:
    return f" (did you mean {table}.name={name}?)"


def _lines(section: Section, seen: Seen) -> Iterator[str]:
    """What one section says; of a key that was told in the same words before it says where."""
    yield section.title
    if section.about:
        yield fill(section.about, WIDTH)
    for key in section.keys:
        yield ""
        yield f"  {key.name} (must be given)" if key.default is None else f"  {key.name} = {key.default}"
        told = (key.name, key.allowed, key.meaning)
        if told in seen:
            yield f"      as of {seen[told]}"
            continue
        seen[told] = section.title
        for text in (key.allowed, key.meaning):
            yield fill(text, WIDTH, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False)
