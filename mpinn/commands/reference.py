"""What there is to say of the keys of a dataclass of options, all of it read from where the dataclass is written.

A key means what the string below its field says, or, if there is none, that of the class from which it is inherited.
"""

import ast
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from msgspec import inspect as types

from mpinn.config import Nested, plain
from mpinn.words import expected


@dataclass(frozen=True)
class Key:
    """One key, with what is allowed and what it means.

    ``written`` is how TOML gives it its default, such as ``clip = 0.0``; or its name, and that it has none.
    """

    name: str
    written: str
    allowed: str
    meaning: str


def keys_of(options: type) -> tuple[Key, ...]:
    """The keys of a dataclass of options, in their order."""
    hints = get_type_hints(options, include_extras=True)
    return tuple(
        Key(entry.name, _written(entry), _allowed(hints[entry.name]), meaning(options, entry.name))
        for entry in fields(options)
    )


def meaning(options: type, key: str) -> str:
    """The sentences about a key; nothing if nobody has written any."""
    found = (_below_fields(owner.__module__).get((owner.__name__, key), "") for owner in options.__mro__)
    return next(filter(None, found), "")


def summary(options: type) -> str:
    """The first paragraph of what is said of a class."""
    return _prose(inspect.getdoc(options) or "")


def toml(value: Any) -> str:
    """A value of strings, numbers, lists and tables on one line of TOML."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _written(entry: Field[Any]) -> str:
    value = entry.default if entry.default_factory is MISSING else entry.default_factory()
    if value is MISSING or value is None:  # TOML can't say None
        return f"{entry.name} ({'must be given' if value is MISSING else 'may be left out'})"
    return f"{entry.name} = {toml(plain(value))}"


def _allowed(type_: Any) -> str:
    if isinstance(type_, type) and issubclass(type_, Nested):
        return type_.expected()
    if get_origin(type_) is Literal:  # msgspec sorts the choices
        return f"one of {', '.join(map(str, get_args(type_)))}"
    return expected(types.type_info(type_))


@cache
def _below_fields(module: str) -> dict[tuple[str, str], str]:
    """By class and field: the string that stands right after the field in the source of a module."""
    source = sys.modules[module]
    if getattr(source, "__file__", None) is None:
        return {}
    classes = [node for node in ast.parse(inspect.getsource(source)).body if isinstance(node, ast.ClassDef)]
    return {
        (owner.name, node.target.id): _prose(after.value.value)
        for owner in classes
        for node, after in zip(owner.body, owner.body[1:], strict=False)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }


def _prose(text: str) -> str:
    """The first paragraph on one line, without the marks of names."""
    return " ".join(text.split("\n\n")[0].split()).replace("`", "")
