"""Predictions in the limits: free messages, one rank, even stages, few cores, very many ranks; and by hand."""

from itertools import pairwise

import pytest
from planned import EVEN, FREE, cluster, planner

from mpinn.consensus.registry import CONSENSUSES
from mpinn.consensus.scores import SCORES
from mpinn.partition.costs import Link
from mpinn.scaling import exchange, statistics, traffic
from mpinn.scaling.collectives import all_reduce
from mpinn.scaling.traffic import Course
from mpinn.schedules.registry import SCHEDULES
from mpinn.training.choices import read_config

ONE = 8 * 3e-3
"""Seconds of a step on one rank: eight units of a millisecond forward and two backward."""
SLOW = Link(1e8, 1e-4)
STAGED = [name for name, options in SCHEDULES.items() if options.staged]


def test_every_schedule_and_consensus_of_the_registries_is_predicted():
    for known in (traffic.STAGES, statistics.SCHEDULES):
        assert set(known) == set(SCHEDULES)
    for known in (traffic.REPLICAS, exchange.EXCHANGES, exchange.HELD, statistics.CONSENSUSES):
        assert set(known) == set(CONSENSUSES)
    assert set(exchange.SCORED) == set(SCORES)
    known = planner().predictions(4)
    assert {one.schedule for one in known} == {"serial", *STAGED}
    assert {one.consensus for one in known} == set(CONSENSUSES)


def test_free_messages_give_the_ideal_speed_up_of_replicas():
    known = planner()
    for replicas in (1, 2, 3, 16, 64):
        for consensus in CONSENSUSES:
            one = known.predict("serial", consensus, 1, replicas)
            share = -(-64 // replicas) / 64
            assert one.seconds == pytest.approx(ONE * share)
            assert one.efficiency == pytest.approx(1 / share / replicas)
            assert one.exchanging == pytest.approx(0, abs=1e-12)


def test_one_rank_is_serial_whatever_the_consensus_and_the_network():
    known = planner(on=cluster(SLOW))
    for one in known.predictions(1):
        assert (one.schedule, one.stages, one.replicas) == ("serial", 1, 1)
        assert one.seconds == pytest.approx(ONE)
        assert (one.speedup, one.efficiency, one.sent, one.changes) == (1, 1, 0, "")


@pytest.mark.parametrize(("stages", "pieces"), [(2, 4), (4, 8), (8, 4)])
def test_bubbles_of_pipelines(stages, pieces):
    """(K - 1) / (M + K - 1) of a step (Huang et al. 2019)."""
    for schedule in ("gpipe", "1f1b"):
        known = planner(f"schedule.name={schedule}", f"schedule.micro_batches={pieces}")
        one = known.predict(schedule, "gradients", stages, 1)
        assert one.seconds == pytest.approx(ONE / stages * (pieces + stages - 1) / pieces)
        assert 1 - one.computing / one.seconds == pytest.approx((stages - 1) / (pieces + stages - 1))
    assert planner().predict("naive", "gradients", stages, 1).seconds == pytest.approx(ONE)


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_ideal_speed_ups_of_decoupled_stages(stages):
    known = planner()
    # of two stages under fr the last one, which runs nothing again, has five units of eight
    replayed = ONE / (5 * 3e-3) if stages == 2 else 3 * stages / 4
    for schedule, ideal in (("fdg", stages), ("ddg", stages), ("local", stages), ("fr", replayed)):
        assert known.predict(schedule, "gradients", stages, 1).speedup == pytest.approx(ideal)


@pytest.mark.parametrize(("name", "recompute"), [("fdg", True), ("layerwise", False), ("fr", True), ("fr", False)])
def test_what_is_predicted_follows_the_options(name, recompute):
    settings = (f"schedule.name={name}", f"schedule.recompute={str(recompute).lower()}")
    one = planner(*settings).predict(name, "gradients", 2, 1)
    # four units on each of two stages, but the first has three if it runs them twice: 3 x 4 ms and 5 x 3 ms
    assert one.seconds == pytest.approx(max(3 * 4e-3, 5 * 3e-3) if recompute else ONE / 2)
    passes = 3 * 4e-3 + 5 * 3e-3 if recompute else ONE
    assert one.computing == pytest.approx(passes / 2)


def test_a_sum_of_gradients_by_hand():
    known = planner("consensus.name=gradients", "consensus.bucket=1.0", on=cluster(SLOW, reduction=1e9))
    one = known.predict("serial", "gradients", 1, 4)
    # eight layers: 64 x 32, six of 32 x 32 and 32 x 10, with biases that are padded to 256 bytes
    size = 4 * (64 * 32 + 6 * 32 * 32 + 32 * 10) + 8 * 256
    assert one.sent == size
    assert one.seconds == pytest.approx(ONE / 4 + all_reduce(SLOW, 4, size, 1e9))
    assert one.exchanging == pytest.approx(all_reduce(SLOW, 4, size, 1e9))


def test_meetings_are_shared_out_over_their_period():
    settings = ("consensus.score=uniform", "consensus.period=10 steps")
    known = planner(*settings, on=cluster(SLOW))
    one = known.predict("serial", "averaging", 1, 2)
    gather, size = 1e-4 + 8 / 1e8, 4 * (64 * 32 + 6 * 32 * 32 + 32 * 10) + 8 * 256
    assert one.seconds == pytest.approx(ONE / 2 + (gather + all_reduce(SLOW, 2, size, float("inf"))) / 10)
    assert one.sent == (size + 8) / 10
    # a pipeline is emptied before: 2 (K - 1) steps more of fdg, none where what is in flight is kept
    free = planner(*settings).predict("fdg", "averaging", 2, 2)
    assert free.seconds == pytest.approx(ONE / 4 * (1 + 2 / 10))
    kept = planner(*settings, "consensus.in_flight=keep").predict("fdg", "averaging", 2, 2)
    assert kept.seconds == pytest.approx(ONE / 4)


def test_scores_are_measured_at_meetings():
    """Forward passes of a sample take an eighth of a millisecond: a millisecond in each unit for 64."""

    def extra(score, *settings, stages=1):
        known = planner(f"consensus.score={score}", "consensus.period=10 steps", *settings, train=6400, validation=320)
        schedule = "serial" if stages == 1 else "gpipe"
        one, other = (known.predict(schedule, consensus, stages, 2) for consensus in ("averaging", "none"))
        return 10 * (one.seconds - other.seconds)

    forward = 8e-3 / 64
    for score in SCORES:
        expected = 0.0
        if score in ("accuracy", "inverse_loss", "boltzmann", "inverse_error", "best"):
            expected = 320 * forward
        elif score == "accuracy_shard":
            expected = 3200 * forward
        elif score == "fisher":
            # sample by sample: a prediction, and both passes
            expected = 64 * 4 * forward
        assert extra(score) == pytest.approx(expected, abs=1e-12), score
    assert extra("fisher", "consensus.fisher_samples=10") == pytest.approx(10 * 4 * forward)
    # stages measure a pipeline's batches one behind the other, each with half of the units
    assert extra("accuracy", stages=2) == pytest.approx(320 * forward / 2)


def test_gossip_sends_to_its_neighbours_only():
    for graph, count in (("ring", 2), ("torus", 4), ("complete", 15)):
        known = planner("consensus.name=gossip", f"consensus.graph={graph}", on=cluster(SLOW))
        one = known.predict("serial", "gossip", 1, 16)
        size = one.sent / count
        assert one.seconds == pytest.approx(ONE / 16 + count * SLOW.seconds(size))


def one_bucket(known):
    link, size = known.cluster.inside, 4 * (64 * 32 + 6 * 32 * 32 + 32 * 10) + 8 * 256
    return pytest.approx(ONE / 4 + all_reduce(link, 4, size, float("inf")))


def test_sums_may_overlap_with_the_backward_pass():
    buckets = ("consensus.name=gradients", "consensus.bucket=0.001")
    apart, beside = (planner(*buckets, on=cluster(Link(1e7, 1e-6), overlap=overlap)) for overlap in (False, True))
    alone, whole, hidden = (
        one.predict("serial", "gradients", 1, 4).seconds for one in (planner(), apart, beside)
    )  # fmt: skip
    assert alone < hidden < whole
    # one bucket leaves when the backward pass is over
    one, other = (planner(on=cluster(Link(1e7, 1e-6), overlap=overlap)) for overlap in (False, True))
    assert [known.predict("serial", "gradients", 1, 4).seconds for known in (one, other)] == [one_bucket(one)] * 2


def test_ranks_that_share_cores_take_as_long_as_their_work():
    known = planner(on=cluster(ranks=4, cores=2))
    assert known.predict("serial", "gradients", 1, 2).seconds == pytest.approx(ONE / 2)
    assert known.predict("serial", "gradients", 1, 4).seconds == pytest.approx(ONE / 2)
    assert known.predict("fdg", "gradients", 4, 1).seconds == pytest.approx(ONE / 2)
    # one stage at a time needs one core
    assert known.predict("naive", "gradients", 4, 1).seconds == pytest.approx(ONE)
    # other nodes have cores of their own
    assert known.predict("serial", "gradients", 1, 8).seconds == pytest.approx(ONE / 4)


def test_updates_and_samples_take_their_time_where_they_are():
    known = planner(update=8e-3, samples=1e-3)
    assert known.predict("serial", "gradients", 1, 1).seconds == pytest.approx(ONE + 9e-3)
    assert known.predict("serial", "gradients", 1, 2).seconds == pytest.approx(ONE / 2 + 8e-3 + 0.5e-3)
    stages = known.depths.depth("fdg", 8, 64)
    assert sum(stages.updates) == pytest.approx(8e-3)
    # a stage that runs on as it can has its own update in its pace, and no other; the first has 64 inputs
    pace = known.predict("fdg", "gradients", 8, 1).seconds
    assert pace == pytest.approx(max(3e-3 + stages.updates[0], 3e-3 + stages.updates[-1] + 1e-3))
    slow = Link(1e7, 0.0)
    shared = planner(update=8e-3, samples=1e-3, on=cluster(FREE, slow, ranks=8)).predict("fdg", "gradients", 8, 2)
    sizes = [4 * piece.parts[0].weights for piece in stages.pieces]
    assert shared.seconds == pytest.approx(
        max(1.5e-3 + stages.updates[0] + sizes[0] / 1e7, 1.5e-3 + stages.updates[-1] + 0.5e-3 + sizes[-1] / 1e7)
    )
    weights = [piece.parts[0].weights for piece in stages.pieces]
    assert [update / 8e-3 for update in stages.updates] == pytest.approx([one / sum(weights) for one in weights])


def test_strong_scaling_shares_the_batch_and_weak_scaling_multiplies_it():
    strong, weak = (planner(scaling=scaling).predict("serial", "gradients", 1, 4) for scaling in ("strong", "weak"))
    assert (strong.batch, strong.local, weak.batch, weak.local) == (64, 16, 256, 64)
    assert (strong.seconds, weak.seconds) == pytest.approx((ONE / 4, ONE))
    assert (strong.efficiency, weak.efficiency) == pytest.approx((1, 1))
    assert strong.throughput == pytest.approx(64 / (ONE / 4))


def test_no_latency_and_no_bytes_more_ever_make_a_step_shorter():
    links = [FREE, Link(1e10, 1e-6), Link(1e10, 1e-4), Link(1e8, 1e-4)]
    rows = [planner(on=cluster(link)).predictions(8) for link in links]
    for before, after in pairwise(rows):
        for one, other in zip(before, after, strict=True):
            assert other.seconds >= one.seconds * (1 - 1e-12), (one.schedule, one.consensus)


def test_grids_that_cannot_be_are_not_proposed():
    known = planner()
    assert list(known.grids(12)) == [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2)]
    # 65 replicas cannot share 64 samples, and there are eight units
    assert list(known.grids(65)) == [(5, 13)]
    assert list(known.grids(1024)) == []
    assert known.why_not(64) == ""
    assert known.why_not(1024) == "128 replicas can't share a batch of 64 samples, even with 8 stages"
    assert known.why_not(67) == "67 replicas can't share a batch of 64 samples"
    weak = planner(scaling="weak", train=6400)
    assert weak.why_not(100) == ""
    assert weak.why_not(101) == "101 batches of 64 are more than the 6,400 training samples"
    same = planner("data.deal=same")
    assert same.refusal(1, 48) == "64 samples cannot be divided by 48 replicas, as data.deal = 'same' needs"
    # no fine block is the head alone
    assert known.depths.refusal("parareal", 7) == ""
    assert known.depths.refusal("parareal", 8) == "the model can be cut into 7 stages"
    assert known.depths.refusal("serial", 2) == "it has one stage"


def test_very_many_ranks_are_no_more_work():
    known = planner(scaling="weak", on=cluster(Link(1e10, 1e-6), Link(1e9, 1e-5), ranks=8))
    few = known.predictions(64)
    found = len(known.depths._known)
    many = known.predictions(2**16)
    assert len(known.depths._known) == found
    assert len(many) == len(few)
    last = known.predictions(100_000)
    assert {(one.stages, one.replicas) for one in last} == {(k, 100_000 // k) for k in (1, 2, 4, 5, 8)}


def test_memory_by_hand():
    known = planner(train=64 * 1000)
    weights = 4 * (64 * 32 + 6 * 32 * 32 + 32 * 10) + 8 * 256
    flying = 64 * (8 * 300 + 100)

    def memory(consensus, stages=1, replicas=1, schedule="serial"):
        return known.predict(schedule, consensus, stages, replicas).memory

    # weights, gradients and momentum
    assert memory("gradients") == 3 * weights + flying
    assert memory("gradients", replicas=4) == 3 * weights + flying // 4
    # 22 samples, and in turn 21
    assert memory("gradients", replicas=3) == 3 * weights + 2 * 22 * (8 * 300 + 100)
    assert memory("averaging", replicas=4) == 4 * weights + flying // 4
    assert memory("outer", replicas=4) == 6 * weights + flying // 4
    assert memory("gossip", replicas=4) == 5 * weights + flying // 4
    # the first of two stages: two batches in flight, the weights of both
    stage = known.depths.depth("fdg", 2, 64)
    own = 4 * stage.pieces[0].parts[0].weights
    held = 64 * (4 * 300 + 100)
    assert stage.held[0] == 2 * held + 2 * 4 * 4000
    assert memory("gradients", 2, 1, "fdg") == 3 * own + stage.held[0]
    # a smaller batch at the end of an epoch has buffers too
    ragged = planner(train=64 * 1000 + 32).predict("serial", "gradients", 1, 1)
    assert ragged.memory == 3 * weights + flying * 3 // 2


def test_what_is_not_exact_says_what_it_changes():
    told = {
        (one.schedule, one.consensus): one.changes
        for one in planner("consensus.period=7 steps").predictions(16)
        if (one.stages, one.replicas) in ((1, 16), (4, 4))
    }
    exact = {pair for pair, changes in told.items() if not changes}
    assert exact == {(schedule, "gradients") for schedule in ("serial", "naive", "gpipe", "1f1b")}
    assert told["fdg", "gradients"] == "gradients up to 5 updates old"
    assert told["ddg", "gradients"] == told["fr", "gradients"] == "gradients up to 3 updates old"
    assert told["layerwise", "gradients"] == "gradients up to 6 updates old"
    assert told["serial", "averaging"] == "meets every 7 steps"
    assert told["ddg", "gossip"] == "gradients up to 3 updates old, mixes with neighbours on a ring"
    assert told["serial", "none"] == "16 models that never meet"
    assert told["parareal", "gradients"] == "another network"


def test_a_cut_that_is_configured_is_kept():
    config = read_config(None, (*EVEN, 'schedule.cut=["hidden2"]', "schedule.name=fdg"))
    known = planner('schedule.cut=["hidden2"]', "schedule.name=fdg")
    assert known.config.schedule == config.schedule
    assert known.depths.bounds("fdg", 2, 64) == (0, 2, 9)
    assert known.depths.bounds("gpipe", 2, 64) != (0, 2, 9)


@pytest.mark.parametrize(("period", "accumulate", "mixes"), [(3, 1, 8), (3, 2, 8), (2, 4, 6), (1, 5, 5), (25, 2, 0)])
def test_an_update_mixes_once_if_one_of_its_batches_is_due(period, accumulate, mixes):
    assert Course(24, 4, period, accumulate).mixes == mixes
    settings = ("schedule.name=fdg", f"schedule.accumulate={accumulate}", f"consensus.period={period} steps")
    known = planner("consensus.name=gossip", *settings, on=cluster(SLOW))
    each = planner("consensus.name=gossip", "schedule.name=fdg", on=cluster(SLOW)).predict("fdg", "gossip", 2, 2)
    one = known.predict("fdg", "gossip", 2, 2)
    assert one.exchanging == pytest.approx(each.exchanging / max(period, accumulate))
