"""What a configuration may name, and the model that it describes."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from os.path import expanduser
from typing import Any

from mpinn.config import Config, load, read_toml
from mpinn.consensus.registry import CONSENSUSES
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.models.registry import MODELS
from mpinn.nn.loss import LOSSES
from mpinn.nn.optimizer import OPTIMIZERS
from mpinn.schedules.registry import SCHEDULES
from mpinn.words import wrong_locale

CHOICES: Mapping[str, Mapping[str, type]] = {
    "model": MODELS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "consensus": CONSENSUSES,
}
DEFAULTS = {
    "model": "mlp",
    "loss": "cross_entropy",
    "optimizer": "sgd",
    "schedule": "serial",
    "consensus": "averaging",
}
PLACES = (("run", "directory"), ("data", "path"), ("schedule", "warm"))
"""Tables and keys of paths."""


def read_config(file: str | Mapping[str, Any] | None, overrides: tuple[str, ...]) -> Config:
    """The configuration of a file or of tables, or the default one, with overrides; raises InputError."""
    if file == "":
        raise InputError("CONFIG", "expected the path of a TOML file, got an empty string")
    given = read_toml(file) if isinstance(file, str) else file or {}
    config = at_home(load(given, overrides, CHOICES, DEFAULTS))
    for table, key in PLACES:
        if wrong := wrong_locale(getattr(getattr(config, table), key)):
            raise InputError(f"{table}.{key}", wrong)
    return config


def at_home(config: Config) -> Config:
    """With the user's home directory in place of a ``~`` before a path, as a shell has it; raises InputError."""
    for table, key in PLACES:
        options = getattr(config, table)
        given: str = getattr(options, key)
        if not given.startswith("~"):
            continue
        place = expanduser(given)
        if place.startswith("~"):
            known = f"the home directory {given.split('/')[0]} is not known"
            raise InputError(f"{table}.{key}", f"{known}; what has this name here is ./{given}")
        config = replace(config, **{table: replace(options, **{key: place})})
    return config


def build_model(config: Config, sample_shape: tuple[int, ...], outputs: int) -> Model:
    """The model that the configuration describes; InputError if it can't take such samples."""
    model: Model = config.model.build(sample_shape, outputs)
    try:
        model.network.output_shape(sample_shape)
    except ValueError as problem:
        raise InputError("model", str(problem)) from None
    return model


def outputs_of(summary: Mapping[str, Any]) -> int:
    """How many outputs a model needs for data with this summary."""
    return int(summary["classes"]) or prod(summary["target_shape"])
