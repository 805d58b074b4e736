"""The command ``data``: one sound file from the official ones, the user's own or downloaded."""

import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_official import write_mnist

from mpinn.config import Data, InputError
from mpinn.datasets import prepare as command
from mpinn.datasets.official import OFFICIAL
from mpinn.datasets.source import check_source, open_source


@pytest.fixture(autouse=True)
def directory(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("MPINN_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_converted_file_is_found_by_its_name_and_is_what_the_originals_are(directory, tmp_path, capsys):
    write_mnist(tmp_path / "m", compressed=True)
    command.prepare("mnist", tmp_path / "m", None)
    assert capsys.readouterr().out == (
        f"MNIST: 110 train, 10 validation, 30 test samples of (6, 5, 1), 10 classes, in {directory}/mnist.h5\n"
        "python -m mpinn --set data.name=mnist trains on it\n"
    )
    converted, originals = Data(name="mnist", batch=8), Data(name="mnist", path=str(tmp_path / "m"), batch=8)
    assert check_source(converted) == check_source(originals)
    one, other = open_source(converted), open_source(originals)
    for name, split in one.splits.items():
        np.testing.assert_array_equal(split.x[:], other.splits[name].x)
        np.testing.assert_array_equal(split.target, other.splits[name].target)
    np.testing.assert_array_equal((one.mean, one.std), (other.mean, other.std))
    with h5py.File(directory / "mnist.h5", locking=False) as file:
        assert file["train/x"].dtype == np.uint8
        assert file["train/x"].fletcher32
        assert list(file.attrs["class_names"]) == list("0123456789")
        assert (file.attrs["title"], file.attrs["origin"]) == ("MNIST", f"MNIST's official files, in {tmp_path}/m")
    assert [path.name for path in directory.iterdir()] == ["mnist.h5"]


def test_to_another_file(directory, tmp_path, capsys):
    write_mnist(tmp_path / "m")
    command.prepare("mnist", tmp_path / "m", tmp_path / "a" / "b.h5")
    assert f"--set data.path={tmp_path}/a/b.h5" in capsys.readouterr().out
    assert check_source(Data(name="mnist", path=str(tmp_path / "a" / "b.h5"), batch=8))["sizes"]["test"] == 30
    assert not directory.exists()


def test_what_cannot_be_prepared(tmp_path):
    with pytest.raises(InputError, match=r"data: 'mnits' is not one of mnist, cifar10, cifar100 \(did you mean mnist"):
        command.prepare("mnits", None, None)
    (tmp_path / "file").write_text("")
    write_mnist(tmp_path / "m")
    with pytest.raises(InputError, match=r"cannot be written"):
        command.prepare("mnist", tmp_path / "m", tmp_path / "file" / "a.h5")


def test_a_file_that_cannot_be_finished_leaves_nothing(directory, tmp_path):
    write_mnist(tmp_path / "m")
    (directory / "mnist.h5").mkdir(parents=True)
    with pytest.raises(InputError, match=r"mnist\.h5: cannot be written: "):
        command.prepare("mnist", tmp_path / "m", None)
    assert [path.name for path in directory.iterdir()] == ["mnist.h5"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def known(monkeypatch, folder: Path, *places: str) -> None:
    """MNIST is what is in ``folder``, and it is to be had from ``places``."""
    downloads = tuple((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir()))
    monkeypatch.setattr(
        command, "OFFICIAL", OFFICIAL | {"mnist": replace(OFFICIAL["mnist"], places=places, downloads=downloads)}
    )


DEAD = "http://127.0.0.1:9/"


def test_a_download_from_the_second_place_and_none_the_second_time(directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "*")
    write_mnist(tmp_path / "m", compressed=True)
    with served(tmp_path / "m") as place:
        known(monkeypatch, tmp_path / "m", DEAD, place)
        command.prepare("mnist", None, None)
    assert f"{place}t10k-images-idx3-ubyte.gz" in capsys.readouterr().out
    assert check_source(Data(name="mnist", batch=8))["sizes"] == {"train": 110, "validation": 10, "test": 30}
    (directory / "mnist.h5").unlink()
    command.prepare("mnist", None, None)
    assert "http" not in capsys.readouterr().out
    assert check_source(Data(name="mnist", batch=8))["sizes"]["train"] == 110


def test_another_file_than_the_official_one_is_not_taken(directory, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    write_mnist(tmp_path / "m")
    with served(tmp_path / "m") as place:
        known(monkeypatch, tmp_path / "m", place)
        (tmp_path / "m" / "train-images-idx3-ubyte").write_bytes(b"something else")
        with pytest.raises(
            InputError, match=r"train-images-idx3-ubyte cannot be downloaded .*: it is not the official"
        ):
            command.prepare("mnist", None, None)
    assert not (directory / "mnist.h5").exists()


def test_without_a_network_one_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    write_mnist(tmp_path / "m")
    known(monkeypatch, tmp_path / "m", DEAD)
    with pytest.raises(InputError) as caught:
        command.prepare("mnist", None, None)
    said = str(caught.value)
    assert said.startswith(f"data mnist: t10k-images-idx3-ubyte cannot be downloaded ({DEAD}: ConnectionError). Fetch ")
    assert f"{DEAD}train-labels-idx1-ubyte" in said
    assert said.endswith("type `python -m mpinn data mnist --from FOLDER`")


def test_the_command_line(tmp_path):
    write_mnist(tmp_path / "m")
    program = [sys.executable, "-m", "mpinn", "data"]
    done = subprocess.run([*program, "mnist", "--from", tmp_path / "m"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[0].split(":")[0]) == (0, "MNIST")
    wrong = subprocess.run([*program, "mnist", "--from", tmp_path / "no"], capture_output=True, text=True, timeout=60)
    assert (wrong.returncode, wrong.stderr) == (2, f"mpinn: {tmp_path}/no: there is no such folder\n")
