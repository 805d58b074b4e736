"""The plan of a population on many ranks: shards send nothing, and take the share of their panels."""

import pytest
from launch import alone
from planned import cluster
from train_jobs import summary

from mpinn.array import ops as plain
from mpinn.commands.member_plan import shard_plans
from mpinn.consensus.registry import CONSENSUSES
from mpinn.datasets.source import open_source
from mpinn.errors import InputError
from mpinn.nn.packed import population_of
from mpinn.partition.costs import Link
from mpinn.scaling.advice import advise
from mpinn.scaling.answer import Inquiry, compare, outlook
from mpinn.scaling.collectives import all_reduce
from mpinn.scaling.population import PopulationPlanner, Steps, steps_of
from mpinn.scaling.predict import Samples
from mpinn.scaling.report import lines
from mpinn.training.choices import build_model, outputs_of, read_config

SETTINGS = ("model.name=population", "model.widths={from = 1, to = 100}", "model.repetitions=2", "data.batch=64")
TIMES = Steps({1: 0.02, 32: 0.17, 64: 0.32}, "made up")


def population(*settings, on=None, scaling="strong", train=10**6, gpu=False):
    config = read_config(None, (*SETTINGS, *settings))
    model = build_model(config, (64,), 10)
    found = population_of(model.network)
    planner = PopulationPlanner(config, model, found, TIMES, on or cluster(), Samples(train, 0), scaling, gpu)
    return planner, config, model


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
@pytest.mark.parametrize("settings", [(), ("optimizer.name=adam", "model.patience=3"), ("model.layers=[1, 2]",)])
@pytest.mark.parametrize("gpu", [False, True])
def test_a_shard_takes_and_holds_what_its_plan_says(shards, settings, gpu):
    planner, config, model = population(*settings, gpu=gpu)
    one, own = planner.predict(shards, 1), shard_plans(config, model, shards, 64, gpu)
    assert one.seconds == pytest.approx(0.32 * max(row.share for row in own))
    assert one.memory == max(row.vectors + row.buffers for row in own)
    assert (one.sent, one.exchanging, one.changes) == (0, 0, "")
    assert one.efficiency == pytest.approx(1 / shards / max(row.share for row in own))


def test_replicas_of_shards_sum_a_gradient():
    link = Link(1e9, 1e-5)
    planner, config, model = population(on=cluster(link))
    one, own = planner.predict(2, 4), shard_plans(config, model, 2, 16)
    size = max(row.vectors for row in own) // 3
    # the line between one sample and 32
    busy = 0.02 + 15 / 31 * 0.15
    assert one.sent == size
    assert one.seconds == pytest.approx(busy * max(row.share for row in own) + all_reduce(link, 4, size, float("inf")))
    assert (one.ranks, one.local) == (8, 16)


def test_replicas_that_meet():
    link = Link(1e9, 1e-5)
    score = ("consensus.name=averaging", "consensus.period=5 steps", "consensus.score=uniform")
    planner, config, model = population(*score, on=cluster(link))
    gradients, averaging = planner.predict(2, 4), planner.predict(2, 4, "averaging")
    own = shard_plans(config, model, 2, 16)
    size = max(row.vectors for row in own) // 3
    members = next(row.members for row in own if row.vectors == 3 * size)
    assert (gradients.changes, averaging.changes) == ("", "meets every 5 steps")
    assert averaging.sent == (size + 8 * members + 3 * 4 * 8) / 5
    assert averaging.memory == max(row.vectors // 3 * 4 + row.buffers for row in own)
    sums = all_reduce(link, 4, size, float("inf")) + 2 * link.latency + 3 / 4 * 4 * 8 * members / link.bandwidth
    assert averaging.exchanging == pytest.approx(sums / 5)
    assert averaging.seconds == pytest.approx(gradients.seconds - gradients.exchanging + averaging.exchanging)
    scored = {
        score: population("consensus.name=averaging", "consensus.period=5 steps", f"consensus.score={score}",
                          on=cluster(link), train=800)[0].predict(2, 4, "averaging").exchanging
        for score in ("samples", "accuracy_shard")
    }  # fmt: skip
    # a third of the step of 64 for each of the 200 samples of a replica, of which the larger shard takes its share
    share = max(row.share for row in own)
    assert scored["samples"] == pytest.approx(averaging.exchanging)
    assert scored["accuracy_shard"] - scored["samples"] == pytest.approx(200 * 0.32 / 64 / 3 * share / 5)
    assert {one.consensus for one in planner.predictions(2)} == {*CONSENSUSES}
    assert [one.consensus for one in planner.predictions(2) if one.shards == 2] == ["gradients"]
    gossip = planner.predict(2, 4, "gossip")
    assert (gossip.sent, gossip.memory) == (
        2 * size,
        max(row.vectors + row.vectors // 3 * 2 + row.buffers for row in own),
    )
    assert gossip.exchanging == pytest.approx(2 * (link.latency + size / link.bandwidth))


def test_a_consensus_that_members_cannot_have_is_not_advised():
    planner, _, _ = population("consensus.name=averaging", "consensus.score=fisher")
    assert {one.consensus for one in planner.predictions(2)} == {*CONSENSUSES} - {"averaging"}


@pytest.mark.parametrize(
    "settings",
    [
        ("consensus.name=averaging", "consensus.period=6 steps", "consensus.slots=average"),
        ("consensus.name=averaging", "consensus.period=6 steps", "consensus.score=best"),
        ("consensus.name=outer", "consensus.period=6 steps"),
        ("consensus.name=gossip", "consensus.period=2 steps"),
        ("consensus.name=gradients", "consensus.bucket=0.05"),
        ("consensus.name=none",),
    ],
)
def test_replicas_send_what_is_predicted(settings, tmp_path, crews):
    name = settings[0].removeprefix("consensus.name=")
    settings = (*SETTINGS, "data.batch=200", "train.epochs=3", "grid.replicas=2", "grid.shards=2", *settings)
    done = crews.train(4, tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    planner, _, _ = population(*settings[len(SETTINGS) :], train=1197)
    sent = [rank["bytes"] for rank in summary(tmp_path / "run")["ranks"]]
    assert max(sent) == 18 * planner.predict(2, 2, name).sent


def most(panels):
    """The largest power of two that is no more."""
    return 2 ** (panels.bit_length() - 1)


def test_grids_end_with_panels_and_samples():
    planner, _, model = population()
    panels = len(population_of(model.network).panels)
    assert planner.refusal(panels + 1, 1) == f"the members make {panels} panels, which are never cut"
    assert planner.refusal(1, 65) == "65 replicas can't share a batch of 64 samples"
    assert list(planner.grids(2)) == [(1, 2), (2, 1)]
    assert planner.why_not(2) == ""
    assert planner.why_not(100_003) == "100,003 replicas can't share a batch of 64 samples"
    assert planner.why_not(2048).endswith(f"can't share a batch of 64 samples, even with {most(panels)} shards")
    weak, _, _ = population(scaling="weak", train=640)
    assert weak.refusal(2, 11) == "11 batches of 64 are more than the 640 training samples"
    (advice,), everything = advise(planner, [4], 0)
    assert {(one.shards, one.replicas) for one in everything} == {(1, 4), (2, 2), (4, 1)}
    assert advice.exact.seconds == min(one.seconds for one in everything)


def test_steps_are_measured_or_counted():
    config = read_config(None, (*SETTINGS, "run.kernels=plain", "data.batch=8"))
    source = open_source(config.data)
    model = build_model(config, source.sample_shape, outputs_of(source.summary()))
    found = population_of(model.network)
    counted = steps_of(config, model, found, source, plain, measured=False)
    assert counted.of(8) == pytest.approx(8 * counted.of(1))
    assert counted.of(16) == pytest.approx(16 * counted.of(1))
    measured = steps_of(config, model, found, source, plain, measured=True)
    assert sorted(measured.seconds) == [1, 2, 8]
    assert min(measured.seconds.values()) > 0


def test_what_is_printed_and_refused():
    told = lines(outlook(Inquiry(overrides=SETTINGS, ranks="1-64", estimated=True)))
    assert told[0] == "population on digits, float32; 1,197 samples"
    (recommended,) = [line for line in told if line.startswith("recommended: ")]
    assert "(replicas x shards), shards: " in recommended
    assert not any(line.startswith("\nstep and grid on") for line in told)
    with pytest.raises(InputError, match=r"^--check: the shards of a population send each other nothing"):
        compare(Inquiry(overrides=SETTINGS))


def test_a_plan_for_gpus_needs_none():
    def memory(*settings):
        told = outlook(Inquiry(overrides=(*SETTINGS, *settings), ranks="1", estimated=True))
        return told.cluster.name, told.predictions[0].memory

    _, config, model = population()
    rows = [shard_plans(config, model, 1, 64, gpu)[0] for gpu in (False, True)]
    expected = [row.vectors + row.buffers for row in rows]
    assert memory("run.device=cpu") == ("cpu-hdr", expected[0])
    assert memory("run.device=gpu") == ("h100-ndr", expected[1])


def test_the_command():
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    job = alone("-m", "mpinn", "plan", "--ranks", "1,4", "--estimated", *settings)
    assert (job.returncode, job.stderr) == (0, "")
    assert "1 x 4" in job.stdout
