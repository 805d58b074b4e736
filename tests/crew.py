"""Ranks that stay: commands of the program one after the other in one job, for tests of what they do, not of jobs.

A job takes longer to start than a small run to train. ``python crew.py FOLDER``, which `Crew` starts under mpirun,
does what `mpinn.cli.main.main` does, but for each command that comes through a pipe of its rank.
"""

import json
import os
import select
import subprocess
import sys
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from launch import STARTED, finish, kill, start, start_alone
from train_jobs import arguments

from mpinn.cli.main import _run, _with_command
from mpinn.comm.abort import install_abort_hook, leave
from mpinn.comm.launch import read_launch, silence_other_ranks


class Crew:
    """So many ranks of one job; 0: a process without a launcher. Made by `Crews`."""

    def __init__(self, ranks: int, folder: Path):
        wanted = range(max(1, ranks))
        for rank in wanted:
            os.mkfifo(folder / f"told-{rank}")
            os.mkfifo(folder / f"said-{rank}")
        # both ways, so that neither side waits here for one that has died
        self.told = [os.open(folder / f"told-{rank}", os.O_RDWR) for rank in wanted]
        self.said = [os.open(folder / f"said-{rank}", os.O_RDWR) for rank in wanted]
        self.job = start(ranks, __file__, str(folder)) if ranks else start_alone(__file__, str(folder))
        STARTED.remove(self.job)
        self.lost = False

    def run(self, *command: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """What the command prints and returns; all ranks end it with the same code."""
        for pipe in self.told:
            os.write(pipe, json.dumps(command).encode() + b"\n")
        deadline = time.monotonic() + timeout
        answers = [json.loads(self._line(pipe, deadline)) for pipe in self.said]
        codes = [code for code, _, _ in answers]
        assert len({*codes}) == 1, f"{command}: ranks end with {codes}"
        return subprocess.CompletedProcess(command, *answers[0])

    def _line(self, pipe: int, deadline: float) -> bytes:
        found = b""
        while not found.endswith(b"\n"):
            if select.select([pipe], [], [], 0.5)[0]:
                found += os.read(pipe, 2**16)
            elif self.job.poll() is not None or time.monotonic() > deadline:
                self.lost = True
                kill(self.job)
                raise AssertionError(f"the ranks have not answered: {self.job.communicate()}")
        return found

    def leave(self) -> None:
        """End the job, which must have printed nothing but its answers."""
        try:
            if not self.lost:
                for pipe in self.told:
                    os.write(pipe, b"\n")
                done = finish(self.job)
                assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
        finally:
            kill(self.job)
            for pipe in (*self.told, *self.said):
                os.close(pipe)


class Crews:
    """A crew for each number of ranks that is asked for."""

    def __init__(self, stack: ExitStack):
        self.stack = stack
        self.found: dict[int, Crew] = {}

    def run(self, ranks: int, *line: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """As `launch.mpirun`, of a command of the program; 0 ranks: as `launch.alone`."""
        assert line[:2] == ("-m", "mpinn")
        if ranks not in self.found or self.found[ranks].lost:
            folder = self.stack.enter_context(TemporaryDirectory(prefix="mpinn-crew-"))
            self.found[ranks] = Crew(ranks, Path(folder))
            self.stack.callback(self.found[ranks].leave)
        return self.found[ranks].run(*line[2:], timeout=timeout)

    def train(self, ranks: int, directory: Path, *settings: str) -> subprocess.CompletedProcess[str]:
        """As `train_jobs.train`."""
        return self.run(ranks, *arguments(directory, *settings))


def serve(folder: Path) -> None:
    """Do what comes through the pipe of this rank, until an empty line."""
    silence_other_ranks()
    install_abort_hook()
    launch = read_launch()
    rank = launch.rank if launch else 0
    with (folder / f"told-{rank}").open() as told, (folder / f"said-{rank}").open("w") as said:
        while line := told.readline().strip():
            print(json.dumps(_do(json.loads(line), rank)), file=said, flush=True)
    leave(0)


def _do(command: list[str], rank: int) -> tuple[int, str, str]:
    """Code and output; ranks other than 0 are silenced, as in any job."""
    if rank:
        return _run(_with_command(command))[0], "", ""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code, report = _run(_with_command(command))
        if report:
            print(report, file=sys.stderr)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
