"""The lock of a run directory, so that one job at a time trains in it."""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep, strftime
from typing import TextIO

from mpinn.errors import InputError

UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
PATIENCE = 1.0
"""Seconds for the name of who holds a lock: it is written just after the file is locked."""


class Lock:
    """Held by one process from `take` to `release`, or to its end: a job that was killed leaves a file, but no lock."""

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._path = Path()

    def take(self, path: Path) -> str:
        """Lock the file ``path``; returns a sentence for the log where the file system has no locks, else nothing.

        Raises InputError, which says who, if another process holds it, and OSError if the file cannot be written.
        """
        file = _open_locked(path)
        if file is None:
            return f"{path.parent} cannot be locked on this file system: see that no other job trains in it"
        self._file, self._path = file, path
        try:
            file.truncate(0)
            file.write(_who())
            file.flush()
        except OSError:
            self.release()
            raise
        return ""

    def release(self) -> None:
        """Remove the file and let go of the lock, if it is held."""
        if self._file is None:
            return
        with suppress(OSError):
            # first the name, then the lock: who has opened the file meanwhile sees that it is no longer the one
            if _is_at(self._file, self._path):
                self._path.unlink()
        with suppress(OSError):
            self._file.close()
        self._file = None


def check_free(path: Path) -> None:
    """Raise InputError if a process holds the lock file ``path``; writes nothing.

    A file that can't be opened or locked is left to `Lock.take`.
    """
    with suppress(OSError), open(path, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(path, file) from None


def lockable(path: Path) -> bool:
    """Whether the file system of a file has locks, as far as that can be asked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in UNSUPPORTED
    finally:
        os.close(descriptor)
    return True


def _open_locked(path: Path) -> TextIO | None:
    """The file, created if need be, with the lock; None where there are no locks."""
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  open as long as the lock is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
            file.close()
        except BlockingIOError:
            with file:
                raise _taken(path, file) from None
        except OSError as error:
            file.close()
            if error.errno not in UNSUPPORTED:
                raise
            path.unlink(missing_ok=True)
            return None


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether ``path`` still names the open file: the one who held the lock before may have removed or moved it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _taken(path: Path, file: TextIO) -> InputError:
    return InputError("run.directory", f"{path.parent} is being trained by {_named(file) or 'another job'}")


def _named(file: TextIO) -> str:
    """Who has written into a lock that is held; nothing if nobody has for a while."""
    deadline = monotonic() + PATIENCE
    while True:
        file.seek(0)
        told = file.read()
        if told or monotonic() > deadline:
            return told
        sleep(0.01)


def _who() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    named = f", job {job}" if job else ""
    return f"pid {os.getpid()} on host {socket.gethostname()}{named} (since {strftime('%Y-%m-%d %H:%M:%S')})"
