"""The plan of a population: what each shard has to compute and to hold, without training it."""

import json as json_module
from dataclasses import asdict, dataclass
from math import prod

from mpinn.array.typing import Dtype
from mpinn.config import Config
from mpinn.datasets.source import open_source
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.models.population import shard_of
from mpinn.nn.fleet import Space, space
from mpinn.nn.layout import Layout
from mpinn.nn.packed import Packed, population_of
from mpinn.run.checks import check_types
from mpinn.run.summary import bytes_text
from mpinn.run.target import on_gpu
from mpinn.training.choices import build_model, outputs_of, read_config


@dataclass(frozen=True)
class ShardPlan:
    """One shard: bytes of ``vectors`` are weights, gradients and slots; ``buffers`` those of a step.

    ``fleets``: in how many a GPU has its members, 0 on a CPU, which has a panel at a time.
    """

    shard: int
    members: int
    panels: int
    units: int
    parameters: int
    share: float
    """Of all work."""
    vectors: int
    buffers: int
    fleets: int = 0


def shard_plans(config: Config, model: Model, shards: int, batch: int, gpu: bool = False) -> list[ShardPlan]:
    """What each of the shards has, on a CPU or on a GPU; InputError if there are more shards than panels."""
    whole = population_of(model.network)
    if whole is None:
        raise InputError("model.name", f"{config.names['model']} is no population")
    if shards > len(whole.panels):
        raise InputError("--shards", f"the population has {len(whole.panels)} panels, got {shards} shards")
    work = sum(panel.cost(prod(model.shape)) for _, panel in whole.panels)
    return [_plan(config, model, shard, shards, batch, gpu, work) for shard in range(shards)]


def buffers_of(own: Packed, batch: int, features: int, dtype: Dtype, gpu: bool) -> Space:
    """What the members of a rank take in a step besides their vectors; a CPU has no fleets."""
    return space(own, batch, features, dtype) if gpu else Space(0, own.buffers(batch) * dtype.itemsize)


def _plan(config: Config, model: Model, shard: int, shards: int, batch: int, gpu: bool, work: int) -> ShardPlan:
    network = shard_of(model, shard, shards)
    own = population_of(network) or Packed((), 0)
    layout = Layout(network.parameters(model.shape), config.run.dtype)
    taken = buffers_of(own, batch, prod(model.shape), layout.dtype, gpu)
    vectors = 2 + len(config.optimizer.slots) + bool(config.model.patience)
    return ShardPlan(
        shard=shard,
        members=len(own.members),
        panels=len(own.panels),
        units=sum(sum(member.widths) for member in own.members),
        parameters=layout.count,
        share=sum(panel.cost(prod(model.shape)) for _, panel in own.panels) / work,
        vectors=vectors * layout.size * layout.dtype.itemsize,
        buffers=taken.bytes,
        fleets=taken.fleets,
    )


def plan_members(file: str | None, overrides: tuple[str, ...], shards: int, json: bool) -> None:
    """Print the plan of a configured population; raises InputError."""
    config = read_config(file, overrides)
    check_types(config)
    gpu = on_gpu(config)
    source = open_source(config.data)
    model = build_model(config, source.sample_shape, outputs_of(source.summary()))
    replicas = max(1, config.grid.replicas)
    rows = shard_plans(config, model, shards or max(1, config.grid.shards), -(-config.data.batch // replicas), gpu)
    if json:
        print(json_module.dumps([asdict(row) for row in rows]))
        return
    whole = model.network.output_shape(model.shape)
    print(f"population of {whole[0]:,} members with {whole[1]} outputs each on {config.data.name}, "
          f"batch {config.data.batch}, {config.run.dtype}, on a {'GPU' if gpu else 'CPU'}")  # fmt: skip
    print("shards send each other nothing in training; a member is in one panel, which no shard cuts\n")
    print("shard   members  panels      units    parameters   work    vectors    buffers" + "  fleets" * gpu)
    for row in rows:
        print(
            f"{row.shard:>5}  {row.members:>8,}  {row.panels:>6,}  {row.units:>9,}  {row.parameters:>12,}"
            f"  {row.share:>5.1%}  {bytes_text(row.vectors):>9}  {bytes_text(row.buffers):>9}"
            + f"  {row.fleets:>6}"
            * gpu
        )
    print("\nvectors: weights, gradients and what the optimizer remembers; buffers: what a step works in")
    if gpu:
        print("fleets: members that a GPU has at once, panel after panel; all fleets share the buffers of the largest")
