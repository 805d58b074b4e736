"""What commands print, as tables."""

import re


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables."""
    return [re.split(" {2,}", line.strip()) for line in text.splitlines() if re.search(r"\S {2,}\S", line)]


def facts(text: str) -> dict[str, str]:
    """The rows of the second table, by their first cell."""
    return {row[0]: row[1] for row in rows(text) if len(row) == 2}
