"""A plan of many ranks as it is printed, and as tables for files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from mpinn.config import Config
from mpinn.consensus.registry import CONSENSUSES
from mpinn.partition.costs import Link
from mpinn.scaling.advice import ENOUGH, Advice, chosen, grid_text
from mpinn.scaling.cluster import Cluster
from mpinn.scaling.predict import Prediction, Samples, Scaling
from mpinn.schedules.registry import SCHEDULES
from mpinn.words import counted, size_text

COLUMNS = (
    "ranks", "replicas", "stages", "shards", "schedule", "consensus", "global_batch", "batch_of_a_replica",
    "step_seconds", "computing_seconds", "exchanging_seconds", "samples_per_second", "speedup", "efficiency",
    "memory_bytes", "sent_bytes_per_step", "changes",
)  # fmt: skip


@dataclass(frozen=True)
class Outlook:
    """What was planned, and what came out."""

    config: Config
    source: str
    """Where the costs of the work are from."""
    cluster: Cluster
    samples: Samples
    scaling: Scaling
    advice: Sequence[Advice]
    predictions: Sequence[Prediction]
    statistics: bool = False
    """Whether the model normalises batches."""


def rows(outlook: Outlook) -> Iterator[list[Any]]:
    """All predictions, in the order of `COLUMNS`."""
    for one in outlook.predictions:
        yield [
            one.ranks, one.replicas, one.stages, one.shards, one.schedule, one.consensus, one.batch, one.local,
            one.seconds, one.computing, one.exchanging, one.throughput, one.speedup, one.efficiency, one.memory,
            one.sent, one.changes,
        ]  # fmt: skip


def lines(outlook: Outlook) -> list[str]:
    """What is printed."""
    picked = chosen(outlook.advice)
    best = _chosen(picked, outlook.statistics)
    return [*_facts(outlook), "", *_advice(outlook.advice), "", *best, *_matrix(outlook, picked)]


def _facts(outlook: Outlook) -> list[str]:
    config, batch = outlook.config, outlook.config.data.batch
    meaning = {
        "strong": f"strong scaling: {batch:,} samples a step altogether (data.batch), which the replicas share",
        "weak": f"weak scaling: {batch:,} samples a step of each replica (data.batch), so the global batch grows",
    }
    return [
        f"{config.names['model']} on {config.data.name}, {types_text(config)}; {outlook.samples.train:,} samples",
        meaning[outlook.scaling],
        f"costs    {outlook.source}",
        f"network  {outlook.cluster.name}: {outlook.cluster.source}",
        f"         {outlook.cluster.ranks:,} ranks a node, {_link(outlook.cluster.inside)} in it, "
        f"{_link(outlook.cluster.between)} between nodes"
        + ("; sums overlap with the backward pass" if outlook.cluster.overlap else ""),
    ]


def types_text(config: Config) -> str:
    """In which types of numbers a run computes."""
    return config.run.dtype + ", activations in bfloat16" * config.run.bf16


def _link(link: Link) -> str:
    return f"{link.bandwidth / 1e9:.3g} GB/s and {link.latency * 1e6:.3g} us"


def _advice(found: Sequence[Advice]) -> Iterator[str]:
    yield (
        f"{'ranks':>7}  {'grid':>11}  {'exact':16}  {'step':>8}  {'efficiency':>10}  {'memory':>8}  {'sent':>8}  "
        "why; and what is faster but changes training"
    )
    for reason, group in groupby(found, lambda one: "" if one.exact else _kind(one.why_not)):
        alike = list(group)
        if reason:
            upto = f" to {alike[-1].ranks:,}" if len(alike) > 1 else ""
            yield f"{alike[0].ranks:>7,}{upto}: {alike[0].why_not}"
        else:
            yield from chain.from_iterable(map(_both, alike))


def _kind(reason: str) -> str:
    """A reason without its numbers."""
    return "".join(letter for letter in reason if letter.isalpha())


def _both(one: Advice) -> Iterator[str]:
    """What is recommended, and what is faster."""
    if one.exact is not None:
        best = one.exact
        slower = f"slower than {one.slower:,}; " if one.slower else ""
        yield (
            f"{one.ranks:>7,}  {grid_text(best):>11}  {_names(best):16}  {seconds_text(best.seconds):>8}  "
            f"{best.efficiency:>10.1%}  {size_text(best.memory):>8}  {size_text(best.sent):>8}  {slower}{one.reason}"
        )
        other = one.other
        if other is not None and other.throughput > best.throughput:
            yield (
                f"{'':7}  {grid_text(other):>11}  {_names(other):16}  {seconds_text(other.seconds):>8}  "
                f"{other.efficiency:>10.1%}  {size_text(other.memory):>8}  {size_text(other.sent):>8}  {other.changes}"
            )


def _names(one: Prediction) -> str:
    """Schedule, shards and consensus, without what plays no part."""
    parts = [one.schedule] if one.stages > 1 else []
    parts += ["shards"] if one.shards > 1 else []
    parts += [one.consensus] if one.replicas > 1 else []
    return ", ".join(parts) or "one rank"


def times_text(speedup: float) -> str:
    """With two decimals below 10, where one would hide that little is won."""
    return f"{speedup:,.{1 if speedup >= 10 else 2}f}"


def _chosen(picked: Prediction | None, statistics: bool) -> Iterator[str]:
    if picked is None:
        yield f"no exact grid is {ENOUGH:.0%} efficient"
        return
    axis = "shards" if picked.shards > 1 else "stages"
    yield (
        f"recommended: {counted(picked.ranks, 'rank')} as {grid_text(picked)} (replicas x {axis}), {_names(picked)}: "
        f"{times_text(picked.speedup)} times one rank"
    )
    yield f"             the most speed-up times efficiency of exact grids that are at least {ENOUGH:.0%} efficient"
    if statistics and picked.ranks > 1:
        yield "             (but for batch norm, which sees the samples of a replica, or of a micro-batch)"


def _matrix(outlook: Outlook, picked: Prediction | None) -> Iterator[str]:
    """Milliseconds of every schedule and consensus on the recommended number of ranks, each on its best grid."""
    if picked is None or outlook.config.names["model"] == "population":
        return
    known = [one for one in outlook.predictions if one.ranks == picked.ranks]
    yield f"\nstep and grid on {counted(picked.ranks, 'rank')}, each schedule and consensus on its fastest grid"
    found = [["", *CONSENSUSES]]
    for schedule in SCHEDULES:
        cells = [schedule]
        for consensus in CONSENSUSES:
            own = [one for one in known if (one.schedule, one.consensus) == (schedule, consensus)]
            best = max(own, key=lambda one: one.throughput, default=None)
            cells.append(f"{seconds_text(best.seconds)}, {grid_text(best)}" if best else "none")
        found.append(cells)
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    for name, *cells in found:
        yield "  ".join([f"{name:{widths[0]}}", *map(str.rjust, cells, widths[1:])])
    if outlook.scaling == "weak":
        yield "grids with fewer replicas have a smaller global batch: the fastest is that of most samples a second"


def seconds_text(seconds: float) -> str:
    """Such as 12.3 ms."""
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e3, "ms")) if seconds * s >= 1), (1e6, "us"))
    return f"{seconds * scale:.3g} {unit}"
