import pytest

from mpinn.bench import layers, networks
from mpinn.bench.timing import NO_PEER
from mpinn.models.resnet import ResNet


def test_measures_networks(capsys: pytest.CaptureFixture[str]) -> None:
    model = ResNet(depth=8).build((8, 8, 3), 10)
    rows = networks.run({"small": model}, batch=4, rounds=2, sample=0.0, seeds=3)
    ours = rows[0]
    assert (ours.work, ours.program) == ("small, batch 4", "mpinn")
    assert ours.seconds.median > 0
    assert ours.pool
    assert all(1e-8 < row.error.low <= row.error.high < 1e-3 for row in rows)
    networks.print_rows(rows)
    told = capsys.readouterr().out
    assert "mpinn" in told
    compared = any(row.ratios for row in rows)
    assert (NO_PEER in told, "PyTorch's / this" in told) == (not compared, compared)


@pytest.mark.parametrize("work", [layers.WORKS[4], *layers.WORKS[-3:]], ids=lambda work: work.name)
def test_measures_layers(work: layers.Work, capsys: pytest.CaptureFixture[str]) -> None:
    rows = layers.run((work,), batch=2, rounds=2, sample=0.0)
    assert rows[0].program == "mpinn"
    assert all(set(row.errors) >= {"y", "dx"} for row in rows)
    assert all(error < 1e-5 for row in rows for error in row.errors.values())
    layers.print_rows(rows)
    told = capsys.readouterr().out
    assert work.name in told
    compared = any(row.ratios for row in rows)
    assert (NO_PEER in told, "PyTorch's / this" in told) == (not compared, compared)
