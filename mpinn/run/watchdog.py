"""The watchdog: finds that a rank has died, hangs or is stopped, says where all the others are, and ends the job."""

import faulthandler
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from types import TracebackType

import msgspec

from mpinn.comm.abort import FAILURE, end_job
from mpinn.comm.grid import World
from mpinn.comm.ledger import Account, missing
from mpinn.storage.directory import partial
from mpinn.words import name_ranks

LOOKS = 20
"""How often a rank looks while ``patience`` passes."""
STDERR = 2
"""Its descriptor: ``sys.stderr`` is silenced on ranks other than 0."""
START = 600.0
"""Seconds of patience, at least, before training begins: kernels are compiled and data are read."""
ANSWERS = 4
"""Looks that the others are given to answer: a shared file system may show them late that they are asked."""

SECOND = 60.0
"""Seconds more after which another rank ends the job, should the first to find out have failed to."""


@dataclass(frozen=True)
class Answer:
    """What a rank is doing, and where it stands with NCCL."""

    doing: str
    account: Account


class Watchdog:
    """A thread of each rank, which looks now and then whether the main thread has got any further, and NCCL has failed.

    A rank that has not for ``patience`` seconds makes a folder in the run directory. That asks the others, who may be
    about to wait too, and who all write there what they are doing, with their stacks. Then it ends the job.
    No message is needed for that, and nothing is done in a step.
    """

    def __init__(self, world: World, patience: float, directory: Path):
        self.step: Callable[[], int] | None = None
        """The last step that this rank has done; None before training begins."""
        self._world = world
        self._patience = patience
        self._pause = patience / LOOKS
        self._directory = directory
        self._folder = directory
        self._done = Event()
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)
        self._wanted = patience > 0 and world.size > 1

    def __enter__(self) -> "Watchdog":
        if self._wanted:
            self._folder = self._directory / self._world.verdict(self._free_name).decode()
            faulthandler.register(signal.SIGALRM, file=STDERR, all_threads=False)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wanted:
            self._done.set()
            self._thread.join()
            _alarm_in(0)
            faulthandler.unregister(signal.SIGALRM)

    def follow(self, world: World) -> None:
        """Watch over the ranks that are left; it has the patience of a start until there is a ``step`` again."""
        self._world = world
        if world.size == 1:
            self._done.set()

    def _free_name(self) -> bytes:
        """A new name in each start, so that no file system shows a rank the folder of the one before."""
        number = 1
        while (self._directory / f"stacks-{number}").exists():
            number += 1
        return f"stacks-{number}".encode()

    def _watch(self) -> None:
        seen: tuple[object, ...] = ()
        idle, before = 0.0, monotonic()
        while not self._done.wait(self._pause):
            patience = self._patience if self.step else max(self._patience, START)
            _alarm_in(patience + self._pause)
            now, found = monotonic(), (self._place(), self._world.blocked())
            # For a rank that was itself stopped, or a job that was suspended, that time has not passed.
            idle = idle + min(now - before, 2 * self._pause) if found == seen else 0.0
            seen, before = found, now
            if failures := [failure for groups in self._world.joined() if (failure := groups.failure())]:
                self._leave("\n".join([*failures, "the job is ended: " + self._own().doing, ""]))
            elif idle >= patience:
                self._end()
            elif self._folder.exists():
                self._answer()
                if not self._done.wait(ANSWERS * self._pause + SECOND):
                    self._end()

    def _end(self) -> None:
        """End the job; the rank that was first to find that it must be."""
        asks = False
        with suppress(OSError):
            self._folder.mkdir(parents=True)
            asks = True
        self._answer()
        deadline = monotonic() + ANSWERS * self._pause + (0 if asks else SECOND)
        while monotonic() < deadline and (not asks or len(self._answers()) < self._world.size):
            if self._done.wait(self._pause / 4):
                return
        self._leave(self._report(self._answers()))

    def _leave(self, report: str) -> None:
        # MPI may not end a job while the main thread is in MPI; a rank that leaves without a word does.
        Thread(target=end_job, args=(report, FAILURE), daemon=True).start()
        self._done.wait(10)
        os._exit(FAILURE)

    def _answer(self) -> None:
        """Write what this rank is doing, and the stacks of its threads."""
        _alarm_in(0)
        path = self._folder / f"rank-{self._world.rank}.txt"
        own = self._own()
        with suppress(OSError):
            with open(partial(path), "w", encoding="utf-8") as file:
                file.write(f"{own.doing}\n{msgspec.json.encode(own.account).decode()}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            os.replace(partial(path), path)

    def _place(self) -> str:
        return f"after step {self.step()}" if self.step else "before training"

    def _own(self) -> Answer:
        pending = self._world.blocked()
        doing = "does not wait for a message" if pending is None else f"waits in {pending}"
        account, joined = Account(), self._world.joined()
        if joined:
            # of a device that has failed nothing can be said
            with suppress(RuntimeError):
                account = joined[-1].account()
        if account.first:
            doing = f"waits for {account}" if pending is None else f"{doing}, and the GPU for {account}"
        return Answer(f"{self._place()} {doing}", account)

    def _answers(self) -> dict[int, Answer]:
        """What the ranks that have answered are doing."""
        found = {}
        for rank in range(self._world.size):
            with suppress(OSError), open(self._folder / f"rank-{rank}.txt", encoding="utf-8") as file:
                doing, account = file.readline().strip(), file.readline()
                found[rank] = Answer(doing, msgspec.json.decode(account, type=Account))
        return found

    def _report(self, answers: Mapping[int, Answer]) -> str:
        silent = [rank for rank in range(self._world.size) if rank not in answers]
        doing = defaultdict(list)
        for rank, answer in answers.items():
            doing[answer.doing].append(rank)
        lines = [f"no progress for {self._patience:g} s: the job is ended"]
        if silent:
            lines.append(f"{name_ranks(silent)}: no answer, dead or stopped")
        lines += [
            f"{name_ranks(ranks)}: {told}" for told, ranks in sorted(doing.items(), key=lambda item: len(item[1]))
        ]
        lines += missing({rank: answer.account for rank, answer in answers.items()})
        return "\n".join([*lines, f"the stacks are in {self._folder}", ""])


def _alarm_in(seconds: float) -> None:
    """Let the main thread write its stack then, unless this is called again: 0 is never.

    One that never lets go of Python's lock stops the watchdog as well. Of itself alone: a process that goes on after it
    was stopped for longer writes it too, and a stack that is read while its thread runs may end the process.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
