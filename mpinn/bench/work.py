"""Work that several ranks share in benches: a model and a batch, ours on one rank and PyTorch's."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpinn.array.device import choose_kernels
from mpinn.array.typing import Shape
from mpinn.bench.peer import images, import_torch, stored, translate
from mpinn.bench.turns import Contestant, random_batch, training
from mpinn.comm.channel import Channel, NullChannel
from mpinn.consensus.consensus import Consensus
from mpinn.datasets.batches import Batch
from mpinn.models.model import Model
from mpinn.models.resnet import ResNet
from mpinn.models.vgg import VGG
from mpinn.nn.loss import CrossEntropy
from mpinn.nn.optimizer import SGD
from mpinn.nn.part import Part, build_part
from mpinn.partition.cuts import Cuts, whole
from mpinn.schedules.registry import SCHEDULES
from mpinn.schedules.stage import Place
from mpinn.trace import SILENT

SHAPE: Shape = (32, 32, 3)
CLASSES, BATCH = 10, 64
DTYPE = np.dtype(np.float32)
OPTIMIZER = SGD(rate=1e-3, decay="constant")
LAYOUT = "channels last"
"""The layout of images in which PyTorch is faster."""


@dataclass(frozen=True)
class Work:
    """A model and how many samples a batch has."""

    name: str
    model: Model
    batch: int = BATCH

    def data(self) -> Batch:
        """Random samples and classes."""
        return random_batch(self.model.shape, CLASSES, self.batch, DTYPE)


NETWORKS = (
    Work("VGG-16 with batch norm", VGG(depth=16).build(SHAPE, CLASSES)),
    Work("ResNet-20", ResNet(depth=20).build(SHAPE, CLASSES)),
)


def part_of(work: Work, cuts: Cuts, stage: int) -> Part:
    """The layers of a stage, with their first weights."""
    ops, _ = choose_kernels("auto")
    network, shape = work.model.network[cuts.bounds[stage] : cuts.bounds[stage + 1]], cuts.shape(work.model, stage)
    part = build_part("stage", network, shape, DTYPE, OPTIMIZER.slots, ops=ops)
    part.initialize(0)
    return part


def stepping(schedule: str, part: Part, place: Place, work: Work, consensus: Consensus | None = None) -> Contestant:
    """Steps of a schedule on one rank, with the options that it has if none are given."""
    built = SCHEDULES[schedule]().build(part, CrossEntropy(), 0, place)
    return training(built, OPTIMIZER, work.data(), consensus)


def whole_model(work: Work, consensus: Consensus | None = None) -> Contestant:
    """Steps of one rank that has all layers."""
    channel: Channel = NullChannel("alone")
    place = Place(channel, channel, work.model.shape, (CLASSES,), SILENT)
    return stepping("serial", part_of(work, whole(work.model), 0), place, work, consensus)


def torch_stage(work: Work, cuts: Cuts, stage: int) -> tuple[Any, Any]:
    """The module of PyTorch that has the layers and the weights of a stage, and its optimizer."""
    torch = import_torch()
    part = part_of(work, cuts, stage)
    module = stored(translate(part.chain, cuts.shape(work.model, stage), part.weight_views, torch), LAYOUT, torch)
    optimizer = torch.optim.SGD(module.parameters(), lr=OPTIMIZER.rate, momentum=OPTIMIZER.momentum)
    return module, optimizer


def torch_training(module: Any, optimizer: Any, work: Work) -> Contestant:
    """Steps of a module of PyTorch that has all layers."""
    torch, batch = import_torch(), work.data()
    x, target, loss = images(batch.x, LAYOUT, torch), torch.from_numpy(batch.target), torch.nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(module(x), target).backward()
        optimizer.step()

    return Contestant(step)
