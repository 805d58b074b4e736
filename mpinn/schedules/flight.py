"""What a decoupled schedule has under way, as arrays by name and facts for JSON, and back."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import DONE
from mpinn.datasets.batches import Batch
from mpinn.schedules.stage import Message, Way


def flatten(tree: Any, name: str, arrays: dict[str, Array], ops: Any) -> Any:
    """Put the arrays of ``tree`` (tuples, lists, None, arrays, numbers) into ``arrays``, on the host.

    Returns what `unflatten` needs too; ``ops`` are the kernels that work on the arrays.
    """
    if isinstance(tree, (tuple, list)):
        inside = [flatten(item, f"{name}.{index}", arrays, ops) for index, item in enumerate(tree)]
        return {"tuple" if isinstance(tree, tuple) else "list": inside}
    if isinstance(tree, ops.LIBRARY.ndarray):
        kept = np.ascontiguousarray(ops.on_host(tree))
        arrays[name] = kept.view(np.uint8) if kept.dtype == bool else kept
        return {"array": name, "bool": bool(kept.dtype == bool), "shape": list(tree.shape)}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    raise TypeError(f"{name}: what a layer has saved cannot be stored: {type(tree).__name__}")


def unflatten(spec: Any, arrays: Mapping[str, Array], ops: Any) -> Any:
    """The inverse of `flatten`."""
    if "tuple" in spec:
        return tuple(unflatten(item, arrays, ops) for item in spec["tuple"])
    if "list" in spec:
        return [unflatten(item, arrays, ops) for item in spec["list"]]
    if "array" in spec:
        array = arrays[spec["array"]].reshape(spec["shape"])
        return ops.on_device(array.view(bool) if spec["bool"] else array)
    return spec["value"]


def emptied(batches: Mapping[int, Batch], until: int) -> dict[int, Batch]:
    """The batches by their position, of which those up to ``until`` have no samples any more."""
    return {place: replace(batch, count=0) if place <= until else batch for place, batch in batches.items()}


def landed(message: Message | None, arrays: dict[str, Array], ops: Any) -> int | None:
    """Wait for a message and keep what it brought, on the host; the index of its batch."""
    if message is None:
        return None
    message.pending.wait()
    message.pending = DONE
    arrays[message.way] = ops.on_host(message.array)
    return message.batch


def awaited(index: int | None, way: Way, arrays: Mapping[str, Array], ops: Any) -> Message | None:
    """The inverse of `landed`."""
    return None if index is None else Message(ops.on_device(arrays[way]), DONE, way, index)
