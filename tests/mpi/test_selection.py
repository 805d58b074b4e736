"""Members that move to other panels, and to other ranks, take all that is theirs with them."""

import numpy as np
import pytest
from packs import members, own

from mpinn.comm.grid import World
from mpinn.nn.network import Network
from mpinn.nn.packed import LAYER, Packed, packed
from mpinn.nn.part import Part, build_part
from mpinn.population.selection import Held, move

pytestmark = pytest.mark.mpi

SLOTS = ("momentum", "best")
SEVERAL = members([(3,), (900,), (40, 2), (700,)], ["relu", "tanh", "gelu"])


def part_of(pack: Packed) -> Part:
    return build_part("network", Network(((LAYER, pack),)), (2, 3), np.dtype(np.float32), SLOTS)


def vectors(part: Part) -> list[np.ndarray]:
    return [part.weights, *part.slots.values()]


def number(part: Part, member: int) -> None:
    """Give every number of a member a value that no other number has, whatever rank it is on."""
    values = np.random.default_rng(member)
    for vector in vectors(part):
        for arrays in own(part, member, vector).values():
            for array in arrays.values():
                array[...] = values.normal(size=array.shape)


@pytest.mark.parametrize("kept", [range(12), range(0, 12, 2), [7], [1, 2, 5, 9, 10]], ids=str)
def test_survivors_keep_their_weights_and_what_the_optimizer_remembers(world: World, kept: list[int]) -> None:
    channel, shape = world.channel("shards"), (2, 3)
    before, shards = packed(SEVERAL, 4), world.size
    after = before.only({*kept})
    old, new = (part_of(pack.shard(world.rank, shards, shape)) for pack in (before, after))
    owners = before.dealt(shards, shape), after.dealt(shards, shape)
    for member, rank in owners[0].items():
        if rank == world.rank:
            number(old, member)
    move(channel, (Held(old), Held(new)), owners)
    mine = [member for member, rank in owners[1].items() if rank == world.rank]
    assert sorted(owners[1]) == sorted(kept)
    expected = part_of(after.shard(world.rank, shards, shape))
    for member in mine:
        number(expected, member)
    for one, other in zip(vectors(new), vectors(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    travelled = channel.meter.counts.get("send", (0, 0))[0]
    leaving = {owners[1][m] for m in kept if owners[0][m] == world.rank} - {world.rank}
    assert travelled == len(leaving)
