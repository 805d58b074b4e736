"""The command ``evaluate``: the quality of a saved model on a split of its data."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.array.device import Device, choose_device, count_devices
from mpinn.array.precision import activations
from mpinn.array.typing import Array
from mpinn.comm.grid import World
from mpinn.config import Config, InputError, load
from mpinn.datasets.batches import Batches
from mpinn.datasets.source import Source, check_source, open_source
from mpinn.models.model import Model
from mpinn.nn.network import Whole
from mpinn.nn.part import build_part
from mpinn.population.member import read_member
from mpinn.run.keeper import bounds_of
from mpinn.schedules.serial import Serial
from mpinn.storage.damage import reading
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import check_digest, checkpoint_of
from mpinn.training.choices import CHOICES, DEFAULTS, at_home, build_model, outputs_of
from mpinn.training.measure import EVALUATION_BATCH, quality, totals
from mpinn.words import loss_text

IDLE = ("grid", "optimizer", "consensus", "train", "checkpoint")
"""Tables of the configuration that say how to train, and nothing of how a model is measured."""


def evaluate(world: World, path: str, split: str, overrides: tuple[str, ...], want_best: bool) -> int:
    """Print loss and accuracy of a checkpoint, or of a run's newest or best one; the ranks share the samples."""
    told = json.loads(world.verdict(lambda: _check(path, overrides, want_best)))
    file, config = Path(told["file"]), load(told["tables"], (), CHOICES, DEFAULTS)
    device = world.everywhere(lambda: device_of(config, world.local_rank, overrides))
    if world.rank == 0 and device.name:
        told["notes"].append(f"on {device.said}")
    sums = _sums(world, file, config, split, device)
    world.control.all_sum(sums).wait()
    if world.rank == 0:
        for note in told["notes"]:
            print(note)
        found = quality(sums)
        accuracy = f"accuracy {found.accuracy:.4f}, " if told["classes"] else ""
        print(f"{file}: step {told['step']}, {config.data.name} {split}, {int(sums[2])} samples: "
              f"{accuracy}loss {loss_text(found.loss)}", flush=True)  # fmt: skip
    return 0


def _check(path: str, overrides: tuple[str, ...], want_best: bool) -> bytes:
    """What all ranks need to know, found out by one; raises InputError."""
    notes: list[str] = []
    file = checkpoint_of(Path(path), want_best, notes.append)
    check_digest(file)
    with reading(file), Checkpoint(file) as checkpoint:
        config = at_home(load(checkpoint.configuration, overrides, CHOICES, DEFAULTS))
        _check_overrides(overrides)
        # a batch is one of training, of which other data may have fewer samples
        config = replace(config, data=replace(config.data, batch=1))
        if config.names["model"] == "population":
            member = read_member(checkpoint, None).member.number
            notes.append(f"member {member}, the best of the population on the validation split")
        step = checkpoint.step
        summary = _check_data(config)
        model = build_model(config, tuple(summary["sample_shape"]), outputs_of(summary))
        if config.names["model"] != "population":
            part = build_part("network", _network(file, config, model), model.shape, np.dtype(config.run.dtype), ())
            checkpoint.check(part.layout, "model/network")
            checkpoint.check(part.state_layout, "state/network")
    found = {"file": str(file), "tables": config.tables(), "step": step, "classes": summary["classes"], "notes": notes}
    return json.dumps(found).encode()


def _check_overrides(overrides: Sequence[str]) -> None:
    """Raise InputError for one that would change nothing."""
    for key in (own.partition("=")[0].strip() for own in overrides):
        table = key.partition(".")[0]
        if key == "data.batch":
            raise InputError(key, "it is one of training, and a model is only measured here: leave this out")
        if table == "grid":
            raise InputError(key, "every rank measures the whole model on its share of the samples: leave this out")
        if table in IDLE:
            raise InputError(key, f"[{table}] says how to train, and a model is only measured here: leave this out")


def _network(file: Path, config: Config, model: Model) -> Whole:
    """What was trained, which the cuts of the run are a part of where it has several."""
    bounds = bounds_of(file, config.schedule.pieces(config.grid.stages)) or (0, len(model.network))
    network: Whole = config.schedule.network(config.model, model, bounds)
    return network


def _check_data(config: Config) -> dict[str, Any]:
    """The summary of the data; a path that was right when the run was trained may not be right here."""
    try:
        return check_source(config.data)
    except InputError as error:
        if error.path != "data.path" or not config.data.path:
            raise
        raise InputError("", f"{error}; where it is here, say with --set data.path=...") from None


def device_of(config: Config, local_rank: int, overrides: Sequence[str]) -> Device:
    """What a run's model is measured with: a GPU where there is one, unless run.device is cpu.

    Where there is none, a run of a GPU is measured on the host, in float32 if it was trained in bfloat16; and so is a
    member of a population, always. Raises InputError if the ``overrides`` ask for a GPU that is not there.
    """
    run, where = config.run, config.run.device
    if config.names["model"] == "population":
        where = "cpu"
    elif where == "gpu" and not any(own.partition("=")[0].strip() == "run.device" for own in overrides):
        where = "auto"
    short = run.bf16 and (where == "gpu" or (where == "auto" and count_devices()[0] > 0))
    return choose_device(where, run.kernels, local_rank, run.tf32, short)


def _normalised_as_in_training(source: Source, checkpoint: Checkpoint) -> Source:
    """The data with the numbers that the model was trained with, which another file's training split has not."""
    known = checkpoint.data
    if not {"mean", "std"} <= known.keys():  # a file of the first programs
        return source
    return replace(source, mean=np.asarray(known["mean"]), std=np.asarray(known["std"]))


def _sums(world: World, file: Path, config: Config, split: str, device: Device) -> Array:
    source = open_source(config.data)
    dtype, ops = np.dtype(config.run.dtype), device.kernels
    model = build_model(config, source.sample_shape, outputs_of(source.summary()))
    compute = activations(config.run.dtype, config.run.bf16 and bool(device.name))
    with Checkpoint(file) as checkpoint:
        source = _normalised_as_in_training(source, checkpoint)
        if config.names["model"] == "population":
            part = read_member(checkpoint, None).part
        else:
            network = _network(file, config, model)
            part = build_part("network", network, model.shape, dtype, (), ops=ops, compute_dtype=compute)
            kinds = {"model": (part.layout, part.weights), "state": (part.state_layout, part.state)}
            for kind, (layout, vector) in kinds.items():
                values = np.empty(layout.size, dtype)
                checkpoint.fill(layout, values, f"{kind}/network")
                ops.fill(vector, values)
    schedule = Serial(part, config.loss, config.run.seed)
    batches = Batches(
        source, config.run.seed, config.data.batch, 1, 0, "redealt", dtype, ops=part.ops, compute=part.compute_dtype
    )
    share = batches.evaluation(split, EVALUATION_BATCH * world.size, world.rank, world.size)
    return totals(schedule, config.loss, share)
