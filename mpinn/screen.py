"""Tables and lines as they are printed: as wide as the terminal, or as COLUMNS says; none ends in blanks in a pipe."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 160
"""Columns for a file or a pipe, where COLUMNS does not say how many."""
NARROWEST = 12
"""Letters of a name that a table has room for, before it leaves columns out."""

Row = Sequence[Any]


class Screen:
    """Prints to standard output. ``terminal`` and ``width`` say what that is, where the process itself can't know."""

    def __init__(self, terminal: bool | None = None, width: int | None = None):
        from rich.console import Console

        self._console = Console(force_terminal=terminal, highlight=False)
        if told := os.environ.get("COLUMNS", ""):
            told = told if told.isdecimal() and int(told) > 0 else ""
        if told or not self._console.is_terminal:
            width = int(told or width or WIDE)
        if width is not None:
            self._console.width = width
        self._left_out = False

    @property
    def width(self) -> int:
        """Columns."""
        return self._console.width

    def print(self, item: Any, style: str = "") -> None:
        """A text, which is not read as markup and folded at the width, or a table."""
        from rich.text import Text

        with self._console.capture() as captured:
            self._console.print(Text(item, style=style) if isinstance(item, str) else item)
        drawn = captured.get()
        print(drawn if self._console.is_terminal else re.sub(r" +$", "", drawn, flags=re.MULTILINE), end="")

    def rows(self, names: Row, rows: Sequence[Row], whole: bool = False, sections: bool = False) -> None:
        """A table whose first column holds names, and the others what is never folded.

        Where it is too wide, its last columns are left out until a name has room: all of it if ``whole``, or else
        `NARROWEST` letters of it in a line. ``sections``: the last row is set apart.
        """
        texts = [[str(cell) for cell in row] for row in rows]
        longest = max((len(row[0]) for row in texts), default=0)
        least = longest if whole else min(longest, NARROWEST)
        shown = len(names)
        while shown > 1 and self._needs(names, texts, least, shown) > self.width:
            shown -= 1
        self._left_out |= shown < len(names)
        drawn = table(*names[:shown], folded=not whole)
        for number, row in enumerate(rows):
            if sections and number == len(rows) - 1:
                drawn.add_section()
            drawn.add_row(*row[:shown])
        self.print(drawn)

    def _needs(self, names: Row, texts: Sequence[Sequence[str]], least: int, shown: int) -> int:
        widths = [max(map(len, column)) for column in zip(names, *texts, strict=True)]
        return sum([max(least, len(str(names[0]))), *widths[1:shown]]) + 2 * shown

    def close(self) -> None:
        """Say what had no room, if anything."""
        if self._left_out:
            self.print(f"columns that {self.width} letters have no room for are left out; COLUMNS=200 shows more")


def table(first: str, *others: str, folded: bool = False) -> "Table":
    """A table without rows: names in its first column, and what is never folded, such as numbers, in the others."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    found.add_column(first, overflow="fold" if folded else "ellipsis", no_wrap=not folded)
    for name in others:
        found.add_column(name, justify="right", no_wrap=True)
    return found


def facts(pairs: Mapping[str, Any]) -> "Table":
    """A line for each name and what is to be said of it."""
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, show_header=False, pad_edge=False)
    found.add_column(style="bold", no_wrap=True)
    found.add_column(overflow="fold")
    for name, value in pairs.items():
        found.add_row(name, Text(str(value)))
    return found
