"""What stands in brackets behind an array of a device."""

from typing import Any

import numpy as np


def _lowered(key: Any) -> tuple[tuple[Any, ...], bool, bool]:
    """The key for NumPy, whether it has arrays, and whether one of them is a mask."""
    from ._array import ndarray
    from ._engine import lower

    parts = key if isinstance(key, tuple) else (key,)
    lowered, arrays, masks = [], False, False
    for part in parts:
        own = lower(part)
        if isinstance(part, ndarray) or isinstance(own, list):
            arrays = True
            masks = masks or np.asarray(own).dtype == bool
        lowered.append(own)
    return tuple(lowered), arrays, masks


def get_item(array: Any, key: Any) -> Any:
    """A view, or with arrays of the device in the key, a copy."""
    from ._array import view_of
    from ._engine import apply, lift, wait
    from ._streams import execute

    lowered, arrays, masks = _lowered(key)
    if not arrays:
        whole = lowered if any(part is Ellipsis for part in lowered) else (*lowered, Ellipsis)
        return view_of(array, array.host[whole])
    if masks:
        wait()  # for the number of elements
        found: list[Any] = []
        execute(lambda: found.append(array.host[lowered]))
        return lift(found[0])
    places = [i for i, part in enumerate(lowered) if isinstance(part, np.ndarray)]
    keys = key if isinstance(key, tuple) else (key,)

    def pick(source: Any, *indices: Any) -> Any:
        parts = list(lowered)
        for place, index in zip(places, indices, strict=True):
            parts[place] = index
        return source[tuple(parts)]

    return apply(pick, [array, *(keys[place] for place in places)], {})


def set_item(array: Any, key: Any, value: Any) -> None:
    """Write numbers, or values of the device."""
    from ._engine import lower, submit, wait

    lowered, _, masks = _lowered(key)
    source, target = lower(value), array.host
    if isinstance(value, (list, tuple)):
        raise TypeError(f"Unsupported type {type(value)}")
    if masks and np.ndim(source):
        wait()
    if np.ndim(source) and not masks:
        np.broadcast_shapes(np.shape(source), np.broadcast_to(target, target.shape)[_trial(lowered)].shape)
    submit(lambda: target.__setitem__(lowered, source), array, key, value)


def _trial(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(np.zeros_like(part) if isinstance(part, np.ndarray) else part for part in key)
