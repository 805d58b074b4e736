import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from ranks import SHAPES, alone, blank, snapshot, specs

from mpinn.config import InputError
from mpinn.nn.layout import Layout
from mpinn.storage import writer
from mpinn.storage.checkpoint import Saver
from mpinn.storage.directory import RunDirectory
from mpinn.storage.index import read_index
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import newest, restore
from mpinn.storage.schema import VectorSpec

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at the steps 1, 2 and 3."""
    path = tmp_path_factory.mktemp("saved")
    saver = Saver(path, alone())
    for step in (1, 2, 3):
        saver.save(snapshot(step, specs(step)), score=-step)
    saver.close()
    return path


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(saved, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def name(step: int) -> str:
    return f"checkpoint-{step:08d}.h5"


def test_any_flipped_bit_is_reported_and_the_file_before_is_taken(run):
    path, rng = run / name(3), np.random.default_rng(0)
    good = path.read_bytes()
    for position in rng.integers(0, 8 * len(good), 1000):
        with open(path, "r+b") as file:
            file.seek(position // 8)
            file.write(bytes([good[position // 8] ^ (1 << position % 8)]))
        said: list[str] = []
        assert newest(run, said.append) == run / name(2)
        assert [(name(3) in line, "digest" in line) for line in said] == [(True, True)]
        with open(path, "r+b") as file:
            file.seek(position // 8)
            file.write(good[position // 8 : position // 8 + 1])
    assert newest(run, pytest.fail) == path


def test_any_truncation_is_reported_and_the_file_before_is_taken(run):
    path = run / name(3)
    size = path.stat().st_size
    for length in np.linspace(size - 1, 0, 50).astype(int):
        os.truncate(path, length)
        said: list[str] = []
        assert newest(run, said.append) == run / name(2)
        assert len(said) == 1
        assert f"{name(3)}: damaged: {length} bytes instead of {size}" in said[0]


def test_two_damaged_files_are_both_reported(run):
    (run / name(3)).unlink()
    (run / name(2)).write_bytes(b"")
    said: list[str] = []
    assert newest(run, said.append) == run / name(1)
    assert "missing" in said[0]
    assert name(2) in said[1]


def test_a_run_without_a_good_file_is_not_started_anew(run):
    for path in run.glob("*.h5"):
        path.write_bytes(b"")
    said: list[str] = []
    with pytest.raises(InputError, match="none of its 3 checkpoints"):
        newest(run, said.append)
    assert len(said) == 3


def test_a_new_run_has_no_checkpoint(tmp_path):
    assert newest(tmp_path, pytest.fail) is None
    assert newest(tmp_path / "missing", pytest.fail) is None


def test_a_file_that_was_copied_by_hand_is_taken_with_a_note(run, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copy(run / name(2), other)
    said: list[str] = []
    assert newest(other, said.append) == other / name(2)
    assert len(said) == 1
    assert "not listed" in said[0]
    assert name(2) in said[0]


def test_a_copied_file_is_read_to_its_end_before_it_is_taken(run):
    path = run / name(3)
    with h5py.File(path) as file:
        dataset = file["model/network/Überlagerung β/kernel"]
        offset = dataset.id.get_chunk_info(0).byte_offset
    contents = bytearray(path.read_bytes())
    contents[offset + 9] ^= 4
    path.write_bytes(contents)
    (run / "checkpoints.json").unlink()
    said: list[str] = []
    assert newest(run, said.append) == run / name(2)
    assert "kernel cannot be read" in said[0]


@pytest.mark.parametrize(
    "text", ["", "{", '{"format": "other"}', '{"format": "mpinn-checkpoints", "version": 2}', "[1]"]
)
def test_a_damaged_index_is_reported(run, text):
    (run / "checkpoints.json").write_text(text)
    said: list[str] = []
    assert newest(run, said.append) == run / name(3)
    assert "checkpoints.json: damaged" in said[0]
    saver = Saver(run, alone())
    saver.save(snapshot(4, specs(4)))
    saver.close()
    assert newest(run, pytest.fail) == run / name(4)


def test_an_index_does_not_lead_out_of_its_directory(run):
    text = (run / "checkpoints.json").read_text().replace(name(3), f"../{name(3)}")
    (run / "checkpoints.json").write_text(text)
    said: list[str] = []
    newest(run, said.append)
    assert "checkpoints.json: damaged" in said[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("[model]\n"), "not a readable HDF5 file"),
        (lambda path: path.write_bytes(b""), "not a readable HDF5 file"),
        (lambda path: None, "no such file"),
        (lambda path: h5py.File(path, "w").close(), "not a checkpoint of this program"),
        (lambda path: path.mkdir(), "not a readable HDF5 file"),
    ],
)
def test_a_foreign_file_is_refused_by_name(tmp_path, make, message):
    path = tmp_path / "given.h5"
    make(path)
    with pytest.raises(InputError, match=rf"given\.h5: {message}"):
        restore(path, blank(specs()), (1, 1, 1), 0)


def test_another_version_is_refused(run):
    with h5py.File(run / name(3), "r+") as file:
        file.attrs["version"] = 2
    with pytest.raises(InputError, match="format version 2, this program reads 1"):
        Checkpoint(run / name(3))


OTHER_MODELS = {
    "hidden1/dense/weight has shape": {
        **SHAPES,
        "hidden1": {"dense": {"weight": (5, 7), "bias": (5,)}, "norm": {"scale": (5,)}},
    },
    "added/w is missing": {**SHAPES, "added": {"w": (2,)}},
    "output/dense/weight is not in the model": {key: SHAPES[key] for key in list(SHAPES)[:2]},
}


@pytest.mark.parametrize("message", OTHER_MODELS)
def test_another_model_is_refused_and_nothing_is_loaded(run, message):
    layout = Layout(OTHER_MODELS[message], "float32")
    into = [blank(specs())[2], VectorSpec("model/network", layout, np.full(layout.size, 7, "float32"))]
    with pytest.raises(InputError, match=rf"{name(3)}: model/network/{message}"):
        restore(run / name(3), into, (1, 1, 1), 0)
    assert all((spec.vector == 7).all() for spec in into)


def test_another_type_is_refused(run):
    with pytest.raises(InputError, match="is float32, the model needs float64"):
        restore(run / name(3), blank(specs(dtype="float64")), (1, 1, 1), 0)


def test_a_block_that_cannot_be_read_loads_nothing(run):
    path = run / name(3)
    with h5py.File(path) as file:
        offset = file["state/network/hidden1/norm/variance"].id.get_chunk_info(0).byte_offset
    contents = bytearray(path.read_bytes())
    contents[offset] ^= 1
    path.write_bytes(contents)
    into = blank(specs())
    with pytest.raises(InputError, match="/state/network/hidden1/norm/variance cannot be read"):
        restore(path, into, (1, 1, 1), 0)
    assert all((spec.vector == 7).all() for spec in into)


def forked(program: Callable[[], None]) -> int:
    """Run the program in a child process, which leaves with 1 if it comes to an end; returns its id."""
    if child := os.fork():
        return child
    try:
        program()
    finally:
        os._exit(1)


def test_a_kill_during_a_save_leaves_a_checkpoint_in_use_at_every_one_of_50_moments(tmp_path):
    """At random times after a save has begun, up to twice what a save takes."""
    shapes = {f"layer{i}": {"w": (200, 50)} for i in range(8)}
    chance, during, durable = random.Random(0), 0, 0

    def save_for_ever(told: int, step: int) -> None:
        saver = Saver(tmp_path, alone())
        while True:
            step += 1
            saved = snapshot(step, specs(step, shapes=shapes))
            os.write(told, b"begun\n")
            saver.save(saved)
            saver.wait()
            os.write(told, f"{step}\n".encode())

    for _ in range(50):
        ours, told = os.pipe()
        child = forked(partial(save_for_ever, told, durable))
        os.close(told)
        with open(ours) as lines:
            assert lines.readline() == "begun\n"
            since = time.monotonic()
            said = [lines.readline()]
            takes = time.monotonic() - since
            assert lines.readline() == "begun\n"
            time.sleep(chance.uniform(0, 2 * takes))
            os.kill(child, signal.SIGKILL)
            said += lines
        os.waitpid(child, 0)
        durable = int([line for line in said if line != "begun\n"][-1])
        during += any(tmp_path.glob(".*.partial"))
        path = newest(tmp_path, lambda line: None)
        # What was said to be durable is there; the save under way may have become so just before the kill.
        assert path in (tmp_path / name(durable), tmp_path / name(durable + 1))
        into, step = blank(specs(shapes=shapes)), int(path.stem.rpartition("-")[2])
        restore(path, into, (1, 1, 1), 0)
        expected = specs(step, shapes=shapes)
        assert [spec.vector.tobytes() for spec in into] == [spec.vector.tobytes() for spec in expected]
    assert during > 5


POINTS = ["write", "digest", "write_index", "replace", "point_latest", "_prune"]


def die(*_: object) -> None:
    os._exit(9)


def save_and_die(run: Path, point: str, step: int) -> None:
    if point == "replace":
        writer.os = type("os", (), {"replace": die})
    elif point == "point_latest":
        RunDirectory.point_latest = die
    else:
        setattr(writer, point, die)
    saver = Saver(run, alone(), keep=1)
    saver.save(snapshot(step, specs(50)))
    saver.wait()


@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_of_publishing_loses_nothing(run, point, step):
    """Step 3 replaces a file that is there; the process dies as it reaches the point."""
    child = forked(partial(save_and_die, run, point, step))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    # it leads to a file that is there
    assert (run / "latest").exists()
    published = POINTS.index(point) > POINTS.index("replace")
    into, expected = blank(specs()), specs(50 if published else 3)
    restore(newest(run, lambda line: None), into, (1, 1, 1), 0)
    assert [spec.vector.tobytes() for spec in into] == [spec.vector.tobytes() for spec in expected]
    saver = Saver(run, alone())
    saver.save(snapshot(5, specs(5)))
    saver.close()
    assert newest(run, pytest.fail) == run / name(5)
    assert {entry.file for entry in read_index(RunDirectory(run))} == {path.name for path in run.glob("*.h5")}


FULL = """
import resource, signal, sys
from pathlib import Path
from ranks import alone, snapshot, specs
from mpinn.storage.checkpoint import Saver, SaveError
from mpinn.storage.restore import newest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
directory, size = Path(sys.argv[1]), (directory_size := Path(sys.argv[1], "checkpoint-00000003.h5").stat().st_size)
before = {path.name: path.read_bytes() for path in directory.iterdir()}
saver = Saver(directory, alone())
for limit in [0, 1, 2048, size // 2, size - 1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        saver.save(snapshot(4, specs(4)))
        saver.wait()
    except SaveError as error:
        assert "the checkpoint was not saved: checkpoint-00000004.h5: File too large" in str(error), error
    else:
        raise SystemExit(f"{limit} bytes were enough")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
saver.save(snapshot(4, specs(4)))
saver.close()
assert newest(directory, print).name == "checkpoint-00000004.h5"
"""


def test_a_full_disk_is_an_error_and_loses_nothing(run):
    path = os.pathsep.join([str(HERE), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", FULL, run],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "")
