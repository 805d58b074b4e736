"""What a finished run was worth: collected from all ranks, written to summary.json, and printed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import nan
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.consensus.consensus import Quality
from mpinn.errors import InputError
from mpinn.evaluation import unsaved_best, unsaved_text
from mpinn.population.measure import MemberMeasure
from mpinn.population.standing import lines as ranked
from mpinn.population.standing import standing
from mpinn.run.experiment import Experiment
from mpinn.run.survival import Death, outline
from mpinn.storage.directory import RunDirectory
from mpinn.storage.index import best_of, read_index
from mpinn.training.tally import Times
from mpinn.words import counted, loss_text


def collect(experiment: Experiment, outcome: str, deaths: Sequence[Death] = ()) -> dict[str, Any]:
    """The summary of a run, for rank 0; called by all ranks. Measures the test split, once."""
    trainer, config = experiment.trainer, experiment.config
    test, validation = experiment.measure.quality("test"), trainer.quality or experiment.measure.quality("validation")
    seconds = trainer.elapsed()
    counts = [pair for channel in experiment.channels for pair in channel.meter.counts.items()]
    sent = sum(size for operation, (_, size) in counts if operation != "receive")
    everyone = _gather(experiment, trainer.stopwatch.times, sent)
    ranks = [_rank(row) for row in everyone]
    joined = may_meet(config.names["model"], experiment.grid.replicas.size)
    return {
        "outcome": outcome,
        "model": config.names["model"],
        "data": config.data.name,
        "consensus": config.names["consensus"] if joined else None,
        "score": getattr(config.consensus, "score", None) if joined else None,
        "grid": list(experiment.grid.shape),
        "epochs": config.train.epochs,
        "start": trainer.plan.start,
        "steps": trainer.plan.total,
        "samples": trainer.samples,
        "seconds": seconds,
        "samples_per_second": trainer.samples / seconds if seconds else 0.0,
        "test": _numbers(test, trainer.classes),
        "validation": _numbers(validation, trainer.classes),
        "schedule": config.names["schedule"],
        "stages": experiment.cuts.starts(experiment.model).split(", "),
        "ranks": ranks,
        "weights": experiment.keeper.last_meeting(),
        "meetings": _meetings(experiment.keeper.records),
        "checkpoint": str(experiment.keeper.directory.checkpoint(trainer.plan.total)),
        "directory": str(experiment.keeper.directory.path),
        "population": _population(experiment),
        "deaths": [asdict(death) for death in deaths],
    }


def may_meet(model: str, replicas: int) -> bool:
    """Whether a consensus can play a part: one replica of a population has nothing that it could join."""
    return model != "population" or replicas > 1


def add_unsaved(summary: dict[str, Any], directory: RunDirectory, records: Sequence[Mapping[str, Any]]) -> None:
    """Note in a summary, as ``unsaved``, the best evaluation if no checkpoint is as good; where all are saved.

    Nothing is noted where the scores of checkpoints cannot be read.
    """
    try:
        best = best_of(read_index(directory) or [])
    except (InputError, OSError):
        return
    summary["unsaved"] = unsaved_best(records, None if best is None else best.score)


def _population(experiment: Experiment) -> dict[str, Any] | None:
    """The members, where there are several; all of them in the order of their validation."""
    measure, config = experiment.measure, experiment.config
    if not isinstance(measure, MemberMeasure):
        return None
    ranking = measure.ranking
    rows = standing(ranking, config.model.members(), config.optimizer)
    return {"members": len(rows), "there": len(ranking.alive), "best": ranking.best(), "ranking": rows}


def _meetings(records: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """How many meetings there were, and the lowest and highest weight that a replica had at one."""
    weights = [weight for record in records for weight in record.get("meeting_weights", ())]
    if not weights:
        return None
    count = sum("meeting_weights" in record for record in records)
    return {"count": count, "lowest": min(weights), "highest": max(weights)}


def _numbers(quality: Quality, classes: int) -> dict[str, float]:
    accuracy = {"accuracy": quality.accuracy} if classes else {}
    return {**accuracy, "loss": quality.loss}


def _gather(experiment: Experiment, times: Times, sent: int) -> Array:
    age = experiment.trainer.schedule.staleness
    own = np.array([
        times.training, times.communicating, times.waiting, float(sent), age.mean, age.most, age.formula, _peak(),
    ])  # fmt: skip
    everyone = np.empty((experiment.grid.control.size, own.size))
    experiment.grid.control.all_gather(own, everyone).wait()
    return everyone


def _rank(row: Array) -> dict[str, float]:
    training, communicating, waiting, sent, mean, most, formula, memory = row.tolist()
    shares = [seconds / training if training else 0.0 for seconds in (communicating, waiting)]
    return {
        "computing": max(0.0, 1 - sum(shares)), "communicating": shares[0], "waiting": shares[1], "bytes": sent,
        "staleness": mean, "most_stale": most, "staleness_formula": formula, "memory": memory,
    }  # fmt: skip


def resident(key: str) -> int:
    """Bytes of host memory that this process has (VmRSS), or had at most (VmHWM); OSError where Linux is not."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _peak() -> float:
    try:
        return float(resident("VmHWM"))
    except OSError:
        return nan


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary as it is printed."""
    replicas, stages, shards = summary["grid"]
    score = f", score {summary['score']}" if summary["score"] else ""
    joined = f"consensus {summary['consensus']}{score}, " if may_meet(summary["model"], replicas) else ""
    facts = {
        "run": f"{summary['model']} on {summary['data']}, "
        + (f"schedule {summary['schedule']}, " if stages > 1 else "")
        + joined
        + f"{replicas} x {stages} x {shards} ranks (replicas x stages x shards)",
        "test": quality_text(summary["test"]),
        "validation": quality_text(summary["validation"]),
        **({"best seen": unsaved_text(unsaved)} if (unsaved := summary.get("unsaved")) else {}),
        "trained": f"{counted(summary['epochs'], 'epoch')}, {counted(summary['steps'], 'step')}, "
        f"{counted(summary['samples'], 'sample')} "
        f"in {summary['seconds']:.2f} s of training: {summary['samples_per_second']:,.0f} samples/s",
    }
    if deaths := summary.get("deaths"):
        facts["survived"] = "; ".join(map(outline, deaths))
    if meetings := summary["meetings"]:
        what = "mean weights of members" if summary.get("population") else "weights"
        span = f"{what} from {meetings['lowest']:.4f} to {meetings['highest']:.4f}"
        facts["meetings"] = f"{meetings['count']:,}, {span}"
    if population := summary.get("population"):
        facts["members"] = f"{population['members']:,}, of which {population['there']:,} are there at the end"
        facts["best"] = f"member {population['best']} by validation; the test result is its own"
    if summary["consensus"] == "none" and replicas > 1:
        facts["model"] = "replica 0: nothing joins the replicas"
    place, quoted = summary["directory"], quote(summary["directory"])
    where = {
        "checkpoint": summary["checkpoint"],
        "look at it": f"python -m mpinn inspect {quoted}",
        "use it": f"python -m mpinn evaluate {quoted}",
    }
    since = [f"since step {summary['start']}:"] if summary["start"] else []
    weights = summary["weights"]
    staged = summary["stages"] if stages > 1 else None
    table = _staged(summary["ranks"], staged, weights) if staged else _table(summary["ranks"], weights)
    ranking = []
    if population:
        ranking = ["", *ranked(population["ranking"], "accuracy" in summary["test"])]
        where["all members"] = f"{place}/ranking.csv"
        where["take the best"] = f"python -m mpinn extract {quoted} --best"
    return ["", *_aligned(facts), *ranking, "", *since, *table, "", *_aligned(where)]


def quality_text(numbers: Mapping[str, float | None]) -> str:
    """Such as "accuracy 0.9833, loss 0.0444"; what is not finite is None in a summary that was read."""
    return ", ".join(f"{name} {loss_text(nan if value is None else value)}" for name, value in numbers.items())


def _aligned(facts: Mapping[str, str]) -> list[str]:
    return [f"{name:<14}{fact}" for name, fact in facts.items()]


def _table(ranks: Sequence[Mapping[str, float]], weights: Sequence[float] | None) -> list[str]:
    head = "rank  computing  communicating  waiting      sent"
    rows = [head + ("  weight at the last meeting" if weights else "")]
    for rank, row in enumerate(ranks):
        shares = f"{row['computing']:>11.1%}{row['communicating']:>15.1%}{row['waiting']:>9.1%}"
        weight = f"  {weights[rank * len(weights) // len(ranks)]:.6f}" if weights else ""
        rows.append(f"{rank:>4}{shares}{bytes_text(row['bytes']):>10}{weight}")
    return rows


def _staged(ranks: Sequence[Mapping[str, float]], stages: Sequence[str], weights: Sequence[float] | None) -> list[str]:
    """With stages a rank waits in the bubbles of its pipeline, and its gradients may be old."""
    wide = max(len("begins with"), *map(len, stages))
    head = f"rank  replica  stage  {'begins with':<{wide}}   busy  messages  bubble      sent  staleness (formula)"
    rows = [head + ("  weight at the last meeting" if weights else "")]
    for rank, row in enumerate(ranks):
        replica, stage = divmod(rank, len(stages))
        place = f"{rank:>4}{replica:>9}{stage:>7}  {stages[stage]:<{wide}}"
        shares = f"{row['computing']:>7.1%}{row['communicating']:>10.1%}{row['waiting']:>8.1%}"
        age = f"{row['staleness']:.2f} ({row['staleness_formula']:g})"
        weight = f"  {weights[replica]:.6f}" if weights else ""
        rows.append(f"{place}{shares}{bytes_text(row['bytes']):>10}  {age:>19}{weight}")
    return rows


def bytes_text(count: float) -> str:
    """A number of bytes as a person reads it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
