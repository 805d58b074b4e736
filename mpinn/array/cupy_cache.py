"""Where CuPy keeps its compiled kernels, which it must be able to write when it is imported."""

import os
import stat
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "CUPY_CACHE_DIR"


@cache
def settle_cache() -> str:
    """Let CuPy keep its kernels elsewhere if it cannot in the home directory; a sentence for the log, or nothing.

    The choice of the user's stays. Where no folder is found nothing is done: importing CuPy says what it lacks.
    """
    if VARIABLE in os.environ or find_spec("cupy") is None:
        return ""
    usual = Path(os.path.expanduser("~/.cupy/kernel_cache"))
    if _ready(usual):
        return ""
    place = next(filter(_ready, _others()), None)
    if place is None:
        return ""
    os.environ[VARIABLE] = str(place)
    return f"CuPy keeps its kernels in {place}, since {usual} cannot be written"


def _others() -> Iterator[Path]:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    yield Path(home) / "mpinn" / "cupy"
    shared = Path(tempfile.gettempdir()) / f"mpinn-{os.getuid()}"
    if _ready(shared) and _private(shared):
        yield shared / "cupy"


def _ready(folder: Path) -> bool:
    """Whether files can be written in a folder, which is made if need be."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def _private(folder: Path) -> bool:
    """Whether nobody else can put kernels there: what is in a place for all may be anybody's."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
