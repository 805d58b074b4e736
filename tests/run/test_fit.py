"""What is fitted beside fine blocks, against the least squares of NumPy."""

import numpy as np
import pytest
from oracles import clusters

from mpinn.array import ops
from mpinn.models.parareal import parareal
from mpinn.nn.layer import Pass
from mpinn.nn.part import build_part
from mpinn.run.fit import _Fit
from mpinn.training.choices import read_config

SOURCE = clusters(300)


def least(x, wanted):
    """The mean square that no linear map of x can fall below."""
    return np.square(x @ np.linalg.lstsq(x, wanted, rcond=None)[0] - wanted).sum() / len(x)


@pytest.mark.parametrize("form", ["residual", "difference"])
def test_predictor_and_coarse_network_are_the_best_ones(form):
    settings = ("model.widths=[9,8,7]", "model.activation=tanh", "data.batch=30", "run.dtype=float64")
    config = read_config(None, (*settings, "schedule.name=parareal", "schedule.fit=300", f"schedule.form={form}"))
    model = config.model.build(SOURCE.sample_shape, 3)
    trained = build_part("network", model.network, model.shape, np.dtype("f8"), (), ops=ops)
    trained.initialize(5)
    network = parareal(config.model, model, (0, 2, 5), form)
    part = build_part("network", network, model.shape, np.dtype("f8"), ())
    part.initialize(5)
    fit = _Fit(config, trained, model.shape, network.blocks[1], SOURCE)
    assert fit.start == 2
    fit.into(part)
    x = SOURCE.splits["train"].x
    quiet = Pass(training=False)

    def through(layers, u):
        return layers.forward(trained.weight_views, {}, u, quiet)[0]

    u, weights = through(model.network[:2], x), part.weight_views
    guess, small = (weights[name]["dense"] for name in ("predictor2", "coarse2"))
    v = x @ guess["weight"] + guess["bias"]
    error = np.square(v - u).sum() / len(x)
    assert error < 1.02 * least(np.column_stack([x, np.ones(len(x))]), u)
    # the coarse network is linear, so both forms are the same
    wanted = through(model.network[2:4], u) - through(model.network[2:4], v)
    error = np.square((u - v) @ small["weight"] - wanted).sum() / len(x)
    assert error < 1.02 * least(u - v, wanted)
    assert error < 0.5 * np.square(wanted).sum() / len(x)
