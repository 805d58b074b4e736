"""Tables of what `inspect` and `diff` found."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from mpinn.analysis.values import number, pairs, shape_text, short
from mpinn.evaluation import unsaved_text
from mpinn.screen import Screen, facts, table
from mpinn.words import counted, loss_text

Row = Mapping[str, Any]
NUMBERS = ("norm", "mean", "std", "min", "max")
ALARMS = {"zeros": "zeros", "nonfinite": "nan, inf"}
"""Columns that are shown where there is something to see, so that a table fits a terminal of 80 columns otherwise."""


def show(description: Row) -> None:
    """Print a description by `describe`."""
    screen = Screen()
    if "run" in description:
        _run(screen, description["run"])
    if description["checkpoint"] is not None:
        _checkpoint(screen, description["checkpoint"])
    screen.close()


def show_diff(description: Row) -> None:
    """Print the differences that `compare` found."""
    screen, files = Screen(), description["files"]
    screen.print(facts({"first": files[0], "second": files[1]}))
    for note in description["notes"]:
        screen.print(note, style="yellow")
    settings = [(row["key"], row["values"]) for row in description["configuration"]]
    for heading, both in (("file", description["facts"].items()), ("configuration", settings)):
        if both:
            screen.print(_pairs_table(heading, both))
    for place, names in description["only"].items():
        if names:
            screen.print(facts({f"only in the {place}": ", ".join(names)}))
    for row in description["shapes"]:
        screen.print(facts({row["name"]: "shapes " + " and ".join(map(shape_text, row["shapes"]))}))
    for kind, rows in description["arrays"].items():
        if not kind.startswith("optimizer/"):
            _apart(screen, kind, [*rows, {"name": "all", **description["totals"][kind]}])
    totals = description["totals"].items()
    others = [{"name": kind, **total} for kind, total in totals if kind.startswith("optimizer/")]
    replicas = [{**row, "name": str(row["replica"])} for row in description["replicas"]]
    for heading, rows in (("optimizer", others), ("replica", replicas)):
        if rows:
            _apart(screen, heading, rows)
    screen.close()


def _pairs_table(heading: str, both: Iterable[tuple[str, Sequence[Any]]]) -> Table:
    found = table(heading, folded=True)
    for name in ("first", "second"):
        found.add_column(name, overflow="fold")
    for key, values in both:
        found.add_row(key, *(Text("" if value is None else short(value)) for value in values))
    return found


def _apart(screen: Screen, heading: str, rows: Sequence[Row]) -> None:
    """Rows of `Apart.summary`; what is the same to the last bit is said to be."""
    alarm = any(row["nonfinite"] for row in rows)
    columns = (heading, "count", "norm, first", "second", "distance", "relative", "angle")
    cells = []
    for row in rows:
        numbers = ["same", "", ""]
        if row["differing"]:
            angle = "" if row["angle"] is None else f"{row['angle']:.3g}°"
            numbers = [number(row["distance"]), number(row["relative"]), angle]
        alarms = [_alarm("nonfinite", row["nonfinite"])] if alarm else []
        cells.append([row["name"], f"{row['count']:,}", *map(number, row["norms"]), *numbers, *alarms])
    screen.rows([*columns, *([ALARMS["nonfinite"]] if alarm else [])], cells)


def _run(screen: Screen, run: Row) -> None:
    told = {"run": run["directory"], "state": _state(run), "newest": run["newest"] or "none"}
    if run["inspections"]:
        told["failed"] = f"{', '.join(run['inspections'])}: what it was then, which inspect and diff take"
    if run["unsaved"]:
        told["best seen"] = unsaved_text(run["unsaved"])
    screen.print(facts(told))
    for note in run["notes"]:
        screen.print(note, style="yellow")
    if run["checkpoints"]:
        cells = []
        for entry in run["checkpoints"]:
            score = "" if entry["score"] is None else short(entry["score"])
            said = entry["wrong"] or ("best" if entry["best"] else "")
            cells.append([entry["file"], score, said, entry["step"], entry["epoch"], f"{entry['bytes'] / 2**20:.2f}"])
        screen.rows(
            ("checkpoint", "score", "", "step", "epoch", "MiB"), [list(map(str, row)) for row in cells], whole=True
        )
    if run["last"]:
        screen.print(facts({f"line {run['records']} of metrics": pairs(run["last"])}))
    screen.print("")


def _state(run: Row) -> str:
    if run["training"]:
        return f"being trained by {run['training']}"
    if not run["finished"]:
        return "stopped, to be started again" if run["requeue"] else "not finished"
    return f"finished, but its last checkpoint is {run['lost']}" if run["lost"] else "finished"


def _checkpoint(screen: Screen, file: Row) -> None:
    configuration, members = file["configuration"], file["population"]
    told = {"file": file["file"], "step": file["step"], "epoch": file["epoch"], "seed": file["seed"]}
    # a population of one replica has nothing that a consensus would join
    idle = {"consensus"} if members is not None and file["grid"]["replicas"] == 1 else set()
    for name in ("model", "schedule", "consensus", "optimizer"):
        if name in configuration and name not in idle:
            told[name] = pairs({key: value for key, value in configuration[name].items() if not _is_chain(value)})
    told["grid"] = " x ".join(counted(length, axis.removesuffix("s")) for axis, length in file["grid"].items())
    told["type"] = f"{file['dtype']}, written by mpinn {file['program']}"
    # what it has for each member is summed up below
    scalars = {name: value for name, value in file["scalars"].items() if members is None or "member_" not in name}
    for name in ("data", "random", "scalars", "history"):
        if file[name]:
            told[name] = pairs({**file, "scalars": scalars}[name])
    screen.print(facts(told))
    _chains(screen, configuration.get("model", {}))
    if members is not None:
        _members(screen, members)
    for kind, rows in file["parameters"].items():
        if kind.startswith(("model/", "state/")):
            _parameters(screen, kind, [] if members is not None else rows, file["totals"][kind])
    if "units" in file:
        _units(screen, file["units"])
    _others(screen, file)
    _replicas(screen, file["replicas"])


def _members(screen: Screen, found: Row) -> None:
    """What a population is made of, and its best members; its panels hold members of all kinds."""
    span = " to ".join(f"{count:,}" for count in dict.fromkeys(found["panel_members"]))
    told = f"{found['members']:,}, of which {found['there']:,} are there, in {found['panels']:,} panels of {span}"
    screen.print(facts({"members": told}))
    cells = []
    for row in found["best"]:
        accuracy = row["validation_accuracy"]
        measured = row["validation_loss"] if accuracy is None else accuracy
        hidden = f"{row['layers']} x {row['width']}"
        others = (row["activation"], f"{row['rate']:.3g}", f"{row['weight_decay']:.3g}", str(row["seed"]))
        cells.append([str(row["member"]), loss_text(measured), hidden, *others])
    names = ("best members", "validation", "hidden layers", "activation", "rate", "weight decay", "seed")
    screen.rows(names, cells)


def _chains(screen: Screen, model: Row) -> None:
    """The layers that a configuration writes out, each under the path that its parameters have."""
    for key, value in model.items():
        if _is_chain(value):
            found = table(f"model.{key}", folded=True)
            found.add_column("kind", no_wrap=True)
            found.add_column("options", overflow="fold")
            for row in _layers(value):
                found.add_row(*map(Text, row))
            screen.print(found)


def _layers(chain: Sequence[Row], path: str = "") -> Iterator[tuple[str, str, str]]:
    for layer in chain:
        place = path + str(layer.get("name", "?"))
        inside = {key: value for key, value in layer.items() if _is_chain(value)}
        options = {key: value for key, value in layer.items() if key not in ("name", "kind", *inside)}
        yield place, str(layer.get("kind", "?")), pairs(options)
        for key, value in inside.items():
            yield from _layers(value, f"{place}/{key}/")


def _is_chain(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _parameters(screen: Screen, kind: str, rows: Sequence[Row], total: Row) -> None:
    alarms = [name for name in ALARMS if total[name]]
    heading = f"{kind} (mean)" if any(row["merged"] for row in rows) else kind
    cells: list[list[Any]] = []
    for row in rows:
        own = [_alarm(name, row[name]) for name in alarms]
        cells.append([row["name"], shape_text(row["shape"]), *_statistics(row), *own])
    cells.append(["all", "", *_statistics(total), *(_alarm(name, total[name]) for name in alarms)])
    names = (heading, "shape", "count", *NUMBERS, *(ALARMS[name] for name in alarms))
    screen.rows(names, cells, sections=bool(rows))


def _units(screen: Screen, found: Row) -> None:
    cells = [
        [row["name"], f"{row['units']:,}", f"{row['dead']:,}", f"{row['dead'] / row['units']:.1%}"]
        for row in found["layers"]
    ]
    screen.rows((f"dead on {found['samples']} of {found['split']}", "units", "dead", "share"), cells)


def _others(screen: Screen, file: Row) -> None:
    others = {kind: total for kind, total in file["totals"].items() if kind.startswith("optimizer/")}
    if not others:
        return
    alarms = [name for name in ALARMS if any(total[name] for total in others.values())]
    cells = [
        [kind, *_statistics(total), *(_alarm(name, total[name]) for name in alarms)] for kind, total in others.items()
    ]
    screen.rows(("other vectors", "count", *NUMBERS, *(ALARMS[name] for name in alarms)), cells)


def _replicas(screen: Screen, replicas: Sequence[Row]) -> None:
    if not replicas:
        return
    columns = ["replica", "from the mean", "relative", "optimizer", "farthest from", "distance"]
    weighed, alarm = (any(row[key] for row in replicas) for key in ("weight", "nonfinite"))
    columns += ["last weight"] if weighed else []
    cells: list[list[Any]] = []
    for row in replicas:
        numbers = [number(row[key]) for key in ("distance", "relative", "optimizer")]
        far = row["farthest"]
        place = [str(far["replica"]), number(far["distance"])] if far["distance"] else ["", ""]
        weight = [number(row["weight"])] if weighed else []
        alarms = [_alarm("nonfinite", row["nonfinite"])] if alarm else []
        cells.append([str(row["replica"]), *numbers, *place, *weight, *alarms])
    screen.rows([*columns, *([ALARMS["nonfinite"]] if alarm else [])], cells)


def _statistics(row: Row) -> list[str]:
    return [f"{row['count']:,}", *(number(row[name]) for name in NUMBERS)]


def _alarm(name: str, value: float | None) -> Text:
    if name == "zeros":
        return Text("" if value is None else f"{100 * value:.3g}%")
    return Text(f"{value:,}", style="bold red" if value else "")
