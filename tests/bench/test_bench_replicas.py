from pathlib import Path

import pytest
from launch import mpirun
from train_jobs import world

from mpinn.bench import replicas
from mpinn.bench.timing import Spread

PROGRAM = """
from mpinn.bench import replicas
from mpinn.bench.work import CLASSES, Work
from mpinn.comm.grid import connect
from mpinn.models.mlp import MLP

world = connect()
work = Work("small", MLP(widths=(16, 16)).build((8,), CLASSES), 8)
rows = replicas.run(world, (work,), rounds=2, sample=0.01)
if world.rank == 0:
    for row in rows:
        print(row.program, row.samples, row.seconds.median > 0, sep=";")
    replicas.print_rows(rows)
"""


def test_every_consensus_has_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "bench.py"
    path.write_text(PROGRAM)
    job = mpirun(3, str(path))
    assert job.returncode == 0, job.stderr
    lines = [line.split(";") for line in job.stdout.splitlines() if ";" in line]
    found = {name: samples for name, samples, positive in lines if positive == "True"}
    assert found.pop("one rank") == "8"
    found.pop("PyTorch, one rank", None)
    found.pop("PyTorch DDP", None)
    assert found == dict.fromkeys(replicas.CONSENSUSES, "24")
    assert "small, batch 8 on each of 3 ranks" in job.stdout


def test_one_rank_has_no_replicas() -> None:
    assert replicas.run(world()) == []


def test_prints_samples_a_second_of_all_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    spread = Spread(2.0, 1.6, 2.5)
    replicas.print_rows([replicas.Row("work", "gradients", 4096, spread, spread, Spread(1.3, 1.2, 1.4), spread)])
    said = capsys.readouterr().out
    assert "2 s (1.6-2.5)      2,048    2.00 (1.60-2.50)    1.30 (1.20-1.40)" in said
