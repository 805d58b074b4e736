"""How an array reaches MPI: directly, or through a host buffer."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Protocol

import numpy as np

from mpinn.array.typing import Array, Dtype, Shape
from mpinn.config import InputError

CHOICES = ("auto", "direct", "staged")


class Memory(Protocol):
    """What a transport must know of the device that holds the arrays."""

    def synchronize(self) -> None:
        """Wait until the current stream has done everything that was asked of it."""

    def is_host(self, array: Array) -> bool:
        """Whether the array lies in host memory."""

    def pinned_empty(self, shape: Shape, dtype: Dtype) -> Array:
        """A host array that the device copies to and from at full speed."""

    def copy(self, into: Array, source: Array) -> None:
        """Copy between host and device, either way; complete on return."""


class HostMemory:
    """The memory of NumPy arrays."""

    def synchronize(self) -> None:
        """Nothing runs behind the program's back."""

    def is_host(self, array: Array) -> bool:
        """Always."""
        return True

    def pinned_empty(self, shape: Shape, dtype: Dtype) -> Array:
        """An ordinary array."""
        return np.empty(shape, dtype)

    def copy(self, into: Array, source: Array) -> None:
        """Copy host to host."""
        np.copyto(into, source)


class Transport(Protocol):
    """Lends MPI a buffer for an array, and takes it back when the message is complete."""

    name: str

    def lend(self, array: Array, filled: bool) -> Array:
        """The buffer that MPI reads or writes; with ``filled`` it holds the values of ``array``."""

    def take_back(self, buffer: Array, into: Array | None) -> None:
        """End a loan: the values of ``buffer`` stand in ``into`` afterwards, unless it is None."""


class Direct:
    """Hands the array itself to MPI, which must be able to read the memory of the device."""

    name = "direct"

    def __init__(self, memory: Memory | None = None):
        self._memory = memory or HostMemory()

    def lend(self, array: Array, filled: bool) -> Array:
        """The array itself, once the device has finished with it: MPI knows nothing of streams."""
        self._memory.synchronize()
        return array

    def take_back(self, buffer: Array, into: Array | None) -> None:
        """MPI has worked in the array itself."""


class Staged:
    """Copies through host buffers, pinned where the device has such memory, which are kept by shape and dtype."""

    name = "staged"

    def __init__(self, memory: Memory | None = None):
        self._memory = memory or HostMemory()
        self._free: defaultdict[tuple[Shape, Dtype], list[Array]] = defaultdict(list)

    def lend(self, array: Array, filled: bool) -> Array:
        """A host buffer of the array's shape; as many exist as messages of that shape were ever under way at once."""
        free = self._free[array.shape, array.dtype]
        buffer = free.pop() if free else self._memory.pinned_empty(array.shape, array.dtype)
        if filled:
            self._memory.copy(buffer, array)
        return buffer

    def take_back(self, buffer: Array, into: Array | None) -> None:
        """Copy the values to the array and keep the buffer for the next message of its shape."""
        if into is not None:
            self._memory.copy(into, buffer)
        self._free[buffer.shape, buffer.dtype].append(buffer)


def choose_transport(setting: str, library: str, memory: Memory | None = None) -> tuple[Transport, str]:
    """The transport for arrays in ``memory`` (None: the host's) and the reason for it, a sentence for the log.

    library: version of the MPI library, under which a probe has saved its result. Raises InputError.
    """
    if setting not in CHOICES:
        raise InputError("run.transport", f"{setting!r} is not one of {', '.join(CHOICES)}")
    if setting != "auto":
        return (Direct(memory) if setting == "direct" else Staged(memory)), f"the configuration says {setting}"
    if memory is None or isinstance(memory, HostMemory):
        return Direct(), "arrays are in host memory"
    probed = read_probe(library)
    if probed is None:
        return Staged(memory), "no probe has shown that this MPI library reads device memory"
    if probed:
        return Direct(memory), "a probe has shown that this MPI library reads device memory"
    return Staged(memory), "a probe has shown that this MPI library cannot read device memory"


def probe_file() -> Path:
    """Where the results of probes are kept: in the cache directory of the user."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mpinn" / "transport.json"


def read_probe(library: str) -> bool | None:
    """Whether ``library`` reads device memory; None when that is not known."""
    try:
        saved = json.loads(probe_file().read_text())
    except (OSError, json.JSONDecodeError):
        return None
    result = saved.get(library) if isinstance(saved, dict) else None
    return result if isinstance(result, bool) else None


def save_probe(library: str, direct: bool) -> None:
    """Remember the result of a probe of ``library``; called on one rank."""
    path = probe_file()
    try:
        saved = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        saved = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({**saved, library: direct}, indent=2))
    temporary.replace(path)
