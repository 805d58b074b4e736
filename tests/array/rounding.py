"""How far a kernel may be from the exact result: the bound for compiled kernels, which round otherwise than plain ones.

The reference is the plain kernel on the same inputs in a wider type. What each step of a computation rounds is at most
eps / 2 of what the step adds or multiplies, so the natural measure of an element's error is eps times the sum of the
sizes of the terms it is made of, and of |x f'(x)| for a function of what was rounded before. A compiled kernel may
err by `ROUNDINGS` eps of these terms, or by twice as much as the plain one does in the same element. Besides, the
reference is known no better than to an eps of its own type of the largest element, and nothing to less than the
smallest number of the type.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mpinn.array import activations
from mpinn.array import ops as plain
from mpinn.array.activations import ACTIVATIONS, SELU_ALPHA, SELU_SCALE
from mpinn.array.pool import Pool

WIDER = {"float32": np.float64, "float64": np.longdouble}
ROUNDINGS = 4
"""Few, since the longest chain is exp, which errs by 2, a sum and a quotient."""

Arguments = list[Any]
Terms = list[np.ndarray]


def widened(arguments: Arguments, dtype: str) -> Arguments:
    """The arguments with arrays of numbers in the wider type."""
    return [
        given.astype(WIDER[dtype]) if isinstance(given, np.ndarray) and given.dtype.kind == "f" else given
        for given in arguments
    ]


def excess(found: np.ndarray, twin: np.ndarray, reference: np.ndarray, terms: np.ndarray, dtype: str) -> float:
    """The largest error in units of its bound: at most 1 is right. What the twin has as infinite is exempt."""
    finite = np.isfinite(twin) & np.isfinite(reference)
    if not finite.any():
        return 0.0
    found, twin, reference, terms = (np.broadcast_to(a, finite.shape)[finite] for a in (found, twin, reference, terms))
    numbers, wide = np.finfo(dtype), np.finfo(WIDER[dtype])
    error = np.abs(found.astype(wide.dtype) - reference)
    floor = wide.eps * terms.max() + numbers.smallest_subnormal
    bound = np.maximum(2 * np.abs(twin.astype(wide.dtype) - reference), ROUNDINGS * (numbers.eps * terms + floor))
    return float((error / bound).max())


def check_rounding(
    name: str, given: Arguments, found: Terms, twins: Terms, references: Terms, terms: Terms, dtype: str
) -> None:
    """Fails unless every array found is as exact as its twin, or as rounding lets it, and infinite where that is."""
    for one, twin, reference, term in zip(found, twins, references, terms, strict=True):
        odd = ~np.isfinite(twin)
        np.testing.assert_array_equal(np.isfinite(one), ~odd)
        np.testing.assert_array_equal(one[odd], twin[odd])
        worst = excess(one, twin, reference, term, dtype)
        what = [item if isinstance(item, str | float) else np.shape(item) for item in given]
        assert worst <= 1, f"{name} of {what}, {dtype}: {worst:.2f} times the bound"


def slope(name: str, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    kept = z if ACTIVATIONS[name].keeps_input else y
    return plain.activation_backward(name, kept, np.ones_like(z), Pool())


def of_activation(name: str, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|y| and what an argument off by an eps does to it."""
    return np.abs(y) + np.where(np.isfinite(z), np.abs(z * slope(name, z, y)), 0)


def of_activate(given: Arguments, results: Terms) -> Terms:
    return [of_activation(given[0], given[1], results[0])]


def of_bias_activation(given: Arguments, results: Terms) -> Terms:
    z, bias, name, _ = given
    z = z if bias is None else z + bias
    terms = of_activation(name, z, results[0])
    return [terms] + 2 * [np.abs(z) if ACTIVATIONS[name].keeps_input else terms]


def of_activation_backward(given: Arguments, results: Terms) -> Terms:
    name, kept, dy, _ = given
    if name == "tanh":  # 1 - y^2
        return [np.abs(dy) * (1 + kept**2)]
    if name == "selu":  # y + scale * alpha
        return [np.abs(dy) * (np.abs(kept) + SELU_SCALE * SELU_ALPHA)]
    if name == "mish":  # t + z s (1 - t^2)
        t = np.tanh(np.logaddexp(kept, 0))
        s = plain.activate("sigmoid", kept, Pool())
        return [np.abs(dy) * (t + np.abs(kept) * s * (1 + t**2))]
    if name == "gelu":  # z density + share, where the density is exp(-z^2/2) / sqrt(2 pi)
        density = np.exp(-(kept**2) / 2) / np.sqrt(2 * np.pi)
        share = activations._normal_distribution(kept, Pool())
        return [np.abs(dy) * (np.abs(kept) * density * (1 + kept**2 / 2) + share)]
    return [np.abs(results[0])]


def of_column_sums(given: Arguments, results: Terms) -> Terms:
    return [np.abs(given[0]).reshape(-1, given[0].shape[-1]).sum(axis=0)]


def of_cross_entropy(given: Arguments, results: Terms) -> Terms:
    """Of d = logit - maximum, p and log of their sum, in which 1 is the largest exponential."""
    logits, target, smoothing, _ = given
    d = logits - logits.max(axis=1, keepdims=True)
    rows = np.arange(len(d))
    p = np.exp(d)
    p /= p.sum(axis=1, keepdims=True)
    loss = 1 + np.abs(d[rows, target]) + smoothing * np.abs(d).mean(axis=1)
    dy = p * (1 + np.abs(d)) + smoothing / d.shape[1]
    dy[rows, target] += 1
    return [loss.sum(), dy]


TERMS: dict[str, Callable[[Arguments, Terms], Terms]] = {
    "activate": of_activate,
    "activation_backward": of_activation_backward,
    "bias_activation": of_bias_activation,
    "column_sums": of_column_sums,
    "cross_entropy": of_cross_entropy,
    "squared_error": lambda given, results: [np.abs(result) for result in results],
    "sum_of_squares": lambda given, results: [np.abs(result) for result in results],
}


def terms_of(name: str, given: Arguments, results: Terms) -> Terms:
    """The terms of each result, from the widened arguments and the reference; for other kernels its largest element."""
    with np.errstate(all="ignore"):
        if name in TERMS:
            return TERMS[name](given, results)
        return [np.max(np.abs(result), initial=0, where=np.isfinite(result)) for result in results]
