"""The landscape of a population: how good its members are by their width, for each activation."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mpinn.analysis.figures import look, new_figure
from mpinn.array.typing import Array

Row = Mapping[str, str]
"""A line of ranking.csv."""
RANGE = 6
"""Accuracies are shown down to where the error is so many times that of the best member."""


def landscape(rows: Sequence[Row]) -> Figure:
    """Validation accuracy, or loss, over the width: mean and range of equal members, the best one marked."""
    layers = sorted({int(row["layers"]) for row in rows})
    accuracy = any(row["validation_accuracy"] for row in rows)
    column = "validation_accuracy" if accuracy else "validation_loss"
    figure, axes = new_figure(2.9, 1, len(layers), sharey=True)
    best = next(row for row in rows if row[column])
    for ax, depth in zip(axes[0], layers, strict=True):
        own = [row for row in rows if int(row["layers"]) == depth and row[column]]
        for index, name in enumerate(sorted({row["activation"] for row in own})):
            _line(ax, [row for row in own if row["activation"] == name], column, index, name)
        if best in own:
            place = int(best["width"]), float(best[column])
            ax.plot(*place, "*", color="black", markersize=10, zorder=9, label=f"best: member {best['member']}")
        ax.set_xlabel("hidden units" if depth == 1 else f"hidden units in each of {depth} layers")
    if accuracy:
        error = 1 - float(best[column])
        axes[0][0].set_ylim(1 - RANGE * error, 1 - 0.8 * error)
        axes[0][0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    axes[0][0].set_ylabel(column.replace("_", " ") + (", %" if accuracy else ""))
    axes[0][0].legend(loc="lower right" if accuracy else "upper right")
    return figure


def _line(ax: Axes, rows: Sequence[Row], column: str, index: int, name: str) -> None:
    widths, low, mean, high = np.array([*_by_width(rows, column)]).T
    style = look(index)
    ax.plot(widths, mean, **style, markersize=2.5, markevery=max(1, len(widths) // 12), label=name)
    ax.fill_between(widths, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _by_width(rows: Sequence[Row], column: str) -> Iterator[tuple[float, float, float, float]]:
    """(width, lowest, mean, highest) of the members of each width."""
    ordered = sorted(rows, key=lambda row: int(row["width"]))
    for width, group in groupby(ordered, key=lambda row: int(row["width"])):
        values: Array = np.array([float(row[column]) for row in group])
        yield width, values.min(), values.mean(), values.max()
