"""What a file that anybody may have made or damaged must not do: lead elsewhere, claim what it has not, or crash."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py

from mpinn.errors import InputError

T = TypeVar("T")
RAISED = (OSError, RuntimeError, KeyError, ValueError, TypeError, RecursionError, MemoryError)
"""What h5py, and Python with what h5py returns, make of damaged bytes."""
NUMBERS_AND_TEXT = "biufS"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Let whatever goes wrong in reading a file be an InputError that names it."""
    try:
        yield
    except PermissionError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror or error}") from error
    except RAISED as error:
        reason = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        raise InputError(str(path), f"damaged: {reason or type(error).__name__}") from error


def reads_files(reader: type[T]) -> type[T]:
    """A class that reads the file ``self.path``, whose methods and properties raise InputError for what is damaged."""
    for name, member in list(vars(reader).items()):
        if isinstance(member, property) and member.fget is not None:
            setattr(reader, name, property(_guarded(member.fget), doc=member.__doc__))
        elif inspect.isfunction(member) and not name.endswith("exit__"):
            setattr(reader, name, _guarded(member))
    return reader


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **options: Any) -> Any:
        with reading(getattr(self, "path", None) or args[0]):
            return method(self, *args, **options)

    @functools.wraps(method)
    def guarded_generator(self: Any, *args: Any, **options: Any) -> Iterator[Any]:
        with reading(self.path):
            yield from method(self, *args, **options)

    return guarded_generator if inspect.isgeneratorfunction(method) else guarded


def check_links(file: h5py.File) -> None:
    """Raise ValueError unless names form a tree: none leads to another file, to another name, or back."""
    seen = {h5py.h5o.get_info(file.id).addr}

    def see(name: bytes, info: Any) -> bytes | None:
        if info.type != h5py.h5l.TYPE_HARD or info.u in seen:
            return name  # which ends the visit: h5py does not survive an exception here
        seen.add(info.u)
        return None

    wrong = file.id.links.visit(see, info=True)
    if wrong is not None:
        raise ValueError(f"/{wrong.decode(errors='replace')} is a link to something else")


def sound(dataset: h5py.Dataset) -> h5py.Dataset:
    """The data set; ValueError if its values are in another file, no numbers or text, or more than the file can hold.

    Checked before memory is taken for them: a checkpoint is not compressed.
    """
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise ValueError(f"the values of {dataset.name} are in another file")
    if dataset.dtype.kind not in NUMBERS_AND_TEXT:
        raise ValueError(f"{dataset.name} holds {dataset.dtype}, neither numbers nor text")
    if dataset.nbytes > h5py.h5i.get_file_id(dataset.id).get_filesize():
        raise ValueError(f"{dataset.name} claims {dataset.nbytes} bytes, more than the file has")
    return dataset
