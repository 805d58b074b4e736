"""What is in a checkpoint or a run directory, as tables or as one JSON object. Needs neither MPI nor a GPU."""

import json as json_module
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.analysis.members import describe_members
from mpinn.analysis.moments import Moments
from mpinn.analysis.network import model_options
from mpinn.analysis.replicas import describe_replicas
from mpinn.analysis.state import describe_state
from mpinn.config import InputError
from mpinn.storage.history import plain
from mpinn.storage.reader import Checkpoint, Parameter
from mpinn.storage.restore import check_digest

Description = dict[str, Any]


def inspect(path: Path, json: bool = False, units: bool = False, data: str = "") -> None:
    """Print what a checkpoint file, or a run directory and its newest checkpoint, holds.

    ``units``: also how many units are dead, for which its data set is needed; ``data`` says where that is.
    """
    description = describe(path)
    if units and (file := description["checkpoint"]) is not None:
        file["units"] = _units(file["file"], data)
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
    run, file = describe_state(path)
    return {"run": run, "checkpoint": None if file is None else describe_file(file)}


def describe_file(path: Path) -> Description:
    """One checkpoint; its arrays are read a block at a time."""
    with Checkpoint(path) as file:
        arrays = {kind: _arrays(file, kind) for kind in file.kinds()}
        replicas, apart = describe_replicas(file)
        model = file.configuration.get("model", {})
        several = model.get("name") == "population"
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
            "population": describe_members(file, model_options(str(path), model)) if several else None,
            "replicas": replicas,
            "apart": apart,
        }


def _units(path: str, data: str) -> Description:
    """The dead units; if the data set is not where it was in training, how to say where it is."""
    from mpinn.analysis.saved import SavedModel
    from mpinn.analysis.units import dead_units

    with SavedModel(path) as model:
        try:
            return dead_units(model, data)
        except InputError as error:
            if error.path != "data.path":
                raise
            said = str(error).removeprefix("data.path: ")
            if data:
                raise InputError("--data", said) from None
            if not model.configuration["data"].get("path"):
                raise
            raise InputError("", f"{error}; where it is here, say with --data ...") from None


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
