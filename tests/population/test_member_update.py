"""Every member has a rate, a weight decay and a norm of its own."""

from dataclasses import replace

import numpy as np
import pytest
from packs import alone, batches, members, own, population, train

from mpinn.array import cpu
from mpinn.array import ops as plain
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.nn.optimizer import SGD, Adam, AdamW, Optimizer
from mpinn.nn.part import Part
from mpinn.population.update import MemberUpdate
from mpinn.training.update import OptimizerUpdate

LIMIT = 0.5
"""A norm of the gradient that some members have passed in the last step, and others have not."""
SEVERAL = members([(3,), (6,), (4, 2)], ["relu", "tanh", "gelu"])


def update(
    part: Part, optimizer: Optimizer, kind: type[OptimizerUpdate] = MemberUpdate, clip: float = 0.0
) -> OptimizerUpdate:
    return kind(Independent(NullChannel("alone")), optimizer, lambda step: optimizer.rate, clip, {part.name: part})


@pytest.mark.parametrize("ops", [plain, cpu], ids=["plain", "compiled"])
@pytest.mark.parametrize(
    "optimizer", [SGD(rate=0.1, nesterov=True), Adam(rate=0.01), AdamW(rate=0.01, weight_decay=0.0)]
)
@pytest.mark.parametrize("clip", [0.0, LIMIT])
def test_members_train_as_if_alone_with_their_own_numbers(ops, optimizer: Optimizer, clip: float) -> None:  # type: ignore[no-untyped-def]
    rates, decays = [0.02, 0.05, None], [None, 0.3, 0.01]
    several = [
        replace(member, rate=rates[member.number % 3], weight_decay=decays[member.number // 3 % 3])
        for member in SEVERAL
    ]
    rng = np.random.default_rng(2)
    steps = batches(rng.normal(size=(40, 5)), rng.integers(0, 3, 40), 16, 4)
    together = population(several, (5,), slots=optimizer.slots, ops=ops)
    singles = [alone(together, member, (5,), slots=optimizer.slots) for member in several]
    train(together, steps, update(together, optimizer, clip=clip))
    clipped = 0
    for member, single in zip(several, singles, strict=True):
        rate, decay = member.rate, member.weight_decay
        its = replace(
            optimizer,
            rate=optimizer.rate if rate is None else rate,
            weight_decay=optimizer.weight_decay if decay is None else decay,
        )
        train(single, steps, update(single, its, OptimizerUpdate, clip))
        found = alone(together, member, (5,))
        np.testing.assert_allclose(found.weights, single.weights, rtol=1e-11, atol=1e-13)
        clipped += bool(np.linalg.norm(single.grads) / 8 > LIMIT)
    # the limit is passed by some members and not by others, so that a common norm would show
    assert 0 < clipped < len(several)


def test_who_has_stopped_stays_as_it_is() -> None:
    part = population(SEVERAL, (5,), slots=("momentum",))
    changes = update(part, SGD(rate=0.1))
    assert isinstance(changes, MemberUpdate)
    rng = np.random.default_rng(2)
    steps = batches(rng.normal(size=(40, 5)), rng.integers(0, 3, 40), 16, 1)
    train(part, steps, changes)
    before = {member.number: own(part, member.number)["output"]["weight"].copy() for member in SEVERAL}
    changes.prepare(part, frozenset({2, 5}))
    train(part, steps, changes)
    same = {n for n, array in before.items() if np.array_equal(array, own(part, n)["output"]["weight"])}
    assert same == {2, 5}


def test_members_that_share_all_numbers_make_few_segments() -> None:
    part = population(SEVERAL, (5,))
    changes = update(part, SGD())
    assert len(changes._segments[part.name].starts) == 1
