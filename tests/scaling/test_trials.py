"""What runs under mpirun send and hold, beside what is predicted: bytes and calls of every rank, exactly."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from time import perf_counter, process_time
from typing import TypeAlias

import numpy as np
import pytest

from mpinn.array import ops as plain
from mpinn.consensus.registry import CONSENSUSES
from mpinn.datasets.source import open_source
from mpinn.scaling import check
from mpinn.scaling.answer import Inquiry, compare, outlook
from mpinn.scaling.check import ASSUMED, Case, Outcome, Subject, cases, run_together
from mpinn.scaling.cluster import Cluster
from mpinn.scaling.predict import Samples
from mpinn.scaling.trial import busy_seconds
from mpinn.scaling.work import work_of
from mpinn.schedules.registry import SCHEDULES
from mpinn.training.choices import build_model, outputs_of, read_config

RESNET = ("model.name=resnet", "model.depth=8", "data.batch=100", "run.kernels=plain")
"""Large enough for its buffers to be most of what is held."""
CNN = ("model.name=cnn", "model.channels=[3,4]", "model.kernel=3", "model.widths=[9,8]", "model.norm=batch",
       "data.batch=100", "run.kernels=plain")  # fmt: skip
"""With batch norm; batches that neither 3 replicas nor 4 micro-batches divide, and a small one ends an epoch."""


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(check, "SECONDS", 0.0)
        monkeypatch.setattr(check, "STEPS", (10, 10))
        yield


def subject(*settings: str, file: Path | None = None) -> Subject:
    """With a file for its profiles, measured."""
    config = read_config(None, settings)
    source = open_source(config.data)
    model = build_model(config, source.sample_shape, outputs_of(source.summary()))
    sizes = source.summary()["sizes"]
    work = work_of(config, model, source, plain, file is not None, file)
    return Subject(config, model, work, Samples(sizes["train"], sizes["validation"]))


def assert_exact(outcomes: list[Outcome]) -> None:
    for one in outcomes:
        assert one.sent == one.expected, f"{one.predicted.schedule}, {one.predicted.consensus}"
        assert one.steps == 20
        assert np.isfinite(one.errors).all()
        assert 0 <= one.found.others < 1.1


OPTIONS = {
    "small buckets": (("consensus.name=gradients", "consensus.bucket=0.0005"), Case("serial", "gradients", 1, 3)),
    "uniform": (("consensus.score=uniform", "consensus.slots=average", "optimizer.name=adam"),
                Case("serial", "averaging", 1, 3)),
    "fisher": (("consensus.score=fisher", "consensus.fisher_samples=2"), Case("serial", "averaging", 1, 3)),
    "best": (("consensus.score=best",), Case("serial", "averaging", 1, 3)),
    "the same samples": (("data.deal=same", "data.batch=99"), Case("serial", "averaging", 1, 3)),
    "gossip early": (("consensus.name=gossip", "consensus.form=combine_then_adapt", "consensus.period=3 steps"),
                     Case("serial", "gossip", 1, 3)),
    "gossip of all": (("consensus.name=gossip", "consensus.graph=complete"), Case("serial", "gossip", 1, 3)),
    "averaged pipelines": ((), Case("1f1b", "averaging", 3, 1)),
    "clipped": (("train.clip=1.0", "schedule.name=gpipe", "schedule.micro_batches=3"),
                Case("gpipe", "gradients", 3, 1)),
    "accumulated": (("schedule.name=fdg", "schedule.accumulate=3"), Case("fdg", "gradients", 3, 1)),
    "a chain": (("schedule.name=parareal", "schedule.sweep=chain"), Case("parareal", "gradients", 3, 1)),
    "gathered": (("schedule.name=parareal", "schedule.sweep=gather"), Case("parareal", "gradients", 3, 1)),
    "two sweeps": (("schedule.name=parareal", "schedule.iterations=2"), Case("parareal", "gradients", 3, 1)),
    "float64": (("run.dtype=float64",), Case("ddg", "gradients", 3, 1)),
    "hidden heads": (("schedule.name=local", "schedule.width=8"), Case("local", "gradients", 3, 1)),
}  # fmt: skip


MIXED = {
    "averaging": (("schedule.name=fdg", "consensus.score=uniform"), Case("fdg", "averaging", 2, 2)),
    "gradients, accumulated": (("schedule.name=fdg", "schedule.accumulate=3", "train.clip=0.5"),
                               Case("fdg", "gradients", 2, 2)),
    "gossip": (("schedule.name=ddg",), Case("ddg", "gossip", 2, 2)),
    "gossip, accumulated": (("schedule.name=fdg", "schedule.accumulate=2", "consensus.name=gossip",
                             "consensus.period=3 steps"), Case("fdg", "gossip", 2, 2)),
    "outer": (("schedule.name=local",), Case("local", "outer", 2, 2)),
    "clipped": (("train.clip=0.5",), Case("parareal", "gradients", 2, 2)),
}  # fmt: skip


HELD = (Case("serial", "gradients", 1, 2), Case("serial", "outer", 1, 2), Case("fdg", "gradients", 2, 1))

Told: TypeAlias = tuple[Cluster, dict[str, list[Outcome]]]
"""The network as the ranks of a job found it, and what became of the cases by the name of their group."""


def groups(ranks: int, profile: Path) -> dict[str, list[tuple[Subject, Case]]]:
    """All that is to be run on so many ranks: a job takes longer to start than the steps of a case."""
    small = subject(*CNN)
    found = {"all": [(small, case) for case in cases(small.planner(small.config, ASSUMED), ranks)]}
    if ranks == 2:
        estimated, measured = subject(*RESNET), subject(*RESNET, file=profile)
        found |= {"estimated": [(estimated, case) for case in HELD], "measured": [(measured, case) for case in HELD]}
    options = {3: OPTIONS, 4: MIXED}.get(ranks, {})
    return found | {name: [(subject(*CNN, *settings), case)] for name, (settings, case) in options.items()}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Told]:
    """What all cases on a number of ranks have come to; they run when they are first asked for."""

    @cache
    def run(ranks: int) -> Told:
        wanted = groups(ranks, tmp_path_factory.mktemp("profile") / "profile.json")
        cluster, outcomes = run_together([task for tasks in wanted.values() for task in tasks], ranks)
        rest = iter(outcomes)
        return cluster, {name: [next(rest) for _ in tasks] for name, tasks in wanted.items()}

    return run


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_schedule_and_consensus_sends_what_is_predicted(ranks: int, job: Callable[[int], Told]) -> None:
    cluster, found = job(ranks)
    assert_exact(found["all"])
    assert any(sent for outcome in found["all"] for sent in outcome.sent) == (ranks > 1)
    if ranks > 1:
        told = {(o.predicted.schedule, o.predicted.consensus) for o in found["all"]}
        staged = {(name, "gradients") for name, options in SCHEDULES.items() if options.staged}
        assert told == staged | {("serial", name) for name in CONSENSUSES}
        assert cluster.inside.latency > 0
        assert cluster.inside.bandwidth > 0


def test_what_is_held_is_predicted_from_measured_buffers(job: Callable[[int], Told]) -> None:
    """Of arrays that come from the pool: the kernels' own are in it, and small ones are not."""
    _, found = job(2)
    for name in ("measured", "estimated"):
        assert_exact(found[name])
        assert [(o.predicted.schedule, o.predicted.consensus) for o in found[name]] == [
            (case.schedule, case.consensus) for case in HELD
        ]
    assert max(abs(outcome.errors[1]) for outcome in found["measured"]) < 0.2
    assert min(abs(outcome.errors[1]) for outcome in found["estimated"]) > 0.3


@pytest.mark.parametrize("name", OPTIONS)
def test_options_change_what_is_sent_and_predicted(name: str, job: Callable[[int], Told]) -> None:
    assert_exact(job(3)[1][name])


@pytest.mark.parametrize("name", MIXED)
def test_stages_of_replicas_send_what_is_predicted(name: str, job: Callable[[int], Told]) -> None:
    assert_exact(job(4)[1][name])


def test_a_network_is_measured_between_two_ranks() -> None:
    found = outlook(Inquiry(overrides=RESNET, ranks="1,2", network="local", estimated=True)).cluster
    assert (found.name, found.source.startswith("measured: 2 ranks on ")) == ("local", True)
    assert 1e6 < found.inside.bandwidth < 1e12
    assert 1e-7 < found.inside.latency < 1
    assert found.inside == found.between


def test_a_wrong_prediction_is_seen(job: Callable[[int], Told]) -> None:
    outcome = job(2)[1]["estimated"][0]
    assert outcome.exact
    one = outcome.expected[0]["replicas", "all_sum"]
    wrong = replace(outcome, expected=({("replicas", "all_sum"): (one[0], one[1] + 4)}, *outcome.expected[1:]))
    assert not wrong.exact
    assert "!" in check.table([wrong])[1]
    assert "!" not in check.table([outcome])[1]


def test_what_other_programs_do_is_seen() -> None:
    """What this process computes is in the account of the machine."""
    before, own, begun = busy_seconds(), process_time(), perf_counter()
    while perf_counter() - begun < 0.5:
        pass
    used = process_time() - own
    # the machine counts in hundredths of a second
    assert busy_seconds() - before >= used - 0.05
    assert used > 0


def test_the_comparison_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("model.widths=[16,16,16]", "run.kernels=plain")
    found = compare(Inquiry(overrides=settings, estimated=True), (1, 2))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "mlp on digits, float32: 128 samples a step, which the replicas share (strong scaling)"
    rows = [line for line in told if " x " in line and "gradients" in line]
    assert len(rows) > 8
    assert any(line.startswith("bytes    those of the meter, exactly, in all trials") for line in told)
    errors = np.abs([one.errors[0] for one in found])
    assert f"step     errors of {np.median(errors):.0%} (median) and {errors.max():.0%} (largest)" in "\n".join(told)
