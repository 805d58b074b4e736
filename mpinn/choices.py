"""What a configuration may name, and the model that it describes."""

from collections.abc import Mapping
from math import prod
from typing import Any

from mpinn.config import Config, load, read_toml
from mpinn.consensus.registry import CONSENSUSES
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.models.registry import MODELS
from mpinn.nn.loss import LOSSES
from mpinn.nn.optimizer import OPTIMIZERS
from mpinn.schedules.registry import SCHEDULES

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


def read_config(file: str | Mapping[str, Any] | None, overrides: tuple[str, ...]) -> Config:
    """The configuration of a file or of tables, or the default one, with overrides; raises InputError."""
    if file == "":
        raise InputError("CONFIG", "expected the path of a TOML file, got an empty string")
    return load(read_toml(file) if isinstance(file, str) else file or {}, overrides, CHOICES, DEFAULTS)


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
