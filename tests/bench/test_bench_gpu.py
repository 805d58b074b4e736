"""The bench of a GPU: what it counts, and, on the stand-in for one, that it does what it says."""

import json
import shutil
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from emulation.child import emulated

from mpinn.bench import gpu, gpu_kernel_list, gpu_kernels
from mpinn.bench.gpu_roofline import PASSES, VECTORS, Ceilings, demand
from mpinn.bench.timing import Spread
from mpinn.errors import FatalError
from mpinn.models.resnet import ResNet
from mpinn.nn.layout import Layout

CEILINGS = Ceilings(2e9, {"float32": 1e12, "TF32": 8e12, "bfloat16": 16e12})
STEPS = """
from pathlib import Path
from mpinn.array.device import choose_device
from mpinn.bench import gpu, population
from mpinn.bench.gpu_programs import Peer
from mpinn.bench.gpu_roofline import measure

try:
    import torch
    peer = Peer(torch, "cpu")
except ImportError:
    peer = None
ops = choose_device("gpu", "auto", 0).kernels
ceilings = measure(ops, copied=1 << 14, side=16, rounds=1)
assert ceilings.bandwidth > 0 and all(rate > 0 for rate in ceilings.products.values())
gpu.LAUNCHES = 2
works = (gpu.Work("small", gpu.perceptron(9, 7), 5), gpu.Work("other", gpu.perceptron(9, 7), 3, compared=False))
effort = gpu.Effort(rounds=2, sample=0.0, tuned=True)
gpu.print_head("stand-in", ceilings, peer)
told = {"rows": []}
few = (population.Work(1, 3, 5, 2, widest=4), population.Work(1, 3, 5, 1, widest=2))
for rows in (*gpu.run(ops, ceilings, peer, works, effort), *gpu.populations(ops, ceilings, peer, effort, few)):
    gpu.print_rows(rows)
    gpu._keep(told, rows, Path("FILE"))
assert not ops.Choices.tf32
"""
KERNELS = """
from mpinn.array import cuda_timing
from mpinn.array.device import choose_device
from mpinn.bench import gpu_kernel_list, gpu_kernels
from mpinn.bench.gpu_roofline import Ceilings

gpu_kernels.MOST, gpu_kernels.ROUNDS, gpu_kernels.SAMPLE = 2, 2, 0.0
gpu_kernel_list.VGG, gpu_kernel_list.RESNET = ((2, 2, 8),), ((2, 2, 3),)
gpu_kernel_list.VECTORS, gpu_kernel_list.PERCEPTRON = (100,), ((5, 4),)
gpu_kernel_list.TYPICAL = (gpu_kernel_list.Filter(2, 4, 3), gpu_kernel_list.Filter(3, 4, 2, 1, 2))
gpu_kernel_list.HIDDEN, gpu_kernel_list.ROWS = 8, 3
ceilings = Ceilings(1e9, {"float32": 1e9, "TF32": 1e9, "bfloat16": 1e9})
ops = choose_device("gpu", "auto", 0).kernels
rows = [*gpu_kernels.run(ops, ceilings, quick=True, batch=2)]
gpu_kernels.print_rows(rows)
assert all(row.seconds.median > 0 and row.least > 0 for row in rows)
"""

on_stand_in = pytest.mark.skipif(shutil.which("g++") is None, reason="kernels are compiled by g++")


def test_a_perceptron_demands_what_its_matrices_have() -> None:
    model = gpu.perceptron(9, 7)
    found = demand(model.network, model.shape, 5)
    weights = Layout(model.network.parameters(model.shape), "f4").count
    assert weights == 9 * 7 + 7 + 7 * 10 + 10
    # the first matrix has no input gradient
    assert found.operations == 2 * 5 * (2 * 9 * 7 + 3 * 7 * 10)
    activations = 5 * (PASSES * (7 + 10) + 2 * 9)
    assert found.bytes("float32") == found.bytes("TF32") == 4 * (activations + VECTORS * weights)
    assert found.bytes("bfloat16") == 2 * activations + 4 * VECTORS * weights


def test_a_residual_network_demands_what_its_convolutions_have() -> None:
    """2 n + 1 of 3x3 in three thirds, two of 1x1, and a dense layer."""
    model = ResNet(depth=8).build((32, 32, 3), 10)
    first, second, third = 32 * 32 * 9, 16 * 16 * 9, 8 * 8 * 9
    stem = first * 3 * 16
    rest = 2 * first * 16 * 16 + second * (16 * 32 + 32 * 32) + third * (32 * 64 + 64 * 64)
    rest += 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64 + 64 * 10
    assert demand(model.network, model.shape, 3).operations == 2 * 3 * (2 * stem + 3 * rest)


def test_the_least_time_is_that_of_the_slower_ceiling() -> None:
    model = gpu.perceptron(100, 100)
    found = demand(model.network, model.shape, 1000)
    for precision, rate in CEILINGS.products.items():
        least = max(found.operations / rate, found.bytes(precision) / 2e9)
        assert CEILINGS.seconds(found, precision) == pytest.approx(least)


def test_what_is_far_from_the_ceiling_is_marked_unless_it_is_small(capsys: pytest.CaptureFixture[str]) -> None:
    def row(seconds: float, least: float) -> gpu_kernels.Row:
        return gpu_kernels.Row("kernel", "1x2", "TF32", Spread(seconds, seconds, seconds), 1e6, 0.0, least)

    rows = [row(1e-3, 9e-4), row(1e-3, 4e-4), row(1e-5, 1e-6)]
    assert [own.mark for own in rows] == ["", "LOW", "small"]
    assert gpu_kernels.marked(rows) == [rows[1]]
    gpu_kernels.print_head("a device", CEILINGS)
    gpu_kernels.print_rows(rows)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_rows_of_steps_fit_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    spread = Spread(0.0123456, 0.01234, 0.0124)
    row = gpu.Row("ResNet-110", 128, "TF32", "PyTorch, compiled", spread, spread, spread, 0.5, 40 << 30, 1e-3)
    assert row.samples == pytest.approx(128 / 0.0123456)
    gpu.print_head("a device", CEILINGS, None)
    gpu.print_rows([row])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert "10,368" in lines[-1]
    assert " 50%" in lines[-1]


def test_a_measurement_that_fails_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(bench: gpu_kernel_list.Bench, ops: Any, ceilings: Ceilings) -> gpu_kernels.Row:
        if bench.size == "2":
            raise RuntimeError("out of memory")
        return gpu_kernels.Row(bench.kernel, bench.size, bench.precision, Spread(1, 1, 1), 1e6, 0.0, 0.9)

    given = [SimpleNamespace(kernel="conv", size=size, precision="TF32") for size in "123"]
    monkeypatch.setattr(gpu_kernels, "benches", lambda batch, quick: given)
    monkeypatch.setattr(gpu_kernels, "measure", fake)
    monkeypatch.setattr(gpu, "measure", lambda kernels: CEILINGS)
    device = SimpleNamespace(said="a device", kernels=SimpleNamespace(Choices=SimpleNamespace(tf32=False)))
    monkeypatch.setattr(gpu, "choose_device", lambda *wanted: device)
    failure = "conv, 2, TF32: RuntimeError: out of memory"
    with pytest.raises(FatalError, match=f"^1 measurement failed, the first {failure}$"):
        gpu.show(kernels=True, file=tmp_path / "kernels.json")
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-3:]] == [
        ["conv", "1"], ["FAILED", "conv,"], ["conv", "3"],
    ]  # fmt: skip
    told = json.loads((tmp_path / "kernels.json").read_text())
    assert [row["size"] for row in told["rows"]] == ["1", "3"]
    assert told["failed"] == [failure]
    # whoever gives no list hears of it
    with pytest.raises(RuntimeError, match="out of memory"):
        [*gpu_kernels.run(device.kernels, CEILINGS)]


def test_every_bench_has_something_to_do() -> None:
    found = [*gpu_kernel_list.benches(128)]
    assert all(bench.demand.bytes(bench.precision) > 0 for bench in found)
    assert {(bench.kernel, bench.precision) for bench in found} >= {
        ("conv", "bfloat16"), ("conv", "TF32"), ("max pool", "bfloat16"), ("max pool", "float32"), ("adamw", "float32"),
    }  # fmt: skip
    assert not {("max pool", "TF32"), ("adamw", "bfloat16")} & {(bench.kernel, bench.precision) for bench in found}
    assert len({(bench.kernel, bench.size, bench.precision) for bench in found}) == len(found)
    assert prod(gpu_kernel_list.VGG[0]) * 4 in {bench.demand.bytes("float32") / 128 for bench in found}


@on_stand_in
def test_steps_on_the_stand_in(tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    job = emulated(["-c", STEPS.replace("FILE", str(file))], timeout=300)
    assert job.returncode == 0, job.stderr
    rows = [row for row in json.loads(file.read_text())["rows"] if row["program"] == gpu.OURS]
    assert [(row["work"], row["precision"]) for row in rows if "population" not in row["work"]] == [
        (work, precision) for work in ("small", "other") for precision in ("float32", "TF32", "bfloat16")
    ]
    # a recorded step gives the gradient that float64 gives
    assert 1e-9 < rows[0]["error"] < 1e-5
    assert 1e-5 < rows[1]["error"] < 5 * 2**-10
    assert 1e-4 < rows[2]["error"] < 5 * 2**-8
    assert [row["error"] for row in rows[3:6]] == [None] * 3
    populations = [row for row in rows[6:] if row["precision"] == "float32"]
    assert [row["work"] for row in populations] == [f"population of {n}, 3 features" for n in (40, 20)]
    assert all(1e-9 < row["error"] < 1e-5 for row in populations)
    assert "small, batch 5, TF32" in job.stdout


@on_stand_in
def test_kernels_on_the_stand_in() -> None:
    job = emulated(["-c", KERNELS], timeout=300)
    assert job.returncode == 0, job.stderr
    layers = ("dense, relu", "dense, relu, apart", "dense, dW and db", "dense, dW and db, apart")
    others = ("product, dW", "gelu", "batch norm, backward", "max pool", "adamw", "conv, dx", "transpose")
    for kernel in (*layers, *others):
        assert f"\n{kernel} " in job.stdout, kernel
