"""The reader of pickles: plain data comes out as Python's own gives it, and nothing else does, nor is anything run."""

import contextlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from mpinn.datasets.unpickle import RefusedError, loads

PLAIN = {
    b"data": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "labels": [1, 2, 300, 2**40, -5, 2**70],
    "nested": {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, True)], 3: [None, False, 1.5]},
    "arrays": [np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)), np.zeros((0, 4)), np.array([True])],
    b"bytes": [b"", b"\xff" * 300, b"\n'\\"],
    "text": ["", "ä" * 300],
}
PLAIN["again"] = PLAIN["arrays"]


def same(found: object, expected: object) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_comes_out_as_it_went_in(protocol: int):
    same(loads(pickle.dumps(PLAIN, protocol)), PLAIN)
    same(loads(pickle.dumps(np.arange(3), protocol)), np.arange(3))


def python2(value: object) -> bytes:
    """A value as Python 2 pickled it with protocol 2, which is how CIFAR was published."""
    match value:
        case bytes():
            return (
                b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
            )
        case int():
            return b"J" + struct.pack("<i", value)
        case list():
            return b"](" + b"".join(map(python2, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(python2, value)) + b"t"
        case dict():
            return b"}(" + b"".join(python2(key) + python2(item) for key, item in value.items()) + b"u"
        case np.ndarray():
            dtype = b"cnumpy\ndtype\n" + python2((value.dtype.str[1:].encode(), 0, 1)) + b"R"
            dtype += b"(K\x03U\x01|NNN" + python2(-1) + python2(-1) + b"K\x00tb"
            begun = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + python2((0,)) + b"U\x01btR"
            return begun + b"(K\x01" + python2(value.shape) + dtype + b"\x89" + python2(value.tobytes()) + b"tb"
    raise TypeError(type(value))


def test_what_python_2_pickled():
    value = {
        b"batch_label": b"testing batch 1 of 1",
        b"labels": [3, 8, 8],
        b"data": np.arange(600, dtype=np.uint8).reshape(3, 200),
    }
    pickled = b"\x80\x02" + python2(value) + b"."
    same(pickle.loads(pickled, encoding="bytes"), value)
    same(loads(pickled), value)


def opcode(module: str, name: str, arguments: bytes = b")") -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


class Reduced:
    def __init__(self, *parts: object):
        self.parts = parts

    def __reduce__(self) -> tuple[object, ...]:
        return self.parts


def malicious(target: Path) -> dict[str, bytes]:
    """Pickles of which Python's own reader would create ``target``, or do something else than build plain data."""
    import builtins
    import os
    import subprocess

    touch = f"__import__('pathlib').Path({str(target)!r}).touch()"
    name = str(target)
    found = {
        "os.system": pickle.dumps(Reduced(os.system, (f"touch {name}",))),
        "eval": pickle.dumps(Reduced(eval, (touch,))),
        "exec": pickle.dumps(Reduced(exec, (touch,))),
        "open": pickle.dumps(Reduced(builtins.open, (name, "w"))),
        "getattr": pickle.dumps(Reduced(getattr, (1, "real"))),
        "import": pickle.dumps(Reduced(__import__, ("os",))),
        "Popen": pickle.dumps(Reduced(subprocess.Popen, (["touch", name],))),
        "numpy.save": pickle.dumps(Reduced(np.save, (name, np.zeros(1)))),
        "numpy.fromfile": pickle.dumps(Reduced(np.fromfile, ("/dev/zero", "u1", 3))),
        "ndarray.tofile": pickle.dumps(Reduced(np.ndarray.tofile, (np.zeros(2), name))),
        "numpy.memmap": pickle.dumps(Reduced(np.memmap, (name, "u1", "w+", 0, (9,)))),
        "numpy.load": opcode("numpy", "load"),
        "numpy.testing": opcode("numpy.testing._private.utils", "runstring"),
        "ndarray called": opcode("numpy", "ndarray", b"\x8c\x01a\x85"),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93\x8c\x01a\x85R.",
        "protocol 0": b"cos\nsystem\n(S'touch " + name.encode() + b"'\ntR.",
        "inst": b"(S'touch " + name.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'touch " + name.encode() + b"'\no.",
        "newobj": b"\x80\x02cnumpy\nndarray\nK\x03\x85\x81.",
        "newobj_ex": b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93K\x03\x85}\x92.",
        "ext1": b"\x80\x02\x82\x01.",
        "ext2": b"\x80\x02\x83\x01\x00.",
        "ext4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persistent": b"\x80\x02K\x01Q.",
        "persid": b"Pname\n.",
        "next buffer": b"\x80\x05\x97.",
        "set": pickle.dumps({1, 2}),
        "complex": pickle.dumps(1j),
        "a class": pickle.dumps(np.ndarray),
        "a function by name": b"\x80\x02cnumpy\ndtype\n.",
        "a name in a list": b"\x80\x02]cnumpy\ndtype\na.",
        "build on a dict": b"\x80\x02}}\x8c\x01aK\x01sb.",
        "build on a name": b"\x80\x02cnumpy\ndtype\nN}\x8c\x08__code__K\x01s\x86b.",
        "build on an array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R}\x8c\x01aK\x01sb.",
        "called array": pickle.dumps(np.zeros(2), 2)[:-1] + b")R.",
        "unfinished array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.",
        "unfinished array in a list": b"\x80\x02]cnumpy.core.multiarray\n_reconstruct\n)Ra.",
        "encode": pickle.dumps(Reduced(__import__("codecs").encode, ("aGk=", "rot13"))),
        "bytes of a number": b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
        "objects": pickle.dumps(np.array([1, "a"], object)),
        "strings": pickle.dumps(np.array(["a"])),
        "records": pickle.dumps(np.zeros(2, [("a", "i4")])),
        "dates": pickle.dumps(np.zeros(2, "M8[s]")),
        "masked": pickle.dumps(np.ma.zeros(3)),
        "matrix": pickle.dumps(Reduced(np.matrix, ("1 2",))),
    }
    array = pickle.dumps(np.arange(4, dtype=np.uint8), 2)
    found["another shape"] = array.replace(b"K\x04\x85", b"K\x05\x85")
    found["a negative shape"] = array.replace(b"K\x04\x85", b"J\xff\xff\xff\xff\x85")
    found["a huge shape"] = array.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85")
    assert len({found["another shape"], found["a negative shape"], array}) == 3
    return found


CASES = malicious(Path("/nonexistent"))


@pytest.mark.parametrize("case", CASES)
def test_nothing_else_is_admitted(case: str, tmp_path):
    target = tmp_path / "target"
    with pytest.raises(RefusedError):
        loads(malicious(target)[case])
    assert not target.exists()


@pytest.mark.parametrize(
    "case", ["os.system", "eval", "exec", "numpy.memmap", "ndarray.tofile", "protocol 0", "inst", "obj"]
)
def test_pythons_own_reader_would_have_run_these(case: str, tmp_path):
    target = tmp_path / "target"
    with contextlib.suppress(pickle.UnpicklingError):
        pickle.loads(malicious(target)[case])
    assert target.exists()


def test_the_registry_of_extensions_is_not_asked():
    import copyreg

    copyreg.add_extension("posix", "getpid", 240)
    try:
        with pytest.raises(RefusedError, match="EXT1"):
            loads(b"\x80\x02\x82\xf0)R.")
    finally:
        copyreg.remove_extension("posix", "getpid", 240)


def test_a_message_says_what_was_named():
    with pytest.raises(RefusedError, match=r"names 'os\.system'"):
        loads(b"cos\nsystem\n(S'x'\ntR.")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_damaged_pickle_is_refused_or_read_but_never_breaks_the_reader(protocol: int):
    whole = pickle.dumps(PLAIN, protocol)
    for end in range(len(whole)):
        with pytest.raises(RefusedError):
            loads(whole[:end])
    rng = np.random.default_rng(0)
    for _ in range(800):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        try:
            loads(bytes(damaged))
        except RefusedError:
            continue
