"""Files that were damaged at random, or made to do harm: a clean error or the older file, never a crash."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from fuzz import damage, in_child
from ranks import alone, blank, snapshot, specs

from mpinn.errors import InputError
from mpinn.storage.checkpoint import Saver
from mpinn.storage.directory import RunDirectory
from mpinn.storage.history import Metrics, read
from mpinn.storage.index import best_of, read_index
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import check_digest, newest, restore

TIMES = 400


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at the steps 1 and 2."""
    path = tmp_path_factory.mktemp("saved")
    saver = Saver(path, alone())
    for step in (1, 2):
        saver.save(snapshot(step, specs(step)), score=step)
    saver.close()
    return path


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(saved, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def refuses(path: Path, action: Callable[[], object]) -> bool:
    """Whether the action raises an InputError, which then names the file."""
    try:
        action()
    except InputError as error:
        if str(path) not in str(error):
            raise
        return True
    return False


def take_all(path: Path) -> None:
    """Read all that a checkpoint has."""
    with Checkpoint(path) as checkpoint:
        _ = checkpoint.configuration, checkpoint.data, checkpoint.random, checkpoint.scalars, checkpoint.history
        for replica in (None, *checkpoint.replicas):
            for kind in checkpoint.kinds(replica):
                for parameter in checkpoint.parameters(kind, replica):
                    checkpoint.weights(parameter.name, kind, replica)
                    assert sum(block.size for block in checkpoint.blocks(kind, parameter.name, replica)) >= 0
        checkpoint.verify()


def test_a_damaged_file_without_a_digest_is_read_or_is_a_clean_error(run: Path) -> None:
    path, good = run / "given.h5", (run / "checkpoint-00000002.h5").read_bytes()

    def program() -> None:
        chance, refused = random.Random(0), 0
        for _ in range(TIMES):
            path.write_bytes(damage(good, chance))
            refused += refuses(path, lambda: (take_all(path), restore(path, blank(specs()), (1, 1, 1), 0)))
        assert TIMES / 2 < refused < TIMES

    in_child(program)


def test_a_damaged_file_with_a_digest_is_never_used(run: Path) -> None:
    path, before = run / "checkpoint-00000002.h5", run / "checkpoint-00000001.h5"
    good, chance = path.read_bytes(), random.Random(1)
    check_digest(run / "latest")
    for _ in range(TIMES):
        path.write_bytes(bad := damage(good, chance))
        if bad == good:
            continue
        said: list[str] = []
        assert newest(run, said.append) == before
        assert len(said) == 1
        for named in (path, run / "latest"):
            with pytest.raises(InputError, match="damaged"):
                check_digest(named)


def test_a_damaged_index_is_passed_over_or_told(run: Path) -> None:
    index, good = run / "checkpoints.json", (run / "checkpoints.json").read_bytes()
    chance, known = random.Random(2), set(run.glob("*.h5"))
    strange = [
        b"[" * 100_000,
        b"null",
        good.replace(b'"score": 2', b'"score": "2"'),
        good.replace(b'"epoch": 0', b'"epoch": []'),
    ]
    for bad in [*strange, *(damage(good, chance) for _ in range(TIMES // 8))]:
        index.write_bytes(bad)
        assert newest(run, lambda line: None) in known
        refuses(index, lambda: best_of(read_index(RunDirectory(run)) or []))


def test_damaged_metrics_are_read_or_are_a_clean_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in range(1, 20):
        metrics.append({"step": step, "loss": 1 / step, "meeting_weights": [0.5, 0.5]})
    metrics.close()
    good, chance = path.read_bytes(), random.Random(3)
    strange = [b"[" * 100_000 + b"\n", b'{"step": "1"}\n', b'{"step": null}\n', b"3\n", b"\xff\xfe\n"]
    for bad in [*strange, *(damage(good, chance) for _ in range(TIMES))]:
        path.write_bytes(bad)
        if refuses(path, lambda: read(path)):
            continue
        again = Metrics(path)
        again.rewind(9)
        again.close()
        assert all(record.get("step", 0) <= 9 for record in read(path))


def other_file(file: h5py.File) -> Path:
    """A file beside the checkpoint, with something to find in it."""
    path = Path(file.filename).with_name("other.h5")
    with h5py.File(path, "w") as other:
        other["secret"] = np.ones(5)
    return path


def external_link(file: h5py.File) -> None:
    file["model/network/added"] = h5py.ExternalLink(str(other_file(file)), "/secret")


def soft_link(file: h5py.File) -> None:
    file["model/network/added"] = h5py.SoftLink("/state")


def dangling_link(file: h5py.File) -> None:
    file["model/network/added"] = h5py.SoftLink("/nowhere")


def loop(file: h5py.File) -> None:
    file["model/network/added"] = file["model"]


def root_again(file: h5py.File) -> None:
    file["model/network/added"] = file["/"]


def two_names(file: h5py.File) -> None:
    file["model/network/added"] = file["model/network/output/dense/weight"]


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(5,), dtype="f8")
    layout[:] = h5py.VirtualSource(other_file(file), "secret", shape=(5,))
    file.create_virtual_dataset("model/network/added", layout)


def stored_elsewhere(file: h5py.File) -> None:
    path = str(other_file(file))
    file.create_dataset("model/network/added", (5,), "f8", external=[(path, 0, h5py.h5f.UNLIMITED)])


def enormous(file: h5py.File) -> None:
    file.create_dataset("model/network/added", (1 << 44,), "f4", chunks=(1 << 20,))


def enormous_scalar(file: h5py.File) -> None:
    file.create_dataset("scalars/added", (1 << 44,), "f4", chunks=(1 << 20,))


def objects(file: h5py.File) -> None:
    file.create_dataset("scalars/added", data=["text of any length"], dtype=h5py.string_dtype())


def references(file: h5py.File) -> None:
    file.create_dataset("scalars/added", data=file["model"].ref, dtype=h5py.ref_dtype)


HARM = [
    *(external_link, soft_link, dangling_link, loop, root_again, two_names, virtual, stored_elsewhere),
    *(enormous, enormous_scalar, objects, references),
]


REFUSED = "is a link to something else|are in another file|claims 70368744177664 bytes|neither numbers nor text"


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_a_file_that_was_made_to_do_harm_is_refused(harm: Callable[[h5py.File], None], run: Path) -> None:
    path = run / "checkpoint-00000002.h5"
    with h5py.File(path, "r+") as file:
        harm(file)

    def program() -> None:
        with pytest.raises(InputError, match=rf"checkpoint-00000002\.h5: .*({REFUSED})"):
            take_all(path)

    in_child(program)
    # without its digest it is passed over all the same
    (run / "checkpoints.json").unlink()
    said: list[str] = []
    assert newest(run, said.append) == run / "checkpoint-00000001.h5"
    assert re.search(REFUSED, said[0])
