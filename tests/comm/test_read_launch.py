"""What a rank learns from its launcher before MPI is started."""

import os
import pty
import sys
from pathlib import Path

import pytest
from launch import finish, mpirun, start

from mpinn.comm.launch import Launch, launcher_terminal, on_terminal, read_launch, terminal_width

HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "3",
}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (HYDRA, Launch(3, 4, 1, 2, "MPICH's mpirun")),
        (OPEN_MPI, Launch(3, 4, 1, 2, "Open MPI's mpirun")),
        (SRUN, Launch(3, 4, 1, 4, "srun")),
        ({**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4"}, Launch(3, 4, 1, 4, "srun")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, None),
        ({**SRUN, "SLURM_PROCID": "0", **HYDRA}, Launch(3, 4, 1, 2, "MPICH's mpirun")),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Launch(1, 2, None, 2, "a PMI launcher")),
        ({"PMIX_RANK": "2"}, Launch(2, 1, None, 1, "a PMIx launcher")),
    ],
)
def test_launch_is_read_from_the_environment(environment: dict[str, str], expected: Launch | None) -> None:
    assert read_launch(environment) == expected


def make_process(proc: Path, process: int, parent: int, name: str, out: str) -> None:
    folder = proc / str(process)
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text(f"{name}\n")
    (folder / "stat").write_text(f"{process} (a) b (c) S {parent} 1 1 0\n")
    (folder / "fd" / "1").symlink_to(out)


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([("hydra_pmi_proxy", "pipe:[7]"), ("mpirun", "/dev/pts/3"), ("bash", "/dev/pts/9")], "/dev/pts/3"),
        ([("prterun", "/dev/tty1"), ("bash", "/dev/pts/9")], "/dev/tty1"),
        ([("prterun", "/home/someone/log"), ("bash", "/dev/pts/9")], None),
        ([("mpiexec.hydra", "pipe:[8]")], None),
        ([("slurmstepd", "/dev/pts/1")], None),
    ],
)
def test_the_terminal_is_the_launchers(tmp_path: Path, chain: list[tuple[str, str]], expected: str | None) -> None:
    make_process(tmp_path, 100, 101, "python", "/dev/pts/5")
    for i, (name, out) in enumerate(chain):
        make_process(tmp_path, 101 + i, 102 + i if i + 1 < len(chain) else 1, name, out)
    assert launcher_terminal(tmp_path, 100) == expected


def test_without_a_launcher_it_is_the_own_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert on_terminal(environment={})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert not on_terminal(environment={})
    assert terminal_width(environment={}) == 80


def test_a_launcher_that_cannot_be_seen_has_no_terminal(tmp_path: Path) -> None:
    assert not on_terminal(tmp_path, HYDRA)
    assert terminal_width(tmp_path, HYDRA) == 80


ASK = "from mpinn.comm.launch import *; print(on_terminal(), terminal_width())"


def test_a_real_mpirun_into_a_pipe_is_no_terminal() -> None:
    job = mpirun(1, "-c", ASK)
    assert (job.returncode, job.stdout.split()) == (0, ["False", "80"]), job.stderr


def test_a_real_mpirun_on_a_terminal() -> None:
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 123, 0, 0))
    job = start(1, "-c", ASK, stdout=theirs)
    finish(job)
    os.close(theirs)
    shown = os.read(ours, 1000).decode()
    os.close(ours)
    assert shown.split() == ["True", "123"]


def test_only_rank_0_prints_what_all_say() -> None:
    program = "import sys; from mpinn.comm.launch import *; silence_other_ranks(); print('out'); sys.exit('usage')"
    job = mpirun(3, "-c", program)
    assert job.stdout.split() == ["out"]
    assert job.stderr.count("usage") == 1
    assert job.returncode != 0
