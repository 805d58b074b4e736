"""The bench of parareal networks: its replay of steps, and its rows."""

from pathlib import Path

import numpy as np
import pytest
from launch import mpirun

from mpinn.array import ops
from mpinn.bench import parareal
from mpinn.bench.replay import Entry, Journal, replay
from mpinn.bench.timing import Spread
from mpinn.comm.channel import NullChannel
from mpinn.models.resnet import ResNet
from mpinn.partition.costs import Link
from mpinn.partition.profile import estimate

PROGRAM = """
from mpinn.bench import parareal
from mpinn.comm.grid import connect
from mpinn.models.resnet import ResNet

world = connect()
work = parareal.Work("small", ResNet(depth=14), ResNet(depth=20), 8, (8, 8, 3))
rows, forecasts = parareal.run(world, (work,), rounds=2, sample=0.0, predicted=(2, 3, 9))
if world.rank == 0:
    for row in rows:
        assert 0 < row.replayed.median and 0 < row.wall.median and row.forecast > 0, row
        assert all(seconds > 0 for seconds in row.processor), row
        print("row", row.count, len(row.processor), len(row.vectors), row.starts)
    parareal.print_rows((rows, forecasts))
"""


def test_blocks_on_two_ranks_and_forecasts_for_more(tmp_path: Path) -> None:
    path = tmp_path / "bench.py"
    path.write_text(PROGRAM)
    job = mpirun(2, str(path))
    assert job.returncode == 0, job.stderr
    lines = [line.split() for line in job.stdout.splitlines()]
    rows = [line for line in lines if line[:1] == ["row"]]
    assert [line[1:4] for line in rows] == [["1", "1", "1"], ["2", "2", "2"]]
    assert rows[1][4].startswith("block")
    told = [line for line in lines if line[:1] == ["small"] or line[:1] == ["small:"]]
    # six blocks of the body can't be cut into nine, nine can
    assert "9:" not in told[-2]
    assert "9:" in told[-1]


def test_steps_are_replayed_with_messages_that_cost_what_they_should() -> None:
    """The second waits for the first, and the first for the answer; what the second does alone takes no time of it."""
    first = [Entry("send", 2.0, 1, 7, 100), Entry("receive", 0.5, 1, 8), Entry("step", 1.0)]
    second = [Entry("receive", 0.25, 0, 7), Entry("send", 4.0, 0, 8, 0), Entry("step", 3.0)]
    link = Link(100.0, 0.5)
    # 2 and 1.5 of a message, 4 and 0.5 of another: the first then computes 1, the second 3
    answered = 2 + 1.5 + 4 + 0.5
    following = answered + 1 + 2 + 1.5
    ready = answered - 0.5 + 3 + 0.25
    assert ready > answered + 1
    expected = max(following, ready) + 4 + 3 - (answered - 0.5 + 3)
    assert replay([first * 2, second * 2], link) == [pytest.approx(expected)]


def test_a_replay_that_cannot_go_on_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="nobody sends"):
        replay([[Entry("receive", 0.0, 0, 1)]], Link(1.0, 0.0))


def test_a_journal_skips_what_is_no_computing() -> None:
    journal = Journal(NullChannel("alone"))
    assert sum(range(300_000)) > 0
    skipped = journal.skip()
    journal.note("step")
    assert skipped > journal.entries[0].computed
    assert journal.entries[0].computed < 1e-3 < skipped


def test_a_deeper_network_has_the_costs_of_its_kind() -> None:
    options, deep = ResNet(depth=14), ResNet(depth=26)
    models = [kind.build((16, 16, 3), 10) for kind in (options, deep)]
    units = estimate(models[0], 8, np.dtype("f4"))
    known = parareal._known(options, models[0], 8, ops)
    found = parareal._stretched(deep, models[1], models[0], parareal.Known(units, known.sides, known.beside))
    expected = estimate(models[1], 8, np.dtype("f4"))
    assert [cost.forward for cost in found.units] == [cost.forward for cost in expected]
    assert [cost.name for cost in found.units[:-1]] == [cost.name for cost in expected[:-1]]
    assert len(found.sides.coarses) > len(known.sides.coarses)


def test_efficiency_is_the_forecast_over_what_a_step_took(capsys: pytest.CaptureFixture[str]) -> None:
    spread = Spread(0.5, 0.5, 0.5)
    one = parareal.Row("work", 1, spread, spread, 0.45, (0.4,), (2**20,), (2**19,), "")
    two = parareal.Row("work", 2, Spread(1, 1, 1), Spread(0.25, 0.2, 0.3), 0.24, (0.2, 0.1), (1, 2), (3, 4), "conv7")
    assert two.efficiency == (0.96, 0.24)
    parareal.print_rows(([one, two], [parareal.Forecasts("work", {1: 0.4, 8: 0.1})]))
    said = capsys.readouterr().out
    assert "0.96 0.24    2.00 1.88  200 + 100 ms" in said
    assert "work  8: 4.00" in said
