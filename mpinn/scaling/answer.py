"""From a question to the plan of many ranks, its files, and its comparison with what runs take."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from math import isfinite
from pathlib import Path
from types import ModuleType

import numpy as np

from mpinn.comm.launch import read_launch
from mpinn.config import Config
from mpinn.datasets.samples import GIB, Source
from mpinn.datasets.source import open_source
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.packed import population_of
from mpinn.run.checks import check_kernels
from mpinn.run.target import kernels_of, on_gpu
from mpinn.scaling.advice import Predicts, advise, counts_of
from mpinn.scaling.check import PERIOD, RANKS, Outcome, Subject, local, run, table
from mpinn.scaling.cluster import Cluster, read_cluster
from mpinn.scaling.population import PopulationPlanner, steps_of
from mpinn.scaling.predict import Planner, Prediction, Samples, Scaling
from mpinn.scaling.report import COLUMNS, Outlook, lines, rows, types_text
from mpinn.scaling.work import work_of
from mpinn.storage.directory import write_text
from mpinn.training.choices import build_model, outputs_of, read_config

TABLE = "predictions.csv"
FIGURE = "scaling.png"
QUIET = 0.1
"""Share of the cores that other programs may have in a trial whose time means something."""


@dataclass(frozen=True)
class Inquiry:
    """What is to be planned: ``ranks`` as `counts_of` reads them; ``network``: a name, a file, local, or nothing for
    one that goes with the device; ``samples`` to train, 0 for those of the data; ``memory`` in GiB, 0 for any amount.
    """

    file: str | None = None
    overrides: tuple[str, ...] = ()
    ranks: str = "1-100000"
    network: str = ""
    samples: int = 0
    weak: bool = False
    memory: float = 0.0
    profile: Path | None = None
    estimated: bool = False
    launcher: str = ""


@dataclass(frozen=True)
class Opened:
    """What a question is about."""

    config: Config
    source: Source
    model: Model
    samples: Samples
    ops: ModuleType


def opened(inquiry: Inquiry) -> Opened:
    """Read the configuration, and open its data; raises InputError."""
    config = read_config(inquiry.file, inquiry.overrides)
    ops = kernels_of(config, measured=not inquiry.estimated)
    source = open_source(config.data)
    sizes = source.summary()["sizes"]
    samples = Samples(inquiry.samples or sizes["train"], sizes["validation"])
    if config.data.batch > samples.train:
        raise InputError("data.batch", f"{config.data.batch} is more than the {samples.train} samples to train")
    return Opened(config, source, build_model(config, source.sample_shape, outputs_of(source.summary())), samples, ops)


def subject_of(inquiry: Inquiry) -> Subject:
    """The model, and what its work takes; raises InputError."""
    one = opened(inquiry)
    work = work_of(one.config, one.model, one.source, one.ops, not inquiry.estimated, inquiry.profile)
    return Subject(one.config, one.model, work, one.samples)


def outlook(inquiry: Inquiry) -> Outlook:
    """Plan; raises InputError."""
    counts = counts_of(inquiry.ranks)
    if not isfinite(inquiry.memory) or inquiry.memory < 0:
        raise InputError("--memory", f"expected a number of at least 0, got {inquiry.memory:g}")
    if inquiry.estimated and inquiry.profile is not None:
        raise InputError("--profile", "with --estimated nothing is measured, so there is nothing to keep")
    found = read_cluster(inquiry.network) if inquiry.network not in ("", "local") else None
    one = opened(inquiry)
    cluster = found or _cluster(inquiry, one.config)
    planner, source = _planner(inquiry, one, cluster)
    advice, predictions = advise(planner, counts, inquiry.memory * GIB)
    statistics = bool(one.model.network.state(one.model.shape))
    return Outlook(one.config, source, cluster, one.samples, planner.scaling, advice, predictions, statistics)


def _planner(inquiry: Inquiry, one: Opened, cluster: Cluster) -> tuple[Predicts, str]:
    """And where its costs are from."""
    measured, scaling = not inquiry.estimated, SCALINGS[inquiry.weak]
    population = population_of(one.model.network)
    if population is not None:
        if inquiry.profile is not None:
            raise InputError("--profile", "the steps of a population are measured anew every time")
        steps = steps_of(one.config, one.model, population, one.source, one.ops, measured)
        gpu = on_gpu(one.config)
        known = PopulationPlanner(one.config, one.model, population, steps, cluster, one.samples, scaling, gpu)
        return known, steps.source
    work = work_of(one.config, one.model, one.source, one.ops, measured, inquiry.profile)
    return Planner(one.config, one.model, work, cluster, one.samples, scaling), work.source


SCALINGS: Mapping[bool, Scaling] = {False: "strong", True: "weak"}


def _cluster(inquiry: Inquiry, config: Config) -> Cluster:
    if inquiry.network == "local":
        if read_launch() is not None:
            raise InputError("--network", "local: start it without a launcher, it starts two ranks itself")
        return local(inquiry.launcher)
    return read_cluster("h100-ndr" if on_gpu(config) else "cpu-hdr")


def write(told: Outlook, out: Path) -> None:
    """All predictions as a table, by one rank; raises InputError."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows(told))
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / TABLE, text.getvalue())
    except OSError as error:
        raise InputError("--out", f"{str(error.filename or out)!r} cannot be written: {error.strerror}") from error


def drawn(told: Outlook) -> dict[str, dict[str, list[Prediction]]]:
    """The lines of a figure: each schedule with gradients, each consensus of serial replicas, on its fastest grid."""

    def group(names: Callable[[Prediction], str], wanted: Callable[[Prediction], bool]) -> dict[str, list[Prediction]]:
        best: dict[tuple[str, int], Prediction] = {}
        for one in filter(wanted, told.predictions):
            key = names(one), one.ranks
            if key not in best or one.throughput > best[key].throughput:
                best[key] = one
        found: dict[str, list[Prediction]] = {}
        for (name, _), one in best.items():
            found.setdefault(name, []).append(one)
        return found

    return {
        "schedules, with gradients between replicas": group(
            lambda one: one.schedule, lambda one: one.consensus == "gradients"
        ),
        "consensuses of replicas with the whole depth": group(
            lambda one: one.consensus, lambda one: one.schedule == "serial"
        ),
    }


def show(told: Outlook) -> None:
    """Print the plan."""
    print("\n".join(lines(told)))


def compare(inquiry: Inquiry, ranks: Sequence[int] = RANKS) -> list[Outcome]:
    """Run trials, and print them beside what was predicted; raises InputError and FatalError."""
    if read_launch() is not None:
        raise InputError("--check", "start it without a launcher: it starts the ranks of every trial itself")
    config = read_config(inquiry.file, inquiry.overrides)
    if config.names["model"] == "population":
        raise InputError(
            "--check", "the shards of a population send each other nothing: there is no schedule to compare"
        )
    check_kernels(config)
    subject = subject_of(inquiry)
    print(
        f"{config.names['model']} on {config.data.name}, {types_text(config)}: {config.data.batch} samples a step, "
        "which the replicas share (strong scaling)"
    )
    print(f"costs    {subject.work.source}")
    found: list[Outcome] = []
    for count in ranks:
        cluster, outcomes = run(subject, count, inquiry.launcher)
        found += outcomes
        print("\n".join(["", *_network(cluster, count), *table(outcomes)]), flush=True)
    print("\n" + "\n".join(_summary(found)))
    return found


def _network(cluster: Cluster, ranks: int) -> Iterator[str]:
    said = f"{ranks} rank{'s' * (ranks > 1)} on {cluster.cores} cores"
    if ranks == 1:
        yield f"{said}: nothing is sent"
        return
    shared = ", which they share: a step is as long as all their work on these at least" * (ranks > cluster.cores)
    yield f"{said}{shared}"
    yield (
        f"messages {cluster.inside.bandwidth / 1e9:.3g} GB/s and {cluster.inside.latency * 1e6:.3g} us, "
        f"sums at {cluster.reduction / 1e9:.3g} GB/s, {cluster.source}"
    )


def _summary(found: Sequence[Outcome]) -> Iterator[str]:
    times, memory = np.abs([one.errors for one in found]).T
    wrong = sum(not one.exact for one in found)
    yield f"bytes    {'those of the meter, exactly, in all trials' if not wrong else f'wrong in {wrong} trials (!)'}"
    yield f"step     errors of {np.median(times):.0%} (median) and {times.max():.0%} (largest), by the clock"
    quiet = times[[one.found.others < QUIET for one in found]]
    if 0 < len(quiet) < len(found):
        yield (
            f"         {np.median(quiet):.0%} and {quiet.max():.0%} in the {len(quiet)} of {len(found)} trials in "
            f"which other programs had less than {QUIET:.0%} of the cores"
        )
    yield f"memory   errors of {np.median(memory):.0%} (median) and {memory.max():.0%} (largest), in MiB of arrays"
    yield f"step and memory: of the slowest and of the fullest rank; averaging and outer meet every {PERIOD} steps"
    yield "others: the share of the cores that other programs had, for which steps are longer than predicted"
