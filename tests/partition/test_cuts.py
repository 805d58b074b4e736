"""Where a configured run is cut: for the passes that its schedule runs with its options."""

import numpy as np
import pytest

from mpinn.array import ops
from mpinn.partition.cuts import cut, held
from mpinn.partition.profile import estimate
from mpinn.training.choices import build_model, read_config

KEEPS = ("schedule.name=layerwise", "schedule.recompute=false")
REPLAYS = ("schedule.name=fdg", "schedule.recompute=true")


def bounds(*settings: str, depth: int = 20, stages: int = 2) -> tuple[int, ...]:
    """Of a ResNet on digits, from estimated costs."""
    config = read_config(None, ("model.name=resnet", f"model.depth={depth}", f"grid.stages={stages}", *settings))
    return cut(config, build_model(config, (8, 8, 1), 10), 10, 1, ops, measure=False).bounds


@pytest.mark.parametrize("network", [{"depth": 20, "stages": 2}, {"depth": 8, "stages": 3}], ids=str)
def test_options_change_the_cut_not_names(network: dict[str, int]) -> None:
    once, again = (bounds(f"schedule.name={name}", **network) for name in ("fdg", "layerwise"))
    assert once != again
    assert bounds("schedule.name=fr", **network) == again
    assert bounds(*REPLAYS, **network) == again
    assert bounds(*KEEPS, **network) == once
    assert bounds("schedule.name=ddg", **network) == once


def test_copies_for_the_death_of_others_count_as_memory() -> None:
    """Two, of the weights and of each slot."""
    for slots, settings in ((1, ()), (0, ("optimizer.momentum=0",)), (2, ("optimizer.name=adam",))):
        assert held(read_config(None, settings)) == slots
        assert held(read_config(None, (*settings, "run.survive=true"))) == slots + 2 * (1 + slots)


@pytest.mark.parametrize("settings", [("schedule.name=fr",), REPLAYS, KEEPS], ids=str)
def test_no_other_cut_has_a_faster_slowest_stage(settings: tuple[str, ...]) -> None:
    """By passes counted here: every stage but the last runs forward again, or none does."""
    model = build_model(read_config(None, ("model.name=resnet", "model.depth=20")), (8, 8, 1), 10)
    costs = estimate(model, 128, np.dtype("f4"))
    ends = np.cumsum([cost.layers for cost in costs]).tolist()
    again = settings != KEEPS

    def slowest(bound: int) -> float:
        place = ends.index(bound) + 1
        first, last = costs[:place], costs[place:]
        message = 2e-5 + first[-1].output_bytes / 2e9
        return message + max(
            sum((1 + again) * cost.forward + cost.backward for cost in first),
            sum(cost.forward + cost.backward for cost in last),
        )

    found = {bound: slowest(bound) for bound in ends[:-1]}
    assert found[bounds(*settings)[1]] == min(found.values())
