"""The models by name."""

from mpinn.models.mlp import MLP
from mpinn.models.model import ModelOptions

MODELS: dict[str, type[ModelOptions]] = {"mlp": MLP}
