"""What is recommended, and how a plan of many ranks is printed, written and refused."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from launch import alone
from planned import cluster, planner

from mpinn.errors import InputError
from mpinn.partition.costs import Link
from mpinn.scaling.advice import Advice, advise, chosen, counts_of
from mpinn.scaling.answer import Inquiry, drawn, outlook
from mpinn.scaling.report import COLUMNS, lines, rows, seconds_text, size_text, times_text

LINK = Link(1e8, 1e-4)


def test_numbers_of_ranks():
    assert counts_of("64") == [64]
    assert counts_of("6, 1,48") == [1, 6, 48]
    assert counts_of("1-9") == [1, 2, 4, 8, 9]
    assert counts_of("3-100,50") == [3, 4, 8, 16, 32, 50, 64, 100]
    assert counts_of("1-100000")[-2:] == [65536, 100000]
    for wrong in ("", "0", "8-4", "1-x", "-4", "1.5", "1,,2", "20000000"):
        with pytest.raises(InputError, match=r"^--ranks: expected numbers"):
            counts_of(wrong)


def test_the_fastest_exact_grid_is_recommended_and_the_fastest_other_beside_it():
    known = planner(on=cluster(LINK))
    (advice,), everything = advise(known, [8], 0)
    exact = [one for one in everything if not one.changes]
    others = [one for one in everything if one.changes and one.consensus != "none" and one.schedule != "parareal"]
    assert advice.exact in exact
    assert advice.exact.seconds == min(one.seconds for one in exact)
    assert advice.other in others
    assert advice.other.seconds == min(one.seconds for one in others)
    assert advice.other.seconds < advice.exact.seconds
    assert {one.consensus for one in everything} > {"none"}
    nexts = min((one for one in exact if one.stages != advice.exact.stages), key=lambda one: one.seconds)
    ratio = nexts.seconds / advice.exact.seconds
    assert advice.reason.endswith(f"{nexts.replicas} x {nexts.stages} takes {ratio:.2f} times as long")


def test_with_weak_scaling_samples_a_second_count():
    """Two stages take half as long with half of the samples, and are no faster for it."""
    (advice,), _ = advise(planner(on=cluster(), scaling="weak"), [4], 0)
    assert (advice.exact.stages, advice.exact.replicas) == (1, 4)


def test_a_grid_that_does_not_fit_is_not_recommended():
    known = planner(on=cluster())
    free, _ = advise(known, [4], 0)
    assert free[0].exact.stages == 1
    tight, _ = advise(known, [4], free[0].exact.memory - 1)
    assert tight[0].exact.stages > 1
    assert tight[0].exact.memory < free[0].exact.memory
    none, _ = advise(known, [4], 1000)
    assert none[0].exact is None
    assert re.fullmatch(r"a rank needs [\d.e-]+ GiB at least", none[0].why_not)


def test_more_ranks_that_are_slower_are_called_so():
    found, _ = advise(planner(on=cluster(Link(1e6, 1e-3))), [1, 2, 4, 8], 0)
    assert found[0].slower == 0
    assert any(one.slower for one in found)
    for one in found:
        if one.slower:
            best = next(other for other in found if other.ranks == one.slower)
            assert best.exact.throughput >= one.exact.throughput
    picked = chosen(found)
    assert picked.efficiency >= 0.5
    assert picked.ranks < max(one.ranks for one in found)


def test_ranks_that_win_little_are_not_recommended():
    (one,), _ = advise(planner(on=cluster()), [1], 0)

    def recommended(*speedups):
        return chosen([Advice(n, replace(one.exact, ranks=n, speedup=s)) for n, s in speedups]).ranks

    assert recommended((1, 1.0), (2, 1.04)) == 1
    assert recommended((1, 1.0), (2, 1.9), (4, 2.1)) == 2
    assert recommended((1, 1.0), (2, 1.9), (4, 3.4)) == 4
    assert recommended((1, 1.0), (2, 1.9), (4, 3.4), (16, 7.9)) == 4
    assert chosen([Advice(8, replace(one.exact, ranks=8, speedup=3.9))]) is None


def told(**more):
    return outlook(Inquiry(overrides=("model.widths=[32,32,32]",), estimated=True, **more))


def test_what_is_printed():
    strong = lines(told(ranks="1-1024"))
    assert strong[0] == "mlp on digits, float32; 1,197 samples"
    assert strong[1] == "strong scaling: 128 samples a step altogether (data.batch), which the replicas share"
    assert strong[2].startswith("costs    estimated: ")
    assert strong[3].startswith("network  cpu-hdr: nominal: ")
    assert any(
        line.strip() == "1,024: 256 replicas can't share a batch of 128 samples, even with 4 stages" for line in strong
    )
    (recommended,) = [line for line in strong if line.startswith("recommended: ")]
    assert "(replicas x stages)" in recommended
    matrix = strong[strong.index(next(line for line in strong if line.startswith("\nstep and grid on"))) + 1 :]
    assert matrix[0].split() == ["averaging", "gossip", "gradients", "none", "outer"]
    assert [line.split()[0] for line in matrix[1:]][:3] == ["serial", "naive", "gpipe"]
    assert not any("batch norm" in line for line in strong)
    single = lines(told(ranks="1"))
    assert any(line.startswith("recommended: 1 rank as 1 x 1 ") for line in single)
    assert any(line.startswith("\nstep and grid on 1 rank, each ") for line in single)
    normed = lines(outlook(Inquiry(overrides=("model.name=cnn",), estimated=True, ranks="1,2")))
    assert any("but for batch norm, which sees the samples of a replica" in line for line in normed)
    weak = lines(told(ranks="1,2", weak=True))
    assert weak[1] == (
        "weak scaling: 128 samples a step of each replica (data.batch), so the global batch grows"
    )  # fmt: skip


def test_a_speedup():
    assert [times_text(one) for one in (1.04, 9.5, 10.81, 12345.6)] == ["1.04", "9.50", "10.8", "12,345.6"]


def test_the_table_has_every_prediction():
    one = told(ranks="1,2,6")
    found = [dict(zip(COLUMNS, row, strict=True)) for row in rows(one)]
    assert len(found) == len(one.predictions)
    for row in found:
        assert row["ranks"] == row["replicas"] * row["stages"]
        assert row["samples_per_second"] == pytest.approx(row["global_batch"] / row["step_seconds"])
        assert row["efficiency"] == pytest.approx(row["speedup"] / row["ranks"])
    groups = drawn(one)
    assert [len(group) for group in groups.values()] == [len({row["schedule"] for row in found}), 5]
    for line in groups["consensuses of replicas with the whole depth"].values():
        assert [point.ranks for point in line] == [1, 2, 6]
        assert all(point.stages == 1 for point in line)


def test_texts_of_numbers():
    assert [seconds_text(value) for value in (2.0, 0.0123, 4.56e-6)] == ["2 s", "12.3 ms", "4.56 us"]
    assert [size_text(value) for value in (0, 1536, 5 * 2**20, 3 * 2**30)] == ["0 B", "1.5 KiB", "5 MiB", "3 GiB"]


def test_a_place_that_is_no_directory_is_refused_before_anything_is_measured(tmp_path: Path):
    (tmp_path / "text").write_text("mine")
    job = alone("-m", "mpinn", "plan", "--ranks", "1-4", "--estimated", "-o", "text", cwd=tmp_path)
    said = "mpinn: --out: 'text' is a file: name a directory\n"
    assert (job.returncode, job.stdout, job.stderr) == (2, "", said)


def test_the_command_writes_a_figure_and_a_table(tmp_path: Path):
    line = ("-m", "mpinn", "plan", "--ranks", "1-100000", "--estimated", "--weak", "--samples", "100000000")
    job = alone(*line, "--network", "h100-ndr", "-o", "out/deep", cwd=tmp_path)
    assert (job.returncode, job.stderr) == (0, "")
    assert job.stdout.splitlines()[-1].startswith("out/deep/scaling.png, out/deep/predictions.csv: ")
    assert "sums overlap with the backward pass" in job.stdout
    with open(tmp_path / "out/deep/predictions.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == COLUMNS
    assert {row["ranks"] for row in found} >= {"1", "65536", "100000"}
    assert (tmp_path / "out/deep/scaling.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_profile_is_kept_for_each_size_of_a_batch(tmp_path: Path):
    inquiry = Inquiry(
        overrides=("model.widths=[8]", "data.batch=9", "run.kernels=plain"), ranks="1,2", profile=tmp_path / "p.json"
    )
    first, again = outlook(inquiry), outlook(inquiry)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p-1.json", "p-2.json", "p-9.json"]
    assert first.source.startswith("measured now on one core")
    assert again.source.startswith("measured before on one core")
    units = json.loads((tmp_path / "p-9.json").read_text())["units"]
    passes = sum(unit["forward"] + unit["backward"] for unit in units[:2])
    assert again.predictions[0].seconds > passes > 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--ranks 4 --network h100", "--network: 'h100' is not one of"),
        ("--ranks four", "--ranks: expected numbers such as"),
        ("--ranks 4 --stages 2", "--stages: does not go with --ranks or --check"),
        ("--ranks 4 --json", "--json: does not go with --ranks or --check"),
        ("--ranks 4 --check", "--check: runs on 1 to 4 ranks"),
        ("--ranks 4 --memory -1", "--memory: expected a number of at least 0, got -1"),
        ("--ranks 4 --samples 100", "data.batch: 128 is more than the 100 samples to train"),
        ("--ranks 4 --micro-batches 8", "--micro-batches: does not go with --ranks or --check"),
        ("--ranks 4 --set run.bf16=true --set run.device=cpu", "run.bf16: only a GPU computes in bfloat16"),
        ("--ranks 4 --set run.bf16=true --set model.name=population", "run.bf16: a population is trained in float32"),
        ("--check --weak", "--weak: does not go with --check"),
        ("--ranks 4 --set schedule.nam=gpipe", "schedule.nam: unknown key"),
        ("--weak", "--weak: goes with --ranks"),
        ("--network cpu-hdr", "--network: goes with --ranks"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(tmp_path: Path, line: str, said: str):
    job = alone("-m", "mpinn", "plan", "--estimated", *line.split(), "-o", "out", cwd=tmp_path)
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr.startswith(f"mpinn: {said}")
    assert len(job.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
