"""A vector register as a type of numba's, for kernels whose inner loops the compiler does not vectorise by itself.

It gives up on loops over few channels and on loops with many pointers. A `Lanes` is as many numbers as a register
holds, of AVX or, where the machine has them and the numbers are enough, of AVX-512; sums and products of it are single
instructions, and a product that is added at once is a fused one. Every number is computed alike in both.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, overload, register_model

BYTES = 32
NARROW, WIDE = (0,), (0, 0)
"""Registers of 32 and of 64 bytes, as a kernel is told: compiled code depends on how many numbers a tuple has."""
WIDEST = WIDE if binding.get_host_cpu_features().get("avx512vl") else NARROW
"""Those of this machine."""

_generated: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic


def widest(count: int, itemsize: int, registers: int = 1) -> tuple[int, ...]:
    """The largest registers of which ``count`` numbers fill a multiple of so many."""
    return WIDEST if count % (registers * BYTES * len(WIDEST) // itemsize) == 0 else NARROW


class Lanes(types.Type):
    """A register full of float32 or float64."""

    def __init__(self, number: Any, count: int):
        self.number = number
        self.count = count
        super().__init__(name=f"Lanes({number}, {count})")


@register_model(Lanes)
class _LanesModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes):
        number = manager.lookup(kind.number).get_value_type()
        super().__init__(manager, kind, ir.VectorType(number, kind.count))  # type: ignore[no-untyped-call]


def _address(context: Any, builder: Any, kind: Any, values: Any, like: Lanes) -> Any:
    data = context.make_array(kind)(context, builder, values[0]).data
    return builder.bitcast(builder.gep(data, [values[1]]), ir.VectorType(data.type.pointee, like.count).as_pointer())


@_generated
def register(typing: Any, array: Any, size: Any) -> Any:
    """A register of an array's numbers, all zero; ``size``: `NARROW` or `WIDE`."""
    kind = Lanes(array.dtype, len(size) * BYTES * 8 // array.dtype.bitwidth)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(kind), None)

    return kind(array, size), generate


@_generated
def lanes(typing: Any, like: Any) -> Any:
    """How many numbers a register holds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.intp, like.count)

    return types.intp(like), generate


@_generated
def load(typing: Any, array: Any, place: Any, like: Any) -> Any:
    """The numbers of a vector from ``place`` on, in such a register."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, array, arguments, like)
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return like(array, types.intp, like), generate


@_generated
def store(typing: Any, array: Any, place: Any, value: Any) -> Any:
    """Write them back."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, array, arguments, value)
        builder.store(arguments[2], address, align=array.dtype.bitwidth // 8)

    return types.void(array, types.intp, value), generate


@_generated
def spread(typing: Any, like: Any, number: Any) -> Any:
    """Such a register full of one number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, context.cast(builder, arguments[1], number, like.number), like.count)

    return like(like, number), generate


@_generated
def spread_from(typing: Any, array: Any, place: Any, like: Any) -> Any:
    """Such a register full of the number of a vector at ``place``, which is not negative."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(array)(context, builder, arguments[0]).data
        return _spread(builder, builder.load(builder.gep(data, [arguments[1]])), like.count)

    return like(array, types.intp, like), generate


@_generated
def sum_of(typing: Any, value: Any) -> Any:
    """The sum of the numbers of a register."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (found,), count = arguments, value.count
        while count > 1:
            count //= 2
            halves = (_picked(builder, found, range(start, start + count)) for start in (0, count))
            found = builder.fadd(*halves)
        return builder.extract_element(found, cgutils.int32_t(0))

    return value.number(value), generate


@_generated
def rectified(typing: Any, value: Any) -> Any:
    """Zero in place of negative numbers; NaN stays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(arguments[0].type, None)
        return builder.select(builder.fcmp_ordered("<", arguments[0], zero), zero, arguments[0])

    return value(value), generate


@_generated
def where_positive(typing: Any, chooser: Any, value: Any) -> Any:
    """The value where the chooser is positive, zero elsewhere."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(arguments[1].type, None)
        return builder.select(builder.fcmp_ordered(">", arguments[0], zero), arguments[1], zero)

    return value(chooser, value), generate


@_generated
def greater_or_nan(typing: Any, a: Any, b: Any) -> Any:
    """a where it is greater than b or NaN, else b."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a_, b_ = arguments
        chosen = builder.or_(builder.fcmp_ordered(">", a_, b_), builder.fcmp_unordered("uno", a_, a_))
        return builder.select(chosen, a_, b_)

    return a(a, b), generate


@_generated
def where_greater(typing: Any, a: Any, b: Any, chosen: Any, other: Any) -> Any:
    """``chosen`` where a > b, ``other`` elsewhere."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments[:2]), *arguments[2:])

    return chosen(a, b, chosen, other), generate


@_generated
def where_equal(typing: Any, a: Any, b: Any, value: Any) -> Any:
    """The value where a = b, zero elsewhere."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(arguments[2].type, None)
        return builder.select(builder.fcmp_ordered("==", *arguments[:2]), arguments[2], zero)

    return value(a, b, value), generate


@_generated
def store_bytes(typing: Any, array: Any, place: Any, value: Any) -> Any:
    """Write whole numbers from 0 to 255 to a vector of bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        small = ir.VectorType(ir.IntType(8), value.count)
        data = context.make_array(array)(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), small.as_pointer())
        builder.store(builder.fptoui(arguments[2], small), address, align=1)

    return types.void(array, types.intp, value), generate


@_generated
def load_bytes(typing: Any, array: Any, place: Any, like: Any) -> Any:
    """Read them, as numbers of the type of ``like``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        small = ir.VectorType(ir.IntType(8), like.count)
        data = context.make_array(array)(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), small.as_pointer())
        return builder.uitofp(builder.load(address, align=1), arguments[2].type)

    return like(array, types.intp, like), generate


def _picked(builder: Any, value: Any, places: Iterable[int]) -> Any:
    chosen = [*places]
    return builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(cgutils.int32_t, len(chosen)), chosen))


def _spread(builder: Any, number: Any, count: int) -> Any:
    empty = ir.Constant(ir.VectorType(number.type, count), ir.Undefined)
    first = builder.insert_element(empty, number, cgutils.int32_t(0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(cgutils.int32_t, count), None))


def _operator(symbol: Callable[..., Any], instruction: str) -> None:
    @_generated
    def combine(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments, flags=("contract",))

        return a(a, b), generate

    @overload(symbol)
    def _combined(a: Any, b: Any) -> Any:
        def combined(a: Any, b: Any) -> Any:
            return combine(a, b)

        return combined if isinstance(a, Lanes) and isinstance(b, Lanes) else None


for _symbol, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _operator(_symbol, _instruction)
