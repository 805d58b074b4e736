"""What a run directory tells of a run, for a report; and runs that differ in their seed alone as one series."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.analysis.network import trained_network
from mpinn.array.typing import Array
from mpinn.config import InputError, difference, read_toml
from mpinn.nn.layout import Layout
from mpinn.nn.parareal import Parareal
from mpinn.storage.directory import RunDirectory
from mpinn.storage.history import Record, columns, read, read_summary
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import newest
from mpinn.words import readable

AXES = {"step": "step", "samples": "samples", "seconds": "seconds of training"}
"""What a curve may be drawn over, and how the axis is labelled."""


@dataclass(frozen=True)
class Stage:
    """A part of the depth: the names of its layers, and how many parameters they have."""

    number: int
    layers: tuple[str, ...]
    parameters: int


class Run:
    """One run directory, finished or not; raises InputError where there is none."""

    def __init__(self, path: Path):
        self.path, directory = path, RunDirectory(path)
        if not directory.config.is_file():
            raise InputError(str(path), f"not a run directory: it has no {directory.config.name}")
        self.name = readable(path.resolve().name)
        self.tables: Mapping[str, Any] = read_toml(directory.config)
        self.records: Sequence[Record] = read(directory.metrics)
        self.summary: Mapping[str, Any] = read_summary(directory.summary) or {}
        self.notes: list[str] = []
        self._directory = directory

    @property
    def begun(self) -> bool:
        """Whether it has a line of metrics, without which there is nothing to show."""
        return any("loss" in record for record in self.records)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.tables["run"]["seed"])

    @cached_property
    def checkpoint(self) -> Path | None:
        """The newest good checkpoint."""
        try:
            return newest(self.path, self.notes.append)
        except InputError as error:
            self.notes.append(str(error))
            return None

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """(replicas, stages, shards)."""
        if self.summary:
            return tuple(self.summary["grid"])
        if self.checkpoint is not None:
            with Checkpoint(self.checkpoint) as file:
                return file.grid
        return tuple(self.tables["grid"][axis] for axis in ("replicas", "stages", "shards"))

    @cached_property
    def _columns(self) -> dict[str, Array]:
        return columns(self.records)

    def curve(self, name: str, axis: str) -> tuple[Array, Array]:
        """A column of the metrics over one of `AXES`, where it has values; empty if there is no such column."""
        lines = self._columns
        if name not in lines:
            return np.zeros(0), np.zeros(0)
        known = np.isfinite(lines[name])
        return self.along(lines["step"][known], axis), lines[name][known].astype(np.float64)

    def along(self, steps: Array, axis: str) -> Array:
        """Steps as steps, or as the samples or seconds that the lines around them tell."""
        if axis == "step":
            return steps.astype(np.float64)
        lines = self._columns
        known = np.isfinite(lines[axis])
        found: Array = np.interp(steps, [0, *lines["step"][known]], [0, *lines[axis][known]])
        return found

    @property
    def meetings(self) -> tuple[Array, Array]:
        """Steps (M,), and what each replica weighed (M, R), NaN where there were fewer replicas."""
        met = [record for record in self.records if "meeting_weights" in record]
        most = max((len(record["meeting_weights"]) for record in met), default=0)
        rows = [[*record["meeting_weights"], *[np.nan] * (most - len(record["meeting_weights"]))] for record in met]
        return np.array([record["step"] for record in met]), np.array(rows, np.float64).reshape(len(met), most)

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The events of its trace, if one was written: see `mpinn.run.timeline`."""
        traced = _trace(self.path / "trace.json")
        return [event for event in traced if event["ph"] == "X"]

    @cached_property
    def members(self) -> list[dict[str, str]]:
        """The rows of a population's ranking; none where the run has no population."""
        try:
            with open(self.path / "ranking.csv", newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    @cached_property
    def stages(self) -> list[Stage]:
        """The partition of the depth; none where it is not cut, or where there is no checkpoint."""
        if self.checkpoint is None:
            return []
        with Checkpoint(self.checkpoint) as file:
            bounds = np.asarray(file.scalars.get("bounds", ())).tolist()
            if len(bounds) < 3:
                return []
            trained = trained_network(file)
        counts: dict[str, int] = {}
        for entry in Layout(trained.network.parameters(trained.shape), np.float32):
            counts[entry.path[0]] = counts.get(entry.path[0], 0) + entry.size
        if isinstance(trained.network, Parareal):
            parts = [
                (*(name for name, _ in block.ways), *block.head.names) for block in trained.network.blocks
            ]  # fmt: skip
        else:
            names = getattr(trained.network, "names", ())
            parts = [tuple(names[start:stop]) for start, stop in pairwise(bounds)]
        return [Stage(number, names, sum(counts.get(name, 0) for name in names)) for number, names in enumerate(parts)]


@dataclass(frozen=True)
class Series:
    """Runs that differ in their seed alone."""

    label: str
    runs: Sequence[Run]

    def curve(self, name: str, axis: str) -> tuple[Array, Array, Array]:
        """x (N,), the mean over the runs, and (2, N): the lowest and the highest of them."""
        curves = [curve for curve in (run.curve(name, axis) for run in self.runs) if len(curve[0])]
        if not curves:
            return np.zeros(0), np.zeros(0), np.zeros((2, 0))
        x = curves[0][0]
        if any(not np.array_equal(x, other) for other, _ in curves):
            x = np.linspace(max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves), 200)
        rows = np.array([np.interp(x, xs, ys) for xs, ys in curves])
        return x, rows.mean(axis=0), np.array([rows.min(axis=0), rows.max(axis=0)])


def series_of(runs: Sequence[Run]) -> list[Series]:
    """The runs as series, in the order in which they were given."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if _alike(group[0], run) and run.seed not in (other.seed for other in group):
                group.append(run)
                break
        else:
            groups.append([run])
    labels = [_label(group) for group in groups]
    return [
        Series(label if labels.count(label) == 1 else readable(str(group[0].path)), group)
        for label, group in zip(labels, groups, strict=True)
    ]


def _alike(one: Run, other: Run) -> bool:
    changes = {key for key, _, _ in difference(one.tables, other.tables)}
    return changes <= {"run.seed", "run.directory"} and one.grid == other.grid


def _label(group: Sequence[Run]) -> str:
    """The name of the directories without the number of the seed, if all have that at their end; else of the first."""
    found = {re.sub(rf"[-_.]?(seed)?[-_.]?{run.seed}$", "", run.name) for run in group}
    return found.pop() if len(found) == 1 and all(found) else group[0].name


def _trace(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(path.read_bytes())["traceEvents"]
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not JSON: {error}") from None
    except (KeyError, TypeError):
        raise InputError(str(path), "damaged: it is no trace of this program's") from None
    return found
