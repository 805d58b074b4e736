"""The figure of a plan of many ranks: how fast a step is, and efficiency, by schedule and by consensus."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes

from mpinn.analysis.figures import TEXT, look, new_figure
from mpinn.config import InputError


@dataclass(frozen=True)
class Line:
    """One schedule or consensus: numbers of ranks, and for each of them a value and the efficiency, a share."""

    name: str
    ranks: Sequence[int]
    values: Sequence[float]
    efficiency: Sequence[float]


def scaling_figure(panels: Mapping[str, Sequence[Line]], label: str, ideal: Line, efficiency: str, path: Path) -> None:
    """Draw one column for each group of lines, and write the figure; raises InputError if it cannot be written.

    ``label`` says what the values are, ``ideal`` which there would be if no rank ever waited.
    """
    with rc_context(TEXT):
        figure, axes = new_figure(5.2, 2, len(panels), sharex=True, sharey="row")
        for column, (title, group) in enumerate(panels.items()):
            upper, lower = axes[0][column], axes[1][column]
            upper.set_title(title, loc="left")
            upper.plot(ideal.ranks, ideal.values, color="#888888", linewidth=0.7, label="ideal")
            for index, line in enumerate(group):
                _draw(upper, line, line.values, index)
                _draw(lower, line, [100 * share for share in line.efficiency], index)
            upper.set_yscale("log")
            lower.set_xscale("log")
            lower.set_ylim(0, 105)
            lower.set_xlabel("ranks")
            lines, names = upper.get_legend_handles_labels()
            lower.legend(lines, names, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4, frameon=False,
                         fontsize=7)  # fmt: skip
        axes[0][0].set_ylabel(label)
        axes[1][0].set_ylabel(efficiency)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110)
        except OSError as error:
            raise InputError("--out", f"{str(path)!r} cannot be written: {error.strerror}") from error


def _draw(ax: Axes, line: Line, values: Sequence[float], index: int) -> None:
    ax.plot(line.ranks, values, label=line.name, markersize=3, linewidth=1.1, **look(index))
