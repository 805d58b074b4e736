"""What a schedule or a consensus changes in training beside backpropagation on one rank; nothing if that is exact."""

from collections.abc import Callable, Mapping
from typing import Any


def _exact(options: Any, stages: int, period: int) -> str:
    return ""


def _delayed(options: Any, stages: int, period: int) -> str:
    """The age that the first stage's gradients have by the schedule's definition."""
    longest = options.delay(stages)
    return f"gradients up to {longest:g} update{'s' * (longest != 1)} old"


def _local(options: Any, stages: int, period: int) -> str:
    return "stages learn from losses of their own"


def _parareal(options: Any, stages: int, period: int) -> str:
    return "another network"


SCHEDULES: Mapping[str, Callable[[Any, int, int], str]] = {
    "serial": _exact,
    "naive": _exact,
    "gpipe": _exact,
    "1f1b": _exact,
    "fdg": _delayed,
    "ddg": _delayed,
    "fr": _delayed,
    "layerwise": _delayed,
    "local": _local,
    "parareal": _parareal,
}
"""(options, stages, period) -> what it changes."""


def _meets(options: Any, replicas: int, period: int) -> str:
    return f"meets every {period} steps" if period > 1 else "meets after every step"


def _gossips(options: Any, replicas: int, period: int) -> str:
    return f"mixes with neighbours on a {options.graph}" + (f" every {period} steps" if period > 1 else "")


def _none(options: Any, replicas: int, period: int) -> str:
    return f"{replicas} models that never meet"


CONSENSUSES: Mapping[str, Callable[[Any, int, int], str]] = {
    "averaging": _meets,
    "gossip": _gossips,
    "gradients": _exact,
    "none": _none,
    "outer": _meets,
}
"""(options, replicas, period) -> what it changes."""


def changes(schedule: str, schedule_options: Any, stages: int, consensus: str, options: Any, replicas: int,
            period: int) -> str:  # fmt: skip
    """In words; nothing where the result is that of one rank with the same batch, to rounding.

    (But for batch norm, whose statistics are those of a replica, or of a micro-batch.)
    """
    told = [
        SCHEDULES[schedule](schedule_options, stages, 0) if stages > 1 else "",
        CONSENSUSES[consensus](options, replicas, period) if replicas > 1 else "",
    ]
    return ", ".join(filter(None, told))
