"""How a job ends: at once on every rank when one of them fails, and together when all have agreed on a code."""

import os
import socket
import sys
import threading
import traceback
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

from mpinn.comm.launch import read_launch
from mpinn.errors import LocalError
from mpinn.signals import stop_listening

FAILURE = 1
INTERRUPTED = 130
"""What a shell calls a program that was ended by the keyboard."""
_ENDING = threading.RLock()
"""Held by the thread that ends the job: what another one meets while that happens is no news."""


def install_abort_hook() -> None:
    """Let an exception that nobody catches, in any thread of any rank, end the whole job at once.

    Without it the other ranks wait for the messages of the one that failed until their time runs out. Of a LocalError
    its message is enough.
    """
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def leave(code: int, report: str = "") -> NoReturn:
    """End this rank with ``code``, as all ranks do that have agreed on it; they wait for each other first.

    A rank that others do not follow ends the job, and says ``report`` if it was silenced when it said so before.
    After that nothing may be left to do: Open MPI kills a rank that still works when another has left with a code.
    """
    stop_listening(code)
    _flush()
    if "mpi4py.MPI" in sys.modules:
        from mpinn.comm.mpi import PATIENCE, end_together

        end_together(PATIENCE, "" if sys.stderr is sys.__stderr__ else report)
    # Not os._exit: MPICH signs off from its mpirun in a handler of exit, without which the code becomes 9.
    sys.exit(code)


def leave_interrupted() -> NoReturn:
    """End the whole job at once, because the keyboard has interrupted this rank."""
    if read_launch() is None:
        print("interrupted", file=sys.stderr)
        leave(INTERRUPTED)
    end_job("KeyboardInterrupt\n", INTERRUPTED)


def _flush() -> None:
    """What nobody reads any more, as after ``| head``, or no disk takes, goes nowhere, and is no failure."""
    for stream in filter(None, (sys.__stdout__, sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, LocalError):
        end_job(f"mpinn: {error}\n", FAILURE)
    if read_launch() is None:
        sys.__excepthook__(kind, error, trace)
        return
    report = "".join(traceback.format_exception(kind, error, trace))
    end_job(report, INTERRUPTED if issubclass(kind, KeyboardInterrupt) else FAILURE)


def _uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_type is SystemExit:
        return
    report = "".join(traceback.format_exception(arguments.exc_type, arguments.exc_value, arguments.exc_traceback))
    end_job(f"in thread {arguments.thread.name if arguments.thread else '?'}:\n{report}", FAILURE)


def end_job(report: str, code: int) -> NoReturn:
    """End the whole job at once, with a report that this rank writes even if it was silenced; from any thread."""
    while not _ENDING.acquire(timeout=60):
        pass
    _flush()
    launch = read_launch()
    place = f"rank {launch.rank} of {launch.size} on {socket.gethostname()}:\n" if launch else ""
    # Not sys.stderr, which is silenced on ranks other than 0; in one piece, so that ranks do not interleave.
    os.write(2, f"{place}{report}".encode())
    if launch is not None and launch.size > 1:
        # Also when this rank has not started MPI yet: the others may be waiting for it in there.
        with suppress(ImportError, RuntimeError):
            from mpinn.comm import mpi

            mpi.abort(code)
    os._exit(code)
