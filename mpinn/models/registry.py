"""The models by name."""

from mpinn.models.cnn import CNN
from mpinn.models.layers import Layers
from mpinn.models.mlp import MLP
from mpinn.models.model import ModelOptions
from mpinn.models.population import Population
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG

MODELS: dict[str, type[ModelOptions]] = {
    "mlp": MLP,
    "cnn": CNN,
    "vgg": VGG,
    "resnet": ResNet,
    "layers": Layers,
    "population": Population,
}
