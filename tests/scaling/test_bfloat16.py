"""Plans under run.bf16: activations and what goes from stage to stage take half the bytes, all else is float32."""

import json

import pytest
from launch import alone

from mpinn.commands.plan import Question, answer, describe, show
from mpinn.errors import InputError
from mpinn.run import target
from mpinn.scaling import answer as answers
from mpinn.scaling.answer import Inquiry, Opened, compare, opened, outlook
from mpinn.scaling.predict import Planner, Prediction
from mpinn.scaling.report import lines
from mpinn.scaling.work import work_of

WIDE = ("model.widths=[32,32,32]", "train.clip=1")
NARROW = (*WIDE, "run.bf16=true")
WEIGHTS = 4 * (64 * 32 + 2 * 32 * 32 + 32 * 10) + 4 * 256
"""Bytes of a vector in float32; biases are padded to 256 bytes."""
SAID = "seconds as of float32, only the bytes are those of bfloat16"


def planners() -> tuple[Planner, Planner]:
    """In float32 and with bfloat16; costs are estimated."""

    def of(one: Opened) -> Planner:
        work = work_of(one.config, one.model, one.source, one.ops, measured=False)
        return Planner(one.config, one.model, work, answers.read_cluster("h100-ndr"), one.samples)

    wide, narrow = (of(opened(Inquiry(overrides=settings, estimated=True))) for settings in (WIDE, NARROW))
    return wide, narrow


def pairs(ranks: int) -> list[tuple[Prediction, Prediction]]:
    wide, narrow = planners()
    found = list(zip(wide.predictions(ranks), narrow.predictions(ranks), strict=True))
    assert all((a.schedule, a.consensus, a.stages) == (b.schedule, b.consensus, b.stages) for a, b in found)
    return found


def test_what_goes_between_stages_is_bfloat16_and_what_goes_between_replicas_is_not() -> None:
    wide, narrow = planners()
    staged = 0
    for stages, replicas in ((1, 4), (2, 2), (4, 1)):
        for schedule in ("serial", "gpipe", "fdg", "local", "parareal"):
            if wide.depths.refusal(schedule, stages):
                continue
            one, other = (known.depths.depth(schedule, stages, 128 // replicas) for known in (wide, narrow))
            assert one.pieces == other.pieces
            for number in range(stages):
                told = [known.to_stages(one, number, [128 // replicas]) for known in (wide, narrow)]
                assert told[0].keys() == told[1].keys()
                for key, (calls, size) in told[0].items():
                    # norms of layers, by which a gradient is shortened, are float64 in any case
                    halves = 1 if key == ("stages", "all_gather") else 2
                    assert told[1][key] == (calls, size / halves)
                    staged += halves == 2
    assert staged > 8
    for one, other in pairs(4):
        if one.schedule == "serial":
            assert one.sent == other.sent
    (gradients,) = [b for _, b in pairs(4) if (b.schedule, b.consensus) == ("serial", "gradients")]
    assert gradients.sent == WEIGHTS


def test_memory_by_hand() -> None:
    """Vectors in float32; samples and three hidden layers and the outputs in bfloat16, also for the last batch."""
    wide, narrow = planners()
    passes = 128 * (64 + 3 * 32 + 10) * (1 + (1197 - 9 * 128) / 128)
    for known, size in ((wide, 4), (narrow, 2)):
        assert known.predict("serial", "gradients", 1, 1).memory == 3 * WEIGHTS + size * passes
    # of two stages of fdg the first has 2 passes in flight, each with a copy of its weights, which is float32
    for known, size in ((wide, 4), (narrow, 2)):
        depth = known.depths.depth("fdg", 2, 128)
        layers = depth.bounds[1] - 1
        weights = depth.stages[0].parameter_bytes
        assert depth.held[0] == 2 * size * 128 * (64 + layers * 32) + 2 * weights


def test_messages_of_half_the_bytes_take_less_time_and_sums_as_long() -> None:
    for one, other in pairs(4):
        if one.stages == 1:
            assert other.seconds == one.seconds
        elif one.consensus == "none":
            assert other.seconds < one.seconds


def test_the_estimate_says_what_it_does_not_know() -> None:
    told = lines(outlook(Inquiry(overrides=NARROW, ranks="1,4", estimated=True)))
    assert told[0] == "mlp on digits, float32, activations in bfloat16; 1,197 samples"
    assert told[2].endswith(SAID)
    # only a GPU computes in bfloat16, so the plan is one of GPUs
    assert told[3].startswith("network  h100-ndr: ")
    assert not any("bfloat16" in line for line in lines(outlook(Inquiry(overrides=WIDE, ranks="1", estimated=True))))


def test_a_plan_of_stages(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (answer(Question(overrides=settings, stages=2, estimated=True)) for settings in (WIDE, NARROW))
    assert one.partition == other.partition
    for wide, narrow in zip(one.stages, other.stages, strict=True):
        assert (narrow.before, narrow.after) == (wide.before / 2, wide.after / 2)
        assert narrow.parameter_bytes == wide.parameter_bytes
        assert [cost.kept_bytes for cost in narrow.costs] == [cost.kept_bytes / 2 for cost in wide.costs]
    told = json.loads(json.dumps(describe(other)))
    assert (told["dtype"], told["activations"]) == ("float32", "bfloat16")
    assert (describe(one)["dtype"], describe(one)["activations"]) == ("float32", "float32")
    show(other, as_json=False)
    printed = capsys.readouterr().out
    assert "128 samples of bfloat16 a step, weights of float32" in printed
    assert SAID in printed


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "count_devices", lambda: (0, "no GPU is visible"))


def test_what_this_machine_cannot_measure_is_refused(without: None) -> None:
    said = r"^run\.bf16: without a GPU nothing is measured in bfloat16: --estimated counts operations$"
    for ask in (lambda: outlook(Inquiry(overrides=NARROW, ranks="4")), lambda: answer(Question(overrides=NARROW))):
        with pytest.raises(InputError, match=said):
            ask()
    with pytest.raises(InputError, match=r"^run\.bf16: only a GPU computes in bfloat16: run\.device is cpu"):
        answer(Question(overrides=(*NARROW, "run.device=cpu"), estimated=True))


def test_what_runs_is_refused_without_a_gpu() -> None:
    with pytest.raises(InputError, match=r"^run\.bf16: only a GPU computes in bfloat16: run\.device is cpu"):
        compare(Inquiry(overrides=(*NARROW, "run.device=cpu"), estimated=True))


def test_an_estimate_for_a_gpu_needs_none(without: None) -> None:
    told = lines(outlook(Inquiry(overrides=(*WIDE, "run.device=gpu"), ranks="1,4", estimated=True)))
    assert told[3].startswith("network  h100-ndr: ")
    assert answer(Question(overrides=(*WIDE, "run.device=gpu"), estimated=True)).stages


def test_the_command() -> None:
    job = alone("-m", "mpinn", "plan", "--ranks", "1,4", "--set", "run.bf16=true", "--estimated")
    assert (job.returncode, job.stderr) == (0, "")
    assert SAID in job.stdout
