"""The command that plans: what it answers, what it prints, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from launch import ROOT, alone, mpirun

from mpinn.array import ops
from mpinn.commands.plan import Plan, Question, answer, describe, show
from mpinn.errors import InputError
from mpinn.partition.costs import SCHEDULES, Link, forecast, stages_of
from mpinn.partition.cuts import cut
from mpinn.partition.profile import estimate
from mpinn.partition.split import BANDWIDTH, LATENCY, Partition, partition
from mpinn.schedules.layerwise import LayerwiseOptions
from mpinn.schedules.registry import SCHEDULES as REGISTRY
from mpinn.training.choices import build_model, read_config

WIDE = ("model.widths=[30, 40, 20]",)
DEEP = ("model.name=resnet", "model.depth=8")


def estimated(*overrides: str, **options) -> Plan:
    return answer(Question(overrides=overrides, estimated=True, **options))


def seconds(plan: Plan) -> dict[str, float]:
    return {row.schedule: row.seconds for row in plan.forecasts}


def test_a_plan_is_the_best_partition_and_its_forecasts():
    plan = estimated(*DEEP, stages=3, micro_batches=5)
    config = read_config(None, DEEP)
    costs = estimate(build_model(config, (8, 8, 1), 10), 128, np.dtype("f4"))
    expected = partition(costs, 3, bandwidth=BANDWIDTH, latency=LATENCY)
    assert plan.partition == expected
    stages = stages_of(costs, expected)
    assert plan.stages == tuple(stages)
    link = Link(BANDWIDTH, LATENCY)
    assert plan.forecasts == tuple(forecast(name, REGISTRY[name](), stages, link, 5) for name in SCHEDULES)
    assert plan.vectors == 3
    assert plan.starts == tuple(
        costs[i].name for i in range(5) if sum(c.layers for c in costs[:i]) in expected.bounds[1:]
    )


def test_the_same_is_asked_by_the_configuration():
    assert estimated(*DEEP, "grid.stages=3", "grid.replicas=2") == estimated(*DEEP, stages=3, replicas=2)
    assert estimated(*DEEP).partition.stages == 1


def test_replicas_share_the_batch():
    one, three = (estimated(*DEEP, stages=2, replicas=replicas) for replicas in (1, 3))
    assert (one.batch, three.batch) == (128, 43)
    assert seconds(three)["serial"] == pytest.approx(seconds(one)["serial"] * 43 / 128)


def test_slots_of_the_optimizer_take_memory():
    assert estimated("optimizer.name=adam").vectors == 4


def test_copies_with_which_others_are_survived_take_memory():
    assert estimated().vectors == 3
    assert estimated("run.survive=true").vectors == 3 + 2 * 2


def test_messages_that_cost_more_change_the_forecast_and_the_partition():
    fast = estimated(*DEEP, stages=3, bandwidth=1000.0, latency=0.0)
    slow = estimated(*DEEP, stages=3, bandwidth=0.05, latency=0.0)
    late = estimated(*DEEP, cuts=fast.starts, bandwidth=1000.0, latency=5000.0)
    assert seconds(fast)["fdg"] < seconds(slow)["fdg"]
    assert seconds(late)["naive"] == pytest.approx(seconds(fast)["naive"] + 4 * 0.005)
    assert slow.partition != fast.partition
    crossing = [sum(stage.after for stage in plan.stages) for plan in (slow, fast)]
    assert crossing[0] < crossing[1]


def test_a_partition_that_is_given_is_not_changed():
    plan = estimated(*WIDE, cuts=("hidden2", "output"))
    assert plan.partition == Partition((0, 2, 4, 5))
    assert plan.starts == ("hidden2", "output")


def test_stages_that_must_fit_are_cut_otherwise():
    wide = "model.widths=[2000, 20, 20, 20, 20, 20]"
    held = max(max(row.in_flight) for row in estimated(wide, stages=2).forecasts if row.schedule == "fdg")
    for schedule, fits in (("fdg", False), ("layerwise", True)):
        question = {"stages": 2, "schedule": schedule, "memory": held / 2**30}
        if fits:
            assert estimated(wide, **question).partition.stages == 2
        else:
            with pytest.raises(InputError, match=r"grid\.stages: no partition into 2 stages fits"):
                estimated(wide, **question)


def test_stages_are_even_for_the_schedule_that_is_meant():
    for schedule in ("fdg", "layerwise"):
        best = {other: seconds(estimated(*DEEP, stages=3, schedule=other))[schedule] for other in ("fdg", "layerwise")}
        assert best[schedule] == min(best.values())
    assert estimated(*DEEP, stages=3, schedule="layerwise").partition != estimated(*DEEP, stages=3).partition


def test_forecasts_follow_the_options_of_the_configured_schedule():
    settings = ("schedule.name=layerwise", "schedule.recompute=false")
    plan = estimated(*DEEP, *settings, stages=3, schedule="layerwise")
    usual = estimated(*DEEP, stages=3)
    assert plan.partition == usual.partition
    told, others = ({row.schedule: row for row in found.forecasts} for found in (plan, usual))
    options = LayerwiseOptions(recompute=False)
    assert told["layerwise"] == forecast("layerwise", options, plan.stages, plan.link, 4)
    assert told["layerwise"].seconds == told["fdg"].seconds
    assert others["layerwise"].seconds > others["fdg"].seconds
    assert told["layerwise"].in_flight[0] > others["layerwise"].in_flight[0]
    assert {name: row for name, row in told.items() if name != "layerwise"} == {
        name: row for name, row in others.items() if name != "layerwise"
    }


@pytest.mark.parametrize(
    ("configured", "asked", "meant"),
    [
        ("serial", "", "fdg"),
        ("layerwise", "", "layerwise"),
        ("layerwise", "fdg", "fdg"),
        ("1f1b", "", "1f1b"),
        ("parareal", "", "parareal"),
        ("parareal", "parareal", "parareal"),
    ],
)
def test_stages_are_even_for_the_configured_schedule_unless_another_is_asked_for(configured, asked, meant, capsys):
    plan = estimated(*DEEP, f"schedule.name={configured}", stages=3, schedule=asked)
    assert plan.meant == meant
    if meant != "parareal":
        assert plan.partition == estimated(*DEEP, stages=3, schedule=meant).partition
    show(plan, as_json=False)
    printed = capsys.readouterr().out
    assert f"this partition, made even for {meant}: {', '.join(plan.starts)}" in printed
    elsewhere = "parareal is a network of its own, which --set schedule.name=parareal plans"
    assert (elsewhere in printed) == (meant != "parareal")


def test_the_help_says_how_a_parareal_network_is_planned():
    told = alone("-m", "mpinn", "plan", "--help").stdout
    assert "with stages of its own: --set schedule.name=parareal plans it as well" in " ".join(told.split())


def test_a_job_is_cut_for_its_schedule():
    job = str(ROOT / "jobs/layerwise.toml")
    alone_, named = (answer(Question(job, schedule=name, estimated=True)) for name in ("", "layerwise"))
    assert alone_ == named
    assert alone_.meant == "layerwise"


@pytest.mark.parametrize("schedule", ["layerwise", "fdg"])
def test_a_plan_has_the_cuts_and_the_room_of_the_run(schedule: str):
    settings = (f"schedule.name={schedule}", "schedule.recompute=true", "schedule.versions=mixed", "grid.stages=3")
    plan = estimated(*DEEP, *settings, schedule=schedule)
    config = read_config(None, (*DEEP, *settings))
    found = cut(config, build_model(config, (8, 8, 1), 10), 10, 1, ops, measure=False)
    assert plan.partition.bounds == found.bounds != estimated(*DEEP, stages=3).partition.bounds
    rows = {row.schedule: row for row in plan.forecasts}
    # four batches backward first, five forward first, of which one is kept whole
    stage, inputs = plan.stages[0], 3 if schedule == "fdg" else 4
    kept = sum(cost.kept_bytes for cost in stage.costs)
    assert rows[schedule].in_flight[0] == kept + (1 + inputs) * stage.costs[0].input_bytes


def test_micro_batches_are_those_of_the_configuration():
    assert estimated(*DEEP, stages=2).micro_batches == 4
    settings = ("schedule.name=1f1b", "schedule.micro_batches=8")
    assert estimated(*DEEP, *settings, stages=2) == estimated(*DEEP, *settings, stages=2, micro_batches=8)
    assert estimated(*DEEP, *settings, stages=2, micro_batches=3).micro_batches == 3


def test_what_is_planned_as_json():
    plan = estimated(*WIDE, stages=2)
    told = json.loads(json.dumps(describe(plan)))
    assert (told["bounds"], told["starts"]) == (list(plan.partition.bounds), list(plan.starts))
    assert told["messages"] == {"bandwidth": BANDWIDTH, "latency": LATENCY, "assumed": True}
    rows = {row["schedule"]: row for row in told["schedules"]}
    assert list(rows) == list(SCHEDULES)
    for row in rows.values():
        assert row["speedup"] == pytest.approx(rows["serial"]["seconds"] / row["seconds"])
        assert row["locked_speedup"] == pytest.approx(rows["serial"]["seconds"] / row["locked"])
    first, second = told["stages"]
    assert first["sent_bytes"]["after"] == second["sent_bytes"]["before"] > 0
    assert [unit["name"] for stage in told["stages"] for unit in stage["units"]] == [
        "flatten+hidden1", "hidden2", "hidden3", "output"
    ]  # fmt: skip
    assert (
        first["resident_bytes"]
        == 3 * first["parameter_bytes"]
        == 3 * sum(unit["parameter_bytes"] for unit in first["units"])
    )


def test_the_command(tmp_path: Path):
    (tmp_path / "job.toml").write_text("[model]\nwidths = [30, 40, 20]\n[data]\nbatch = 50\n")
    line = ("-m", "mpinn", "plan", "job.toml", "--stages", "2", "--micro-batches", "3")
    named = ("--profile", "kept/profile.json")
    job = alone(*line, *named, cwd=tmp_path, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert (job.returncode, job.stderr) == (0, "")
    assert "\x1b" not in job.stdout
    assert "mlp on digits: 50 samples of float32 a step" in job.stdout
    assert "measured now, kept in kept/profile.json" in job.stdout
    assert "2 GB/s, 20 us: assumed" in job.stdout
    firsts = {line.split()[0].strip(",") for line in job.stdout.splitlines() if line.strip()}
    assert {"1", "2", *SCHEDULES} <= firsts
    assert "gpipe, m = 3" in job.stdout
    assert not (tmp_path / "cache").exists()
    again = alone(*line, *named, "--json", "--bandwidth", "3", cwd=tmp_path)
    told = json.loads(again.stdout)
    assert told["costs"] == "measured before: kept/profile.json"
    assert told["messages"] == {"bandwidth": 3e9, "latency": LATENCY, "assumed": False}
    units = json.loads((tmp_path / "kept/profile.json").read_text())["units"]
    assert [unit for stage in told["stages"] for unit in stage["units"]] == units


def test_a_plan_needs_no_mpi():
    program = "import sys; from mpinn.commands.plan import *; answer(Question(estimated=True))"
    assert alone("-c", f"{program}; print('mpi4py' in sys.modules)").stdout == "False\n"


def test_ranks_of_a_job_say_it_once():
    job = mpirun(2, "-m", "mpinn", "plan", "--estimated", "--json")
    assert job.returncode == 0
    assert json.loads(job.stdout)["bounds"] == [0, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stages": 4}, r"^grid\.stages: the model has 3 units .* got 4"),
        ({"cuts": ("hiden2",)}, r"^--cut: no stage can begin at 'hiden2' \(did you mean hidden2\?\)"),
        ({"cuts": ("hidden2",), "stages": 3}, "^--cut: the cuts make 2 stages, not 3"),
        ({"schedule": "gpip"}, r"^--schedule: 'gpip' is not one of .* \(did you mean gpipe\?\)"),
        ({"schedule": "parareal"}, "^--schedule: parareal is a network of its own, which --set schedule.name=parareal"),
        (
            {"schedule": "fdg", "overrides": ("schedule.name=parareal",)},
            "^--schedule: a parareal network is cut for parareal, not for fdg",
        ),
        ({"memory": 1e-6, "stages": 2}, r"^grid\.stages: no partition into 2 stages fits"),
        ({"memory": -1.0}, "^--memory: expected a number of at least 0, got -1"),
        ({"bandwidth": 0.0}, "^--bandwidth: expected a number above 0, got 0"),
        ({"latency": float("nan")}, "^--latency: expected a number of at least 0"),
        ({"replicas": 129}, "^--replicas: 129 replicas can't share a batch of 128"),
        ({"profile": Path("x")}, "^--profile: with --estimated"),
        ({"file": "nothing.toml"}, r"^nothing\.toml: there is no such file"),
        ({"overrides": ("model.widht=3",)}, r"^model\.widht: unknown key"),
    ],
)
def test_what_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        answer(Question(**{"estimated": True, **options}))


HUGE = "--set model.widths=[100000000000000]"
TOO_LARGE = "mpinn: model: one process cannot hold all the 7,500,000,000,000,010 parameters in memory: Unable"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--stages 9 --estimated", "mpinn: grid.stages: the model has 3 units"),
        ("--estimated --set grid.stages=0", "mpinn: grid.stages: expected an integer of at least 1"),
        (HUGE, TOO_LARGE),
        (f"{HUGE} --estimated", TOO_LARGE),
        (f"{HUGE} --ranks 4", TOO_LARGE),
        (f"{HUGE} --ranks 2 --set model.name=population", "mpinn: model: one process cannot hold all the 15,000,"),
        ("--stages two", "Invalid value for '--stages'"),
    ],
)
def test_a_mistake_on_the_command_line_is_code_2(line, said):
    job = alone("-m", "mpinn", "plan", *line.split())
    assert (job.returncode, job.stdout) == (2, "")
    assert said in job.stderr
    assert "Traceback" not in job.stderr


@pytest.mark.parametrize("job", ["digits", "layers"])
def test_a_job_of_the_project_can_be_planned(job):
    plan = answer(Question(str(ROOT / f"jobs/{job}.toml"), stages=2, estimated=True))
    assert plan.partition.stages == 2


def test_predictors_and_coarse_networks_of_a_parareal_network_are_shown(capsys):
    deep = (*DEEP, "schedule.name=parareal")
    plan = estimated(*deep, stages=3)
    # the stem goes with the first block, the head with the last
    assert plan.partition.bounds == (0, 2, 3, 6)
    first, second, third = plan.blocks
    assert (first.predictor.layers, first.coarse.layers) == ((), ())
    assert (second.inputs, second.outputs) == ((8, 8, 16), (4, 4, 32))
    assert (second.predictor.layers, second.predictor.parameters) == (("conv", "norm"), 16 + 32)
    assert (third.predictor.layers, third.predictor.parameters) == (("pool", "conv", "norm"), 32 + 64)
    assert (second.coarse.parameters, third.coarse.parameters) == (
        9 * 16 * 32 + 9 * 32 * 32 + 512,
        9 * 32 * 64 + 9 * 64 * 64 + 2048,
    )
    assert describe(plan)["blocks"][1]["coarse"]["parameters"] == second.coarse.parameters
    assert "blocks" not in describe(estimated(*DEEP, stages=3))
    show(plan, as_json=False)
    printed = capsys.readouterr().out
    assert "pool, conv, norm: 96" in printed
    assert (
        f"add {48 + 96 + second.coarse.parameters + third.coarse.parameters:,} parameters to the {sum_of(plan):,}"
        in printed
    )


def test_a_flatten_before_the_head_is_no_fine_block_of_its_own():
    """It learns nothing, so it stays with the block before it, as in other schedules."""
    plan = answer(Question(str(ROOT / "jobs/layers.toml"), ("schedule.name=parareal",), stages=3, estimated=True))
    assert plan.starts == ("batch_norm1", "residual1")
    assert plan.blocks[2].fine > 0
    with pytest.raises(InputError, match=r"^grid\.stages: .*so this can be at most 3, got 4"):
        answer(Question(str(ROOT / "jobs/layers.toml"), ("schedule.name=parareal",), stages=4, estimated=True))


def test_what_is_beside_fine_blocks_is_measured_once_and_kept(tmp_path):
    settings = ("model.widths=[8,8,6,6]", "schedule.name=parareal", "data.batch=16")
    question = Question(overrides=settings, stages=3, profile=tmp_path / "profile.json")
    first, again = answer(question), answer(question)
    assert first.source.startswith("measured now, kept in ")
    assert again.source.startswith("measured before: ")
    assert (first.blocks, first.forecasts) == (again.blocks, again.forecasts)
    assert all(block.coarse.seconds > 0 and block.predictor.seconds > 0 for block in first.blocks[1:])
    with pytest.raises(InputError, match=r"is the profile of something else: .*beside"):
        answer(Question(overrides=settings[:1] + settings[2:], stages=3, profile=tmp_path / "profile.json"))


def test_small_messages_are_better_gathered():
    narrow = ("model.widths=[8,8,8,8,8]", "schedule.name=parareal", "data.batch=32")
    plan = estimated(*narrow, stages=4)
    assert plan.sweep[0].startswith("coarse sweep gathered on the last stage: its messages take about ")
    assert plan.forecasts[-1].seconds < plan.forecasts[-2].seconds
    for settings, said in (
        ({"stages": 2}, "coarse sweep from stage to stage: there is one coarse network"),
        ({"stages": 4, "sweep": "chain"}, "coarse sweep from stage to stage: schedule.sweep is chain"),
        ({"stages": 4, "iterations": 2}, "coarse sweep from stage to stage: there are 2 sweeps"),
    ):
        more = [f"schedule.{key}={value}" for key, value in settings.items() if key != "stages"]
        assert estimated(*narrow, *more, stages=settings["stages"]).sweep == (said,)


def sum_of(plan: Plan) -> int:
    return sum(block.fine for block in plan.blocks)


def test_a_parareal_network_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"schedule\.iterations: 2 fine blocks are exact after 2 sweeps"):
        estimated(*DEEP, "schedule.name=parareal", "schedule.iterations=3", stages=2)
    with pytest.raises(InputError, match=r"grid\.stages: the model has 3 units"):
        estimated(*DEEP, "schedule.name=parareal", stages=4)
