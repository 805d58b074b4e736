"""How two checkpoints differ: configuration, each array, replicas and optimizer. Needs neither MPI nor a GPU."""

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.analysis.apart import Apart
from mpinn.config import difference
from mpinn.storage.history import plain
from mpinn.storage.reader import Checkpoint, Parameter
from mpinn.storage.restore import checkpoint_of

Description = dict[str, Any]
SHOWN = ("model/", "state/")
"""Kinds whose arrays are listed one by one; of the optimizer's there are sums."""


def diff(one: Path, other: Path, json: bool = False) -> None:
    """Print how two files differ, or the newest checkpoints of two run directories."""
    description = compare(one, other)
    if json:
        print(json_module.dumps(plain(description), ensure_ascii=False, allow_nan=False))
        return
    from mpinn.analysis.tables import show_diff

    show_diff(description)


def compare(one: Path, other: Path) -> Description:
    """The differences; all arrays of both files are read, a few MiB at a time."""
    notes: list[str] = []
    files = [checkpoint_of(path, False, notes.append) for path in (one, other)]
    with Checkpoint(files[0]) as ours, Checkpoint(files[1]) as theirs:
        kinds = [kind for kind in ours.kinds() if kind in theirs.kinds()]
        arrays = {kind: _arrays(ours, theirs, kind) for kind in kinds if kind.startswith((*SHOWN, "optimizer/"))}
        return {
            "files": [str(file) for file in files],
            "notes": notes,
            "facts": _facts(ours, theirs),
            "configuration": [
                {"key": key, "values": [old, new]}
                for key, old, new in difference(ours.configuration, theirs.configuration)
            ],
            "only": {"first": _only(ours, theirs), "second": _only(theirs, ours)},
            "shapes": [row for kind in kinds for row in _shapes(ours, theirs, kind)],
            "arrays": {kind: [{"name": name, **apart.summary()} for name, apart in rows.items()]
                       for kind, rows in arrays.items()},
            "totals": {kind: _sum(rows).summary() for kind, rows in arrays.items()},
            "replicas": _replicas(ours, theirs),
        }  # fmt: skip


def _facts(ours: Checkpoint, theirs: Checkpoint) -> Description:
    """What the files say of themselves, where they differ."""
    told: list[Mapping[str, Any]] = []
    for file in (ours, theirs):
        scalars = file.scalars
        named = zip(("validation loss", "validation accuracy"), scalars.get("validation", ()), strict=False)
        # values have no accuracy
        quality = {name: value for name, value in named if not np.isnan(value)}
        told.append({
            "step": file.step, "epoch": file.epoch, "seed": file.seed, "grid": list(file.grid), "type": file.dtype,
            "program": file.program, "samples": scalars.get("samples"), "seconds": scalars.get("seconds"), **quality,
            **{f"data {name}": value for name, value in file.data.items()},
        })  # fmt: skip
    names = dict.fromkeys((*told[0], *told[1]))
    pairs = {name: [facts.get(name) for facts in told] for name in names}
    return {name: pair for name, pair in pairs.items() if not _same(*pair)}


def _same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other))


def _arrays(ours: Checkpoint, theirs: Checkpoint, kind: str, replica: int | None = None) -> dict[str, Apart]:
    """Every array that both have in the same shape; a replica's own values where it has them."""
    found = {}
    other = {parameter.name: parameter for parameter in theirs.parameters(kind)}
    for parameter in ours.parameters(kind):
        match = other.get(parameter.name)
        if match is not None and match.shape == parameter.shape:
            found[parameter.name] = _apart(ours, theirs, kind, parameter, match, replica)
    return found


def _apart(
    ours: Checkpoint, theirs: Checkpoint, kind: str, one: Parameter, other: Parameter, replica: int | None
) -> Apart:
    apart, size = Apart(), max(one.dtype.itemsize, other.dtype.itemsize)
    pairs = (file.blocks(kind, one.name, replica, size) for file in (ours, theirs))
    for first, second in zip(*pairs, strict=True):
        apart.add(first, second)
    return apart


def _sum(rows: Mapping[str, Apart]) -> Apart:
    total = Apart()
    for apart in rows.values():
        total.merge(apart)
    return total


def _only(ours: Checkpoint, theirs: Checkpoint) -> list[str]:
    """Arrays that the other file lacks, or the kind where it lacks all of it."""
    found, kinds = [], theirs.kinds()
    for kind in ours.kinds():
        if kind not in kinds:
            found.append(kind)
            continue
        known = {parameter.name for parameter in theirs.parameters(kind)}
        found += [f"{kind}/{entry.name}" for entry in ours.parameters(kind) if entry.name not in known]
    return found


def _shapes(ours: Checkpoint, theirs: Checkpoint, kind: str) -> list[Description]:
    other = {parameter.name: parameter.shape for parameter in theirs.parameters(kind)}
    pairs = ((entry.name, entry.shape, other.get(entry.name, entry.shape)) for entry in ours.parameters(kind))
    return [{"name": f"{kind}/{name}", "shapes": [one, two]} for name, one, two in pairs if one != two]


def _replicas(ours: Checkpoint, theirs: Checkpoint) -> list[Description]:
    """The model of each replica against that of the same number, where the replicas of either file differ."""
    models = [kind for kind in ours.models() if kind in theirs.models()]
    own = [kind for file in (ours, theirs) for replica in file.replicas for kind in file.kinds(replica)]
    if not {*models} & {*own}:
        return []
    found = []
    for replica in range(min(ours.grid[0], theirs.grid[0])):
        total = Apart()
        for kind in models:
            total.merge(_sum(_arrays(ours, theirs, kind, replica)))
        found.append({"replica": replica, **total.summary()})
    return found
