"""Tables of runs: what they reached, how they differ, their lines of metrics, their ranks and stages."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from mpinn.analysis.page import Table
from mpinn.analysis.runs import Run, Series
from mpinn.config import ORDER, difference

LEVELS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99)
"""Validation accuracies to which the time is told, where any run reaches them."""


def result_table(series: Sequence[Series]) -> Table:
    """A row for every series: means over its seeds, with the standard deviation of accuracies."""
    levels = levels_of(series)
    columns = ["series", "seeds", "model", "grid", "epochs", "test accuracy (%)", "validation accuracy (%)",
               "seconds", "samples/s", *(f"seconds to {level:.0%}" for level in levels), "MB sent", "MB of a rank",
               "networks", "networks x samples/s"]  # fmt: skip
    whole = run_table(series)
    rows = []
    for one in series:
        own = [dict(zip(whole.columns, row, strict=True)) for row in whole.rows if row[0] == one.label]
        names = ("seconds", "samples/s", *(f"seconds to {level:.0%}" for level in levels), "MB sent", "MB of a rank",
                 "networks", "networks x samples/s")  # fmt: skip
        rows.append([
            one.label, len(own), own[0]["model"], " x ".join(map(str, one.runs[0].grid)), own[0]["epochs"],
            *(_spread([row[name] for row in own]) for name in ("test accuracy", "validation accuracy")),
            *(_mean([row[name] for row in own]) for name in names),
        ])  # fmt: skip
    caption = (
        "Means over seeds, ± one standard deviation. The grid is replicas x stages x shards. Seconds are those of "
        "training; those to an accuracy are until validation first reached it, empty where a seed never did. MB of a "
        "rank are the most host memory that one had, libraries included. A population trains all its networks with "
        "every sample: one after the other they would take as long as one alone, times their number."
    )
    return Table("Results", columns, rows, "tables/results.csv", caption)


def levels_of(series: Sequence[Series]) -> list[float]:
    """The validation accuracies to which times are told: the highest ones that any run has reached."""
    return [level for level in LEVELS if any(time_to(run, level) for one in series for run in one.runs)][-2:]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> str:
    mean = _mean(values)
    if mean is None:
        return ""
    deviation = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""  # type: ignore[arg-type]
    return f"{100 * mean:.2f}{deviation}"


def run_table(series: Sequence[Series]) -> Table:
    """A row for every run: what it is and what it reached."""
    levels = levels_of(series)
    columns = ["series", "run", "seed", "model", "data", "schedule", "consensus", "replicas", "stages", "epochs",
               "steps", "samples", "seconds", "samples/s", "test accuracy", "test loss", "validation accuracy",
               "validation loss", *(f"seconds to {level:.0%}" for level in levels), "MB sent", "MB of a rank",
               "networks", "networks x samples/s"]  # fmt: skip
    rows = []
    for one in series:
        for run in one.runs:
            told, tables = run.summary, run.tables
            test, validation = told.get("test", {}), told.get("validation", {})
            samples, seconds = (_last(run, name) for name in ("samples", "seconds"))
            speed = samples / seconds if samples and seconds else None
            networks = (told.get("population") or {}).get("members", 1)
            memory = [peak for rank in told.get("ranks", ()) if (peak := rank.get("memory")) and isfinite(peak)]
            rows.append([
                one.label, run.name, run.seed, tables["model"]["name"], tables["data"]["name"],
                tables["schedule"]["name"], _consensus(run), *run.grid[:2], tables["train"]["epochs"],
                int(_last(run, "step") or 0), int(samples or 0), seconds,
                speed,
                test.get("accuracy"), test.get("loss"),
                validation.get("accuracy", _last(run, "validation_accuracy")),
                validation.get("loss", _last(run, "validation_loss")),
                *(time_to(run, level) for level in levels),
                sum(rank["bytes"] for rank in told["ranks"]) / 1e6 if told else None,
                max(memory) / 1e6 if memory else None, networks, networks * speed if speed else None,
            ])  # fmt: skip
    return Table("Runs, one by one", columns, rows, "tables/runs.csv", long=True)


def _consensus(run: Run) -> str:
    """By its name; nothing for one replica of a population, which has nothing that a consensus would join."""
    alone = run.tables["model"]["name"] == "population" and run.grid[0] in (0, 1)
    return "" if alone else str(run.tables["consensus"]["name"])


def time_to(run: Run, level: float) -> float | None:
    """Seconds of training until the validation accuracy was first at least ``level``."""
    seconds, accuracy = run.curve("validation_accuracy", "seconds")
    reached = np.flatnonzero(accuracy >= level)
    return float(seconds[reached[0]]) if reached.size else None


def settings_table(series: Sequence[Series]) -> Table:
    """The grids, and the keys of the configuration in which series differ."""
    tables = [one.runs[0].tables for one in series]
    found = dict.fromkeys(key for other in tables[1:] for key, _, _ in difference(tables[0], other))
    keys = sorted(found, key=lambda key: ORDER.index(key.split(".")[0]))
    flat = [{key: value for key, value, _ in difference(table, {})} for table in tables]
    rows: list[list[Any]] = [["grid", *(" x ".join(map(str, one.runs[0].grid)) for one in series)]]
    rows += [[key, *(_setting(values.get(key)) for values in flat)] for key in keys if key != "run.directory"]
    return Table("What differs", ["key", *(one.label for one in series)], rows, "tables/settings.csv")


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def curve_table(series: Sequence[Series]) -> Table:
    """Every line of the metrics with a loss or a validation."""
    names = ["loss", "rate", "validation_loss", "validation_accuracy"]
    rows = []
    for one in series:
        for run in one.runs:
            known: dict[float, dict[str, float]] = {}
            for name in names:
                for step, value in zip(*run.curve(name, "step"), strict=True):
                    known.setdefault(float(step), {})[name] = float(value)
            steps = np.array(sorted(known))
            times = [run.along(steps, axis) for axis in ("samples", "seconds")]
            rows += [
                [one.label, run.name, run.seed, int(step), int(samples), seconds, *(known[step].get(n) for n in names)]
                for step, samples, seconds in zip(steps.tolist(), *(time.tolist() for time in times), strict=True)
            ]
    columns = ["series", "run", "seed", "step", "samples", "seconds", *names]
    return Table("Lines of the metrics", columns, rows, "tables/curves.csv", long=True)


def meeting_table(runs: Sequence[Run]) -> Table:
    """What each replica weighed at each meeting."""
    rows = [
        [run.name, int(step), replica, float(weight)]
        for run in runs
        for step, weights in zip(*run.meetings, strict=True)
        for replica, weight in enumerate(weights)
        if np.isfinite(weight)
    ]
    return Table(
        "Weights of the replicas at their meetings",
        ["run", "step", "replica", "weight"],
        rows,
        "tables/meetings.csv",
        long=True,
    )


def rank_table(runs: Sequence[Run]) -> Table:
    """What the summary of a finished run says of each rank."""
    rows = []
    for run in runs:
        for rank, told in enumerate(run.summary.get("ranks", ())):
            replica, stage = divmod(rank, run.grid[1])
            percent = [100 * told[name] for name in ("computing", "communicating", "waiting")]
            age = (told["staleness"], told["staleness_formula"])
            rows.append([run.name, rank, replica, stage, *percent, told["bytes"] / 1e6, *age])
    columns = ["run", "rank", "replica", "stage", "computing %", "messages %", "waiting %", "MB sent", "staleness",
               "by the formula"]  # fmt: skip
    return Table("Ranks", columns, rows, "tables/ranks.csv", long=True)


def partition_table(runs: Sequence[Run]) -> Table:
    """The layers and parameters of every stage."""
    rows = [[run.name, stage.number, " ".join(stage.layers), stage.parameters] for run in runs for stage in run.stages]
    return Table("Stages", ["run", "stage", "layers", "parameters"], rows, "tables/partition.csv", long=True)


def _last(run: Run, name: str) -> float | None:
    _, values = run.curve(name, "step")
    return float(values[-1]) if len(values) else None
