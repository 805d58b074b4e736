"""The rehearsal: what it compiles, and that it leaves no trace."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from launch import mpirun
from train_jobs import world

from mpinn.array import cpu, ops
from mpinn.models.mlp import MLP
from mpinn.nn.part import Part, build_part
from mpinn.run import warm as warming
from mpinn.run.warm import rehearse, warm
from mpinn.training.choices import read_config

TRAIN = """
import gc, json, sys
from pathlib import Path
from mpinn.run.checks import Request
from mpinn.comm.grid import connect
from mpinn.commands.train import train
world, folder = connect(), Path(sys.argv[1])
settings = (f"run.directory={folder / 'run'}", "model.widths=[8]", "train.epochs=1", "run.kernels=compiled")
assert train(world, Request(overrides=settings)) == 0
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher
used = [one for one in gc.get_objects() if isinstance(one, Dispatcher) and isinstance(one._cache, FunctionCache)]
counted = {name: sorted(f"{one.__qualname__}{signature}" for one in used
                        for signature, count in getattr(one.stats, f"cache_{name}").items() for _ in range(count))
           for name in ("hits", "misses")}
(folder / f"{world.rank}.json").write_text(json.dumps(counted))
"""


def test_one_rank_compiles_and_the_other_loads_the_same_kernels(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    job = mpirun(2, "-c", TRAIN, str(tmp_path), env={"NUMBA_CACHE_DIR": str(cache)})
    assert job.returncode == 0, job.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["misses"]
    assert first["hits"] == []
    assert second == {"hits": first["misses"], "misses": []}
    assert len(list(cache.rglob("*.nbc"))) == len(first["misses"])


def network(kernels: object) -> Part:
    model = MLP(widths=(64,), norm="batch", dropout=0.2).build((5,), 3)
    part = build_part("network", model.network, (5,), np.dtype("float32"), ("momentum",), ops=kernels)
    part.initialize(1)
    part.grads.fill(1)
    part.counters.fill(7)
    return part


def vectors(part: Part) -> list[bytes]:
    return [vector.tobytes() for vector in (part.weights, part.state, *part.slots.values(), part.counters)]


def test_the_rehearsal_leaves_the_part_as_it_was() -> None:
    part = network(cpu)
    before = vectors(part)
    rehearse(read_config(None, ()), part, (5,), ())
    assert vectors(part) == before
    assert not part.grads.any()
    assert part.pool.nbytes == 0


def test_nothing_is_rehearsed_with_plain_kernels() -> None:
    part = network(ops)
    warm(world(), read_config(None, ()), [(part, (5,), ())])
    assert part.grads.all()


@pytest.mark.parametrize(("silence", "said"), [(0.05, "preparing kernels: the first start of a network"), (60.0, "")])
def test_a_start_that_takes_long_says_why(
    silence: float, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warming, "SILENCE", silence)
    monkeypatch.setattr(warming, "rehearse", lambda *given: time.sleep(0.5))
    warm(world(), read_config(None, ()), [(network(cpu), (5,), ())])
    told = capsys.readouterr().out
    assert bool(told) == bool(said)
    assert told.startswith(said)
    time.sleep(0.1)
    assert capsys.readouterr().out == ""
