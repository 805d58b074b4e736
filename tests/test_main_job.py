"""The main job: what a newcomer types first, on any number of ranks."""

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from launch import alone, mpirun
from train_jobs import summary

RANKS = [0, 1, 2, 3, 4, 8]
"""0: without a launcher."""
Job = tuple[subprocess.CompletedProcess[str], Path]


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Job]:
    """The finished main job on a number of ranks, and the directory in which it was typed."""

    @cache
    def run(ranks: int) -> Job:
        place = tmp_path_factory.mktemp(f"ranks{ranks}")
        return (mpirun(ranks, "-m", "mpinn", cwd=place) if ranks else alone("-m", "mpinn", cwd=place)), place

    return run


@pytest.mark.parametrize("ranks", RANKS)
def test_it_ends_well_on_any_number_of_ranks(ranks: int, main_job: Callable[[int], Job]) -> None:
    job, place = main_job(ranks)
    assert (job.returncode, job.stderr) == (0, "")
    found = summary(place / "runs/digits")
    assert found["grid"] == [max(1, ranks), 1, 1]
    assert found["test"]["accuracy"] >= 0.96
    assert (found["epochs"], found["steps"], found["samples"]) == (60, 600, 60 * 1197)
    assert found["samples_per_second"] == pytest.approx(found["samples"] / found["seconds"])
    for rank in found["ranks"]:
        shares = [rank[share] for share in ("computing", "communicating", "waiting")]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) >= -1e-9
    if ranks > 1:
        assert len(found["weights"]) == len(found["ranks"]) == ranks
        assert sum(found["weights"]) == pytest.approx(1)
        assert all(rank["bytes"] > 0 for rank in found["ranks"])
        assert all(rank["memory"] > 2**24 for rank in found["ranks"])
    assert (place / found["checkpoint"]).is_file()


@pytest.mark.parametrize("ranks", [0, 4])
def test_rank_0_alone_tells_all_of_it(ranks: int, main_job: Callable[[int], Job]) -> None:
    job, place = main_job(ranks)
    found, lines = summary(place / "runs/digits"), job.stdout.splitlines()
    head = "mpinn 0.1.0: 1 rank on" if ranks == 0 else "mpinn 0.1.0: 4 ranks on"
    for once in (head, "run directory", "step  10/600", "step 600/600", "run  ", "test  ", "checkpoint  ", "rank  "):
        assert sum(line.startswith(once) for line in lines) == 1, once
    assert sum(line.startswith("step ") for line in lines) <= 22
    assert f"test          accuracy {found['test']['accuracy']:.4f}, loss {found['test']['loss']:.4f}" in lines
    assert any(f"{found['samples_per_second']:,.0f} samples/s" in line for line in lines)
    table = lines[lines.index(next(line for line in lines if line.startswith("rank  "))) + 1 :][: max(1, ranks)]
    for number, (row, rank) in enumerate(zip(table, found["ranks"], strict=True)):
        cells = row.split()
        assert cells[0] == str(number)
        assert cells[1:4] == [f"{rank[share]:.1%}" for share in ("computing", "communicating", "waiting")]
        assert ranks == 0 or cells[-1] == f"{found['weights'][number]:.6f}"
    assert "checkpoint    runs/digits/checkpoint-00000600.h5" in lines


def test_what_it_says_about_looking_at_the_result_is_true(main_job: Callable[[int], Job]) -> None:
    job, place = main_job(4)
    look, use = (line.split("python ")[1].split() for line in job.stdout.splitlines() if " python -m mpinn " in line)
    seen = alone(*look, cwd=place)
    assert (seen.returncode, seen.stderr) == (0, "")
    assert "hidden1/weight" in seen.stdout
    used = alone(*use, cwd=place)
    assert (used.returncode, used.stderr) == (0, "")
    assert f"accuracy {summary(place / 'runs/digits')['test']['accuracy']:.4f}" in used.stdout
