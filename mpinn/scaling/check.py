"""Predictions beside measurements: the program is run under mpirun on a few ranks, and the errors are printed.

Every schedule with stages, and every consensus, on 1 to 4 ranks. The work is measured on one rank before; messages and
sums between the ranks of each job, in that job, and nothing that trains. Bytes must be those of the meter exactly.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mpinn.commands.compare import command
from mpinn.config import Config, Grid, Period
from mpinn.datasets.deal import share
from mpinn.errors import FatalError
from mpinn.models.model import Model
from mpinn.partition.costs import Link
from mpinn.partition.split import Partition
from mpinn.scaling.cluster import Cluster
from mpinn.scaling.predict import Planner, Prediction, Samples
from mpinn.scaling.traffic import Course, Sent, bytes_of
from mpinn.scaling.trial import WARM, Found, Trial
from mpinn.scaling.work import Work
from mpinn.schedules.registry import SCHEDULES

RANKS = (1, 2, 3, 4)
PERIOD = 5
"""Steps between meetings, so that a trial has several."""
SECONDS = 0.9
STEPS = (40, 400)
"""How long a trial lasts, about, and how many steps it has at least and at most."""


@dataclass(frozen=True)
class Case:
    """A schedule and a consensus on a grid."""

    schedule: str
    consensus: str
    stages: int
    replicas: int

    @property
    def ranks(self) -> int:
        """Of the grid."""
        return self.stages * self.replicas


@dataclass(frozen=True)
class Outcome:
    """A case as it was predicted and as it was found; what each rank sent, both ways."""

    predicted: Prediction
    found: Found
    expected: tuple[Sent, ...]
    steps: int

    @property
    def sent(self) -> tuple[Sent, ...]:
        """As measured, by rank."""
        return tuple({(channel, name): (calls, size) for channel, name, calls, size in one} for one in self.found.sent)

    @property
    def exact(self) -> bool:
        """Whether all calls and all bytes of all ranks are those predicted."""
        return self.sent == self.expected

    @property
    def errors(self) -> tuple[float, float]:
        """Of seconds and of memory: prediction over measurement, less one."""
        seconds, memory = self.predicted.seconds, self.predicted.memory
        return seconds / self.found.seconds - 1, memory / max(self.found.memory) - 1


@dataclass(frozen=True)
class Subject:
    """What is predicted and run."""

    config: Config
    model: Model
    work: Work
    samples: Samples

    def planner(self, config: Config, cluster: Cluster) -> Planner:
        """For one configuration, of the trials or of the user."""
        return Planner(config, self.model, self.work, cluster, self.samples)


def cases(planner: Planner, ranks: int) -> Iterator[Case]:
    """Every consensus of serial replicas, and every schedule: its stages on all ranks, or on two with two replicas."""
    if ranks == 1:
        yield Case("serial", "gradients", 1, 1)
        return
    for consensus in planner.consensuses:
        if not planner.refusal(1, ranks):
            yield Case("serial", consensus, 1, ranks)
    stages = 2 if ranks % 2 == 0 else ranks
    for schedule, options in SCHEDULES.items():
        refused = planner.refusal(stages, ranks // stages) or planner.depths.refusal(schedule, stages)
        if options.staged and not refused:
            yield Case(schedule, "gradients", stages, ranks // stages)


def configured(subject: Subject, case: Case, directory: str) -> Config:
    """The configuration of a case: its cuts are written out, so that the run has those that are predicted."""
    config = subject.config
    schedule = config.schedule if config.names["schedule"] == case.schedule else SCHEDULES[case.schedule]()
    planner = subject.planner(config, ASSUMED)
    consensus = planner.consensuses[case.consensus]
    if case.consensus in ("averaging", "outer"):
        consensus = replace(consensus, period=Period(f"{PERIOD} steps"))
    if case.stages > 1:
        _, local = planner.shares(case.replicas)
        bounds = planner.depths.bounds(case.schedule, case.stages, local)
        cut = Partition(bounds).starts(subject.model.network)
        schedule = replace(schedule.settled(case.stages), cut=cut)
    return replace(
        config,
        run=replace(config.run, directory=directory),
        grid=Grid(replicas=case.replicas, stages=case.stages),
        schedule=schedule,
        consensus=consensus,
        names={**config.names, "schedule": case.schedule, "consensus": case.consensus},
    )


ASSUMED = Cluster("assumed", "", 2**30, 2**30, Link(2e9, 2e-5), Link(2e9, 2e-5))
"""By which the length of a trial is chosen, and the cuts."""


def run(subject: Subject, ranks: int, launcher: str = "", chosen: Sequence[Case] = ()) -> tuple[Cluster, list[Outcome]]:
    """Run the cases of so many ranks, or some of them, and predict them for the network that was found there."""
    wanted = chosen or cases(subject.planner(subject.config, ASSUMED), ranks)
    return run_together([(subject, case) for case in wanted], ranks, launcher)


def run_together(
    wanted: Sequence[tuple[Subject, Case]], ranks: int, launcher: str = ""
) -> tuple[Cluster, list[Outcome]]:
    """Run cases, each of its own subject, one after the other in one job of so many ranks, and predict them."""
    with TemporaryDirectory(prefix="mpinn-") as folder:
        configs = [configured(subject, case, f"{folder}/{number}") for number, (subject, case) in enumerate(wanted)]
        trials = [_trial(subject, case, config) for (subject, case), config in zip(wanted, configs, strict=True)]
        told = _start(ranks, trials, Path(folder), launcher)
    cluster = _cluster(told["cluster"])
    founds = [Found(**found) for found in told["found"]]
    outcomes = [
        _outcome(subject.planner(config, cluster), case, trial, found)
        for (subject, case), config, trial, found in zip(wanted, configs, trials, founds, strict=True)
    ]
    return cluster, outcomes


def local(launcher: str = "") -> Cluster:
    """Messages between two ranks on this machine; the cluster has as many ranks in a node as it has cores."""
    with TemporaryDirectory(prefix="mpinn-") as folder:
        return _cluster(_start(2, [], Path(folder), launcher)["cluster"])


def _trial(subject: Subject, case: Case, config: Config) -> Trial:
    planner = subject.planner(config, ASSUMED)
    step = planner.predict(case.schedule, case.consensus, case.stages, case.replicas).seconds
    rounds = min(max(SECONDS / step, STEPS[0]), STEPS[1]) // PERIOD
    return Trial(config.tables(), int(rounds + WARM) * PERIOD, PERIOD)


def _start(ranks: int, trials: Sequence[Trial], folder: Path, launcher: str) -> dict[str, Any]:
    wanted, answer = folder / "trials.json", folder / "found.json"
    wanted.write_text(json.dumps([trial.__dict__ for trial in trials]), encoding="utf-8")
    line = [sys.executable, "-m", "mpinn.scaling.trial", str(wanted), str(answer)]
    if ranks > 1:
        line = [*command(launcher), "-n", str(ranks), *line]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ)
    if done.returncode or not answer.is_file():
        raise FatalError(f"{' '.join(line[:4])} ... ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return dict(json.loads(answer.read_text(encoding="utf-8")))


def _cluster(told: dict[str, Any]) -> Cluster:
    return Cluster(**{**told, "inside": Link(**told["inside"]), "between": Link(**told["between"])})


def _outcome(planner: Planner, case: Case, trial: Trial, found: Found) -> Outcome:
    predicted = planner.predict(case.schedule, case.consensus, case.stages, case.replicas)
    depth = planner.depths.depth(case.schedule, case.stages, predicted.local)
    period = planner.period(case.consensus, predicted.batch, case.replicas)
    course = Course(trial.steps, case.replicas, period, getattr(depth.options, "accumulate", 1))
    expected = []
    for rank in range(case.ranks):
        replica, stage = divmod(rank, case.stages)
        counts = counts_of(planner, case, trial.steps, replica)
        own = planner.to_stages(depth, stage, counts)
        expected.append({**own, **planner.to_replicas(depth, stage, case.consensus, course)})
    return Outcome(predicted, found, tuple(expected), trial.steps)


def counts_of(planner: Planner, case: Case, steps: int, replica: int) -> list[int]:
    """The samples of a replica in each of the first steps of a run: the last batch of an epoch may be smaller."""
    batch, size = planner.config.data.batch, planner.samples.train
    replicas = case.replicas
    per_epoch = planner.steps_per_epoch(case.consensus, batch, replicas)
    if planner.deal(case.consensus) == "same":
        own = batch // replicas
        return [min(own, size - step % per_epoch * own) for step in range(steps)]
    ends = (share(step % per_epoch, batch, size, replicas, replica) for step in range(steps))
    return [last - first for first, last, _ in ends]


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """As it is printed."""
    head = (
        f"{'ranks':>5}  {'grid':>5}  {'schedule':10}{'consensus':10}  {'step':>9}  {'measured':>9}  {'error':>6}  "
        f"{'others':>6}  {'sent a step':>11}  {'measured':>11}  {'memory':>8}  {'measured':>8}  {'error':>6}"
    )
    return [head, *map(_row, outcomes)]


def _row(one: Outcome) -> str:
    predicted, found = one.predicted, one.found
    seconds, memory = one.errors
    both = [max(map(bytes_of, sent)) / one.steps for sent in (one.expected, one.sent)]
    return (
        f"{predicted.ranks:>5}  {f'{predicted.replicas} x {predicted.stages}':>5}  {predicted.schedule:10}"
        f"{predicted.consensus:10}  {_time(predicted.seconds):>9}  {_time(found.seconds):>9}  {seconds:>+6.0%}  "
        f"{found.others:>6.0%}  {both[0]:>11,.0f}  {both[1]:>11,.0f}{'' if one.exact else ' !'}  "
        f"{predicted.memory / 2**20:>8.2f}  {max(found.memory) / 2**20:>8.2f}  {memory:>+6.0%}"
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
