"""What is said where mpi4py finds no MPI library."""

import sys

import pytest

from mpinn.comm import grid
from mpinn.comm.grid import connect
from mpinn.errors import InputError

DEBIAN = "libmpich.so.12 is an MPICH: link it as libmpi.so.12 into a folder that LD_LIBRARY_PATH names"
NONE = "pip install 'mpinn[mpi]' brings one, and LD_LIBRARY_PATH can name the folder of the site's"


NAMED = "MPI4PY_LIBMPI names /opt/libmpi.so: is that the file of an MPI library?"


@pytest.mark.parametrize(
    ("named", "found", "remedy"),
    [("", "libmpich.so.12", DEBIAN), ("", None, NONE), ("/opt/libmpi.so", "libmpich.so.12", NAMED)],
)
def test_a_job_without_a_library_is_told_how_to_get_one(
    named: str, found: str | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPI4PY_LIBMPI", named)
    monkeypatch.setattr(grid, "find_library", {"mpich": found}.get)
    monkeypatch.setitem(sys.modules, "mpinn.comm.mpi", None)
    for name in ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(InputError) as caught:
        connect()
    assert str(caught.value).startswith("MPI: MPICH's mpirun started this program, but ")
    assert str(caught.value).endswith(f"; {remedy}")
    monkeypatch.delenv("MPI_LOCALRANKID")
    monkeypatch.delenv("PMI_RANK")
    world = connect()
    assert world.note.startswith("no MPI library, so one rank without messages (")
    assert world.note.endswith(f"; {remedy})")
