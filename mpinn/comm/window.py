"""The bandwidth loop of the OSU micro-benchmarks with MPI alone: what a channel's messages are measured against."""

from collections.abc import Callable

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.channel import Channel
from mpinn.comm.mpi import MPI, MpiChannel

WINDOW = 64
"""Messages on their way at once, as osu_bw has them."""


def window_of_mpi(channel: Channel, array: Array) -> Callable[[], None]:
    """`WINDOW` times ``array`` from rank 0 to rank 1, which then answers with four bytes; others do nothing.

    Of the host, or of a device whose memory the MPI library reads. Raises TypeError where there is no MPI.
    """
    if not isinstance(channel, MpiChannel):
        raise TypeError(f"{channel.name} has no other ranks")
    communicator, answer = channel.communicator, np.zeros(4, np.uint8)
    message = [array, array.nbytes, MPI.BYTE]

    def run() -> None:
        if channel.rank == 0:
            MPI.Request.Waitall([communicator.Isend(message, 1) for _ in range(WINDOW)])
            communicator.Recv(answer, 1)
        elif channel.rank == 1:
            MPI.Request.Waitall([communicator.Irecv(message, 0) for _ in range(WINDOW)])
            communicator.Send(answer, 0)

    return run
