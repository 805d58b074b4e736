"""What is in a checkpoint or a run directory, as tables or as one JSON object. Needs neither MPI nor a GPU."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.analysis.moments import Moments
from mpinn.analysis.replicas import describe_replicas
from mpinn.config import InputError
from mpinn.storage.directory import RunDirectory
from mpinn.storage.history import plain, read, read_summary
from mpinn.storage.index import best_of, read_index
from mpinn.storage.reader import Checkpoint, Parameter
from mpinn.storage.restore import check_digest, newest

Description = dict[str, Any]


def inspect(path: Path, json: bool = False, units: bool = False, data: str = "") -> None:
    """Print what a checkpoint file, or a run directory and its newest checkpoint, holds.

    ``units``: also how many units are dead, for which its data set is needed; ``data`` says where that is.
    """
    description = describe(path)
    if units and (file := description["checkpoint"]) is not None:
        from mpinn.analysis.saved import SavedModel
        from mpinn.analysis.units import dead_units

        with SavedModel(file["file"]) as model:
            file["units"] = dead_units(model, data)
    if json:
        print(json_module.dumps(plain(description), ensure_ascii=False, allow_nan=False))
        return
    from mpinn.analysis.tables import show

    show(description)


def describe(path: Path) -> Description:
    """The contents of a file as ``checkpoint``; of a run directory, also what it holds as ``run``."""
    if not path.is_dir():
        check_digest(path)
        return {"checkpoint": describe_file(path)}
    run, file = describe_run(path)
    return {"run": run, "checkpoint": None if file is None else describe_file(file)}


def describe_run(path: Path) -> tuple[Description, Path | None]:
    """The files of a run directory, what is wrong with them, and the checkpoint that the run would go on from."""
    run, notes = RunDirectory(path), list[str]()
    file = _newest(run, notes)
    saved = _saved(run)
    best, records = best_of(saved), read(run.metrics)
    if not (run.config.exists() or saved or records or file):
        raise InputError(str(path), "not a run directory: it has no configuration, checkpoint or metrics")
    description = {
        "directory": str(path),
        "finished": _finished(run, notes),
        "requeue": run.requeue.exists(),
        "checkpoints": [{**asdict(entry), "best": entry is best} for entry in saved],
        "newest": None if file is None else file.name,
        "notes": notes,
        "records": len(records),
        "last": dict(records[-1]) if records else None,
    }
    return description, file


def describe_file(path: Path) -> Description:
    """One checkpoint; its arrays are read a block at a time."""
    with Checkpoint(path) as file:
        arrays = {kind: _arrays(file, kind) for kind in file.kinds()}
        replicas, apart = describe_replicas(file)
        return {
            "file": str(path),
            "step": file.step,
            "epoch": file.epoch,
            "seed": file.seed,
            "grid": dict(zip(("replicas", "stages", "shards"), file.grid, strict=True)),
            "dtype": file.dtype,
            "program": file.program,
            "configuration": file.configuration,
            "data": file.data,
            "random": file.random,
            "scalars": file.scalars,
            "history": {name: _last(values) for name, values in file.history.items()},
            "parameters": {kind: [row for row, _ in rows] for kind, rows in arrays.items()},
            "totals": {kind: _total([moments for _, moments in rows]) for kind, rows in arrays.items()},
            "replicas": replicas,
            "apart": apart,
        }


def _newest(run: RunDirectory, notes: list[str]) -> Path | None:
    try:
        return newest(run.path, notes.append)
    except InputError as error:
        notes.append(str(error))
        return None


def _saved(run: RunDirectory) -> list[Any]:
    try:
        return read_index(run) or []
    except InputError:  # `newest` has said so in the notes
        return []


def _finished(run: RunDirectory, notes: list[str]) -> bool:
    try:
        return read_summary(run.summary) is not None
    except InputError as error:
        notes.append(str(error))
        return False


def _arrays(file: Checkpoint, kind: str) -> list[tuple[Description, Moments]]:
    return [_array(file, kind, parameter) for parameter in file.parameters(kind)]


def _array(file: Checkpoint, kind: str, parameter: Parameter) -> tuple[Description, Moments]:
    moments = Moments()
    for block in file.blocks(kind, parameter.name):
        moments.add(block)
    row = {"name": parameter.name, "shape": list(parameter.shape), "dtype": str(parameter.dtype)}
    return {**row, "merged": parameter.merged, **moments.summary()}, moments


def _total(parts: list[Moments]) -> Description:
    total = Moments()
    for part in parts:
        total.merge(part)
    return total.summary()


def _last(values: Any) -> int | float | None:
    known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    return known[-1].item() if known.size else None
