"""What a run directory holds: which checkpoints, what is wrong with them, and whether somebody trains in it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpinn.config import InputError
from mpinn.evaluation import unsaved_best
from mpinn.storage.directory import RunDirectory
from mpinn.storage.history import read, read_summary
from mpinn.storage.index import Saved, best_of, read_index
from mpinn.storage.lock import check_free
from mpinn.storage.restore import newest

Description = dict[str, Any]


def describe_state(path: Path) -> tuple[Description, Path | None]:
    """The files of a run directory, what is wrong with them, and the checkpoint that the run would go on from.

    Raises InputError where there is none of the files of a run.
    """
    run, notes = RunDirectory(path), list[str]()
    file = _newest(run, notes)
    saved = _saved(run)
    best, records = best_of(saved), read(run.metrics)
    if not (run.config.exists() or saved or records or file):
        raise InputError(str(path), "not a run directory: it has no configuration, checkpoint or metrics")
    wrong = {entry.file: _wrong(run.path / entry.file, entry, notes) for entry in saved}
    summary = _summary(run, notes)
    description = {
        "directory": str(path),
        "finished": summary is not None,
        "lost": None if summary is None else _lost(run, summary, file, wrong),
        "training": _trained_by(run),
        "requeue": run.requeue.exists(),
        "checkpoints": [{**asdict(entry), "best": entry is best, "wrong": wrong[entry.file]} for entry in saved],
        "newest": None if file is None else file.name,
        "inspections": [file.name for file in run.inspections()],
        "unsaved": unsaved_best(records, None if best is None else best.score),
        "notes": notes,
        "records": len(records),
        "last": dict(records[-1]) if records else None,
    }
    return description, file


def _newest(run: RunDirectory, notes: list[str]) -> Path | None:
    try:
        return newest(run.path, notes.append)
    except InputError as error:
        notes.append(str(error))
        return None


def _saved(run: RunDirectory) -> list[Saved]:
    try:
        return read_index(run) or []
    except InputError:  # `newest` has said so in the notes
        return []


def _wrong(path: Path, entry: Saved, notes: list[str]) -> str | None:
    """What is wrong with a checkpoint as far as its size or the search for the newest good one tells."""
    if not path.exists():
        return "missing"
    if path.stat().st_size != entry.bytes or any(note.startswith(f"{path}: damaged") for note in notes):
        return "damaged"
    return None


def _summary(run: RunDirectory, notes: list[str]) -> dict[str, Any] | None:
    try:
        return read_summary(run.summary)
    except InputError as error:
        notes.append(str(error))
        return None


def _lost(run: RunDirectory, summary: dict[str, Any], file: Path | None, wrong: dict[str, str | None]) -> str | None:
    """The checkpoint with which a finished run has ended, and what is wrong with it, if the newest good one is not it.

    Such as "missing: checkpoint-00000600.h5".
    """
    if not isinstance(steps := summary.get("steps"), int):
        return None
    last = run.checkpoint(steps)
    if file is not None and file.name == last.name:
        return None
    return f"{wrong.get(last.name) or ('damaged' if last.exists() else 'missing')}: {last.name}"


def _trained_by(run: RunDirectory) -> str | None:
    """Who trains in the directory, as the lock names them."""
    try:
        check_free(run.lock)
    except InputError as error:
        return str(error).partition(f"{run.path} is being trained by ")[2]
    return None
