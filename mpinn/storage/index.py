"""checkpoints.json: which checkpoints there are, the digest and the score of each, and which of them to keep."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mpinn.config import InputError
from mpinn.storage.directory import RunDirectory, write_text
from mpinn.storage.reader import Checkpoint

FORMAT = "mpinn-checkpoints"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """One checkpoint: the name of its file, what it holds, its validation score (higher is better), and its digest."""

    file: str
    step: int
    epoch: int
    score: float | None
    bytes: int
    sha256: str


def digest(path: Path) -> str:
    """The SHA-256 of a whole file, as ``sha256sum`` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_index(directory: RunDirectory) -> list[Saved] | None:
    """The entries of checkpoints.json in the order in which they were saved, or None if there is no such file."""
    try:
        contents = directory.index.read_bytes()
    except FileNotFoundError:
        return None
    try:
        document = json.loads(contents)
        if (document["format"], document["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {document['format']!r}, version {document['version']!r}")
        return [_entry(**entry) for entry in document["checkpoints"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(str(directory.index), f"damaged: {error}") from error


def list_anew(directory: RunDirectory) -> list[Saved]:
    """Entries for the checkpoints that are there and are not damaged, by their steps: for an index that is lost.

    A score is what the run has measured on the validation split, if the file has that.
    """
    return [entry for path in reversed(directory.checkpoints()) if (entry := _entry_of(directory, path)) is not None]


def write_index(directory: RunDirectory, entries: Sequence[Saved]) -> None:
    """Replace checkpoints.json at once."""
    document = {"format": FORMAT, "version": VERSION, "checkpoints": [asdict(entry) for entry in entries]}
    write_text(directory.index, json.dumps(document, indent=1, allow_nan=False) + "\n")


def kept(entries: Sequence[Saved], keep: int) -> list[Saved]:
    """The newest ``keep`` entries and the one with the best score, in their order."""
    best = best_of(entries)
    newest = list(entries[-keep:])
    return newest if best is None or best in newest else [best, *newest]


def best_of(entries: Sequence[Saved]) -> Saved | None:
    """The entry with the highest score, the earliest of equals; None if none has a score."""
    return max((entry for entry in entries if entry.score is not None), key=_score, default=None)


def finite(score: float | None) -> float | None:
    """A score that can be compared: NaN and infinities count as none."""
    return float(score) if score is not None and math.isfinite(score) else None


def _entry_of(directory: RunDirectory, path: Path) -> Saved | None:
    try:
        with Checkpoint(path) as file:
            file.verify()
            score = _measured(file)
            if directory.checkpoint(file.step) != path:
                return None
            return Saved(path.name, file.step, file.epoch, score, path.stat().st_size, digest(path))
    except (InputError, OSError):
        return None


def _measured(file: Checkpoint) -> float | None:
    """The accuracy of a classifier, or the loss of what has no classes, with its sign changed."""
    validation, classes = file.scalars.get("validation"), file.data.get("classes")
    if validation is None or classes is None:
        return None
    loss, accuracy = validation
    return finite(accuracy if classes else -loss)


def _score(entry: Saved) -> float:
    return -math.inf if entry.score is None else entry.score


def _entry(file: str, step: int, epoch: int, score: float | None, bytes: int, sha256: str) -> Saved:
    kinds = ((file, str), (step, int), (epoch, int), (bytes, int), (sha256, str), (score, float | int | None))
    if not all(isinstance(value, kind) for value, kind in kinds) or Path(file).name != file:
        raise ValueError(f"{file!r} is not an entry")
    return Saved(file, step, epoch, score, bytes, sha256)
