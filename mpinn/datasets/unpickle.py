"""Reading pickles of plain data and nothing else: no class is ever looked up, and nothing of the file is ever called.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the program names.
This one knows the instructions that build numbers, strings, bytes and containers; of what a pickle may name it knows
by heart the few functions with which NumPy describes an array, and does what they mean itself.
"""

import pickletools
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpinn.array.typing import Array

KNOWN = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy.core.numeric _frombuffer": "buffer",
    "numpy._core.numeric _frombuffer": "buffer",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
    "__builtin__ bytes": "bytes",
    "builtins bytes": "bytes",
}


class RefusedError(Exception):
    """The pickle is damaged, or contains something that is not plain data."""


@dataclass(frozen=True)
class _Named:
    """What a pickle named, if it is `KNOWN`."""

    role: str


@dataclass(eq=False)
class _Kind:
    """An array's dtype in the making: its order of bytes follows."""

    code: str
    order: str = "|"

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order.replace("|", "=") + self.code)


@dataclass(eq=False)
class _Array:
    """An array in the making: its values follow."""

    values: Array | None = None


_MARK = object()


def loads(pickled: bytes) -> Any:
    """What a pickle contains: None, bool, int, float, str, bytes, numeric arrays, and tuples, lists and dicts of them.

    Strings of Python 2 become bytes. Raises `RefusedError` for everything else.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(pickled):
            if instruction.name == "STOP":
                return machine.result()
            machine.do(instruction.name, argument)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise RefusedError(f"it is damaged ({error})") from error
    raise RefusedError("it has no end")


@dataclass(eq=False)
class _Machine:
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def do(self, name: str, argument: Any) -> None:
        if name in PUSHED:
            self.stack.append(argument)
        elif name in VALUES:
            self.stack.append(VALUES[name]())
        elif name in STEPS:
            STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise RefusedError(f"it contains the instruction {name}, which plain data does not need")

    def result(self) -> Any:
        (value,) = self.stack
        return _finished(_settled(value))

    def text(self, argument: str) -> None:
        # strings of Python 2, which pickletools decodes as Latin 1
        self.stack.append(argument.encode("latin-1"))

    def marked(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def pop(self, count: int) -> list[Any]:
        items = [self.stack.pop() for _ in range(count)]
        if any(item is _MARK for item in items):
            raise RefusedError("it is damaged (an instruction takes more than there is)")
        return items[::-1]

    def collect(self, items: list[Any], kind: type) -> None:
        if kind is dict:
            self.stack.append(dict(_pairs(items)))
        else:
            self.stack.append(kind(map(_settled, items)))

    def extend(self, items: list[Any]) -> None:
        (target,) = self.pop(1)
        if type(target) is list:
            target.extend(map(_settled, items))
        elif type(target) is dict:
            target.update(_pairs(items))
        else:
            raise RefusedError("it fills something that is neither a list nor a dict")
        self.stack.append(target)

    def memoize(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        wanted = f"{module} {name}"
        if wanted not in KNOWN:
            raise RefusedError(f"it names {wanted.replace(' ', '.')!r}, which is not plain data")
        self.stack.append(_Named(KNOWN[wanted]))

    def call(self) -> None:
        named, arguments = self.pop(2)
        if not isinstance(named, _Named) or named.role not in CALLS or type(arguments) is not tuple:
            raise RefusedError("it calls something")
        self.stack.append(CALLS[named.role](*arguments))

    def build(self) -> None:
        made, state = self.pop(2)
        if type(state) is not tuple:
            raise RefusedError("it sets a state that is not one of NumPy's")
        if isinstance(made, _Kind):
            made.order = _order(state)
        elif isinstance(made, _Array) and len(state) == 5:
            _, shape, kind, fortran, values = state
            made.values = _array(values, kind, shape, "F" if fortran else "C")
        else:
            raise RefusedError("it sets the state of something that has none")
        self.stack.append(made)


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    keys, values = items[::2], items[1::2]
    if not all(isinstance(key, Hashable) and isinstance(key, (str, bytes, int)) for key in keys):
        raise RefusedError("a key of a dict is neither text nor a number")
    return list(zip(keys, map(_settled, values), strict=True))


def _settled(value: Any) -> Any:
    """A value as it stands in a container: an array that is complete is the array itself."""
    return value.values if isinstance(value, _Array) and value.values is not None else value


def _finished(value: Any) -> Any:
    """The value, once it is sure that there is nothing but plain data in it."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (list, tuple)):
            waiting += item
        elif isinstance(item, dict):
            waiting += item.values()
        elif not isinstance(item, (bool, int, float, str, bytes, np.ndarray)) and item is not None:
            raise RefusedError("it is damaged (something was begun and not finished)")
    return value


def _kind(code: Any, *_: Any) -> _Kind:
    code = code.decode("latin-1") if isinstance(code, bytes) else code
    if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
        raise RefusedError(f"it has an array of the type {code!r}, and not of numbers")
    return _Kind(code)


def _order(state: tuple[Any, ...]) -> str:
    order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
    if order not in ("|", "<", ">", "=") or state[2:5] != (None, None, None):
        raise RefusedError("it has an array of a type with parts, and not of numbers")
    return str(order)


def _array(values: Any, kind: Any, shape: Any, order: Any) -> Array:
    if not isinstance(kind, _Kind) or not isinstance(values, bytes) or type(shape) is not tuple or order not in "CF":
        raise RefusedError("it has an array that is not described as NumPy does")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise RefusedError(f"it has an array of the shape {shape}")
    return np.frombuffer(values, kind.dtype()).reshape(shape, order=order)


def _begun(*_: Any) -> _Array:
    return _Array()


def _buffer(values: Any, kind: Any, shape: Any, order: Any, *_: Any) -> Array:
    return _array(bytes(values) if isinstance(values, bytearray) else values, kind, shape, order)


def _bytes(*arguments: Any) -> bytes:
    if arguments:
        raise RefusedError("it makes bytes out of something")
    return b""


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError("it encodes something that is not text of bytes")
    return text.encode("latin-1")


CALLS: Mapping[str, Callable[..., Any]] = {
    "array": _begun,
    "buffer": _buffer,
    "dtype": _kind,
    "encode": _encode,
    "bytes": _bytes,
}
PUSHED = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
))  # fmt: skip
VALUES: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "STRING": _Machine.text,
    "BINSTRING": _Machine.text,
    "SHORT_BINSTRING": _Machine.text,
    "TUPLE": lambda machine, _: machine.collect(machine.marked(), tuple),
    "TUPLE1": lambda machine, _: machine.collect(machine.pop(1), tuple),
    "TUPLE2": lambda machine, _: machine.collect(machine.pop(2), tuple),
    "TUPLE3": lambda machine, _: machine.collect(machine.pop(3), tuple),
    "LIST": lambda machine, _: machine.collect(machine.marked(), list),
    "DICT": lambda machine, _: machine.collect(machine.marked(), dict),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.extend(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.extend(machine.marked()),
    "PUT": lambda machine, place: machine.memoize(place),
    "BINPUT": lambda machine, place: machine.memoize(place),
    "LONG_BINPUT": lambda machine, place: machine.memoize(place),
    "MEMOIZE": lambda machine, _: machine.memoize(len(machine.memo)),
    "GET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}
