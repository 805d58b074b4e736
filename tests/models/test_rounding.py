"""What rounding does to a whole ResNet-20: the compiled kernels err at most twice as much as the plain ones.

A unit that rounding switches on or off moves the gradient a thousand times as far as rounding alone. With four samples
most draws have no such unit; the median over the draws leaves the others out.
"""

from types import ModuleType

import numpy as np

from mpinn.array import cpu
from mpinn.array import ops as plain
from mpinn.models.resnet import ResNet
from mpinn.nn.layer import Pass
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.part import build_part

SHAPE, CLASSES, SAMPLES, DRAWS = (32, 32, 3), 10, 4, 6


def outcome(ops: ModuleType, dtype: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The logits and the gradient at initial weights that are numbers of float32."""
    model, rng = ResNet(depth=20).build(SHAPE, CLASSES), np.random.default_rng(seed)
    part = build_part("network", model.network, SHAPE, np.dtype(dtype), (), ops=ops)
    part.initialize(seed)
    part.weights[:] = part.weights.astype(np.float32)
    x, target = rng.standard_normal((SAMPLES, *SHAPE)).astype(np.float32), rng.integers(0, CLASSES, SAMPLES)
    context = Pass(part.pool, ops)
    y, saved = model.network.forward(part.weight_views, part.state_views, x.astype(dtype), context)
    _, dy = CrossEntropy()(y, target, context)
    model.network.backward(part.weight_views, saved, dy, context)[1](part.grad_views)
    return y, np.concatenate([part.grads[entry.slice] for entry in part.layout])


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def test_a_whole_resnet_is_as_exact_as_with_plain_kernels() -> None:
    errors = np.empty((DRAWS, 2, 2))
    for seed in range(DRAWS):
        exact = outcome(plain, "float64", seed)
        for k, ops in enumerate((cpu, plain)):
            errors[seed, k] = [distance(*pair) for pair in zip(outcome(ops, "float32", seed), exact, strict=True)]
    (logits, gradient), (plain_logits, plain_gradient) = np.median(errors, axis=0)
    assert logits <= 1.5 * plain_logits
    assert gradient <= 2 * plain_gradient
    assert gradient < 1e-5
