"""How long a checkpoint holds training up, and when it is on the disk, beside copying and writing as many bytes.

The files are written below the working directory, whose file system is the one that is measured, and removed.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from time import perf_counter

import numpy as np

from mpinn.array.typing import Array
from mpinn.bench.timing import Spread, seconds_text
from mpinn.bench.work import DTYPE, NETWORKS, OPTIMIZER, Work
from mpinn.comm.grid import World
from mpinn.nn.part import build_part
from mpinn.run.keeper import model_vectors
from mpinn.storage.checkpoint import Saver
from mpinn.storage.directory import RunDirectory
from mpinn.storage.index import digest
from mpinn.storage.schema import Snapshot, VectorSpec

ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Row:
    """One operation on ``size`` bytes."""

    name: str
    size: int
    seconds: Spread


def run(world: World, work: Work = NETWORKS[0], rounds: int = ROUNDS) -> list[Row]:
    """Measure on all ranks, of which each has a replica; called by all, the rows are rank 0's."""
    specs = _vectors(work)
    directory = Path(world.verdict(lambda: tempfile.mkdtemp(prefix="mpinn-bench-", dir=".").encode()).decode())
    try:
        rows = _saving("replicas that agree", directory, world, specs, rounds)
        if world.size > 1:
            specs[0].vector[:] += world.rank
            rows += _saving("replicas that differ", directory, world, specs, rounds)
        if world.rank == 0:
            newest = max(directory.glob("checkpoint-*.h5"))
            rows += _floors(newest, directory / "plain", specs, rounds)
    finally:
        world.control.barrier()
        if world.rank == 0:
            rmtree(directory)
    return rows


def print_rows(rows: list[Row]) -> None:
    """Print a table; called on rank 0 only."""
    print(f"{'median (25-75 %)':44}  {'':>26}  {'MB':>8}  {'MB/s':>8}")
    for row in rows:
        size = row.size / 1e6
        print(f"{row.name:44}  {seconds_text(row.seconds):>26}  {size:8.1f}  {size / row.seconds.median:8.0f}")


def _vectors(work: Work) -> list[VectorSpec]:
    part = build_part("network", work.model.network, work.model.shape, DTYPE, OPTIMIZER.slots)
    part.initialize(0)
    rng = np.random.default_rng(0)
    for slot in part.slots.values():
        slot[:] = rng.standard_normal(slot.size)
    return model_vectors({"network": part})


def _saving(name: str, directory: Path, world: World, specs: list[VectorSpec], rounds: int) -> list[Row]:
    """The first save, which makes memory and index, does not count."""
    saver = Saver(directory, world.control, replica=world.rank)
    samples = np.empty((rounds + 1, 2))
    for step in range(rounds + 1):
        snapshot = Snapshot(step, 0, 0, (world.size, 1, 1), DTYPE.name, {}, specs)
        world.control.barrier()
        start = perf_counter()
        saver.save(snapshot)
        samples[step, 0] = perf_counter() - start
        saver.wait()
        samples[step, 1] = perf_counter() - start
    saver.close()
    world.control.all_max(samples).wait()
    size = RunDirectory(directory).checkpoint(rounds).stat().st_size
    stalled, durable = samples[1:].T
    return [
        Row(f"{name}: training waits", size, Spread.of(stalled)),
        Row(f"{name}: on the disk", size, Spread.of(durable)),
    ]


def _floors(newest: Path, plain: Path, specs: list[VectorSpec], rounds: int) -> list[Row]:
    contents = np.fromfile(newest, np.uint8)
    operations: Mapping[str, tuple[int, Callable[[], object]]] = {
        "copy of the vectors": (
            sum(spec.vector.nbytes for spec in specs),
            lambda: [spec.vector.copy() for spec in specs],
        ),
        "plain write, and fsync": (contents.nbytes, lambda: _write(plain, contents)),
        "SHA-256 of the file": (contents.nbytes, lambda: digest(newest)),
    }
    rows = []
    for name, (size, operation) in operations.items():
        samples = np.empty(rounds + 1)
        for turn in range(rounds + 1):
            start = perf_counter()
            operation()
            samples[turn] = perf_counter() - start
        rows.append(Row(name, size, Spread.of(samples[1:])))
    return rows


def _write(path: Path, contents: Array) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(contents.data)
        os.fsync(file.fileno())
    path.unlink()
