from pathlib import Path

import pytest
from launch import mpirun
from train_jobs import world

from mpinn.bench import checkpoint
from mpinn.bench.timing import Spread
from mpinn.bench.work import CLASSES, Work
from mpinn.models.mlp import MLP

PROGRAM = """
from mpinn.bench import checkpoint
from mpinn.bench.work import CLASSES, Work
from mpinn.comm.grid import connect
from mpinn.models.mlp import MLP

world = connect()
rows = checkpoint.run(world, Work("small", MLP(widths=(16,)).build((8,), CLASSES), 8), rounds=2)
if world.rank == 0:
    for row in rows:
        print(row.name, row.size, row.seconds.median > 0, sep=";")
"""


def test_replicas_that_agree_are_written_once(tmp_path: Path) -> None:
    program = tmp_path / "bench.py"
    program.write_text(PROGRAM)
    job = mpirun(2, str(program), cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    lines = [line.split(";") for line in job.stdout.splitlines()]
    assert {positive for _, _, positive in lines} == {"True"}
    sizes = {name: int(size) for name, size, _ in lines}
    assert sizes["replicas that agree: on the disk"] < sizes["replicas that differ: on the disk"]
    assert sizes["SHA-256 of the file"] == sizes["replicas that differ: training waits"]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.py"]


def test_one_rank_has_replicas_that_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = checkpoint.run(world(), Work("small", MLP(widths=(16,)).build((8,), CLASSES), 8), rounds=1)
    assert [row.name for row in rows][:2] == ["replicas that agree: training waits", "replicas that agree: on the disk"]
    waits, durable, copy = (row.seconds.median for row in rows[:3])
    assert 0 < waits <= durable
    assert copy > 0
    assert not list(tmp_path.iterdir())


def test_prints_bytes_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.print_rows([checkpoint.Row("plain write", 3_000_000, Spread(0.5, 0.4, 0.6))])
    assert "500 ms (400-600)       3.0         6" in capsys.readouterr().out
