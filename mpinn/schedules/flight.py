"""What a decoupled schedule has under way, as arrays by name and facts for JSON, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import DONE
from mpinn.schedules.stage import Message, Way


def flatten(tree: Any, name: str, arrays: dict[str, Array]) -> Any:
    """Put the arrays of ``tree`` (tuples, lists, None, arrays, numbers) into ``arrays``; what `unflatten` needs too."""
    if isinstance(tree, (tuple, list)):
        inside = [flatten(item, f"{name}.{index}", arrays) for index, item in enumerate(tree)]
        return {"tuple" if isinstance(tree, tuple) else "list": inside}
    if isinstance(tree, np.ndarray):
        kept = np.ascontiguousarray(tree)
        arrays[name] = kept.view(np.uint8) if kept.dtype == bool else kept
        return {"array": name, "bool": bool(kept.dtype == bool), "shape": list(tree.shape)}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    raise TypeError(f"{name}: what a layer has saved cannot be stored: {type(tree).__name__}")


def unflatten(spec: Any, arrays: Mapping[str, Array]) -> Any:
    """The inverse of `flatten`."""
    if "tuple" in spec:
        return tuple(unflatten(item, arrays) for item in spec["tuple"])
    if "list" in spec:
        return [unflatten(item, arrays) for item in spec["list"]]
    if "array" in spec:
        array = arrays[spec["array"]].reshape(spec["shape"])
        return array.view(bool) if spec["bool"] else array
    return spec["value"]


def landed(message: Message | None, arrays: dict[str, Array]) -> int | None:
    """Wait for a message and keep what it brought; the index of its batch."""
    if message is None:
        return None
    message.pending.wait()
    message.pending = DONE
    arrays[message.way] = message.array
    return message.batch


def awaited(index: int | None, way: Way, arrays: Mapping[str, Array]) -> Message | None:
    """The inverse of `landed`."""
    return None if index is None else Message(arrays[way], DONE, way, index)
