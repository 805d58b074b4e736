"""Starts jobs under mpirun for the tests, and leaves no process behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpinn.array.blas import settle_blas

# before NumPy is imported, as in the jobs that are started: the tests compare to the last bit
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
settle_blas(put=os.environ.__setitem__)  # also of what is started without the command line
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_btl": "^ofi",
    "PYTHONDONTWRITEBYTECODE": "",
}
"""One BLAS thread; as root and with more ranks than cores under Open MPI 4 and 5, to which MPICH is indifferent.

Without OFI for one-sided messages, of which there are none: looking for it takes Open MPI 5 a second at each start.
Modules are compiled once, also where Python is told to keep none compiled."""

STARTED: list[subprocess.Popen[str]] = []
"""Jobs of the test that runs now; one that is to outlive it is taken out."""


def mpirun_program() -> str:
    """The mpirun of this environment; MPINN_TEST_MPIRUN names another."""
    named = os.environ.get("MPINN_TEST_MPIRUN")
    beside = Path(sys.executable).with_name("mpirun")
    found = named or (str(beside) if beside.exists() else shutil.which("mpirun"))
    if found is None:
        raise FileNotFoundError("no mpirun beside Python or on PATH: pip install 'mpinn[mpi]', or load an MPI module")
    return found


def no_launcher() -> str:
    """Why there is no second rank; nothing if there may be one."""
    try:
        mpirun_program()
    except FileNotFoundError as error:
        return str(error)
    return ""


def open_mpi() -> Path | None:
    """The folder of an Open MPI: that of MPINN_TEST_OPENMPI, or the one on PATH; None where there is none."""
    info = shutil.which("ompi_info")
    prefix = os.environ.get("MPINN_TEST_OPENMPI") or (Path(info).resolve().parents[1] if info else None)
    return Path(prefix) if prefix and (Path(prefix) / "bin/mpirun").exists() else None


def has_ulfm() -> bool:
    """Whether `open_mpi` lets ranks survive the death of others, as it does since version 5."""
    prefix = open_mpi()
    if prefix is None:
        return False
    said = subprocess.run([prefix / "bin/mpirun", "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"(\d+)\.", said)[0]) >= 5


def open_mpi_library() -> Path:
    """The library of `open_mpi`, for MPI4PY_LIBMPI; Debian has a folder for each architecture."""
    prefix = open_mpi()
    assert prefix is not None
    folders = [prefix / "lib", prefix / "lib64", *sorted((prefix / "lib").glob("*-linux-gnu"))]
    return next(path for folder in folders for path in folder.glob("libmpi.so.*"))


def start(
    n: int,
    *args: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int = subprocess.PIPE,
    options: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start ``mpirun *options -n n python *args`` in a process group of its own."""
    command = [mpirun_program(), *options, "-n", str(n), sys.executable, *args]
    return _started(command, **{**_options(env, cwd), "stdout": stdout})


def start_alone(*args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start ``python *args`` without a launcher."""
    return _started([sys.executable, *args], **_options(env, cwd))


def finish(process: subprocess.Popen[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Wait for a started job; on time-out kill all of it and raise TimeoutExpired with what it has printed."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        kill(process)
        out, err = process.communicate()
        raise subprocess.TimeoutExpired(error.cmd, timeout, out, err) from None
    finally:
        kill(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def mpirun(
    n: int, *args: str, timeout: float = 60, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``mpirun -n n python *args`` to its end."""
    return finish(start(n, *args, env=env, cwd=cwd), timeout)


def alone(
    *args: str, timeout: float = 60, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python *args`` to its end, without a launcher."""
    return finish(start_alone(*args, env=env, cwd=cwd), timeout)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the launcher and every rank below it, which Open MPI puts into process groups of their own."""
    for rank in descendants(process.pid):
        try:
            os.kill(rank, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def kill_what_is_left() -> None:
    """Kill the jobs that a test has started and not seen to their end, as one does that fails."""
    while STARTED:
        job = STARTED.pop()
        if job.poll() is None:
            kill(job)
            with suppress(subprocess.TimeoutExpired):
                job.communicate(timeout=10)


def descendants(process: int) -> list[int]:
    """Processes below ``process``, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = children.get(process, [])
    for child in found:
        found.extend(children.get(child, []))
    return found


def alive(process: int) -> bool:
    """Whether a process runs: one that is dead stays listed until its parent has asked for its code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(processes: Iterable[int]) -> bool:
    """Whether all processes end, which somebody has just killed: that takes a moment on a busy machine."""
    left, deadline = list(processes), time.monotonic() + 10
    while (left := list(filter(alive, left))) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not left


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Rank -> process of a running job, read from the environment that the launcher gave each of them."""
    found: dict[int, int] = {}
    for child in descendants(process.pid):
        try:
            entries = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            program = os.readlink(f"/proc/{child}/exe")
        except OSError:
            continue
        names = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
        rank = names.get(b"OMPI_COMM_WORLD_RANK", names.get(b"PMI_RANK"))
        if rank is not None and os.path.basename(program).startswith("python"):
            found.setdefault(int(rank), child)
    return found


def _started(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    job: subprocess.Popen[str] = subprocess.Popen(command, **options)
    STARTED.append(job)
    return job


def _options(env: Mapping[str, str] | None, cwd: Path | None) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # Open MPI starts its daemon by name, from PATH.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        "env": {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, "PATH": programs, **(env or {})},
        "cwd": cwd or ROOT,
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "errors": "replace",
        "start_new_session": True,
    }
