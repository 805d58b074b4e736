"""A file for HDF5 to write to that fails in an orderly way."""

import io
from pathlib import Path
from types import TracebackType
from typing import Any


class Sink(io.RawIOBase):
    """A file whose writes never fail in HDF5's face: the first OSError is kept, what follows is dropped.

    HDF5 does not survive a full disk: it cannot close the file, keeps it open, and crashes when the program ends. So it
    is told that all is well, closes the file, and ``check`` raises. Python's lock is free during every write.
    """

    def __init__(self, path: Path):
        super().__init__()
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115  closed by close()
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, buffer: Any) -> int:
        """Write all of the buffer; the operating system may take several calls."""
        rest = memoryview(buffer).cast("B")
        count = len(rest)
        try:
            while self._error is None and len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._error = error
        return count

    def truncate(self, size: int | None = None) -> int:
        """Set the length of the file."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int | None:
        """Read into the buffer."""
        return self._file.readinto(buffer)

    def readable(self) -> bool:
        """HDF5 reads back parts of what it wrote."""
        return True

    def writable(self) -> bool:
        """It is what the file is for."""
        return True

    def close(self) -> None:
        """Close the file; some file systems report a full disk only now."""
        super().close()
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
