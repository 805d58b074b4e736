"""Tables of what `inspect` and `diff` found."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
NUMBERS = ("norm", "mean", "std", "min", "max")
ALARMS = {"zeros": "zeros", "nonfinite": "nan, inf"}
"""Columns that are shown where there is something to see, so that a table fits a terminal of 80 columns otherwise."""
WIDE = 160
"""Columns for a file or a pipe."""


def show(description: Row) -> None:
    """Print a description by `describe`."""
    console = _console()
    if "run" in description:
        _run(console, description["run"])
    if description["checkpoint"] is not None:
        _checkpoint(console, description["checkpoint"])


def show_diff(description: Row) -> None:
    """Print the differences that `compare` found."""
    console, files = _console(), description["files"]
    console.print(_facts({"first": files[0], "second": files[1]}))
    for note in description["notes"]:
        console.print(Text(note, style="yellow"))
    settings = [(row["key"], row["values"]) for row in description["configuration"]]
    for heading, pairs in (("file", description["facts"].items()), ("configuration", settings)):
        if pairs:
            console.print(_pairs_table(heading, pairs))
    for place, names in description["only"].items():
        if names:
            console.print(_facts({f"only in the {place}": ", ".join(names)}))
    for row in description["shapes"]:
        console.print(_facts({row["name"]: "shapes " + " and ".join(map(_shape, row["shapes"]))}))
    for kind, rows in description["arrays"].items():
        if not kind.startswith("optimizer/"):
            console.print(_apart(kind, [*rows, {"name": "all", **description["totals"][kind]}]))
    totals = description["totals"].items()
    others = [{"name": kind, **total} for kind, total in totals if kind.startswith("optimizer/")]
    replicas = [{**row, "name": str(row["replica"])} for row in description["replicas"]]
    for heading, rows in (("optimizer", others), ("replica", replicas)):
        if rows:
            console.print(_apart(heading, rows))


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


def _pairs_table(heading: str, pairs: Iterable[tuple[str, Sequence[Any]]]) -> Table:
    table = _table(heading)
    for name in ("first", "second"):
        table.add_column(name, overflow="fold")
    for key, values in pairs:
        table.add_row(key, *(Text("" if value is None else _short(value)) for value in values))
    return table


def _apart(heading: str, rows: Sequence[Row]) -> Table:
    """Rows of `Apart.summary`; what is the same to the last bit is said to be."""
    alarm = any(row["nonfinite"] for row in rows)
    columns = ("count", "norm, first", "second", "distance", "relative", "angle")
    table = _table(heading, *columns, *([ALARMS["nonfinite"]] if alarm else []))
    for row in rows:
        numbers = ["same", "", ""]
        if row["differing"]:
            angle = "" if row["angle"] is None else f"{row['angle']:.3g}°"
            numbers = [_number(row["distance"]), _number(row["relative"]), angle]
        alarms = [_alarm("nonfinite", row["nonfinite"])] if alarm else []
        table.add_row(row["name"], f"{row['count']:,}", *map(_number, row["norms"]), *numbers, *alarms)
    return table


def _run(console: Console, run: Row) -> None:
    state = "finished" if run["finished"] else "stopped, to be started again" if run["requeue"] else "not finished"
    console.print(_facts({"run": run["directory"], "state": state, "newest": run["newest"] or "none"}))
    for note in run["notes"]:
        console.print(Text(note, style="yellow"))
    if run["checkpoints"]:
        table = _table("checkpoint", "step", "epoch", "score", "MiB", "")
        for entry in run["checkpoints"]:
            size = f"{entry['bytes'] / 2**20:.2f}"
            score, best = "" if entry["score"] is None else _short(entry["score"]), "best" if entry["best"] else ""
            table.add_row(entry["file"], str(entry["step"]), str(entry["epoch"]), score, size, best)
        console.print(table)
    if run["last"]:
        console.print(_facts({f"line {run['records']} of metrics": _pairs(run["last"])}))
    console.print()


def _checkpoint(console: Console, file: Row) -> None:
    configuration = file["configuration"]
    facts = {"file": file["file"], "step": file["step"], "epoch": file["epoch"], "seed": file["seed"]}
    for table in ("model", "schedule", "consensus", "optimizer"):
        if table in configuration:
            facts[table] = _pairs({key: value for key, value in configuration[table].items() if not _is_chain(value)})
    facts["grid"] = " x ".join(f"{length} {axis}" for axis, length in file["grid"].items())
    facts["type"] = f"{file['dtype']}, written by mpinn {file['program']}"
    facts["data"] = _pairs({name: np.asarray(value).tolist() for name, value in file["data"].items()})
    for table in ("random", "scalars", "history"):
        if file[table]:
            facts[table] = _pairs(file[table])
    console.print(_facts(facts))
    _chains(console, configuration.get("model", {}))
    for kind, rows in file["parameters"].items():
        if kind.startswith(("model/", "state/")):
            console.print(_parameters(kind, rows, file["totals"][kind]))
    if "units" in file:
        console.print(_units(file["units"]))
    _others(console, file)
    _replicas(console, file["replicas"])


def _chains(console: Console, model: Row) -> None:
    """The layers that a configuration writes out, each under the path that its parameters have."""
    for key, value in model.items():
        if _is_chain(value):
            table = _table(f"model.{key}")
            table.add_column("kind", no_wrap=True)
            table.add_column("options", overflow="fold")
            for row in _layers(value):
                table.add_row(*map(Text, row))
            console.print(table)


def _layers(chain: Sequence[Row], path: str = "") -> Iterator[tuple[str, str, str]]:
    for layer in chain:
        place = path + str(layer.get("name", "?"))
        inside = {key: value for key, value in layer.items() if _is_chain(value)}
        options = {key: value for key, value in layer.items() if key not in ("name", "kind", *inside)}
        yield place, str(layer.get("kind", "?")), _pairs(options)
        for key, value in inside.items():
            yield from _layers(value, f"{place}/{key}/")


def _is_chain(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _parameters(kind: str, rows: Sequence[Row], total: Row) -> Table:
    alarms = [name for name in ALARMS if total[name]]
    heading = f"{kind} (mean)" if any(row["merged"] for row in rows) else kind
    table = _table(heading, "shape", "count", *NUMBERS, *(ALARMS[name] for name in alarms))
    for row in rows:
        table.add_row(
            row["name"], _shape(row["shape"]), *_statistics(row), *(_alarm(name, row[name]) for name in alarms)
        )
    table.add_section()
    table.add_row("all", "", *_statistics(total), *(_alarm(name, total[name]) for name in alarms))
    return table


def _units(found: Row) -> Table:
    table = _table(f"dead on {found['samples']} of {found['split']}", "units", "dead", "share")
    for row in found["layers"]:
        table.add_row(row["name"], f"{row['units']:,}", f"{row['dead']:,}", f"{row['dead'] / row['units']:.1%}")
    return table


def _others(console: Console, file: Row) -> None:
    others = {kind: total for kind, total in file["totals"].items() if kind.startswith("optimizer/")}
    if not others:
        return
    alarms = [name for name in ALARMS if any(total[name] for total in others.values())]
    table = _table("other vectors", "count", *NUMBERS, *(ALARMS[name] for name in alarms))
    for kind, total in others.items():
        table.add_row(kind, *_statistics(total), *(_alarm(name, total[name]) for name in alarms))
    console.print(table)


def _replicas(console: Console, replicas: Sequence[Row]) -> None:
    if not replicas:
        return
    columns = ["from the mean", "relative", "optimizer", "farthest from", "distance"]
    weighed, alarm = (any(row[key] for row in replicas) for key in ("weight", "nonfinite"))
    columns += ["last weight"] if weighed else []
    table = _table("replica", *columns, *([ALARMS["nonfinite"]] if alarm else []))
    for row in replicas:
        numbers = [_number(row[key]) for key in ("distance", "relative", "optimizer")]
        far = row["farthest"]
        place = [str(far["replica"]), _number(far["distance"])] if far["distance"] else ["", ""]
        weight = [_number(row["weight"])] if weighed else []
        alarms = [_alarm("nonfinite", row["nonfinite"])] if alarm else []
        table.add_row(str(row["replica"]), *numbers, *place, *weight, *alarms)
    console.print(table)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _statistics(row: Row) -> list[str]:
    return [f"{row['count']:,}", *(_number(row[name]) for name in NUMBERS)]


def _alarm(name: str, value: float | None) -> Text:
    if name == "zeros":
        return Text("" if value is None else f"{100 * value:.3g}%")
    return Text(f"{value:,}", style="bold red" if value else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _pairs(values: Row) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        # of what grows with the run, the latest: a number, or one for each replica
        return " ".join(_short(float(number)) for number in np.atleast_1d(value[-1]).ravel()) if len(value) else "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    if isinstance(value, dict):
        return f"{{{_pairs(value)}}}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _facts(facts: Row) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(str(value)))
    return table
