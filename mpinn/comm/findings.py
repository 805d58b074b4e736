"""What probes have found: whether an MPI library reads the memory of a device. Saved for every user, and used again."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpinn.comm.grid import World


@dataclass(frozen=True)
class Findings:
    """Whether arrays of a device may be handed to MPI as they are; None: not tried.

    messages: between two ranks, broadcasts and gathered arrays; sums: also maxima.
    """

    messages: bool | None = None
    sums: bool | None = None


def findings(world: World, gpu: str) -> Findings | None:
    """What is known of the MPI library with the GPUs of this job, the same on all ranks, which call this together.

    gpu: the name of this rank's, empty without one. None: no rank has one.
    """
    gpus = sorted({name for name in world.gather_text(gpu) if name})
    if not gpus:
        return None
    saved = world.verdict(lambda: json.dumps(asdict(read_findings(keys(world, gpus)))).encode())
    return Findings(**json.loads(saved))


def keys(world: World, gpus: Iterable[str]) -> list[str]:
    """Under which findings are saved: one for each kind of GPU."""
    return [f"{world.build} on {gpu}" for gpu in gpus]


def probe_file() -> Path:
    """Where findings are kept: in the cache directory of the user."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mpinn" / "transport.json"


def read_findings(names: Iterable[str]) -> Findings:
    """What is true under all of the names; what can't be read is not known."""
    saved = _read()
    entries = [entry if isinstance(entry := saved.get(name), dict) else {} for name in names]
    return Findings(*(_all([entry.get(kind) for entry in entries]) for kind in ("messages", "sums")))


def save_findings(names: Iterable[str], found: Findings) -> None:
    """Remember what a probe has found until now; called on one rank. Raises OSError."""
    path = probe_file()
    entries = dict.fromkeys(names, asdict(found))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    with temporary.open("w") as file:
        file.write(json.dumps({**_read(), **entries}, indent=2) + "\n")
        file.flush()
        # what follows may take the machine down with it
        os.fsync(file.fileno())
    temporary.replace(path)


def _read() -> dict[str, Any]:
    try:
        saved = json.loads(probe_file().read_text())
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}


def _all(found: list[Any]) -> bool | None:
    if any(one is False for one in found):
        return False
    return True if found and all(one is True for one in found) else None
