"""A Slurm of one node for the tests: daemons of its own, in a folder of its own, on free ports of this machine."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
"""Debian's names for what has the programs."""
CPUS = 16
"""More than there are: jobs share the cores, and wait for no other job."""

CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
FirstJobId={first}
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=30
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=tests Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def _programs() -> dict[str, str]:
    """Where they are; daemons stand in folders that only root's PATH names."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
    found = {name: shutil.which(name, path=path) for name in PROGRAMS}
    return {name: place for name, place in found.items() if place is not None}


@cache
def missing() -> str:
    """Why there is no Slurm here, or nothing; as root it is installed, where there is apt-get."""
    if len(_programs()) == len(PROGRAMS):
        return ""
    absent = ", ".join(sorted(set(PROGRAMS) - _programs().keys()))
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"no {absent}, and only root can install them with apt-get"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-o", "DPkg::Lock::Timeout=300", *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            return f"no {absent}, and apt-get {command[0]} fails: {done.stderr.strip().splitlines()[-1:]}"
    return ""


@dataclass(frozen=True)
class Slurm:
    """The daemons, which write to ``folder`` only."""

    folder: Path
    processes: list[subprocess.Popen[bytes]]

    @property
    def environment(self) -> dict[str, str]:
        """With which every command finds the daemons."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """What a command of Slurm prints; an error of it is one of the test."""
        names = {**os.environ, **self.environment, **(env or {})}
        done = subprocess.run(command, env=names, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def begin(self, *command: str) -> None:
        """Start a daemon."""
        names = {**os.environ, **self.environment}
        with open(self.folder / f"{Path(command[0]).name}.out", "wb") as out:
            self.processes.append(
                subprocess.Popen(command, env=names, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            )

    def outputs(self) -> str:
        """What the daemons have said last."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.out"))

    def job(self, name: str) -> dict[str, str]:
        """What Slurm knows of a job, or of a task of an array such as 7_2."""
        words = self.call("scontrol", "--oneliner", "show", "job", name).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, name: str, *states: str, limit: float = 120, **facts: str) -> None:
        """Return when a job is in one of the states, and what Slurm knows of it has these values."""
        known: dict[str, str] = {}

        def there() -> bool:
            known.update(self.job(name))
            return known["JobState"] in states and known.items() >= facts.items()

        until(there, lambda: f"job {name} is {known['JobState']}, restarted {known['Restarts']} times", limit)

    def hurry(self, name: str, restarts: int = 1) -> None:
        """Wait until a job is requeued, and let it start when its old credentials are void, not two minutes later."""
        self.wait(name, "PENDING", Restarts=str(restarts))
        self.call("scontrol", "update", f"JobId={name}", "StartTime=now+3")

    def stop(self) -> None:
        """End the jobs and then the daemons."""
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.call("scancel", "--signal=KILL", "--full", "--user", str(os.getuid()))
            self.call("scancel", "--user", str(os.getuid()))
            deadline = time.monotonic() + 10
            while self.call("squeue", "--noheader") and time.monotonic() < deadline:
                time.sleep(0.1)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def start(folder: Path) -> Slurm:
    """Start the daemons and wait until the node takes jobs."""
    programs = _programs()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    text = CONFIGURATION.format(
        folder=folder,
        host=socket.gethostname().partition(".")[0],
        user=getpass.getuser(),
        ports=_free_ports(2),
        cpus=CPUS,
        first=1 + secrets.randbelow(10**7),  # MPICH names its shared memory after the job
    )
    (folder / "slurm.conf").write_text(text)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    options = [f"--{name}={folder}/munge.{kind}" for name, kind in files.items()]
    slurm = Slurm(folder, [])
    try:
        slurm.begin(programs["munged"], "--foreground", "--force", *options)
        until((folder / "munge.socket").exists, slurm.outputs)
        slurm.begin(programs["slurmctld"], "-D", "-c")
        slurm.begin(programs["slurmd"], "-D", "-c")
        until(lambda: slurm.call("sinfo", "--noheader", "--format=%T") == "idle", slurm.outputs)
    except BaseException:
        slurm.stop()
        raise
    return slurm


def until(ready: Callable[[], bool], otherwise: Callable[[], str], limit: float = 60) -> None:
    deadline = time.monotonic() + limit
    while True:
        with suppress(AssertionError):  # a daemon that starts does not answer yet
            if ready():
                return
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [taken.getsockname()[1] for taken in sockets]
