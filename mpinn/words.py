"""What messages say: what a type allows, what was given, what was probably meant; and ranks, when there are many."""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any
from unicodedata import category

from msgspec import inspect

LOCALE = ("LC_ALL", "LC_CTYPE", "LANG")
"""What says in which encoding the names of files are, the first of them that is set."""


def show(value: object) -> str:
    """A value of the user's as messages quote it."""
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, (str, list, dict)) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def writable(text: str) -> bool:
    """Whether a file can have this name, and a TOML file can have this text in it."""
    return "\0" not in text and not any(category(character) == "Cs" for character in text)


def readable(text: str) -> str:
    """A name of a file as text that any program takes, where the bytes of the name are not text in this locale."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def wrong_locale(text: str) -> str:
    """Why a file cannot have this name, or gave it other characters, if that is for the locale; else nothing."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8" or (writable(text) and _has_bytes(text)):
        return ""
    named = next((f"{name}={os.environ[name]}" for name in LOCALE if os.environ.get(name)), "no LC_ALL or LANG")
    return f"{readable(text)!r} is no name in the encoding {encoding} of this locale ({named}): set LC_ALL=C.UTF-8"


def _has_bytes(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def expected(kind: Any) -> str:
    """What a type allows, in words; ``kind`` comes from `msgspec.inspect`."""
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            return ("an integer" if isinstance(kind, inspect.IntType) else "a number") + _bounds(kind)
        case inspect.StrType():
            return "a string"
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            least = f" of at least {kind.min_length}" if kind.min_length else ""
            return f"a list{least}, each {expected(item)}"
        case inspect.TupleType(item_types=items):
            return f"a list of {len(items)}: {', '.join(map(expected, items))}"
        case inspect.UnionType(types=types):
            return " or ".join(expected(type_) for type_ in types if not isinstance(type_, inspect.NoneType))
        case inspect.CustomType(cls=cls):
            return _own(cls)
    raise TypeError(f"a key of the configuration cannot have the type {kind}")


def _own(cls: Any) -> str:
    words: str = cls.expected()
    return words


def _bounds(kind: Any) -> str:
    words = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = {word: getattr(kind, name) for name, word in words.items()}
    found = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
    return f" {' and '.join(found)}" if found else ""


def nearest(value: object, allowed: Sequence[str]) -> str:
    """A hint at the name that ``value`` is nearest to, or nothing."""
    found = get_close_matches(value, allowed, 1) if isinstance(value, str) else []
    return f" (did you mean {found[0]}?)" if found else ""


def counted(number: int, thing: str) -> str:
    """1 epoch, 1,200 epochs."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def name_ranks(ranks: Sequence[int]) -> str:
    """As people write many numbers, which are to rise: ranks 0-2, 5."""
    pieces: list[list[int]] = []
    for rank in ranks:
        if pieces and rank == pieces[-1][1] + 1:
            pieces[-1][1] = rank
        else:
            pieces.append([rank, rank])
    spans = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in pieces)
    return f"rank{'s' if len(ranks) > 1 else ''} {spans}"


def size_text(count: float) -> str:
    """A number of bytes in the largest unit of which it is at least one: 512 B, 902 KiB, 1.04 MiB."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1023.5 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.0f} {units[0]}" if count >= 100 else f"{count:.3g} {units[0]}"


def loss_text(value: float) -> str:
    """Four decimals, or four digits where a loss is so large or so small that decimals say nothing."""
    return f"{value:.4g}" if value >= 1e6 or 0 < value < 1e-4 else f"{value:.4f}"
