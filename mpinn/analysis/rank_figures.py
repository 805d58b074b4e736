"""Figures of what the ranks did: a timeline, shares of time, stages and the partition of the depth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mpinn.analysis.figures import new_figure
from mpinn.analysis.runs import Run

KINDS = {
    "forward": ("forward", "#56B4E9", ""),
    "backward": ("backward", "#0072B2", ""),
    "recompute": ("forward again", "#9AD0F0", "\\\\\\\\"),
    "update": ("update", "#000000", ""),
    "mix": ("consensus", "#E69F00", "////"),
    "send": ("send", "#009E73", "...."),
    "receive": ("receive and wait", "#F2F2F2", ""),
}
"""Label, colour and hatch of the events of a trace."""
SHARES = {
    "computing": ("computing", "#0072B2", ""),
    "communicating": ("messages", "#E69F00", "////"),
    "waiting": ("waiting", "#F2F2F2", ""),
}
BATCHES = 3
"""Of which a timeline shows everything."""
EDGE: dict[str, Any] = {"edgecolor": "#333333", "linewidth": 0.4}


def window(events: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Begin and end, in microseconds, of a few batches in a row that took less time than three quarters of all."""
    ends: dict[int, tuple[float, float]] = {}
    for event in events:
        batch = event["args"].get("batch")
        if batch is not None and event["name"] in ("forward", "backward"):
            low, high = ends.get(batch, (event["ts"], event["ts"]))
            ends[batch] = min(low, event["ts"]), max(high, event["ts"] + event["dur"])
    found = [
        (ends[batch + BATCHES - 1][1] - begin, begin, ends[batch + BATCHES - 1][1])
        for batch, (begin, _) in ends.items()
        if batch + BATCHES - 1 in ends
    ] or [(max(high for _, high in ends.values()), 0.0, max(high for _, high in ends.values()))]
    _, begin, end = sorted(found)[len(found) // 4]
    return begin, end


def shown(run: Run) -> list[dict[str, Any]]:
    """The events of a run in its window, which begins at zero."""
    begin, end = window(run.events)
    return [
        {**event, "ts": event["ts"] - begin}
        for event in run.events
        if event["ts"] < end and event["ts"] + event["dur"] > begin
    ]


def timeline(run: Run) -> Figure:
    """What each rank does in a few batches; a number is that of the batch."""
    begin, end = window(run.events)
    events = shown(run)
    rows = sorted({(event["pid"], event["tid"]) for event in run.events})
    figure, axes = new_figure(0.32 * len(rows) + 0.9)
    ax, scale = axes[0][0], 1e-3
    ax.grid(False, axis="y")
    for event in sorted(events, key=lambda event: float(event["dur"]), reverse=True):
        _, colour, hatch = KINDS.get(event["name"], (event["name"], "#CC79A7", ""))
        place = rows.index((event["pid"], event["tid"]))
        low, high = max(0.0, event["ts"]), min(end - begin, event["ts"] + event["dur"])
        ax.broken_barh(
            [(low * scale, (high - low) * scale)], (place - 0.36, 0.72), facecolor=colour, hatch=hatch, **EDGE
        )
        if event["name"] in ("forward", "backward") and high - low > 0.03 * (end - begin):
            ink = "white" if event["name"] == "backward" else "black"
            ax.text((low + high) / 2 * scale, place, str(event["args"]["batch"]), ha="center", va="center", color=ink,
                    fontsize=6)  # fmt: skip
    stages = run.grid[1]
    labels = [
        f"rank {rank}" + (f", stage {rank % stages}" if stages > 1 else "") + (", beside" if thread else "")
        for rank, thread in rows
    ]
    ax.set_yticks(range(len(rows)), labels)
    ax.invert_yaxis()
    ax.set_xlim(0, (end - begin) * scale)
    ax.set_xlabel("milliseconds")
    ax.set_title(run.name, loc="left")
    _patches(figure, {name: KINDS[name] for name in KINDS if any(event["name"] == name for event in events)})
    return figure


def shares(runs: Sequence[Run]) -> Figure:
    """Each rank's share of computing, messages and waiting."""
    rows = [(f"{run.name}, rank {rank}", told) for run in runs for rank, told in enumerate(run.summary["ranks"])]
    figure, axes = new_figure(0.19 * len(rows) + 0.9)
    ax = axes[0][0]
    ax.grid(False, axis="y")
    left = np.zeros(len(rows))
    for name, (_, colour, hatch) in SHARES.items():
        wide = np.array([100 * told[name] for _, told in rows])
        ax.barh(range(len(rows)), wide, left=left, height=0.72, color=colour, hatch=hatch, **EDGE)
        left += wide
    ax.set_yticks(range(len(rows)), [label for label, _ in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(0, 100)
    ax.set_xlabel("share of the time of training (%)")
    _patches(figure, SHARES)
    return figure


def stage_figure(runs: Sequence[Run]) -> Figure:
    """Staleness of the gradients, measured and by the formula, and the bubble, of each stage; means over replicas."""
    figure, axes = new_figure(1.7 * len(runs) + 0.3, len(runs), 2, sharex="row")
    for row, run in zip(axes, runs, strict=True):
        stages = range(run.grid[1])
        age, formula, bubble = (
            [np.mean([told[name] for told in run.summary["ranks"][stage :: run.grid[1]]]) for stage in stages]
            for name in ("staleness", "staleness_formula", "waiting")
        )
        row[0].bar(stages, age, 0.6, color="#0072B2", label="measured", **EDGE)
        row[0].plot(stages, formula, "D", color="#D55E00", markeredgecolor="black", markersize=5, label="formula")
        row[0].set_ylabel("staleness (updates)")
        row[0].set_ylim(0, max(1, *age, *formula) * 1.35)
        row[0].legend(frameon=False, ncols=2, loc="upper right")
        row[0].set_title(f"{run.name}: {run.tables['schedule']['name']}", loc="left")
        row[1].bar(stages, 100 * np.array(bubble), 0.6, color="#E69F00", hatch="////", **EDGE)
        row[1].set_ylabel("bubble (% of the time)")
        row[1].set_ylim(0, 100)
        for ax in row:
            ax.set_xticks(stages)
            ax.grid(False, axis="x")
    for ax in axes[-1]:
        ax.set_xlabel("stage")
    return figure


def partition(runs: Sequence[Run]) -> Figure:
    """Which layers are on which stage; a bar is as long as the stage's share of the parameters."""
    rows = [(run, stage) for run in runs for stage in run.stages]
    figure, axes = new_figure(0.3 * len(rows) + 0.7)
    ax = axes[0][0]
    ax.grid(False, axis="y")
    for place, (run, stage) in enumerate(rows):
        share = 100 * stage.parameters / max(1, sum(other.parameters for other in run.stages))
        ax.barh(place, share, 0.72, color=("#56B4E9", "#C9E6F7")[stage.number % 2], **EDGE)
        names = ", ".join(stage.layers) if len(stage.layers) < 7 else f"{stage.layers[0]} to {stage.layers[-1]}"
        ax.text(1 if share > 40 else share + 1, place, f"{names}: {stage.parameters:,}", va="center", fontsize=6.5)
    ax.set_yticks(range(len(rows)), [f"{run.name}, stage {stage.number}" for run, stage in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(0, 100)
    ax.set_xlabel("share of the parameters (%)")
    return figure


def _patches(figure: Figure, kinds: dict[str, tuple[str, str, str]]) -> None:
    patches = [Patch(facecolor=colour, hatch=hatch, label=label, **EDGE) for label, colour, hatch in kinds.values()]
    figure.legend(handles=patches, loc="outside lower center", ncols=7, frameon=False)
