"""The traces of all ranks as one file, which chrome://tracing and ui.perfetto.dev show as a timeline."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from mpinn.comm.channel import Channel
from mpinn.comm.grid import World
from mpinn.comm.launch import say
from mpinn.storage.directory import write_text
from mpinn.trace import NONE, Event, Trace

MICRO = 1e6


def common_zero(world: World) -> float:
    """A moment that all ranks agree on, by `perf_counter`; called by all ranks.

    The ranks of one machine share its clock. Of several machines each takes the moment at which it leaves a barrier.
    """
    world.control.barrier()
    zero = np.array([perf_counter()])
    alone = np.array([float(world.local_size < world.size)])
    world.control.all_max(alone).wait()
    if not alone[0]:
        world.control.broadcast(zero, 0).wait()
    return float(zero[0])


def write_timeline(path: Path, control: Channel, trace: Trace, label: str) -> None:
    """Collect the events of all ranks on rank 0, which writes them; called by all ranks.

    ``label`` names this rank.
    """
    own = np.frombuffer(json.dumps(list(_shown(trace, control.rank, label))).encode(), np.uint8)
    sizes = np.empty((control.size, 1), np.int64)
    control.all_gather(np.array([own.size], np.int64), sizes).wait()
    if control.rank:
        control.send(own, 0).wait()
        return
    found = json.loads(own.tobytes())
    for rank in range(1, control.size):
        into = np.empty(sizes[rank, 0], np.uint8)
        control.receive(into, rank).wait()
        found += json.loads(into.tobytes())
    try:
        write_text(path, json.dumps({"traceEvents": found, "displayTimeUnit": "ms"}) + "\n")
    except OSError as error:
        say(f"the timeline was not written: {path}: {error.strerror}")
    else:
        say(f"timeline of the ranks: {path}")


def _shown(trace: Trace, rank: int, label: str) -> Iterator[Mapping[str, Any]]:
    """The events of one rank in the format of Chrome's tracing: microseconds, one process for a rank."""
    yield {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": label}}
    yield {"name": "process_sort_index", "ph": "M", "pid": rank, "args": {"sort_index": rank}}
    for event in trace.events:
        yield {
            "name": event.name, "cat": event.name, "ph": "X", "pid": rank, "tid": event.row,
            "ts": (event.begun - trace.zero) * MICRO, "dur": (event.ended - event.begun) * MICRO,
            "args": _facts(event),
        }  # fmt: skip


def _facts(event: Event) -> dict[str, int]:
    facts = {"batch": event.batch, "version": event.version, "bytes": event.size}
    return {name: value for name, value in facts.items() if value != NONE}
