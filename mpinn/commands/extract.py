"""The command ``extract``: one member of a population, as the checkpoint of an ordinary multi-layer perceptron."""

from contextlib import closing
from dataclasses import replace
from math import ceil
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from mpinn.comm.channel import NullChannel
from mpinn.config import InputError
from mpinn.population.member import Extracted, read_member
from mpinn.population.ranking import PREFIX
from mpinn.run.keeper import grid_vectors, model_vectors
from mpinn.storage.checkpoint import Saver
from mpinn.storage.directory import RunDirectory, write_text
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import check_digest, checkpoint_of
from mpinn.storage.schema import Snapshot
from mpinn.training.tally import Tally


def extract(path: Path, number: int | None, out: Path | None) -> list[str]:
    """Write a member, the best one without a number, to a run directory; returns what to tell. Raises InputError."""
    notes: list[str] = []
    file = checkpoint_of(path, False, notes.append)
    check_digest(file)
    with Checkpoint(file) as checkpoint:
        found = read_member(checkpoint, number)
        name = f"member-{found.member.number}"
        target = out or (path if path.is_dir() else path.parent) / name
        if target.exists():
            raise InputError(str(target), "exists already, and nothing is written over: choose another with --output")
        config = replace(found.config, run=replace(found.config.run, directory=str(target)))
        _write(checkpoint, replace(found, config=config), target)
    member = found.member
    rate = f", rate {config.optimizer.rate:g}" if member.rate is not None else ""
    hidden = " + ".join(map(str, member.widths))
    return [
        *notes,
        f"member {member.number}: {hidden} hidden units, {member.activation}, seed {member.seed}{rate}",
        f"written to {target}, as an mlp of its own at step {checkpoint.step}",
        f"use it        python -m mpinn evaluate {quote(str(target))}",
        f"train it on   python -m mpinn {quote(f'{target}/config.toml')} --set "
        f"train.epochs={2 * max(1, config.train.epochs)}",
    ]


def _write(checkpoint: Checkpoint, found: Extracted, target: Path) -> None:
    config, part, directory = found.config, found.part, RunDirectory(target)
    batches = ceil(int(checkpoint.data["train_samples"]) / config.data.batch)
    parts = {part.name: part}
    consensus = config.consensus.build(NullChannel("replicas"), batches)
    consensus.prepare(parts)
    scalars = checkpoint.scalars.items()
    known: dict[str, Any] = {name: value for name, value in scalars if not name.startswith(PREFIX)}
    snapshot = Snapshot(
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        seed=checkpoint.seed,
        grid=(1, 1, 1),
        dtype=checkpoint.dtype,
        configuration=config.tables(),
        vectors=[*model_vectors(parts), *grid_vectors(consensus, Tally())],
        data=checkpoint.data,
        random={"seed": checkpoint.seed, "step": checkpoint.step},
        scalars={**known, "bounds": np.array([0, len(part.chain)])},
    )
    directory.create()
    write_text(directory.config, config.toml())
    with closing(Saver(target, NullChannel("control"))) as saver:
        saver.save(snapshot)
