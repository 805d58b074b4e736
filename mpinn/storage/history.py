"""The metrics of a run: one JSON object a line, and the same as columns; and the summary of a finished one."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.config import InputError
from mpinn.storage.directory import write_text

Record = Mapping[str, Any]
ALWAYS = {"grid": list, "ranks": list}
"""What every summary has, and as what."""


class Metrics:
    """``metrics.jsonl``, open for appending; a line that a crash cut short is dropped when it is opened."""

    def __init__(self, path: Path):
        self.path = path
        _drop_torn_line(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by close()

    def append(self, record: Record) -> None:
        """Write one line; numbers that are not finite become null, which JSON has."""
        self._file.write(json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Drop the lines with a later step: a resumed run writes them again."""
        self._file.close()
        lines = _lines(self.path)
        kept = [line for number, line in enumerate(lines, 1) if _parse(self.path, number, line).get("step", 0) <= step]
        if len(kept) < len(lines):
            write_text(self.path, "".join(line + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        """Make the lines durable and close the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read(path: Path) -> list[Record]:
    """The records of a metrics file; none if there is no file. A last line without its newline does not count yet."""
    return [_parse(path, number, line) for number, line in enumerate(_lines(path), 1)]


def read_summary(path: Path) -> dict[str, Any] | None:
    """The summary that a finished run has left, None if there is no file; InputError for what is no summary."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(str(path), "damaged: it is not a JSON object")
    wrong = [name for name, kind in ALWAYS.items() if not isinstance(found.get(name), kind)]
    if wrong:
        raise InputError(str(path), f"damaged: it does not tell of {' and '.join(wrong)}")
    return found


def columns(records: Sequence[Record]) -> dict[str, Array]:
    """Every key that ever holds a number as a 1-d array: int64 if all are integers, else float64, NaN in gaps."""
    names = dict.fromkeys(
        name for record in records for name, value in record.items() if isinstance(value, int | float)
    )
    return {name: _column([record.get(name) for record in records]) for name in names}


def plain(value: Any) -> Any:
    """What JSON can hold: lists for arrays, and None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _column(values: list[Any]) -> Array:
    if all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64)
    return np.array([value if isinstance(value, int | float) else math.nan for value in values], dtype=np.float64)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]


def _parse(path: Path, number: int, line: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"line {number} is not JSON: {getattr(error, 'msg', error)}") from error
    if not isinstance(record, dict) or not isinstance(record.get("step", 0), int):
        raise InputError(str(path), f"line {number} is not a JSON object with a step")
    return record


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "rb+") as file:
        contents = file.read()
        file.truncate(contents.rfind(b"\n") + 1)
