"""What the commands say of a run whose files were damaged where HDF5 itself notices nothing."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from train_jobs import SMALL, here, records, world

from mpinn.analysis.inspect import describe, inspect
from mpinn.analysis.report import report
from mpinn.commands.evaluate import evaluate
from mpinn.errors import InputError
from mpinn.storage.reader import Checkpoint

STOPPED = 75
SAVING = (*SMALL, "checkpoint.every=6 steps")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at the steps 6 and 12."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    assert here(path, *SAVING, stop_after=12) == STOPPED
    return path


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    """Change text in a file, at the same length."""
    contents = path.read_bytes()
    assert contents.count(old) == 1
    path.write_bytes(contents.replace(old, new.ljust(len(old))))


def test_a_changed_configuration_is_noticed_by_its_digest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / "checkpoint-00000012.h5"
    rewrite(newest, b'"activation": "relu"', b'"activation": "tanh"')
    with Checkpoint(newest) as checkpoint:
        checkpoint.verify()
        assert checkpoint.configuration["model"]["activation"] == "tanh"
    for path in (newest, run / "latest"):
        with pytest.raises(InputError, match="its digest is not that of"):
            evaluate(world(), str(path), "test", (), False)
        with pytest.raises(InputError, match="its digest is not that of"):
            inspect(path)
    assert evaluate(world(), str(run), "test", (), False) == 0
    assert "checkpoint-00000006.h5: step 6, " in capsys.readouterr().out
    assert here(run, *SAVING) == 0
    assert "resumed from " in (said := capsys.readouterr().out)
    assert "checkpoint-00000006.h5 at step 6" in said
    assert [line["step"] for line in records(run) if "loss" in line] == [4, 8, 12, 16, 18]


def test_the_best_checkpoint_is_not_used_if_it_is_damaged(run: Path) -> None:
    for path in run.glob("checkpoint-*.h5"):
        rewrite(path, b'"activation": "relu"', b'"activation": "tanh"')
    with pytest.raises(InputError, match="its digest is not that of"):
        evaluate(world(), str(run), "test", (), True)


def test_a_file_without_a_digest_and_without_a_table_is_a_clean_error(run: Path) -> None:
    path = run / "checkpoint-00000012.h5"
    (run / "checkpoints.json").unlink()
    rewrite(path, b'"schedule": {', b'"schedulf": {')
    with pytest.raises(InputError, match=r"checkpoint-00000012\.h5: its configuration .*: schedulf: unknown table"):
        here(run, *SAVING)


@pytest.mark.parametrize("summary", ["{}", "[]", "3", "{", "[" * 100_000, '{"grid": 1, "ranks": []}'])
def test_a_damaged_summary_is_a_clean_error(summary: str, run: Path, tmp_path: Path) -> None:
    (run / "summary.json").write_text(summary)
    with pytest.raises(InputError, match=r"summary\.json: (damaged|is not JSON): "):
        here(run, *SAVING)
    with pytest.raises(InputError, match=r"summary\.json: (damaged|is not JSON): "):
        report([run], tmp_path / "report")
    described = describe(run)["run"]
    assert not described["finished"]
    assert any("summary.json: " in note for note in described["notes"])


def test_a_damaged_trace_is_a_clean_error(run: Path, tmp_path: Path) -> None:
    for trace in ("[]", "{}", "{"):
        (run / "trace.json").write_text(trace)
        with pytest.raises(InputError, match=r"trace\.json: (damaged|is not JSON): "):
            report([run], tmp_path / "report")


def test_a_damaged_index_does_not_hide_the_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = json.loads((run / "checkpoints.json").read_text())
    index["checkpoints"][0]["score"] = "high"
    (run / "checkpoints.json").write_text(json.dumps(index))
    assert here(run, *SAVING) == 0
    assert "checkpoint-00000012.h5 at step 12" in capsys.readouterr().out


@pytest.mark.parametrize("index", [None, "[]", "{"])
@pytest.mark.parametrize("name", ["digits", "regression"])
def test_a_lost_index_is_made_anew_from_the_files(
    index: str | None, name: str, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SAVING if name == "digits" else regression(tmp_path / "values.npz")
    lost, whole = tmp_path / "lost", tmp_path / "whole"
    if name == "digits":
        shutil.copytree(stopped, lost, symlinks=True)
    else:
        assert here(lost, *settings, stop_after=12) == STOPPED
    shutil.copytree(lost, whole, symlinks=True)
    if index is None:
        (lost / "checkpoints.json").unlink()
    else:
        (lost / "checkpoints.json").write_text(index)
    capsys.readouterr()
    assert here(lost, *settings) == 0
    assert f"{lost / 'checkpoints.json'} is made anew at the next save" in capsys.readouterr().out
    assert here(whole, *settings) == 0
    assert "made anew" not in capsys.readouterr().out
    expected = json.loads((whole / "checkpoints.json").read_text())["checkpoints"]
    found = json.loads((lost / "checkpoints.json").read_text())["checkpoints"]
    assert [entry["step"] for entry in expected] == [6, 12, 18]
    # the clock and the place of the run differ in the last file
    assert found[:2] == expected[:2]
    assert [entry["score"] for entry in found] == [entry["score"] for entry in expected]
    assert None not in [entry["score"] for entry in found]


def test_what_is_listed_anew_is_pruned_and_what_is_damaged_is_not_listed(run: Path) -> None:
    (run / "checkpoints.json").unlink()
    shutil.copy(run / "checkpoint-00000006.h5", run / "checkpoint-00000003.h5")
    (run / "checkpoint-00000004.h5").write_bytes(b"no checkpoint")
    assert here(run, *SAVING, "checkpoint.keep=1") == 0
    kept = json.loads((run / "checkpoints.json").read_text())["checkpoints"]
    best = {entry["file"] for entry in kept}
    assert "checkpoint-00000018.h5" in best
    assert len(best) <= 2
    there = {path.name for path in run.glob("checkpoint-*.h5")}
    assert there == {*best, "checkpoint-00000003.h5", "checkpoint-00000004.h5"}


def test_a_file_with_a_wrong_checksum_is_not_listed_anew(run: Path) -> None:
    (run / "checkpoints.json").unlink()
    older = run / "checkpoint-00000006.h5"
    with h5py.File(older) as file:
        start = file["model/network/hidden1/weight"].id.get_chunk_info(0).byte_offset
    contents = bytearray(older.read_bytes())
    contents[start] ^= 1
    older.write_bytes(contents)
    assert here(run, *SAVING) == 0
    listed = json.loads((run / "checkpoints.json").read_text())["checkpoints"]
    assert [entry["step"] for entry in listed] == [12, 18]
    assert older.exists()


def regression(path: Path) -> tuple[str, ...]:
    """Settings of a run of 18 steps on values, without classes."""
    rng = np.random.default_rng(0)
    sizes = {"train": 1200, "validation": 100, "test": 100}
    arrays = {f"x_{split}": rng.normal(size=(size, 5)).astype(np.float32) for split, size in sizes.items()}
    values = {f"y_{split}": arrays[f"x_{split}"][:, :2] for split in sizes}
    np.savez(path, **arrays, **values)
    return (*SAVING, "data.name=npz", f"data.path={path}", "loss.name=squared_error", "consensus.score=inverse_loss")
