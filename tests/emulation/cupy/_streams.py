"""Streams, events and captures. Work is done at once, or, with MPINN_EMULATED_LATE set, when somebody waits for it."""

import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np

from ._errors import CUDARuntimeError, refuse_in_capture

Work: TypeAlias = Callable[[], Any]
RUNNING = threading.RLock()
_local = threading.local()
TOUCHED: set[int] = set()
"""The devices that a thread of this process has chosen: on each of them it holds memory from then on."""
_numbers = itertools.count(0x100, 0x10)


def device_count() -> int:
    return int(os.environ.get("MPINN_EMULATED_GPUS", "1"))


def current_device() -> int:
    return getattr(_local, "device", 0)


def set_device(number: int) -> None:
    if not 0 <= number < device_count():
        raise CUDARuntimeError("cudaErrorInvalidDevice" if device_count() else "cudaErrorNoDevice")
    _local.device = number
    TOUCHED.add(number)


def late() -> bool:
    """Whether work waits until somebody waits for it, as it may on a device."""
    return bool(os.environ.get("MPINN_EMULATED_LATE"))


def can_begin(work: Work) -> bool:
    """Whether work would come to an end at once: some waits for other processes, or for another stream."""
    ready: Callable[[], bool] = getattr(work, "ready", lambda: True)
    return ready()


def execute(work: Work) -> None:
    with RUNNING, np.errstate(all="ignore"):
        work()


class Queue:
    """Work in the order in which it was given."""

    def __init__(self) -> None:
        self.pending: deque[Work] = deque()
        self.done = self.given = 0
        self._adding = threading.Lock()

    def add(self, work: Work) -> None:
        with self._adding:
            self.pending.append(work)
            self.given += 1

    def follow(self, number: int, work: Work) -> None:
        """Add work to that of a number, the first being 1, which has to wait still."""
        with RUNNING:
            place = number - 1 - self.done
            first = self.pending[place]
            self.pending[place] = lambda: [first(), work()]

    def run(self, until: int | None = None) -> None:
        """Do all work, or the first so many."""
        with RUNNING:
            stop = self.given if until is None else until
            while self.done < stop:
                work = self.pending.popleft()
                self.done += 1
                execute(work)


class Capture:
    """Work that is recorded, and the streams that take part."""

    def __init__(self, origin: "Stream"):
        self.origin = origin
        self.work: list[Work] = []
        self.blocks: dict[int, Any] = {}
        self.live = True
        self.joined: dict[Stream, bool] = {}
        """Streams beside the origin -> whether it has waited for their last work."""

    def add(self, stream: "Stream", work: Work, blocks: Sequence[Any]) -> None:
        self.work.append(work)
        self.blocks.update((block.number, _Use(block)) for block in blocks)
        if stream is not self.origin:
            self.joined[stream] = False


class _Use:
    """A block that a graph uses. A pool of the graph's own may have got it back; another one may have given it away."""

    def __init__(self, block: Any):
        self.block, self.segment = weakref.ref(block), weakref.ref(block.segment)
        self.private, self.start, self.size = block.private, block.start, block.size

    def lost(self) -> bool:
        return self.block() is None and (not self.private or self.segment() is None)

    def note(self, queue: Queue) -> None:
        """The last work of the queue uses the block."""
        segment = self.segment()
        if segment is not None:
            segment.note(self.start, self.size, queue)


class Graph:
    """Recorded work, which is done again at each launch, on the memory of the recording."""

    def __init__(self, capture: Capture):
        self._work = tuple(capture.work)
        self._uses = tuple(capture.blocks.values())

    def launch(self, stream: "Stream | None" = None) -> None:
        """Do the work. An error if memory that the graph uses has been freed: on a device somebody else may have it."""
        for use in self._uses:
            if use.lost():
                raise RuntimeError(f"a launched graph uses {use.size} bytes that have been freed since its capture")
        stream = stream or get_current_stream()
        if stream.is_capturing():
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported", "nested graphs are not emulated")
        stream.submit(lambda: [work() for work in self._work], self._uses)

    def upload(self, stream: "Stream | None" = None) -> None:
        """Nothing to do."""


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False):
        self.ptr = next(_numbers)
        self.timed = not disable_timing
        self.time: float | None = None
        self.queue: Queue | None = None
        self.until = 0
        self.capture: Capture | None = None
        self.stream: Stream | None = None

    def record(self, stream: "Stream | None" = None) -> None:
        stream = stream or get_current_stream()
        self.stream, self.capture = stream, stream.capture
        if self.capture is None:
            stream.submit(self._stamp, [])
            self.queue, self.until = stream.queue, stream.queue.given

    def _stamp(self) -> None:
        self.time = time.perf_counter()

    def finish(self) -> None:
        """Do what was recorded before."""
        if self.queue is not None:
            self.queue.run(self.until)

    def synchronize(self) -> None:
        if self.capture is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        self.finish()

    @property
    def done(self) -> bool:
        """Whether all is done. Asking lets a piece of work be done, so that asking again and again comes to an end.

        Nobody who asks waits for work that another thread has the device do.
        """
        if self.capture is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        if self.queue is None or self.queue.done >= self.until:
            return True
        if RUNNING.acquire(blocking=False):
            try:
                if self.queue.done < self.until and can_begin(self.queue.pending[0]):
                    self.queue.run(self.queue.done + 1)
            finally:
                RUNNING.release()
        return False


class _After:
    """Work that waits for an event, as it stands now."""

    def __init__(self, event: Event):
        self._queue, self._until = event.queue, event.until

    def ready(self) -> bool:
        if self._queue is None or self._queue.done >= self._until:
            return True
        if can_begin(self._queue.pending[0]):
            self._queue.run(self._queue.done + 1)
        return False

    def __call__(self) -> None:
        if self._queue is not None:
            self._queue.run(self._until)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds from one to the other."""
    if start_event.capture or end_event.capture:
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
    if start_event.time is None or end_event.time is None or not (start_event.timed and end_event.timed):
        raise CUDARuntimeError("cudaErrorInvalidValue")
    return (end_event.time - start_event.time) * 1e3


class Stream:
    null: ClassVar["Stream"]
    known: ClassVar["weakref.WeakValueDictionary[int, Stream]"] = weakref.WeakValueDictionary()
    default_queue: ClassVar[Queue] = Queue()
    """Of all blocking streams, which wait for the null stream as it waits for them."""

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None):
        self.ptr = 0 if null else next(_numbers)
        self.device_id = -1 if null else current_device()
        self.is_non_blocking = non_blocking
        self.queue = Queue() if non_blocking else Stream.default_queue
        self.capture: Capture | None = None
        self._before: list[weakref.ref[Stream]] = []
        Stream.known.setdefault(self.ptr, self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def __enter__(self) -> Self:
        self._before.append(weakref.ref(get_current_stream()))
        return self.use()

    def __exit__(self, *_: object) -> None:
        # CuPy keeps no stream alive for whoever has left it
        (self._before.pop()() or Stream.null).use()

    def use(self) -> Self:
        if self.device_id not in (-1, current_device()):
            raise RuntimeError(f"the stream is of device {self.device_id}, the current device is {current_device()}")
        streams = getattr(_local, "streams", None)
        if streams is None:
            streams = _local.streams = {}
        streams[current_device()] = self
        return self

    def submit(self, work: Work, blocks: Sequence[Any]) -> None:
        """Do the work, or record it, or put it off; ``blocks`` of memory take part."""
        if self.capture is not None:
            self.capture.add(self, work, blocks)
            return
        if self.ptr == 0 and any(not s.is_non_blocking and s.capture is not None for s in Stream.known.values()):
            raise CUDARuntimeError("cudaErrorStreamCaptureImplicit")
        if late():
            self.queue.add(work)
            for block in blocks:
                block.note(self.queue)
        else:
            execute(work)

    def putting_off(self) -> bool:
        """Whether work that is given now is done later."""
        return self.capture is not None or late()

    @property
    def done(self) -> bool:
        refuse_in_capture(self)
        return not self.queue.pending

    def synchronize(self) -> None:
        refuse_in_capture(self)
        self.queue.run()

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Later work of this stream comes after the event. A stream that waits for a capturing one takes part."""
        if event.capture is None or not event.capture.live:
            if self.capture is None:
                self.submit(_After(event), [])
            return
        if self.capture is not None and self.capture is not event.capture:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        capture = self.capture = event.capture
        if self is capture.origin:
            capture.joined.update(dict.fromkeys([event.stream] if event.stream in capture.joined else [], True))
        else:
            capture.joined.setdefault(self, False)

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        refuse_in_capture(self)
        self.capture = Capture(self)

    def end_capture(self) -> Graph:
        capture = self.capture
        if capture is None or capture.origin is not self:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnmatched")
        capture.live = False
        for stream in (self, *capture.joined):
            stream.capture = None
        if not all(capture.joined.values()):
            raise CUDARuntimeError("cudaErrorStreamCaptureUnjoined")
        return Graph(capture)

    def is_capturing(self) -> bool:
        return self.capture is not None


Stream.null = Stream(null=True)


def get_current_stream(device_id: int = -1) -> Stream:
    streams: dict[int, Stream] = getattr(_local, "streams", {})
    return streams.get(current_device() if device_id == -1 else device_id, Stream.null)


def synchronize_device() -> None:
    """Wait for all streams."""
    for stream in list(Stream.known.values()):
        refuse_in_capture(stream)
        stream.queue.run()


class Device:
    def __init__(self, device: "int | Device | None" = None):
        self.id = current_device() if device is None else int(device)
        self._before: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __enter__(self) -> Self:
        self._before.append(current_device())
        self.use()
        return self

    def __exit__(self, *_: object) -> None:
        set_device(self._before.pop())

    def use(self) -> Self:
        set_device(self.id)
        return self

    def synchronize(self) -> None:
        synchronize_device()

    @property
    def compute_capability(self) -> str:
        return "90"

    @property
    def pci_bus_id(self) -> str:
        return f"0000:{self.id + 1:02X}:00.0"

    @property
    def mem_info(self) -> tuple[int, int]:
        from ._memory import USED, capacity

        return capacity() - USED.get(self.id, 0), capacity()
