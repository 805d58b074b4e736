"""The loop of osu_bw, through a channel and with MPI alone."""

import re

import numpy as np
import pytest

from mpinn.array.device import choose_device
from mpinn.bench import window as bench
from mpinn.bench.window import window
from mpinn.comm.grid import World
from mpinn.comm.window import WINDOW, window_of_mpi

pytestmark = pytest.mark.mpi


def test_both_move_the_same_bytes_and_one_of_them_counts_them(world: World) -> None:
    channel = world.channel("window")
    if world.size == 1:
        with pytest.raises(TypeError, match="window has no other ranks"):
            window_of_mpi(channel, np.zeros(3))
        return
    for make in (window, window_of_mpi):
        array = np.full(100, float(world.rank))
        make(channel, array)()
        assert (array == (0 if world.rank < 2 else world.rank)).all()
    window_bytes, answer = WINDOW * array.nbytes, 4
    expected = {
        0: {"send": (WINDOW, window_bytes), "receive": (1, answer)},
        1: {"receive": (WINDOW, window_bytes), "send": (1, answer)},
    }
    assert channel.meter.counts == expected.get(world.rank, {})


def test_they_are_compared_in_turns(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.02)
    monkeypatch.setattr(bench, "SIZES", {"1 KB": 1000, "10 KB": 10_000})
    rows = bench.run(world, choose_device("cpu", "plain", 0))
    bench.print_rows(rows)
    lines = capsys.readouterr().out.splitlines()
    if world.size == 1:
        assert (rows, lines) == ([], [])
        return
    assert [(row.name, row.size) for row in rows] == [("1 KB", 1000), ("10 KB", 10_000)]
    for row, line in zip(rows, lines[-2:], strict=True):
        assert row.ours.low <= row.ours.median <= row.ours.high
        speed, peer = re.findall(r"\) +([0-9.e+-]+) ", line)
        assert float(speed) == pytest.approx(WINDOW * row.size / row.ours.median / 1e9, rel=0.01)
        assert float(peer) == pytest.approx(WINDOW * row.size / row.alone.median / 1e9, rel=0.01)
