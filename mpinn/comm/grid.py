"""The ranks of the job: all of them (`World`), and as a grid of replicas, stages and shards (`Grid`)."""

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from ctypes.util import find_library
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from mpinn.comm.channel import Channel, NullChannel, Pending
from mpinn.comm.groups import Groups
from mpinn.comm.launch import Launch, forget_interface, read_launch
from mpinn.comm.transport import Direct, Transports, same
from mpinn.config import InputError

T = TypeVar("T")


class OpenChannel(Protocol):
    """Opens a channel among the ranks of the job that give the same color."""

    def __call__(self, color: int, key: int, name: str, transports: Transports, polite: bool, ordered: bool) -> Channel:
        """Called by all ranks."""


class Survivable(Protocol):
    """The ranks of a job of which some may die; see `mpinn.comm.job.Job`."""

    def mortal(self) -> str:
        """Why no rank survives the death of another; nothing where they do."""

    def attempt(self, work: Callable[[], int]) -> int | None:
        """What ``work`` returns; None, on all ranks that live, if one has died."""

    def shrink(self, stay: Callable[[Sequence[int]], Sequence[int]]) -> Sequence[int]:
        """Go on with those that ``stay`` chooses from the living, which are returned."""


@dataclass(frozen=True)
class World:
    """All ranks of the job. Made by `connect`.

    local_rank, local_size: among the ranks on this machine, those with whom it could share memory; cores: how many
    these may use together; library: the MPI library's vendor and version; note: a line for the log where something is
    unusual, else empty.
    """

    rank: int
    size: int
    host: str
    local_rank: int
    local_size: int
    cores: int
    library: str
    note: str
    control: Channel
    """For agreement and error messages; counted by no meter but its own. It always waits politely."""
    launcher: str
    open_channel: OpenChannel
    blocked: Callable[[], Pending | None] = lambda: None
    """The message for which this rank waits now; any thread may ask."""
    build: str = ""
    """The MPI library as it was built and is switched: what one can do with GPUs, another of its version may not."""
    told_local_rank: int | None = None
    """What the launcher calls this rank among those of its machine, if it says so."""
    job: Survivable | None = None
    """None without MPI."""
    machine: int = 0
    """The same number for ranks that could share memory, and for no others: that of the first of them."""
    joined: Callable[[], Sequence[Groups]] = lambda: ()
    """What joins ranks beside MPI; any thread may ask."""

    @property
    def polite(self) -> bool:
        """Whether waiting must leave the core to others: more ranks than cores on this machine."""
        return self.local_size > self.cores

    def channel(
        self, name: str, color: int = 0, transports: Transports | None = None, ordered: bool = False
    ) -> Channel:
        """A new channel among the ranks that give the same ``color``, in the order of ranks; called by all ranks."""
        return self.open_channel(color, self.rank, name, transports or same(Direct()), self.polite, ordered)

    def reopened(self) -> "World":
        """The ranks that there are now, after some have died; called by all of them."""
        control = self.open_channel(0, self.rank, "control", same(Direct()), True, False)
        return replace(self, rank=control.rank, size=control.size, control=control)

    def verdict(self, check: Callable[[], bytes]) -> bytes:
        """What ``check`` returns on rank 0, which alone calls it, on every rank.

        An InputError or OSError there becomes the same InputError on all ranks, so that all leave in the same way.
        """
        answer, failure = b"", None
        if self.rank == 0:
            try:
                answer = check()
            except InputError as error:
                failure = error
            except OSError as error:
                failure = InputError(str(error.filename or ""), error.strerror or str(error))
        told = json.dumps([failure.path, str(failure)]).encode() if failure else answer
        header = np.array([failure is not None, len(told)], np.int64)
        self.control.broadcast(header, 0).wait()
        payload = np.frombuffer(bytearray(told), np.uint8) if self.rank == 0 else np.empty(header[1], np.uint8)
        self.control.broadcast(payload, 0).wait()
        if failure is not None:
            raise failure
        if header[0]:
            path, message = json.loads(payload.tobytes())
            raise InputError(path, message.removeprefix(f"{path}: ") if path else message)
        return payload.tobytes()

    def everywhere(self, action: Callable[[], T]) -> T:
        """What ``action``, which sends no messages, returns on this rank; called by all ranks.

        An InputError on any rank, which another machine's files may cause, is raised on all of them.
        """
        found: list[T] = []
        told = ""
        try:
            found.append(action())
        except InputError as error:
            told = json.dumps([error.path, str(error).removeprefix(f"{error.path}: ")])
        failures = [(rank, text) for rank, text in enumerate(self.gather_text(told)) if text]
        if failures:
            path, message = json.loads(failures[0][1])
            alone = f" (on rank {failures[0][0]})" if len(failures) < self.size else ""
            raise InputError(path, message + alone)
        return found[0]

    def gather_text(self, text: str) -> list[str]:
        """The ``text`` of every rank, on every rank, in the order of ranks."""
        own = text.encode()
        length = np.array([len(own)], np.int64)
        self.control.all_max(length).wait()
        line = np.zeros(int(length[0]) + 8, np.uint8)
        line[:8] = np.frombuffer(len(own).to_bytes(8, "little"), np.uint8)
        line[8 : 8 + len(own)] = np.frombuffer(own, np.uint8)
        lines = np.empty((self.size, line.size), np.uint8)
        self.control.all_gather(line, lines).wait()
        return [row[8 : 8 + int.from_bytes(row[:8].tobytes(), "little")].tobytes().decode() for row in lines]


def connect() -> World:
    """Start MPI and find the other ranks; alone, and without an MPI library, a world of one rank.

    Raises InputError when a launcher has started several ranks that MPI does not see.
    """
    launch = read_launch()
    if launch is not None:
        forget_interface(launch)
    try:
        from mpinn.comm import mpi, opening
    except (ImportError, RuntimeError) as error:  # what mpi4py raises when there is no library to load
        if launch is not None:
            told = f"{launch.launcher} started this program, but {_first_line(error)}; {remedy()}"
            raise InputError("MPI", told) from None
        return _alone(f"no MPI library, so one rank without messages ({_first_line(error)}; {remedy()})")
    vendor, description = mpi.library()
    rank, size = mpi.place()
    if launch is not None and launch.size > 1 and size == 1:
        raise InputError("MPI", _mismatch(launch, vendor))
    control = opening.open_channel(0, rank, "control", same(Direct()), True, False)
    local = opening.open_local("local")
    first = np.array([control.rank])
    local.broadcast(first, 0).wait()
    return World(
        rank=control.rank,
        size=control.size,
        host=socket.gethostname(),
        local_rank=local.rank,
        local_size=local.size,
        cores=_cores(local),
        library=vendor,
        note="",
        control=control,
        launcher=launch.launcher if launch else "",
        open_channel=opening.open_channel,
        blocked=lambda: mpi.BLOCKED.pending,
        build=build_of(vendor, description),
        told_local_rank=launch.local_rank if launch else None,
        job=mpi.JOB,
        machine=int(first[0]),
        joined=lambda: mpi.JOB.joined,
    )


SWITCHES = ("MPICH_GPU_SUPPORT_ENABLED", "MPIR_CVAR_ENABLE_GPU", "OMPI_MCA_opal_cuda_support", "OMPI_MCA_pml")
"""Variables by which MPI libraries are told to read the memory of GPUs, or not to: Cray's, MPICH, Open MPI."""


def build_of(vendor: str, description: str, environment: Mapping[str, str] = os.environ) -> str:
    """The name of a library with a digest of all that it says of itself, and of what it is told about GPUs."""
    switched = [f"{name}={environment.get(name, '')}" for name in SWITCHES]
    return f"{vendor} ({blake2b(chr(10).join([description, *switched]).encode(), digest_size=4).hexdigest()})"


def _alone(note: str) -> World:
    def open_channel(color: int, key: int, name: str, transports: Transports, polite: bool, ordered: bool) -> Channel:
        return NullChannel(name)

    control = NullChannel("control")
    return World(0, 1, socket.gethostname(), 0, 1, _cores(control), "none", note, control, "", open_channel)


def remedy() -> str:
    """How mpi4py gets a library where it has found none; Debian's MPICH has a name of its own."""
    if named := os.environ.get("MPI4PY_LIBMPI"):
        return f"MPI4PY_LIBMPI names {named}: is that the file of an MPI library?"
    if other := find_library("mpich"):
        return f"{other} is an MPICH: link it as libmpi.so.12 into a folder that LD_LIBRARY_PATH names"
    return "pip install 'mpinn[mpi]' brings one, and LD_LIBRARY_PATH can name the folder of the site's"


def _mismatch(launch: Launch, vendor: str) -> str:
    other = "or install mpi4py for the library of this launcher"
    if launch.launcher == "srun":
        other = "or with srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI), of which srun --mpi=list says what is here"
    return (
        f"{launch.launcher} started {launch.size} ranks, but mpi4py uses {vendor}, which does not know this launcher, "
        f"so that every rank is alone; start the program with the mpirun of {vendor}, {other}"
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _cores(local: Channel) -> int:
    """Cores that the ranks of this machine may use together: a launcher may have bound each of them to a few."""
    mine = os.sched_getaffinity(0)
    usable = np.zeros(max(4096, max(mine) + 1), np.uint8)
    usable[list(mine)] = 1
    local.all_max(usable).wait()
    return max(1, min(int(usable.sum()), _quota()))


def _quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores' worth of time that the container is given, rounded up; a large number when it is not limited."""
    try:
        limit, period = path.read_text().split()
    except (OSError, ValueError):
        return 2**30
    return 2**30 if limit == "max" else -(-int(limit) // int(period))


def shape_of(ranks: int, replicas: int, stages: int, shards: int) -> tuple[int, int, int]:
    """The grid (replicas, stages, shards) on ``ranks`` ranks; 0 replicas, or 0 shards, are as many as fit.

    Raises InputError.
    """
    for name, count, least in (("replicas", replicas, 0), ("stages", stages, 1), ("shards", shards, 0)):
        if count < least:
            raise InputError(f"grid.{name}", f"{count} is too small: at least {least}")
    if shards == 0:
        replicas = replicas or 1
        shards = max(1, ranks // (replicas * stages))
    each = stages * shards
    if replicas == 0 and ranks % each == 0:
        return ranks // each, stages, shards
    if replicas * each == ranks:
        return replicas, stages, shards
    product = f"{replicas or 'any number of'} replicas x {stages} stages x {shards} shards"
    if ranks % each:
        key = "stages" if shards == 1 else "shards" if stages == 1 else "replicas"
        fitting = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
        raise InputError(
            f"grid.{key}", f"{product} need a multiple of {each} ranks, not {ranks}; stages x shards can be {fitting}"
        )
    raise InputError(
        "grid.replicas",
        f"{product} need {replicas * each} rank{'s' if replicas * each > 1 else ''}, not {ranks}; "
        f"replicas can be {ranks // each} (or 0: as many as fit), or take {replicas * each}",
    )


class Grid:
    """The ranks as replicas x stages x shards; shards vary fastest with the rank, then stages, then replicas.

    replicas, stages, shards: channels along one axis, whose ranks differ in that coordinate only. control: all ranks.
    replica, stage, shard: the coordinates of this rank. place: which of the ranks of its replica it is.
    """

    def __init__(
        self,
        world: World,
        replicas: int = 0,
        stages: int = 1,
        shards: int = 1,
        transports: Transports | None = None,
        ordered: bool = False,
    ):
        self.shape = shape_of(world.size, replicas, stages, shards)
        place = np.unravel_index(world.rank, self.shape)
        self.replica, self.stage, self.shard = (int(coordinate) for coordinate in place)
        line = np.ravel_multi_index

        self.place = self.stage * self.shape[2] + self.shard

        def along(axis: int, name: str) -> Channel:
            """Ranks of one line share the coordinates of its beginning, which make its color."""
            start = [0 if a == axis else int(place[a]) for a in range(3)]
            return world.channel(name, int(line(start, self.shape)), transports, ordered)

        self.replicas = along(0, "replicas")
        self.stages = along(1, "stages")
        self.shards = along(2, "shards")
        self.control = world.open_channel(0, world.rank, "control", same(Direct()), True, False)
