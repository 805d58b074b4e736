"""Every schedule on one stage: nothing is in flight between two steps, and so nothing of it is saved."""

from typing import Any

import numpy as np
import pytest
from oracles import Problem

from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.schedules.registry import SCHEDULES
from mpinn.schedules.stage import Place
from mpinn.trace import SILENT
from mpinn.training.update import OptimizerUpdate

PROBLEM = Problem()


def stepped(steps: int, name: str, **options: Any) -> Any:
    """A schedule that has had so many batches."""
    channel, kinds = NullChannel("alone"), SCHEDULES
    place = Place(channel, channel, PROBLEM.source.sample_shape, (3,), SILENT)
    schedule = kinds[name](**options).build(PROBLEM.part(), PROBLEM.loss, PROBLEM.seed, place)
    optimizer = PROBLEM.optimizer
    update = OptimizerUpdate(Independent(channel), optimizer, PROBLEM.rate, 0.0, schedule.parts, schedule.chained)
    batches = PROBLEM.batches(1, 0)
    for step in range(steps):
        schedule.step(batches.batch(step), update)
    return schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_is_in_flight(name: str) -> None:
    schedule = stepped(3, name)
    assert schedule.flight() is None
    assert schedule.behind == 0


@pytest.mark.parametrize("steps", [2, 3])
def test_gradients_that_add_up_are_in_flight(steps: int) -> None:
    schedule = stepped(steps, "fdg", accumulate=2)
    flight = schedule.flight()
    assert schedule.behind == steps % 2
    assert (flight is not None) == bool(steps % 2)
    if flight is not None:
        (part,) = schedule.parts.values()
        np.testing.assert_array_equal(flight.arrays["sum"], part.grads)
