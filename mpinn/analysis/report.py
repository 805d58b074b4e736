"""The command ``report``: runs side by side, on one HTML page, with its figures as PNG and its tables as CSV."""

import csv
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from mpinn.analysis.page import GENERATOR, Picture, Table, page
from mpinn.analysis.run_tables import curve_table, meeting_table, partition_table, rank_table, run_table, settings_table
from mpinn.analysis.runs import Run, Series, series_of
from mpinn.config import InputError
from mpinn.storage.directory import write_text

PAGE = "index.html"
DPI = 220


def report(paths: Sequence[Path], out: Path) -> None:
    """Write the report of the runs into a directory, and print where it is."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("report", f"it needs pip install 'mpinn[report]' ({error})") from None
    runs = [Run(path) for path in paths]
    series = series_of(runs)
    _check_place(out)
    parts: list[Table | Picture] = [*_tables(series, runs), *_pictures(series, runs)]
    order = ("Runs", "What differs", "Learning curves", "Accuracy against time")
    shown = sorted((part for part in parts if not _aside(part)), key=lambda part: _rank(part.title, order))
    notes = [note for run in runs for note in run.notes]
    notes += [f"{run.name} is not finished: shown is what it has done so far." for run in runs if not run.summary]
    try:
        for part in parts:
            place = out / part.file
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(part, Picture):
                place.write_bytes(part.png)
            else:
                write_text(place, _csv(part))
        write_text(out / PAGE, page(f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {_names(series)}", notes, shown))
    except OSError as error:
        raise InputError("--out", f"{str(error.filename or out)!r} cannot be written: {error.strerror}") from error
    print(f"{out / PAGE}: {len(runs)} runs, {sum(isinstance(part, Picture) for part in parts)} figures")


def _check_place(out: Path) -> None:
    """Only a report is written over."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    page = out / PAGE
    if not (page.is_file() and GENERATOR.split()[0] in page.read_text(encoding="utf-8", errors="replace")[:500]):
        raise InputError("--out", f"{str(out)!r} is there and is no report: name another directory")


def _names(series: Sequence[Series]) -> str:
    names = [one.label for one in series]
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"


def _aside(part: Table | Picture) -> bool:
    """Tables with a row for every line of the metrics are for programs."""
    return isinstance(part, Table) and part.file in ("tables/curves.csv", "tables/meetings.csv")


def _rank(title: str, order: Sequence[str]) -> int:
    return order.index(title) if title in order else len(order)


def _tables(series: Sequence[Series], runs: Sequence[Run]) -> Iterator[Table]:
    yield run_table(series)
    if len(series) > 1:
        yield settings_table(series)
    yield curve_table(series)
    if any(run.meetings[0].size for run in runs):
        yield meeting_table(runs)
    if any(run.summary for run in runs):
        yield rank_table(runs)
    if any(run.stages for run in runs):
        yield partition_table(runs)


def _pictures(series: Sequence[Series], runs: Sequence[Run]) -> Iterator[Picture]:
    import matplotlib

    from mpinn.analysis import figures, rank_figures

    first = [one.runs[0] for one in series]
    finished = [run for run in first if run.summary]
    staged = [run for run in finished if run.grid[1] > 1]
    met = [run for run in first if run.meetings[0].size]
    cut = [run for run in first if run.stages]
    traced = [run for run in first if run.events]
    of_one = " Of several seeds the first is shown." if len(runs) > len(series) else ""
    plans: list[tuple[str, str, str, bool, Callable[[], Any]]] = [
        ("Learning curves", "curves", "Training loss and validation over steps, samples and seconds of training "
         "(evaluating and saving left out). Lines are means over seeds, bands one standard deviation.",
         True, lambda: figures.learning_curves(series)),
        ("Accuracy against time", "time", "The best validation value so far over the seconds of training, mean over "
         "seeds; the mark is the end of the run.", True, lambda: figures.accuracy_against_time(series)),
        ("Weights of the replicas", "meetings", "What each replica weighed at every meeting; the thin line is an equal "
         f"share.{of_one}", bool(met), lambda: figures.replica_weights(met)),
        ("Staleness and bubbles", "stages", "How many updates old the gradients of a stage are, beside the formula of "
         f"its schedule, and how long it waits. Means over replicas.{of_one}", bool(staged),
         lambda: rank_figures.stage_figure(staged)),
        ("Where the time goes", "shares", "Each rank's share of computing, of messages, and of waiting for others."
         f"{of_one}", bool(finished), lambda: rank_figures.shares(finished)),
        ("Partition of the depth", "partition", "Which layers are on which stage, with their parameters, for which the "
         f"bars stand.{of_one}", bool(cut), lambda: rank_figures.partition(cut)),
        *((f"Timeline of {run.name}", f"timeline-{number}", f"{rank_figures.BATCHES} batches of usual length from the "
           "run's trace; a number is that of the batch.", True, lambda run=run: rank_figures.timeline(run))
          for number, run in enumerate(traced, 1)),
    ]  # fmt: skip
    with matplotlib.rc_context({**figures.TEXT, "hatch.linewidth": 0.5}):
        for title, name, caption, wanted, draw in plans:
            if wanted:
                yield Picture(title, _png(draw()), f"figures/{name}.png", caption)


def _png(figure: Any) -> bytes:
    found = BytesIO()
    figure.savefig(found, format="png", dpi=DPI, metadata={"Software": GENERATOR})
    return found.getvalue()


def _csv(table: Table) -> str:
    found = StringIO()
    writer = csv.writer(found, lineterminator="\n")
    writer.writerows([table.columns, *table.rows])
    return found.getvalue()
