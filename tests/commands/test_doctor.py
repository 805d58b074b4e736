"""``doctor``: all that it is to tell of the machine and the job, on one rank and on several."""

import os
import platform
import re
import socket
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
from launch import alone, mpirun, open_mpi, open_mpi_library
from printed import facts, rows

import mpinn
from mpinn.commands.doctor import warnings
from mpinn.storage.versions import versions

AMOUNT = r"(\d[\d.e+-]*) {unit} \((\d[\d.e+-]*) to (\d[\d.e+-]*)\)"


@pytest.fixture(scope="module")
def told() -> Callable[[int], str]:
    """What ``doctor`` prints on a number of ranks; 0: without a launcher."""

    @cache
    def run(ranks: int) -> str:
        job = mpirun(ranks, "-m", "mpinn", "doctor") if ranks else alone("-m", "mpinn", "doctor")
        assert (job.returncode, job.stderr) == (0, "")
        return job.stdout

    return run


@pytest.mark.parametrize("ranks", [0, 1, 4])
def test_every_rank_has_a_row(ranks: int, told: Callable[[int], str]) -> None:
    head, *people = [row for row in rows(told(ranks)) if len(row) > 2]
    count = max(1, ranks)
    assert head == ["rank", "host", "local rank", "cores", "threads", "devices"]
    assert [row[0] for row in people] == [str(rank) for rank in range(count)]
    assert [row[2] for row in people] == [f"{rank} of {count}" for rank in range(count)]
    for row in people:
        assert row[1] == socket.gethostname()
        assert 1 <= int(row[3]) <= len(os.sched_getaffinity(0))
        assert row[4] == "OMP=1, OPENBLAS=1, MKL=1"
        assert row[5] == "none"  # there is no CuPy


@pytest.mark.parametrize("ranks", [0, 1, 4])
def test_libraries_are_told_with_their_versions(ranks: int, told: Callable[[int], str]) -> None:
    found = facts(told(ranks))
    assert (found["mpinn"], found["Python"]) == (mpinn.__version__, platform.python_version())
    for library in ("numpy", "numba", "mpi4py", "h5py"):
        assert found[library] == version(library)
    assert re.fullmatch(r"(MPICH|Open MPI) \d+\.\d+\.\d+", found["MPI"])
    assert found["HDF5"].startswith(f"{h5py.version.hdf5_version}, ")
    assert found["HDF5"].endswith("one rank writes")
    assert found["transport"] == "direct: arrays are in host memory"
    assert found["launcher"].endswith("mpirun" if ranks else "none")


def test_messages_between_four_ranks_are_measured(told: Callable[[int], str]) -> None:
    measured = {name: value for name, value in facts(told(4)).items() if name.startswith(("latency", "bandwidth"))}
    assert list(measured) == [
        "latency, 8 bytes there and back",
        "bandwidth, rank 0 to 1, 1 MB",
        "bandwidth, sum over 4 ranks, 1 MB",
        "bandwidth, rank 0 to 1, 16 MB",
        "bandwidth, sum over 4 ranks, 16 MB",
    ]
    for name, value in measured.items():
        amount = re.fullmatch(AMOUNT.format(unit="us" if "latency" in name else "GB/s"), value)
        assert amount, value
        median, low, high = map(float, amount.groups())
        assert 0 < low <= median <= high


@pytest.mark.parametrize("ranks", [0, 1])
def test_one_rank_has_nothing_to_measure(ranks: int, told: Callable[[int], str]) -> None:
    assert facts(told(ranks))["messages"] == "one rank: there is nothing to measure"


@pytest.mark.parametrize("ranks", [0, 1, 4])
def test_rank_0_alone_prints_and_once(ranks: int, told: Callable[[int], str]) -> None:
    text = told(ranks)
    for once in (" rank  host", "\nMPI ", "\ntransport ", "\nHDF5 "):
        assert text.count(once) == 1
    assert text.split()[:2] == [str(max(1, ranks)), "ranks" if ranks > 1 else "rank"]


def test_what_makes_a_run_slow_is_warned_of() -> None:
    def rank(host: str, crowded: bool, **threads: str) -> dict[str, object]:
        return {"host": host, "cores": 2, "crowded": crowded, "threads": threads}

    assert warnings([rank("a", False, OMP_NUM_THREADS="1"), rank("b", False)]) == []
    assert warnings([rank("a", True, OMP_NUM_THREADS="1"), rank("a", True, OMP_NUM_THREADS="1"), rank("b", False)]) == [
        "a: 2 ranks on 2 cores: ranks wait politely, but share the cores"
    ]
    assert warnings([rank("a", False, OMP_NUM_THREADS="4"), rank("a", False, OMP_NUM_THREADS="4")]) == [
        "a: 2 ranks, but BLAS is not limited to one thread (OMP_NUM_THREADS=1)"
    ]


@pytest.mark.parametrize(
    ("mpi", "told"), [(False, "one rank writes"), (True, "built with MPI, of which no use is made: one rank writes")]
)
def test_a_library_with_mpi_is_no_promise(mpi: bool, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5py, "get_config", lambda: SimpleNamespace(mpi=mpi))
    assert versions()["HDF5"] == f"{h5py.version.hdf5_version}, {told}"


def test_its_help_has_an_example() -> None:
    job = alone("-m", "mpinn", "doctor", "--help")
    assert (job.returncode, job.stderr) == (0, "")
    assert "mpirun -n 4 python -m mpinn doctor" in job.stdout


@pytest.mark.open_mpi
@pytest.mark.parametrize("ranks", [1, 4])
def test_under_open_mpi(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPINN_TEST_MPIRUN", str(Path(open_mpi() or "") / "bin/mpirun"))
    job = mpirun(ranks, "-m", "mpinn", "doctor", env={"MPI4PY_LIBMPI": str(open_mpi_library())})
    assert job.returncode == 0, job.stderr
    found = facts(job.stdout)
    assert found["MPI"].startswith("Open MPI ")
    assert found["launcher"] == "Open MPI's mpirun"
    assert len([row for row in rows(job.stdout) if len(row) > 2]) == 1 + ranks
    assert ("latency, 8 bytes there and back" in found) == (ranks > 1)
