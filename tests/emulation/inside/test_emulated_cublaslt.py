"""The stand-in for cuBLASLt refuses what the documentation forbids, and the program what it would do wrong."""

from collections.abc import Callable, Iterator
from typing import Any

import cupy
import numpy as np
import pytest
from nvmath.bindings import _products, cublasLt

from mpinn.array import cuda_epilogues as epilogues
from mpinn.array.cuda_epilogues import EPILOGUES, REALS
from mpinn.array.device import choose_device
from mpinn.array.pool import Pool

NAMES, PREFERENCES = cublasLt.MatmulDescAttribute, cublasLt.MatmulPreferenceAttribute
ROWS, INNER, COLUMNS = 4, 8, 16
"""m, k and n."""


class Product:
    """D = A B + bias, asked for as it should be, but for what a test changes."""

    def __init__(self) -> None:
        self.handle = cublasLt.create()
        self.operation = cublasLt.matmul_desc_create(68, 0)
        shapes = (ROWS, INNER), (INNER, COLUMNS), (ROWS, COLUMNS)
        self.layouts = [cublasLt.matrix_layout_create(0, *shape, shape[0]) for shape in shapes]
        self.arrays = [cupy.ones(shape[::-1], np.float32) for shape in shapes]
        self.bias, self.workspace = cupy.ones(ROWS, np.float32), cupy.zeros(1 << 12, np.uint8)
        self.preference = cublasLt.matmul_preference_create()
        self.results, self.count = cublasLt.MatmulHeuristicResult(4), np.zeros(1, np.int32)
        self.scalars = np.array([1, 0], np.float32)
        self.room, self.stream, self.which = 1 << 12, cupy.cuda.get_current_stream().ptr, 1
        self.set(NAMES.EPILOGUE, cublasLt.Epilogue.BIAS)
        self.set(NAMES.BIAS_POINTER, self.bias.data.ptr)
        self.prefer(PREFERENCES.MAX_WORKSPACE_BYTES, 1 << 12)

    def set(self, name: Any, value: int, dtype: Any = None) -> None:
        held = np.array([value], dtype or cublasLt.get_matmul_desc_attribute_dtype(name))
        cublasLt.matmul_desc_set_attribute(self.operation, name, held.ctypes.data, held.nbytes)

    def prefer(self, name: Any, value: int) -> None:
        held = np.array([value], cublasLt.get_matmul_preference_attribute_dtype(name))
        cublasLt.matmul_preference_set_attribute(self.preference, name, held.ctypes.data, held.nbytes)

    def search(self) -> None:
        a, b, d = self.layouts
        cublasLt.matmul_algo_get_heuristic(
            self.handle, self.operation, a, b, d, d, self.preference, 4, self.results.ptr, self.count.ctypes.data
        )

    def run(self) -> Any:
        a, b, d = self.layouts
        pointers = [array.data.ptr for array in self.arrays]
        cublasLt.matmul(
            self.handle, self.operation, self.scalars.ctypes.data, pointers[0], a, pointers[1], b,
            self.scalars[1:].ctypes.data, pointers[2], d, pointers[2], d,
            self.results.ptr + self.which * cublasLt.matmul_heuristic_result_dtype.itemsize,
            self.workspace.data.ptr, self.room, self.stream,
        )  # fmt: skip
        return self.arrays[2].get()


def shifted(array: Any) -> Any:
    """The same numbers, four bytes further on."""
    longer = cupy.empty(array.size + 1, array.dtype)
    longer[1:] = array.reshape(-1)
    return longer[1:].reshape(array.shape)


@pytest.fixture
def product() -> Product:
    return Product()


def test_a_product_as_it_should_be(product: Product) -> None:
    product.search()
    assert product.count[0] == 3
    assert product.results.state[:3].tolist() == [15, 0, 0]
    assert (product.run() == INNER + 1).all()
    # the algorithm has used half of what it may
    used = product.workspace.get()
    assert used[: 1 << 11].all()
    assert not used[1 << 11 :].any()


def change(product: Product, **changed: Any) -> None:
    for name, value in changed.items():
        setattr(product, name, value)


def nothing(product: Product) -> None:
    pass


def points(place: Callable[[Product], int]) -> Callable[[Product], None]:
    return lambda p: p.set(NAMES.BIAS_POINTER, place(p))


Change = Callable[[Product], None]
MISUSES: dict[str, tuple[Change, Change, str]] = {
    "no bias": (points(lambda p: 0), nothing, "BIAS without a bias"),
    "a bias that is gone": (nothing, points(lambda p: 0), "BIAS without a bias"),
    "a bias of the host's": (nothing, points(lambda p: p.scalars.ctypes.data // 16 * 16), "not all of one block"),
    "a bias at an odd place": (nothing, points(lambda p: shifted(p.bias).data.ptr), "no multiple of 16"),
    "a short bias": (nothing, points(lambda p: p.bias.data.ptr + p.bias.data.mem.size), "not all of one block"),
    "an attribute of another size": (lambda p: p.set(NAMES.TRANSA, 0, np.int64), nothing, "has 4 bytes, not 8"),
    "matrices that do not fit": (lambda p: p.set(NAMES.TRANSB, 1), nothing, "do not fit"),
    "another product": (nothing, lambda p: p.set(NAMES.EPILOGUE, cublasLt.Epilogue.RELU_BIAS), "another product"),
    "no operation": (nothing, lambda p: cublasLt.matmul_desc_destroy(p.operation), "no Operation"),
    "no layout": (nothing, lambda p: cublasLt.matrix_layout_destroy(p.layouts[1]), "no Layout"),
    "no preference": (lambda p: cublasLt.matmul_preference_destroy(p.preference), nothing, "no Preference"),
    "no handle": (nothing, lambda p: cublasLt.destroy(p.handle), "no Handle"),
    "an algorithm that was not given": (nothing, lambda p: change(p, which=3), "no Algorithm"),
    "an algorithm that cannot be run": (nothing, lambda p: change(p, which=0), "no Algorithm"),
    "a matrix at an odd place": (
        nothing, lambda p: change(p, arrays=[shifted(p.arrays[0]), *p.arrays[1:]]), "A begins at",
    ),
    "a matrix that is too small": (nothing, lambda p: change(p, arrays=[*p.arrays[:2], p.bias]), "not all of one"),
    "a result over a factor": (
        nothing, lambda p: change(p, arrays=[*p.arrays[:1], p.arrays[1], p.arrays[1]]), "lies over what is read",
    ),
    "no workspace": (nothing, lambda p: change(p, room=0), "workspace is too small"),
    "no stream": (nothing, lambda p: change(p, stream=3), "no stream"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISUSES)
def test_misuse_is_refused(what: str, product: Product) -> None:
    before, after, said = MISUSES[what]
    product.search()
    product.run()
    with pytest.raises(cublasLt.MisuseError, match=said):  # noqa: PT012
        before(product)
        product.search()
        after(product)
        product.run()


def test_a_matrix_has_room_for_its_columns() -> None:
    with pytest.raises(cublasLt.MisuseError, match="cannot have 7 numbers"):
        cublasLt.matrix_layout_create(0, 8, 4, 7)


def test_the_heuristics_promise_what_matrices_they_were_told_of(product: Product) -> None:
    """Without a word they expect multiples of 256 bytes."""
    odd = cupy.empty(product.arrays[0].size + 4, np.float32)[4:]
    odd[...] = 1
    product.arrays[0] = odd
    product.search()
    with pytest.raises(cublasLt.MisuseError, match="no multiple of 256"):
        product.run()
    product.prefer(PREFERENCES.MIN_ALIGNMENT_A_BYTES, 16)
    product.search()
    assert (product.run() == INNER + 1).all()


def test_the_heuristics_are_not_asked_in_a_capture(product: Product) -> None:
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            product.search()
        stream.end_capture()


@pytest.fixture
def stream() -> Iterator[int]:
    """That of a device on which nothing has been tried yet."""
    choose_device("gpu", "auto", 0)
    forget()
    yield cupy.cuda.get_current_stream().ptr
    forget()


@pytest.fixture(autouse=True)
def first_stream() -> Iterator[None]:
    """What comes after these tests works on the stream that CuPy begins with."""
    yield
    cupy.cuda.Stream.null.use()


def forget() -> None:
    for cached in (epilogues.plan, epilogues.usable):
        cached.cache_clear()


@pytest.mark.parametrize("tf32", [False, True])
def test_all_epilogues_are_found_right(stream: int, tf32: bool) -> None:
    for kind in EPILOGUES:
        for char in REALS:
            asked = epilogues.wanted(kind, char, tf32)
            assert epilogues.usable(kind, char, tf32, stream) == asked
            assert asked or (kind, char, tf32) == ("gradient", "f", True)
    assert epilogues.said(tf32) == "by cuBLASLt"


def test_tf32_is_used_where_it_was_chosen(stream: int) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = (cupy.asarray(rng.standard_normal(shape, np.float32)) for shape in ((9, 40), (40, 8), (8,)))
    both = []
    for tf32 in (False, True):
        y = cupy.empty((9, 8), np.float32)
        assert epilogues.affine(x, weight, bias, "identity", y, Pool(cupy), tf32)
        both.append(y.get())
    apart = np.linalg.norm(both[1] - both[0]) / np.linalg.norm(both[0])
    assert 2.0**-14 < apart < 2.0**-10


def test_partial_sums_are_of_the_type_of_arithmetic(stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[int, int] = {}
    read = cublasLt._read

    def noted(known: Any, attr: int, *given: Any) -> int:
        value = read(known, attr, *given)
        if known is cublasLt.PREFERRED:
            told[attr] = value
        return value

    monkeypatch.setattr(cublasLt, "_read", noted)
    assert epilogues.plan("identity", 4, 4, 4, "f", False, stream) is not None
    assert told[PREFERENCES.REDUCTION_SCHEME_MASK] == cublasLt.ReductionScheme.COMPUTE_TYPE
    assert {told[name] for name in PREFERENCES if "ALIGNMENT" in name.name} == {16}
    assert told[PREFERENCES.MAX_WORKSPACE_BYTES] == 32 << 20


def test_what_the_heuristics_do_not_have_is_not_used(stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_products, "unsupported", {cublasLt.Epilogue.BGRADA})
    before = len(cublasLt._live)
    assert not epilogues.usable("gradient", "d", False, stream)
    assert len(cublasLt._live) == before
    assert epilogues.usable("relu", "d", False, stream)
    assert epilogues.said(False) == "by cuBLASLt without BGRADA of float32, BGRADA of float64"


def test_relu_that_hides_what_is_not_a_number_is_not_used(stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_products, "rectified", lambda x: np.where(x > 0, x, 0).astype(x.dtype))
    assert not epilogues.usable("relu", "f", True, stream)
    assert epilogues.usable("identity", "f", True, stream)
    assert epilogues.said(True) == "by cuBLASLt without RELU_BIAS of float32, RELU_BIAS of float64"


@pytest.mark.parametrize("kind", EPILOGUES)
def test_an_epilogue_that_is_wrong_is_not_used(kind: Any, stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = _products._compute

    def wrong(problem: Any, a: Any, b: Any, bias: Any, d: Any) -> None:
        compute(problem, a, b, bias, d)
        (bias if kind == "gradient" else d)[-1] += 1

    monkeypatch.setattr(_products, "_compute", wrong)
    assert not any(epilogues.usable(kind, char, False, stream) for char in REALS)


@pytest.mark.parametrize("kind", EPILOGUES)
def test_tf32_where_it_was_not_chosen_is_not_used(kind: Any, stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = _products._compute

    def rounded(problem: Any, a: Any, b: Any, bias: Any, d: Any) -> None:
        compute(problem, _products._rounded(a), _products._rounded(b), bias, d)

    monkeypatch.setattr(_products, "_compute", rounded)
    assert not epilogues.usable(kind, "f", False, stream)


@pytest.mark.parametrize("broken", ["library", "handle"])
def test_why_nothing_is_by_cublaslt_is_told(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "library":
        monkeypatch.setattr(epilogues, "library", lambda: None)
    else:

        def refuse() -> int:
            raise RuntimeError("CUDA driver is not found")

        monkeypatch.setattr(cublasLt, "create", refuse)
        monkeypatch.setattr(epilogues, "_handle", epilogues._handle.__wrapped__)
    why = {"library": "nvmath-python is missing", "handle": "cuBLASLt cannot be loaded"}[broken]
    said = choose_device("gpu", "auto", 0).said
    assert f"dense layers by cuBLAS and kernels of our own: {why}; convolutions" in said
    assert "dense layers" not in choose_device("gpu", "auto", 0, bf16=True).said
