"""The configuration of a saved run, as this program understands it."""

from typing import Any

from mpinn.config import load
from mpinn.errors import InputError
from mpinn.storage.reader import Checkpoint
from mpinn.training.choices import CHOICES, DEFAULTS


def stored_tables(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of a checkpoint; keys that are newer than the file have the values of a run without them."""
    try:
        return load(checkpoint.configuration, (), CHOICES, DEFAULTS).tables()
    except InputError as error:
        raise InputError(str(checkpoint.path), f"its configuration is none of this program's: {error}") from None
