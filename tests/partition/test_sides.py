"""The networks beside fine blocks: those that a parareal network has, whatever the cut, and what they cost."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from models.test_parareal_models import CASES

from mpinn.models.mlp import MLP
from mpinn.models.parareal import parareal
from mpinn.partition.profile import estimate, measure, together, units
from mpinn.partition.sides import sides_of
from mpinn.schedules.parareal import PararealOptions

F4 = np.dtype("f4")


@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_the_parareal_network_for_every_cut(name):
    options, shape = CASES[name]
    model = options.build(shape, 4)
    ends = [unit.stop for unit in units(PararealOptions().frame(model))]
    sides = sides_of(options, model, ends[:-1], ends)
    seen = set()
    for cuts in combinations(ends[:-1], 2):
        bounds = (0, *cuts, len(model.network))
        network = parareal(options, model, bounds, "residual")
        for block, (start, stop) in zip(network.blocks, pairwise(bounds), strict=True):
            if start:
                guess, small = sides.predictors[start], sides.coarses[start, stop]
                assert [*sides.networks[guess].network.layers] == [*block.predictor.layers]
                assert [*sides.networks[small].network.layers] == [*block.coarse.layers]
                assert sides.networks[small].shape == block.inputs
                seen |= {guess, small}
    # a first block of any length is followed by these only
    assert {name for name in sides.names if name.startswith("predictor")} <= seen


def test_equal_networks_are_counted_once():
    model = MLP(widths=(8,) * 9).build((5,), 3)
    ends = [*range(2, 11), 11]
    sides = sides_of(MLP(widths=(8,) * 9), model, ends[:-1], ends)
    assert sides.names == ("predictor 8", "coarse 8 on")
    guess, small = sides.estimate(16, F4)
    assert (guess.parameter_bytes, small.parameter_bytes) == (4 * (5 * 8 + 8), 4 * 64)


def test_a_coarse_network_gives_back_the_gradient_of_its_input():
    """Which about doubles its backward pass, and that of a predictor is never asked for."""
    wide = MLP(widths=(600, 600))
    sides = sides_of(wide, wide.build((600,), 3), [2], [4])
    model = sides.networks["coarse 600 on"].model
    assert [side.wanted for side in sides.networks.values()] == [False, True]
    found = [together(measure(model, 64, F4, repeats=9, wanted=wanted)) for wanted in (False, True)]
    assert found[1].backward > 1.3 * found[0].backward
    assert together(estimate(model, 64, F4)).parameter_bytes == found[0].parameter_bytes == 4 * 600 * 600
