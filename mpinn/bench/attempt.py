"""Measurements of which one may fail without ending the others."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def attempt(what: str, failed: list[str] | None) -> Iterator[None]:
    """Print an error and add it to those that ``failed``; without such a list it goes on to the caller."""
    try:
        yield
    except Exception as error:
        if failed is None:
            raise
        failed.append(f"{what}: {type(error).__name__}: {error}")
        print(f"FAILED  {failed[-1]}", flush=True)
