"""Models learn: the loss of a few samples falls within a few steps."""

import numpy as np
import pytest

from mpinn.models.cnn import CNN
from mpinn.models.resnet import ResNet
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.optimizer import SGD
from mpinn.nn.part import build_part


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (CNN(), (28, 28, 1)),
        (ResNet(depth=8), (8, 8, 3)),
        (ResNet(depth=11, block="bottleneck", shortcut="pad"), (8, 8, 3)),
    ],
    ids=repr,
)
def test_the_loss_of_noise_falls(options, shape):
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(32, *shape)).astype("f4"), rng.integers(0, 10, 32)
    optimizer, loss = SGD(), CrossEntropy()
    network = options.build(shape, 10).network
    part = build_part("network", network, shape, np.dtype("f4"), optimizer.slots)
    part.initialize(0)
    segments = optimizer.segments(part.layout)
    values = []
    for step in range(12):
        context = Pass(pool=part.pool, batch=step)
        y, saved = network.forward(part.weight_views, part.state_views, x, context)
        value, dy = loss(y, target, context)
        values.append(float(value) / len(x))
        network.backward(part.weight_views, saved, dy, context)[1](part.grad_views)
        optimizer.apply(part, segments, rate=0.05, scale=1 / len(x))
    assert 1.5 < values[0] < 4
    assert values[-1] < values[0] / 3
