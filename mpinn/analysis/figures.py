"""Figures of what was learnt, for print: labels with units, colours that everybody tells apart, readable in grey."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mpinn.analysis.runs import AXES, Run, Series

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00", "#7F7F7F")
"""Okabe and Ito's, which are told apart with every kind of colour blindness."""
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
MARKS = "os^Dv<>P"
ACCURACY = "validation_accuracy"
RANGE = 8
"""Accuracies are shown down to where the error is so many times that at the end of the worst run."""
LETTERS = 110
"""Of a legend that fit side by side, with room for the lines."""
WIDTH = 7.2
"""Inches: a page of a paper between its margins."""
TEXT: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}


def look(index: int) -> dict[str, Any]:
    """Colour, dash and mark of a line; those of the same colour differ in the other two."""
    turn = index // len(COLOURS)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[(index + turn) % len(DASHES)],
        "marker": MARKS[(index + 3 * turn) % len(MARKS)],
    }


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of the full width, and its axes (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, linewidth=0.4, color="#dddddd")
        ax.set_axisbelow(True)
    return figure, axes


def learning_curves(series: Sequence[Series]) -> Figure:
    """Training loss, and validation error or loss, over steps, samples and seconds; mean and band over seeds."""
    rows = ("loss", validation_column(series))
    figure, axes = new_figure(4.6, 2, 3, sharex="col", sharey="row")
    for row, name in enumerate(rows):
        for column, (axis, label) in enumerate(AXES.items()):
            ax = axes[row][column]
            for index, one in enumerate(series):
                _curve(ax, one, name, axis, index)
            ax.set_xlim(left=0)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            if row:
                ax.set_xlabel(label)
        axes[row][0].set_yscale("log")
    axes[0][0].set_ylabel("training loss")
    axes[1][0].set_ylabel("validation error (%)" if rows[1] == ACCURACY else "validation loss")
    _legend(figure, axes[0][0])
    return figure


def accuracy_against_time(series: Sequence[Series]) -> Figure:
    """The best validation accuracy (or loss) so far over the seconds of training, near where the runs end."""
    name = validation_column(series)
    accurate = name == ACCURACY
    figure, axes = new_figure(2.9)
    ax, lasts = axes[0][0], []
    for index, one in enumerate(series):
        x, mean, _ = one.curve(name, "seconds")
        if not len(x):
            continue
        best = 100 * np.maximum.accumulate(mean) if accurate else np.minimum.accumulate(mean)
        lasts.append(best[-1])
        ax.plot(x, best, label=one.label, drawstyle="steps-post", markevery=[len(x) - 1], markersize=5, linewidth=1.2,
                **look(index))  # fmt: skip
    if accurate and lasts:
        ax.set_ylim(bottom=max(0.0, 100 - RANGE * max(1.0, 100 - min(lasts))))
    ax.set_xscale("log")
    ax.set_xlabel("seconds of training")
    ax.set_ylabel("best validation accuracy so far (%)" if accurate else "best validation loss so far")
    _legend(figure, ax)
    return figure


def replica_weights(runs: Sequence[Run]) -> Figure:
    """What each replica weighed at every meeting, one panel for a run."""
    figure, axes = new_figure(1.9 * len(runs) + 0.3, len(runs))
    for ax, run in zip(axes[:, 0], runs, strict=True):
        steps, weights = run.meetings
        for replica in range(weights.shape[1]):
            every = max(1, len(steps) // 12)
            ax.plot(steps, weights[:, replica], label=f"replica {replica}", markersize=3, linewidth=1.0,
                    markevery=(replica * every // max(1, weights.shape[1]), every), **look(replica))  # fmt: skip
        ax.axhline(1 / weights.shape[1], color="#888888", linewidth=0.6)
        ax.set_title(run.name, loc="left")
        ax.set_ylabel("weight at the meeting")
        if weights.shape[1] <= 8:
            ax.legend(ncols=min(4, weights.shape[1]), frameon=False)
    axes[-1][0].set_xlabel("step")
    return figure


def validation_column(series: Sequence[Series]) -> str:
    """Accuracy where any run has one, else the loss."""
    known = any(len(run.curve(ACCURACY, "step")[0]) for one in series for run in one.runs)
    return ACCURACY if known else "validation_loss"


def _curve(ax: Axes, one: Series, name: str, axis: str, index: int) -> None:
    x, mean, band = one.curve(name, axis)
    if not len(x):
        return
    if name == ACCURACY:
        mean, band = 100 - 100 * mean, 100 - 100 * band
    style, seeds = look(index), f" ({len(one.runs)} seeds)" if len(one.runs) > 1 else ""
    every = max(1, len(x) // 6)
    ax.plot(x, mean, label=one.label + seeds, markersize=3, linewidth=1.1, markevery=(index * every // 4, every),
            **style)  # fmt: skip
    if len(one.runs) > 1:
        ax.fill_between(x, *band, color=style["color"], alpha=0.18, linewidth=0)


def _legend(figure: Figure, ax: Axes) -> None:
    lines, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    most = max(1, min(5, LETTERS // (max(map(len, labels)) + 8)))
    rows = -(-len(labels) // most)
    columns = -(-len(labels) // rows)
    figure.set_figheight(figure.get_figheight() + 0.16 * (rows - 1))
    figure.legend(lines, labels, loc="outside lower center", ncols=columns, frameon=False)
