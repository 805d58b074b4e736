"""A network of ours in PyTorch, with the same weights; and PyTorch on our ranks."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np

from mpinn.array.typing import Array, Shape
from mpinn.comm.grid import World
from mpinn.nn.activation import Activation
from mpinn.nn.conv import Conv2d
from mpinn.nn.dense import Dense
from mpinn.nn.flatten import Flatten
from mpinn.nn.layer import EMPTY, Layer, Tree
from mpinn.nn.network import Network
from mpinn.nn.norm import BatchNorm, LayerNorm
from mpinn.nn.pool import GlobalAveragePool, MaxPool2d
from mpinn.nn.residual import Residual

LAYOUTS = ("contiguous", "channels last")
Module = Any


def import_torch() -> Any:
    """PyTorch with one thread, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    return torch


def translate(network: Network, shape: Shape, weights: Tree, torch: Any) -> Module:
    """The module that computes what ``network`` does to samples of ``shape`` (H, W, C) or (F,)."""
    modules = []
    for name, layer in network.layers:
        modules.append(_translated(layer, shape, weights.get(name, EMPTY), torch))
        shape = layer.output_shape(shape)
    return torch.nn.Sequential(*modules)


def _translated(layer: Layer, shape: Shape, weights: Tree, torch: Any) -> Module:
    nn = torch.nn
    match layer:
        case Network():
            return translate(layer, shape, weights, torch)
        case Conv2d():
            stride, padding = layer.steps
            module = nn.Conv2d(shape[-1], layer.outputs, layer.kernel, stride, padding, bias=layer.bias)
            return _activated(_filled(module, weights, (3, 2, 0, 1), torch), layer.activation, torch)
        case Dense():
            module = nn.Linear(shape[-1], layer.outputs, bias=layer.bias)
            return _activated(_filled(module, weights, (1, 0), torch), layer.activation, torch)
        case BatchNorm():
            kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
            module = kind(shape[-1], layer.epsilon, layer.momentum)
            return _activated(module, layer.activation, torch)
        case LayerNorm():
            return nn.LayerNorm(shape[-1], layer.epsilon)
        case Activation():
            return _activated(nn.Identity(), layer.activation, torch)
        case MaxPool2d():
            return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding)
        case GlobalAveragePool():
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case Flatten():
            return nn.Sequential(_turned((0, 2, 3, 1), torch), nn.Flatten())
        case Residual():
            return _residual(layer, shape, weights, torch)
    raise ValueError(f"no module of PyTorch stands for {layer}")


def _residual(layer: Residual, shape: Shape, weights: Tree, torch: Any) -> Module:
    class Sum(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = translate(layer.body, shape, weights["body"], torch)
            self.projection = torch.nn.Identity()
            if layer.projection is not None:
                self.projection = translate(layer.projection, shape, weights.get("projection", EMPTY), torch)

        def forward(self, x: Any) -> Any:
            return self.body(x) + self.projection(x)

    return Sum()


def _activated(module: Module, activation: str, torch: Any) -> Module:
    if activation == "identity":
        return module
    if activation != "relu":
        raise ValueError(f"no module of PyTorch stands for the activation {activation}")
    return torch.nn.Sequential(module, torch.nn.ReLU())


def _filled(module: Module, weights: Tree, order: tuple[int, ...], torch: Any) -> Module:
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.ascontiguousarray(weights["weight"].transpose(order))))
        if "bias" in weights:
            module.bias.copy_(torch.from_numpy(np.asarray(weights["bias"])))
    return module


def images(x: Array, layout: str, torch: Any) -> Any:
    """x: (B, H, W, C) as a tensor (B, C, H, W), stored in ``layout``; x: (B, F) as it is."""
    if x.ndim == 2:
        return torch.from_numpy(x)
    tensor = torch.from_numpy(x).permute(0, 3, 1, 2)
    return tensor.contiguous(memory_format=_format(layout, torch))


def array(tensor: Any) -> Array:
    """The other way round."""
    found: Array = (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).numpy()
    return found


def stored(module: Module, layout: str, torch: Any) -> Module:
    """The module with its weights stored in ``layout``."""
    return module.to(memory_format=_format(layout, torch))


def bordered(module: Module, before: bool, after: bool, torch: Any) -> Module:
    """The module with images as (B, H, W, C) at its borders: so they are contiguous, which gloo asks of messages."""
    first = [_turned((0, 3, 1, 2), torch)] if before else []
    return torch.nn.Sequential(*first, module, *([_turned((0, 2, 3, 1), torch)] if after else []))


def _turned(order: tuple[int, ...], torch: Any) -> Module:
    """The axes of images in another order; vectors as they are."""

    class Turned(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.permute(order) if x.dim() == 4 else x

    return Turned()


def _format(layout: str, torch: Any) -> Any:
    return torch.channels_last if layout == "channels last" else torch.contiguous_format


def gradient(module: Module) -> Array:
    """The weight gradients of convolutions and dense layers as one vector, each one in our order."""
    parts = []
    for parameter in module.parameters():
        order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(parameter.dim())
        if order:
            parts.append(parameter.grad.permute(order).reshape(-1).numpy())
    return np.concatenate(parts)


@contextmanager
def connect_gloo(world: World) -> Iterator[Any]:
    """PyTorch's torch.distributed on the same ranks; None unless every rank has it."""
    try:
        import torch.distributed as gloo
    except ImportError:
        gloo = None
    missing = np.array([gloo is None or not gloo.is_available()], np.int64)
    world.control.all_max(missing).wait()
    if missing[0]:
        yield None
        return
    handle = world.verdict(_rendezvous).decode()
    gloo.init_process_group(
        "gloo", init_method=f"file://{handle}", rank=world.rank, world_size=world.size, timeout=timedelta(minutes=2)
    )
    yield gloo
    gloo.destroy_process_group()


def _rendezvous() -> bytes:
    """A file through which PyTorch's ranks find each other, on one machine; PyTorch makes it and removes it."""
    return str(Path(tempfile.gettempdir(), f"mpinn-gloo-{os.getpid()}-{time_ns()}")).encode()
