"""The figures of a report: which there are for given runs, what they show, and as PNG."""

from collections.abc import Iterator, Sequence
from io import BytesIO

import matplotlib
from matplotlib.figure import Figure

from mpinn.analysis import figures, rank_figures
from mpinn.analysis.landscape import landscape
from mpinn.analysis.page import GENERATOR, Picture
from mpinn.analysis.runs import Run, Series

DPI = 220
TEXTS = {
    "curves": (
        "Learning curves",
        "Training loss, and error or loss on the validation split, over steps, samples and seconds of training "
        "(evaluating and saving left out). Lines are means over seeds, bands from the lowest to the highest.",
    ),
    "time": (
        "Accuracy against time",
        "The best validation value so far over the seconds of training, mean over seeds; the mark is the end.",
    ),
    "meetings": (
        "Weights of the replicas",
        "What each replica weighed at every meeting; the thin line is an equal share.",
    ),
    "stages": (
        "Staleness and bubbles",
        "How many updates old the gradients of a stage are, beside the formula of its schedule, and how long it waits. "
        "Means over replicas.",
    ),
    "shares": ("Where the time goes", "Each rank's share of computing, of messages, and of waiting for others."),
    "partition": (
        "Partition of the depth",
        "Which layers are on which stage, with their parameters, for which the bars stand.",
    ),
    "population": (
        "Landscape of the population",
        "Validation accuracy, or loss, of the members over their width: lines are means over members that are alike "
        "but for their seeds and rates, bands their whole range, the star is the best member.",
    ),
    "timeline": (
        "Timeline",
        f"{rank_figures.BATCHES} batches of the run's trace, which took less time than three quarters of all others; "
        "a number is that of the batch.",
    ),
}
"""Title and caption of each figure."""


def pictures(series: Sequence[Series]) -> Iterator[Picture]:
    """Every figure for which the runs have something to show."""
    with matplotlib.rc_context({**figures.TEXT, "hatch.linewidth": 0.5}):
        seeds = any(len(one.runs) > 1 for one in series)
        for name, figure, of_one in _drawn(series, [one.runs[0] for one in series]):
            title, caption = TEXTS[name.partition("-")[0]]
            note = " Of several seeds the first is shown." if of_one and seeds else ""
            yield Picture(title, _png(figure), f"figures/{name}.png", caption + note)


def _drawn(series: Sequence[Series], runs: Sequence[Run]) -> Iterator[tuple[str, Figure, bool]]:
    """(name, figure, whether it shows one seed)."""
    yield "curves", figures.learning_curves(series), False
    yield "time", figures.accuracy_against_time(series), False
    if met := [run for run in runs if run.meetings[0].size]:
        yield "meetings", figures.replica_weights(met), True
    finished = [run for run in runs if run.summary]
    if staged := [run for run in finished if run.grid[1] > 1]:
        yield "stages", rank_figures.stage_figure(staged), True
    if finished:
        yield "shares", rank_figures.shares(finished), True
    if cut := [run for run in runs if run.stages]:
        yield "partition", rank_figures.partition(cut), True
    for number, run in enumerate((run for run in runs if run.members), 1):
        yield f"population-{number}", landscape(run.members), True
    for number, run in enumerate((run for run in runs if run.events), 1):
        yield f"timeline-{number}", rank_figures.timeline(run), True


def _png(figure: Figure) -> bytes:
    found = BytesIO()
    figure.savefig(found, format="png", dpi=DPI, metadata={"Software": GENERATOR})
    return found.getvalue()
