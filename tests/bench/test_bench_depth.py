from pathlib import Path

import pytest
from launch import mpirun
from train_jobs import world

from mpinn.bench import depth
from mpinn.bench.timing import Spread

PROGRAM = """
from mpinn.bench import depth
from mpinn.comm.grid import connect
from mpinn.models.resnet import ResNet

world = connect()
work = depth.Work("small", ResNet(depth=8).build((8, 8, 3), 10), 8)
rows = depth.run(world, (work,), rounds=2, sample=0.0)
if world.rank == 0:
    for row in rows:
        assert row.seconds.median > 0 and row.ratio.median > 0, row
        busy = sum(seconds > 0 for seconds in row.processor)
        print(row.program, busy, row.planned and round(row.planned), row.starts)
    depth.print_rows(rows)
"""


def test_every_schedule_has_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "bench.py"
    path.write_text(PROGRAM)
    job = mpirun(2, str(path))
    assert job.returncode == 0, job.stderr
    lines = [line.split() for line in job.stdout.splitlines()]
    ours = [line for line in lines if line[0] in ("naive", "gpipe", "1f1b", "fdg", "ddg", "fr", "layerwise")]
    assert [line[1] for line in ours[:7]] == ["2"] * 7
    assert all(line[2] in ("1", "2") and line[3].startswith("block") for line in ours[:7])
    assert ["one", "rank", "1", "None"] in lines
    assert "small, batch 8, 2 stages, 4 micro-batches" in job.stdout


def test_one_rank_has_no_depth_to_share() -> None:
    assert depth.run(world()) == []


def test_samples_per_second_are_those_of_the_median() -> None:
    row = depth.Row("work", "fdg", 64, Spread(0.5, 0.4, 0.6), Spread(1.9, 1.8, 2.0), None, (0.4, 0.5), 1.9, "conv7")
    assert row.samples == 128


def test_prints_the_ratio_that_processor_time_allows(capsys: pytest.CaptureFixture[str]) -> None:
    spread = Spread(1.0, 1.0, 1.0)
    depth.print_rows(
        [
            depth.Row("work", "one rank", 64, spread, spread, None, (0.9, 0.0), None, ""),
            depth.Row("work", "fdg", 64, spread, spread, Spread(4, 3.9, 4.1), (0.5, 0.4), 1.75, "conv7"),
        ]
    )
    assert " 4.00 (3.90-4.10)     1.80  1.75  500 + 400 ms, from conv7" in capsys.readouterr().out
