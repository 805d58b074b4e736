"""What a user sees while a run goes on: a bar on a terminal, plain lines otherwise. Only rank 0 says anything."""

from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from mpinn.comm.launch import on_terminal, say, terminal_width

STATUS = 64
"""Columns of all but the bar and the numbers of steps."""
PAUSE = 0.2
"""Seconds for which a bar stands still."""


class Reporter(Protocol):
    """Says what happens; ``line`` is for what should stay on the screen."""

    def line(self, text: str) -> None:
        """A line of its own."""
        ...

    def progress(self, step: int, status: str) -> None:
        """How far the run is, and how it is doing."""
        ...

    def at(self, step: int) -> None:
        """How far the run is; after each step."""
        ...

    def close(self) -> None:
        """Nothing more will be said."""
        ...


class Silent:
    """Every rank but 0."""

    def line(self, text: str) -> None:
        """Nothing."""

    def progress(self, step: int, status: str) -> None:
        """Nothing."""

    def at(self, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Plain:
    """Lines for a batch log: about ``lines`` of progress in the whole run."""

    def __init__(self, total: int, lines: int = 20, out: Callable[[str], None] = say):
        self._out = out
        self._every = max(1, total // lines)
        self._next = 0
        self._total = total

    def line(self, text: str) -> None:
        """Print it at once, so that a log can be followed."""
        self._out(text)

    def progress(self, step: int, status: str) -> None:
        """Print if enough steps have gone by since the last time."""
        if step >= self._next or step == self._total:
            self._next = step - step % self._every + self._every
            self.line(f"step {step:>{len(str(self._total))}}/{self._total}  {status}")

    def at(self, step: int) -> None:
        """A log has a line for each `progress` that is due."""

    def close(self) -> None:
        """Everything has been printed."""


class Bar:
    """A progress bar that lines go above."""

    def __init__(self, total: int, start: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        console = Console(force_terminal=True, width=terminal_width(), highlight=False)
        columns: tuple[Any, ...] = (
            BarColumn(bar_width=min(15, max(4, console.width - STATUS - 2 * len(str(total))))),
            MofNCompleteColumn(),
            # where there is little room, it is this that gives way
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, expand=True)
        self._moved = 0.0
        self._task = self._progress.add_task("training", total=total, completed=start, status="")
        self._progress.start()

    def line(self, text: str) -> None:
        """Print above the bar."""
        self._progress.console.print(text, markup=False)

    def progress(self, step: int, status: str) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step, status=status)

    def at(self, step: int) -> None:
        """Move the bar a few times in a second."""
        if (now := monotonic()) - self._moved > PAUSE:
            self._moved = now
            self._progress.update(self._task, completed=step)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


def open_reporter(rank: int, total: int, start: int = 0) -> Reporter:
    """The reporter for a rank and for where its output goes."""
    if rank:
        return Silent()
    return Bar(total, start) if on_terminal() else Plain(total)
