"""From a complete gradient to new weights: consensus, clipping, combining, optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpinn.consensus.consensus import Consensus
from mpinn.datasets.batches import Batch
from mpinn.nn.optimizer import Optimizer
from mpinn.nn.part import Part
from mpinn.trace import SILENT, Trace


class OptimizerUpdate:
    """The update that a schedule calls.

    ``rate`` is the learning rate by batch index; a mean gradient whose norm exceeds ``clip`` is shortened to it, unless
    ``clip`` is 0. The norm is over all layers for which ``chained`` gives a number, those of this rank among them.
    """

    def __init__(
        self,
        consensus: Consensus,
        optimizer: Optimizer,
        rate: Callable[[int], float],
        clip: float,
        parts: Mapping[str, Part],
        chained: Callable[[Sequence[float]], Sequence[float]] = lambda sums: sums,
        trace: Trace = SILENT,
    ):
        self._consensus = consensus
        self._optimizer = optimizer
        self._rate = rate
        self._clip = clip
        self._chained = chained
        self._trace = trace
        self._versions = dict.fromkeys(parts, 0)
        self._segments = {name: part.ops.prepared(optimizer.segments(part.layout)) for name, part in parts.items()}
        self._layers = {name: [part.layout.span((n,)) for n in part.weight_views] for name, part in parts.items()}

    @property
    def bucket(self) -> int:
        """Bytes in which the gradient leaves; 0 if nobody wants to hear of pieces."""
        return self._consensus.bucket

    def ready(self, part: Part, span: slice) -> None:
        """A slice of the gradient is complete."""
        self._consensus.ready(part, span)

    def __call__(self, part: Part, batch: Batch) -> None:
        """The part's gradient is complete; without samples there is no step, but neighbours may still combine."""
        begun = self._trace.now()
        samples = self._consensus.gradients(part, batch)
        scale = self._scale(part, samples) if samples else 0.0
        self._consensus.combine(part)
        self._trace.add("mix", begun, batch.index)
        if samples:
            begun = self._trace.now()
            self._optimizer.apply(part, self._segments[part.name], self._rate(batch.index), scale)
            self._versions[part.name] += 1
            self._trace.add("update", begun, batch.index, self._versions[part.name])
        begun = self._trace.now()
        self._consensus.adapted(part)
        self._trace.add("mix", begun, batch.index)

    def _scale(self, part: Part, samples: int) -> Any:
        """What turns the summed gradient into a mean that is no longer than the limit."""
        scale = 1 / samples
        if not self._clip:
            return scale
        # sums of layers are added up in layer order, as across the ranks that hold the layers of one model
        sums = self._chained(part.ops.squares_of(part.grads, self._layers[part.name]))
        return part.ops.shortened(scale, sums, self._clip)
