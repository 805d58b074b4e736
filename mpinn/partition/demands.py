"""What a schedule with its options asks of a stage: what is in flight there, and how often it runs its layers."""

from typing import Any

from mpinn.partition.split import Demand, Demands

DECOUPLED = ("ddg", "fr", "fdg", "layerwise")
"""The schedules whose options are `mpinn.schedules.decoupled.DecoupledOptions`."""


def demands(schedule: str, options: Any, micro_batches: int = 1) -> Demands:
    """What the schedule with these options asks of stage k of K, both from 1.

    gpipe has all m micro-batches in flight, 1f1b min(K - k + 1, m) of them. For k < K a decoupled schedule has n
    batches in flight,

        n = (K - k) (1 if a batch passes all stages within a step, else 2) + (1 if the forward pass comes first)

    each with what its layers keep, and with a copy of weights under ``versions = stash``. With ``recompute`` all but
    the one that runs backward are inputs only, and that one has run forward twice. The last stage runs each batch
    forward and backward at once, so it has one in flight, needs no old weights, and runs nothing again.
    """

    def decoupled(k: int, K: int) -> Demand:
        if k == K:
            return Demand()
        batches = (K - k) * (1 if options.chained else 2) + (options.order == "forward_first")
        weights = batches if options.versions == "stash" else 0
        if options.recompute:
            return Demand(1, inputs=batches - 1, weights=weights, forwards=2)
        return Demand(batches, weights=weights)

    if schedule in DECOUPLED:
        return decoupled
    if schedule == "1f1b":
        return lambda k, K: Demand(min(K - k + 1, micro_batches) / micro_batches)
    return lambda k, K: Demand()
