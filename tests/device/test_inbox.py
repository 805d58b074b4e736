"""Messages arrive in memory that the device has done with, while it works."""

import os

import cupy
import numpy as np

from mpinn.array import cuda
from mpinn.array.cuda_memory import CudaInbox, CudaMemory
from mpinn.array.pool import Pool
from mpinn.array.typing import Array
from mpinn.comm.memory import Event
from mpinn.comm.transport import NOTHING, Direct

MEMORY = CudaMemory()


def expected(inbox: CudaInbox) -> tuple[Array, Event]:
    """Where a message arrives, and when MPI may write there."""
    array, moment = inbox.room((1000,), np.dtype(np.float32))
    with moment:
        (loan,) = Direct(MEMORY).lend([array], NOTHING, True)
    return array, loan.before  # type: ignore[attr-defined]


def test_a_message_waits_for_nothing_that_was_asked_since_its_array_was_read() -> None:
    inbox, x = cuda.inbox(Pool(cupy)), cupy.ones(1 << 20)
    read, _ = expected(inbox)
    place, x[:1000] = read.data.ptr, read
    del read
    resting, since = expected(inbox)
    assert resting.data.ptr != place
    since.synchronize()
    for _ in range(100):
        x *= 1.5
    arrives, since = expected(inbox)
    assert arrives.data.ptr == place
    assert since.done
    if os.environ.get("MPINN_EMULATED_LATE"):
        assert not MEMORY.now().done
        _, since = expected(inbox)
        assert not since.done
