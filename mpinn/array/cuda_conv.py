"""Convolutions by cuDNN: one graph for each shape, chosen by its heuristics, never by timing.

Images are (B, H, W, C), as cuDNN likes them best. It wants the weight as (O, KH, KW, C), so ours, (KH, KW, C, O), is
transposed on the way, and the gradient on its way back; the weight of bfloat16 images is rounded to their type then.
Only engines that repeat bit for bit are chosen. Where cuDNN has none, as for float64, and where it is not installed,
kernels of our own serve, which are slow and exact.
"""

import re
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

import cupy
import numpy as np

from mpinn.array.cuda_kernels import THREADS, address, launch, placed, spread_over
from mpinn.array.im2col import Pair, extent
from mpinn.array.pool import Pool
from mpinn.array.precision import BFLOAT16
from mpinn.array.typing import Array, Dtype, Shape

Kind: TypeAlias = Literal["forward", "input", "weight"]
Precision: TypeAlias = Literal["float32", "TF32", "bfloat16"]
PRECISIONS: dict[str, Precision] = {"f": "float32", BFLOAT16: "bfloat16"}
"""Of products, by the type of images."""
X, WEIGHT, Y = 1, 2, 3
"""The names of tensors in a graph."""
AVOIDED = ("NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION", "WINOGRAD_TILE_13x13")
"""What no engine may do."""
INEXACT = ("TENSOR_CORE", "DOWN_CONVERT_INPUTS", "FFT", "WINOGRAD_TILE_6x6")
"""What one may do only where products may be TF32: all of it loses digits of float32."""
ROUGH = "eng17_"
"""An engine that loses digits without saying so: its weight gradients were seen to err by 3e-5."""
LEAST = 1 << 20
"""Workspaces are powers of two from here on, so that graphs can share them."""


ANY = range(1, 1 << 31)


class Better(NamedTuple):
    """An engine that beats what the heuristics of cuDNN like best, by the name of its plan.

    Measured on an H100 with 128 images of residual networks: weight gradients in 1.2 to 4 times the speed, and those of
    float32 with a stride in 7 times; float32 forward in 1 to 4 times.
    """

    kind: Kind
    precision: Precision
    inputs: range
    plan: str
    outputs: range = ANY
    strided: bool = False


BETTER = (
    Better("weight", "TF32", range(1, 5), r"eng34_k0=\d+_k2=0_"),
    Better("weight", "TF32", range(5, 33), r"eng68_k2=5_.*_k28=1$", outputs=range(32, 65)),
    Better("weight", "bfloat16", range(1, 5), r"eng33_k0=\d+_k2=1_k5=3_k14=5$"),
    Better("weight", "bfloat16", range(5, 17), r"eng33_k0=\d+_k2=7_k5=3_k14=5$"),
    Better("weight", "bfloat16", range(17, 33), r"eng49_k0=\d+_k2=5_k5=4_k14=4$"),
    Better("weight", "float32", range(5, 17), r"eng1_k2=6_k3=0$", strided=True),
    Better("forward", "float32", range(5, 1 << 31), r"eng70_k2=2_k18=0$"),
)
"""The first one that fits."""
MEASURED = 919
"""The version of cuDNN: others, whose engines may be others under these names, go on with their heuristics."""


@cache
def frontend() -> Any:
    """The module of cuDNN's graphs, or None where it cannot be imported, or does not find cuDNN itself."""
    try:
        import cudnn

        cudnn.backend_version()
    except (ImportError, OSError, RuntimeError):
        return None
    return cudnn


@cache
def _handle(stream: int) -> Any:
    handle = frontend().create_handle()
    frontend().set_stream(handle=handle, stream=stream)
    return handle


@dataclass(frozen=True, eq=False)
class Plan:
    """A graph that is ready to run, and the bytes that it needs besides its tensors."""

    graph: Any
    number: int
    """Of the plan, among those of the graph."""
    workspace: int
    handle: Any

    def run(self, pointers: dict[int, Array], pool: Pool) -> None:
        """Run it on the current stream, with an array for each name."""
        spare = pool.empty((self.workspace,), np.dtype(np.uint8)) if self.workspace else None
        told = {name: address(array) for name, array in pointers.items()}
        where = 0 if spare is None else address(spare)
        self.graph.execute_plan_at_index(told, where, self.number, self.handle, [], [], [])


@cache
def plan(
    kind: Kind, x: Shape, weight: Shape, stride: Pair, padding: Pair, precision: Precision, stream: int
) -> Plan | None:
    """The plan for x: (B, H, W, C) and the weight: (KH, KW, C, O); None where cuDNN has none."""
    cudnn = frontend()
    if cudnn is None:
        return None
    handle, real = _handle(stream), cudnn.data_type.FLOAT
    stored = cudnn.data_type.BFLOAT16 if precision == "bfloat16" else real
    graph = cudnn.pygraph(io_data_type=stored, intermediate_data_type=real, compute_data_type=real, handle=handle)
    images = _images(x, stored)
    filters = _images((weight[3], weight[0], weight[1], weight[2]), stored)
    outputs = _images(output_shape(x, weight, stride, padding), stored)
    steps = {"padding": [*padding], "stride": [*stride], "dilation": [1, 1]}
    if kind == "forward":
        ends = graph.tensor(name="x", uid=X, **images), graph.tensor(name="weight", uid=WEIGHT, **filters)
        found, shape, name = graph.conv_fprop(image=ends[0], weight=ends[1], **steps), outputs, Y
    elif kind == "input":
        ends = graph.tensor(name="y", uid=Y, **outputs), graph.tensor(name="weight", uid=WEIGHT, **filters)
        found, shape, name = graph.conv_dgrad(loss=ends[0], filter=ends[1], **steps), images, X
    else:
        ends = graph.tensor(name="x", uid=X, **images), graph.tensor(name="y", uid=Y, **outputs)
        found, shape, name = graph.conv_wgrad(image=ends[0], loss=ends[1], **steps), filters, WEIGHT
    found.set_output(True).set_dim(shape["dim"]).set_stride(shape["stride"]).set_data_type(stored).set_uid(name)
    exact = precision == "float32"
    notes = [getattr(cudnn.numerical_note, name) for name in (*AVOIDED, *(INEXACT if exact else ()))]
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.deselect_numeric_notes(notes)
        graph.check_support()
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError):
        return None
    for number in _in_order(graph, wanted(kind, weight, stride, precision)):
        if exact and graph.get_plan_name_at_index(number).startswith(ROUGH):
            continue
        try:
            graph.build_plan_at_index(number)
        except (cudnn.cudnnGraphNotSupportedError, RuntimeError):
            continue
        size = graph.get_workspace_size_plan_at_index(number)
        return Plan(graph, number, max(LEAST, 1 << (size - 1).bit_length()) if size else 0, handle)
    return None


def wanted(kind: Kind, weight: Shape, stride: Pair, precision: Precision) -> str | None:
    """The name of the plan that is known to be better than the first, if one is."""
    for own in BETTER if frontend().backend_version() // 100 == MEASURED else ():
        fits = weight[2] in own.inputs and weight[3] in own.outputs and (stride > (1, 1) or not own.strided)
        if (kind, precision) == (own.kind, own.precision) and fits:
            return own.plan
    return None


def _in_order(graph: Any, name: str | None) -> list[int]:
    """The numbers of its plans: the wanted one, then as the heuristics have them."""
    numbers = [*range(graph.get_execution_plan_count())]
    if name is not None:
        numbers.sort(key=lambda number: re.match(name, graph.get_plan_name_at_index(number)) is None)
    return numbers


def _images(shape: Shape, stored: Any) -> dict[str, Any]:
    """cuDNN's (B, C, H, W), stored as (B, H, W, C)."""
    b, h, w, c = shape
    return {"dim": [b, c, h, w], "stride": [h * w * c, 1, w * c, c], "data_type": stored}


def output_shape(x: Shape, weight: Shape, stride: Pair, padding: Pair) -> Shape:
    """(B, OH, OW, O)."""
    high, wide = (extent(x[axis + 1], weight[axis], stride[axis], padding[axis]) for axis in (0, 1))
    return x[0], high, wide, weight[3]


def _planned(kind: Kind, x: Shape, weight: Shape, stride: Pair, padding: Pair, dtype: Dtype, tf32: bool) -> Plan | None:
    if dtype.char not in PRECISIONS or not prod(x):
        return None
    precision = "TF32" if tf32 and dtype.char == "f" else PRECISIONS[dtype.char]
    return plan(kind, tuple(x), weight, stride, padding, precision, cupy.cuda.get_current_stream().ptr)


def transposed(x: Array, rows: int, out: Array, gradient: bool = False) -> None:
    """Write parameters x, read as (rows, columns), as (columns, rows) to ``out``, of the type of images.

    Or, for a ``gradient``, the other way: x is of the type of images.
    """
    columns = x.size // rows
    name, dtype = ("transpose_gradient", x.dtype) if gradient else ("transpose", out.dtype)
    launch(name, dtype, (-(-columns // 32), -(-rows // 32)), (32, 8), x, out, rows, columns)


def _turned(weight: Array, dtype: Dtype, pool: Pool) -> Array:
    """(KH, KW, C, O) as (O, KH, KW, C), for images of ``dtype``."""
    out = pool.empty((weight.shape[3], *weight.shape[:3]), dtype)
    transposed(weight, weight.size // weight.shape[3], out)
    return out


def _sizes(x: Shape, z: Shape, weight: Shape) -> Shape:
    """H, W, C, OH, OW, O, KH, KW."""
    return (*x[1:], *z[1:], *weight[:2])


def conv(x: Array, weight: Array, stride: Pair, padding: Pair, pool: Pool, tf32: bool) -> Array:
    """z: (B, OH, OW, O), the correlation of x with the weight."""
    found = _planned("forward", x.shape, weight.shape, stride, padding, x.dtype, tf32)
    z = pool.empty(output_shape(x.shape, weight.shape, stride, padding), x.dtype)
    if found is None:
        spread_over("conv", x.dtype, z.size, x, weight, z, z.size, *_sizes(x.shape, z.shape, weight.shape),
                    *stride, *padding, one=True)  # fmt: skip
        return z
    found.run({X: placed(x, pool), WEIGHT: _turned(weight, x.dtype, pool), Y: z}, pool)
    return z


def conv_backward_weight(x: Array, dz: Array, grad: Array, stride: Pair, padding: Pair, pool: Pool, tf32: bool) -> None:
    """Write the gradient by the weight to ``grad``: (KH, KW, C, O)."""
    found = _planned("weight", x.shape, grad.shape, stride, padding, x.dtype, tf32)
    if found is None:
        high, wide, outputs = dz.shape[1:]
        sizes = (len(x), *x.shape[1:], high, wide, outputs, grad.shape[1])
        numbers = (grad.size, *sizes, *stride, *padding)
        launch("conv_backward_weight", x.dtype, (min(grad.size, 1 << 16),), (THREADS,), x, dz, grad, *numbers,
               doubles=THREADS)  # fmt: skip
        return
    turned = pool.empty((grad.shape[3], *grad.shape[:3]), x.dtype)
    found.run({X: placed(x, pool), Y: placed(dz, pool), WEIGHT: turned}, pool)
    transposed(turned, grad.shape[3], grad, gradient=True)


def conv_backward_input(
    dz: Array, weight: Array, shape: Shape, stride: Pair, padding: Pair, pool: Pool, tf32: bool
) -> Array:
    """dx: (B, H, W, C) for samples of ``shape`` (H, W, C)."""
    found = _planned("input", (len(dz), *shape), weight.shape, stride, padding, dz.dtype, tf32)
    dx = pool.empty((len(dz), *shape), dz.dtype)
    if found is None:
        spread_over("conv_backward_input", dz.dtype, dx.size, dz, weight, dx, dx.size,
                    *_sizes(dx.shape, dz.shape, weight.shape), *stride, *padding, one=True)  # fmt: skip
        return dx
    found.run({Y: placed(dz, pool), WEIGHT: _turned(weight, dz.dtype, pool), X: dx}, pool)
    return dx
