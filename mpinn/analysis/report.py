"""The command ``report``: runs side by side, on one HTML page, with its figures as PNG and its tables as CSV."""

import csv
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

from mpinn.analysis.page import GENERATOR, Picture, Table, page
from mpinn.analysis.run_tables import (
    curve_table,
    meeting_table,
    partition_table,
    rank_table,
    result_table,
    run_table,
    settings_table,
)
from mpinn.analysis.runs import Run, Series, series_of
from mpinn.config import InputError
from mpinn.storage.directory import write_text
from mpinn.words import readable

PAGE = "index.html"


def report(paths: Sequence[Path], out: Path) -> None:
    """Write the report of the runs into a directory, and print where it is.

    A run without a line of metrics is left out, with a sentence that says so; raises InputError if none is left.
    """
    check_place(out)
    from mpinn.analysis.pictures import pictures as draw

    given = [Run(path) for path in paths]
    runs = [run for run in given if run.begun]
    if not runs:
        others = ", nor has any other" if len(given) > 1 else ""
        raise InputError(str(given[0].path), f"the run has no line of metrics yet{others}")
    left_out = [f"{run.path} is left out: it has no line of metrics yet." for run in given if not run.begun]
    series = series_of(runs)
    tables, pictures = [*_tables(series, runs)], [*draw(series)]
    shown: list[Table | Picture] = [*(table for table in tables if not table.long), *pictures]
    files = [table for table in tables if table.long]
    notes = [*left_out, *(note for run in runs for note in run.notes)]
    notes += [f"{run.name} is not finished: shown is what it has done so far." for run in runs if not run.summary]
    title = f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {_names(series)}"
    try:
        for old in (*out.glob("figures/*.png"), *out.glob("tables/*.csv")):
            old.unlink()
        parts: list[Table | Picture] = [*tables, *pictures]
        for part in parts:
            place = out / part.file
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(part, Picture):
                place.write_bytes(part.png)
            else:
                write_text(place, _csv(part))
        write_text(out / PAGE, page(title, [*map(readable, notes)], shown, files))
    except OSError as error:
        raise InputError("--out", f"{str(error.filename or out)!r} cannot be written: {error.strerror}") from error
    for said in left_out:
        print(said)
    print(f"{out / PAGE}: {len(pictures)} figures, {len(tables)} tables")


def check_place(out: Path) -> None:
    """Raise InputError unless figures can be drawn, and ``out`` is free or a report: nothing else is written over."""
    try:
        import mpinn.analysis.pictures  # noqa: F401
    except ImportError as error:
        raise InputError("report", f"it needs pip install 'mpinn[report]' ({error})") from None
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    page = out / PAGE
    if not (page.is_file() and GENERATOR.split()[0] in page.read_text(encoding="utf-8", errors="replace")[:500]):
        raise InputError("--out", f"{str(out)!r} is there and is no report: name another directory")


def _names(series: Sequence[Series]) -> str:
    names = [one.label for one in series]
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"


def _tables(series: Sequence[Series], runs: Sequence[Run]) -> Iterator[Table]:
    yield result_table(series)
    if len(series) > 1:
        yield settings_table(series)
    yield run_table(series)
    yield curve_table(series)
    if any(run.meetings[0].size for run in runs):
        yield meeting_table(runs)
    if any(run.summary for run in runs):
        yield rank_table(runs)
    if any(run.stages for run in runs):
        yield partition_table(runs)


def _csv(table: Table) -> str:
    found = StringIO()
    writer = csv.writer(found, lineterminator="\n")
    writer.writerows([table.columns, *table.rows])
    return found.getvalue()
