"""Opens the channels of a job."""

from collections.abc import Callable
from functools import partial

from mpinn.comm.channel import Channel
from mpinn.comm.mpi import JOB, MPI, MpiChannel, among
from mpinn.comm.transport import Transports


def open_channel(color: int, key: int, name: str, transports: Transports, polite: bool, ordered: bool) -> Channel:
    """A channel among all ranks of the job that give the same ``color``; called by all of them."""
    kind: Callable[..., MpiChannel] = MpiChannel
    if transports.nccl is not None:
        from mpinn.comm.nccl import NcclChannel

        kind = partial(NcclChannel, groups=transports.nccl)
    make = partial(kind, transports=transports, polite=polite, ordered=ordered)
    return among(MPI.Intracomm(JOB.everyone.Split(color, key)), name, make)


def open_local(name: str) -> Channel:
    """The channel of the ranks on this machine; called by all ranks."""
    communicator = MPI.Intracomm(MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED))
    return among(communicator, name, partial(MpiChannel, polite=True))
