"""Compiles CUDA C for the host with g++, and launches its kernels there: blocks one after another, threads as fibers.

The texts of kernels are found after the preprocessor, so that macros may write them. What NVRTC refuses for want of a
header is refused here too.
"""

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
HEADERS = ("cuda_emulator.h", "cuda_fibers.h", "cuda_launch.h")
COMPILER = os.environ.get("CXX", "g++")
FLAGS = (
    "-O2", "-march=native", "-fPIC", "-fvisibility=hidden", "-fno-semantic-interposition", "-fno-strict-aliasing",
    "-fno-math-errno", "-ffp-contract=off", "-fno-exceptions", "-w",
)  # fmt: skip
"""Of this machine, since a fused product in software takes ten times as long; contracted is nothing that isn't."""
OPENING = "namespace cuda_source {"
"""Around the source, so that its kernels may have names that the C library has too."""
KERNEL = re.compile(r"(extern\s+\"C\"\s+)?__emulated_global__\s+(?:__attribute__\s*\(\(.*?\)\)\s*)*void\s+(\w+)\s*\(")
DYNAMIC = re.compile(
    r"extern\s+__emulated_shared__\s+(?:(?:__attribute__\s*\(\(.*?\)\)|alignas\s*\(.*?\))\s*)*"
    r"([\w:\s]+?(?:<[^;<>]*>)?)\s*\b(\w+)\s*\[\s*\]\s*;"
)
UNKNOWN = re.compile(r"\b(u?int(?:8|16|32|64|ptr|max)_t|std\s*::\s*\w+)\b")
"""Names that the host has and NVRTC, without headers, has not."""
HOST_SHARED = '__attribute__((section("emulated_shared"), aligned(16)))'
MOST_THREADS = 1024
MOST_SHARED = 227 << 10
FIRST_SHARED = 48 << 10
"""Bytes of dynamic shared memory that a kernel has without asking for more."""


class CompileError(Exception):
    """CUDA C that doesn't compile; the message is the compiler's."""


class LaunchError(RuntimeError):
    """A launch that a device would refuse, or after which it would be in error."""


class Kernel:
    """A kernel on the host, with the types of its parameters: "f4", "i8", "*f4", "*?"."""

    def __init__(self, library: ctypes.CDLL, name: str, lock: threading.RLock):
        self.name = name
        self._lock = lock
        self._launch = library[f"launch_{name}"]
        self._launch.restype = ctypes.c_char_p
        signature = library[f"signature_{name}"]
        signature.restype = ctypes.c_char_p
        self.parameters = signature().decode().split()

    def launch(self, grid: Sequence[int], block: Sequence[int], arguments: Sequence[bytes], shared: int) -> None:
        """Run all blocks; an argument is its bytes."""
        words = ctypes.create_string_buffer(b"".join(argument.ljust(8, b"\0") for argument in arguments), 8 * 256)
        start = ctypes.addressof(words)
        pointers = (ctypes.c_void_p * 256)(*(start + 8 * i for i in range(len(arguments))))
        reverse = os.environ.get("MPINN_EMULATED_ORDER") == "reverse"
        with self._lock:
            trouble = self._launch(_three(grid), _three(block), pointers, shared, int(reverse))
        if trouble is not None:
            raise LaunchError(f"kernel {self.name}: {trouble.decode()}")


def _three(sizes: Sequence[int]) -> ctypes.Array[ctypes.c_uint]:
    return (ctypes.c_uint * 3)(*sizes, *(1,) * (3 - len(sizes)))


class Module:
    """What was compiled from one source."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))
        self._lock = threading.RLock()

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name; KeyError if there is none, or its name is not C's."""
        try:
            return Kernel(self._library, name, self._lock)
        except AttributeError:
            raise KeyError(name) from None


@cache
def compiled(source: str, options: tuple[str, ...] = ()) -> Module:
    """The module of a source, from the cache of this user if it was compiled before."""
    path = _cache() / f"{_key(source, options)}.so"
    if not path.exists():
        _build(source, options, path)
    return Module(path)


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"mpinn-emulated-cuda-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@cache
def _toolchain() -> str:
    version = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout
    own = "".join((HERE / name).read_text() for name in (*HEADERS, Path(__file__).name))
    processors = Path("/proc/cpuinfo")
    told = re.search(r"^(flags|Features).*$", processors.read_text(), re.M) if processors.exists() else None
    return f"{version}{os.uname().machine}{told and told[0]}{own}"


def _key(source: str, options: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join((source, *options, _toolchain())).encode()).hexdigest()[:32]


def _build(source: str, options: tuple[str, ...], path: Path) -> None:
    kept = [option for option in options if option.startswith(("-D", "-U", "-std="))]
    standard = [] if any(option.startswith("-std=") for option in kept) else ["-std=c++17"]
    _refuse_unknown(source)
    framed = f'{OPENING}\n#line 1 "kernels.cu"\n{source}\n}}\n'
    head, _, text = _preprocessed(framed, [*standard, *kept]).partition(OPENING)
    names = _exported(text)
    text = re.sub(r'extern\s+"C"', "", re.sub(r'extern\s+"C"\s*\{', "inline namespace exported {", text))
    text = DYNAMIC.sub(r"static \1* const \2 = (\1*)(void*)emulated::dynamic;", text)
    text = text.replace("__emulated_shared__", f"static {HOST_SHARED}").replace("__emulated_global__", "")
    launchers = _preprocessed(_launchers(names), standard, include=False)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        command = [*standard, *FLAGS, "-shared", "-x", "c++-cpp-output", "-", "-o", str(scratch)]
        _run(command, head + OPENING + text + launchers)
        scratch.rename(path)


def _exported(text: str) -> list[str]:
    """The kernels whose names are C's, so that a device would find them."""
    block = re.search(r'extern\s+"C"\s*\{', text) is not None
    return [name for linkage, name in KERNEL.findall(text) if linkage or block]


def _launchers(names: Sequence[str]) -> str:
    lines = [f"EMULATED_LAUNCHER({name}, cuda_source::{name})" for name in names]
    if len(set(names)) != len(names):
        raise CompileError("a kernel is defined twice")
    return "\n".join([(HERE / "cuda_launch.h").read_text(), *lines, ""])


def _refuse_unknown(source: str) -> None:
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
    for name in UNKNOWN.findall(code):
        if not re.search(rf"\b(typedef\b[^;]*\b{name}\s*;|using\s+{name}\s*=)", code):
            raise CompileError(f'identifier "{name}" is undefined: NVRTC has no headers of the C++ library')


def _preprocessed(source: str, options: Sequence[str], include: bool = True) -> str:
    # headers of CUDA are there without being asked for
    source = re.sub(r"^[ \t]*#[ \t]*include\b[^\n]*", "", source, flags=re.MULTILINE)
    first = ["-I", str(HERE), "-include", "cuda_emulator.h"] if include else []
    return _run([*options, *first, "-E", "-x", "c++", "-"], source)


def _run(arguments: Sequence[str], text: str) -> str:
    job = subprocess.run([COMPILER, *arguments], input=text, capture_output=True, text=True)
    if job.returncode:
        raise CompileError(job.stderr)
    return job.stdout
