"""One HTML page with everything in it: text, tables, and figures as embedded PNGs."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import mpinn

GENERATOR = f"mpinn {mpinn.__version__} report"

LONG = 40
"""Characters from which on a text is broken into lines."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption, .note { color: #444; font-size: .87rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .5rem; text-align: right; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
td { white-space: nowrap; } td.long { white-space: normal; overflow-wrap: anywhere; }
th { border-bottom: 1.5px solid #888; } th:first-child, td:first-child, .text { text-align: left; }
@media print { body { max-width: none; margin: 0; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Table:
    """A heading for each column, and rows of texts and numbers; ``file``: where it stands as CSV."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    file: str
    caption: str = ""
    long: bool = False
    """Whether it is for programs: then the page has a link to it only."""


@dataclass(frozen=True)
class Picture:
    """A figure as PNG, and what it shows; ``file``: where it stands beside the page."""

    title: str
    png: bytes
    file: str
    caption: str


def page(title: str, notes: Sequence[str], parts: Sequence[Table | Picture], files: Sequence[Table]) -> str:
    """The page, which loads nothing; ``files`` are tables that are listed by their names alone."""
    body = "\n".join(_picture(part) if isinstance(part, Picture) else _table(part) for part in parts)
    links = "".join(f'<li><a href="{escape(table.file)}">{escape(table.title)}</a></li>' for table in files)
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="generator" content="{GENERATOR}"><title>{escape(title)}</title><style>{STYLE}</style></head>
<body><h1>{escape(title)}</h1>{said}
{body}
<h2>More tables</h2><ul>{links}</ul>
</body></html>
"""


def text(value: Any) -> str:
    """A cell as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10000 else str(value)


def _picture(part: Picture) -> str:
    source = f"data:image/png;base64,{b64encode(part.png).decode()}"
    return (
        f'<h2>{escape(part.title)}</h2><figure><img alt="{escape(part.title)}" src="{source}">'
        f'<figcaption>{escape(part.caption)} <a href="{escape(part.file)}">PNG</a></figcaption></figure>'
    )


def _table(part: Table) -> str:
    texts = [all(not isinstance(row[place], int | float) for row in part.rows) for place in range(len(part.columns))]
    kinds = [' class="text"' if is_text else "" for is_text in texts]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, part.columns, strict=True))
    rows = "\n".join(f"<tr>{_cells(kinds, row)}</tr>" for row in part.rows)
    return (
        f'<h2>{escape(part.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>'
        f'</table></div><p class="note">{escape(part.caption)} <a href="{escape(part.file)}">CSV</a></p>'
    )


def _cells(kinds: Sequence[str], row: Sequence[Any]) -> str:
    cells = ((kind, text(cell)) for kind, cell in zip(kinds, row, strict=True))
    return "".join(
        f"<td{kind if len(shown) <= LONG else kind.replace('text', 'text long')}>{escape(shown)}</td>"
        for kind, shown in cells
    )
