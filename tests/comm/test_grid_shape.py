"""The arithmetic of the grid, and the world of one rank."""

import numpy as np
import pytest

from mpinn.comm import grid
from mpinn.comm.grid import Grid, connect, shape_of
from mpinn.config import InputError


@pytest.mark.parametrize(
    ("ranks", "asked", "shape"),
    [
        (1, (0, 1, 1), (1, 1, 1)),
        (4, (0, 1, 1), (4, 1, 1)),
        (4, (0, 2, 1), (2, 2, 1)),
        (12, (2, 3, 2), (2, 3, 2)),
        (6, (0, 1, 6), (1, 1, 6)),
        (6, (0, 1, 0), (1, 1, 6)),
        (6, (2, 1, 0), (2, 1, 3)),
    ],
)
def test_grids_that_fit(ranks: int, asked: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    assert shape_of(ranks, *asked) == shape


@pytest.mark.parametrize(
    ("ranks", "asked", "path", "message"),
    [
        (
            4,
            (3, 1, 1),
            "grid.replicas",
            "3 replicas x 1 stages x 1 shards need 3 ranks, not 4; replicas can be 4",
        ),
        (4, (4, 2, 1), "grid.replicas", "need 8 ranks, not 4; replicas can be 2 "),
        (4, (0, 3, 1), "grid.stages", "multiple of 3 ranks, not 4; stages x shards can be 1, 2, 4"),
        (1, (0, 1, 2), "grid.shards", "multiple of 2 ranks, not 1"),
        (6, (0, 2, 2), "grid.replicas", "multiple of 4 ranks"),
        (4, (-1, 1, 1), "grid.replicas", "-1 is too small: at least 0"),
        (4, (0, 0, 1), "grid.stages", "at least 1"),
        (4, (0, 1, -1), "grid.shards", "at least 0"),
        (4, (3, 1, 0), "grid.replicas", "3 replicas x 1 stages x 1 shards need 3 ranks, not 4"),
    ],
)
def test_grids_that_do_not_fit(ranks: int, asked: tuple[int, int, int], path: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        shape_of(ranks, *asked)
    assert caught.value.path == path
    assert message in str(caught.value)


def test_one_rank_alone_needs_no_mpi() -> None:
    world = grid._alone("no MPI library")
    whole = Grid(world)
    assert (whole.shape, whole.replica, whole.stage, whole.shard) == ((1, 1, 1), 0, 0, 0)
    array = np.arange(3.0)
    for channel in (whole.replicas, whole.stages, whole.shards, whole.control):
        assert channel.size == 1
        channel.all_sum(array).wait()
    assert array.tolist() == [0, 1, 2]
    assert world.verdict(lambda: b"fine") == b"fine"
    assert world.gather_text("só") == ["só"]
    with pytest.raises(InputError, match="4 replicas"):
        Grid(world, replicas=4)


@pytest.fixture
def no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without an MPI library: importing mpi4py.MPI fails."""
    import sys

    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    monkeypatch.delitem(sys.modules, "mpinn.comm.mpi", raising=False)


@pytest.mark.usefixtures("no_mpi")
def test_without_a_library_one_rank_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "read_launch", lambda: None)
    world = connect()
    assert (world.rank, world.size, world.library) == (0, 1, "none")
    assert world.note.startswith("no MPI library, so one rank without messages")


@pytest.mark.usefixtures("no_mpi")
def test_without_a_library_under_a_launcher_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(grid, "read_launch", lambda: grid.Launch(0, 2, 0, 2, "MPICH's mpirun"))
    with pytest.raises(InputError, match=r"MPICH's mpirun started this program.*mpinn\[mpi\]"):
        connect()


@pytest.mark.parametrize(
    ("line", "cores"), [("max 100000\n", 2**30), ("150000 100000\n", 2), ("50000 100000\n", 1), ("", 2**30)]
)
def test_quota_of_a_container(tmp_path_factory: pytest.TempPathFactory, line: str, cores: int) -> None:
    path = tmp_path_factory.mktemp("cgroup") / "cpu.max"
    path.write_text(line)
    assert grid._quota(path) == cores
    assert grid._quota(path.with_name("missing")) == 2**30
