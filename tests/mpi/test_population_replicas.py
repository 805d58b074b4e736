"""Replicas of a population: every member is averaged as the network that it is, with weights of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from consensus_oracles import OuterStep, gossip, outer
from oracles import Average, Disturb, Problem, averaging, clusters
from packs import alone, members, own, population, write
from replicated import STEPS, averaging_of

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel, NullChannel
from mpinn.comm.grid import World
from mpinn.config import Period
from mpinn.consensus.consensus import Consensus, Meeting
from mpinn.consensus.gossip import GossipOptions
from mpinn.consensus.outer import OuterOptions
from mpinn.consensus.scores import SCORES
from mpinn.nn.optimizer import SGD
from mpinn.nn.packed import Member
from mpinn.nn.part import BEST, Part
from mpinn.population.measure import MemberMeasure, MemberReplicaMeasure
from mpinn.population.ranking import Ranking
from mpinn.population.update import MemberUpdate
from mpinn.schedules.members import Members

pytestmark = pytest.mark.mpi

SEVERAL = members([(3,), (900,), (40, 2), (5, 5), (700,)], ["relu", "tanh"])
"""10 members in 6 panels, and neighbours in a panel that are not neighbours by number."""
PROBLEM = Problem(source=clusters(noise=2.0), deal="fixed", optimizer=SGD(rate=0.05, momentum=0.8))
BROKEN = SEVERAL[3]


@dataclass(frozen=True, kw_only=True)
class Alone(Problem):
    """One member, as the network that it is."""

    member: Member

    def part(self) -> Part:
        return alone(everyone(self), self.member, self.source.sample_shape, slots=self.optimizer.slots)


def everyone(problem: Problem) -> Part:
    slots = (*problem.optimizer.slots, BEST)
    return population(SEVERAL, problem.source.sample_shape, problem.source.classes, problem.dtype, slots)


@pytest.fixture
def channel(world: World) -> Channel:
    return world.channel("replicas")


def broken(step: int, replica: int) -> bool:
    return (step, replica) == (1, 1)


@dataclass
class Trained:
    part: Part
    meetings: list[Meeting]
    merges: list[Array]


def train(channel: Channel, consensus: Consensus, breaks: bool = False) -> Trained:
    """Train this rank's replica of all members."""
    part, batches = everyone(PROBLEM), PROBLEM.batches(channel.size, channel.rank)
    part.slots[BEST].fill(7)
    schedule = Members(part, PROBLEM.loss, PROBLEM.seed)
    consensus.prepare(schedule.parts)
    update = MemberUpdate(consensus, PROBLEM.optimizer, PROBLEM.rate, 0.0, schedule.parts)
    found = Trained(part, [], [])
    for step in range(STEPS):
        if breaks and broken(step, channel.rank):
            own(part, BROKEN.number)["hidden1"]["weight"][0] = np.nan
        schedule.step(batches.batch(step), update)
        shards = NullChannel("shards")
        measure = MemberReplicaMeasure(schedule, batches, step + 1, PROBLEM.seed, channel.rank, shards)
        meeting = consensus.weights(schedule.parts, step + 1, measure, last=step + 1 == STEPS)
        if meeting is not None:
            found.meetings.append(meeting)
            found.merges.append(consensus.merge.copy())
    consensus.close()
    return found


def single(member: Member) -> Alone:
    return Alone(**vars(PROBLEM), member=member)


def breaking(member: Member, breaks: bool) -> Disturb:
    def disturb(step: int, replica: int, part: Part) -> None:
        if breaks and member is BROKEN and broken(step, replica):
            part.weight_views["hidden1"]["weight"].reshape(-1)[0] = np.nan

    return disturb


def assert_alike(part: Part, member: Member, wanted: Part) -> None:
    """The member has the weights and the momentum that it has alone."""
    for name in ("weights", *PROBLEM.optimizer.slots):
        found = alone(part, member, PROBLEM.source.sample_shape)
        write(found.weight_views, own(part, member.number, part.slots.get(name, part.weights)))
        np.testing.assert_allclose(found.weights, wanted.slots.get(name, wanted.weights), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("breaks", [False, True], ids=["", "broken"])
@pytest.mark.parametrize(
    "average",
    [
        *(Average(score=score) for score in SCORES if score != "fisher"),
        Average(score="accuracy", mix=0.6, slots="reset"),
        Average(score="inverse_loss", mix=0.6, slots="average"),
        Average(score="boltzmann", sharpness=40.0),
    ],
    ids=str,
)
def test_every_member_meets_as_if_it_were_alone(channel: Channel, average: Average, breaks: bool) -> None:
    consensus = averaging_of(channel, average)
    trained = train(channel, consensus, breaks)
    part, place = trained.part, {member.number: place for place, member in enumerate(order(trained.part))}
    for member in SEVERAL:
        parts, rounds = averaging(single(member), channel.size, average, STEPS, breaking(member, breaks))
        assert_alike(part, member, parts[channel.rank])
        assert len(trained.merges) == len(rounds)
        for merge, round in zip(trained.merges, rounds, strict=True):
            np.testing.assert_allclose(merge[:, place[member.number]], round.weights, rtol=1e-9)
    if channel.size > 1 and average.score not in ("uniform", "samples"):
        # the weights of one member would not do for another
        assert all((merge != merge[:, :1]).any() for merge in trained.merges)
    assert (part.slots[BEST] == 7).all()
    check_told(trained.meetings, trained.merges, channel.size, breaks)


def test_a_member_that_is_lost_on_all_replicas_counts_for_nobody(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "broken", lambda step, replica: step == 1)
    average = Average(score="accuracy")
    trained = train(channel, averaging_of(channel, average), breaks=True)
    numbers = np.array([member.number for member in order(trained.part)])
    assert np.isnan(own(trained.part, BROKEN.number)["hidden1"]["weight"]).all()
    # nobody starts anew from a mean
    assert np.isnan(own(trained.part, BROKEN.number, trained.part.slots["momentum"])["output"]["bias"]).all()
    for member in SEVERAL:
        if member is not BROKEN:
            assert_alike(trained.part, member, averaging(single(member), channel.size, average, STEPS)[0][channel.rank])
    for meeting, merge in zip(trained.meetings, trained.merges, strict=True):
        assert meeting.members == 0
        assert (merge[:, numbers == BROKEN.number] == 1 / channel.size).all()
        np.testing.assert_allclose(meeting.weights, merge[:, numbers != BROKEN.number].mean(axis=1))
        assert np.isfinite(meeting.scores).all()


def order(part: Part) -> Sequence[Member]:
    return part.chain.layers[0][1].members


def check_told(meetings: list[Meeting], merges: list[Array], replicas: int, breaks: bool) -> None:
    """What the meetings say of all members together."""
    assert [meeting.members for meeting in meetings] == [int(breaks), *[0] * (len(meetings) - 1)][: len(meetings)]
    for meeting, merge in zip(meetings, merges, strict=True):
        np.testing.assert_allclose(meeting.weights, merge.mean(axis=1))
        assert meeting.scores.shape == (replicas,)
        assert np.isfinite(meeting.scores).all()


@pytest.mark.parametrize("breaks", [False, True], ids=["", "broken"])
@pytest.mark.parametrize("score", ["uniform", "accuracy"])
def test_every_member_has_an_outer_optimizer_of_its_own(channel: Channel, score: str, breaks: bool) -> None:
    options = OuterOptions(score=score, period=Period("3 steps"))  # type: ignore[arg-type]
    part = train(channel, options.build(channel, 1), breaks).part
    for member in SEVERAL:
        parts, _ = outer(
            single(member), channel.size, Average(score=score), OuterStep(), STEPS, breaking(member, breaks)
        )
        assert_alike(part, member, parts[channel.rank])


def test_the_padding_of_a_start_is_zero_before_there_is_one(channel: Channel) -> None:
    """Members that are packed anew write theirs beside it, and the next weights come from all of it."""
    part, consensus = everyone(PROBLEM), OuterOptions().build(channel, 1)
    consensus.prepare({part.name: part})
    for layout, vector in consensus.memory.values():
        padding = np.ones(vector.size, bool)
        for entry in layout:
            padding[entry.slice] = False
        assert not vector[padding].any()
    assert len(consensus.memory) == (1 if channel.size == 1 else 3)


def test_between_meetings_a_member_is_merged_without_replicas_on_which_it_is_lost(channel: Channel) -> None:
    part = everyone(PROBLEM)
    schedule, ranking = Members(part, PROBLEM.loss, PROBLEM.seed), Ranking(len(SEVERAL), 3)
    consensus, batches = averaging_of(channel, Average()), PROBLEM.batches(channel.size, channel.rank)
    consensus.prepare(schedule.parts)
    consensus.gradients(part, batches.batch(0))
    if channel.rank == 0:
        own(part, BROKEN.number, part.weights)["output"]["bias"][0] = np.nan
    measure = MemberMeasure(schedule, batches, channel, consensus, channel, ranking)
    weights = measure.merge_weights()
    others = np.array([0, *[1 / (channel.size - 1)] * (channel.size - 1)]) if channel.size > 1 else np.ones(1)
    wanted = np.where(np.arange(len(SEVERAL)) == BROKEN.number, others[:, None], 1 / channel.size)
    np.testing.assert_allclose(weights, wanted, rtol=1e-15)


@pytest.mark.parametrize("form", ["adapt_then_combine", "combine_then_adapt"])
def test_members_mix_with_those_of_neighbours(channel: Channel, form: str) -> None:
    consensus = GossipOptions(form=form, period=Period("2 steps")).build(channel, 1)  # type: ignore[arg-type]
    part = train(channel, consensus).part
    for member in SEVERAL:
        parts = gossip(single(member), channel.size, "ring", form, 2, STEPS)
        assert_alike(part, member, parts[channel.rank])
