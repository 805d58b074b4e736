"""A file system that is really full: a small tmpfs, into which a run saves until nothing fits any more."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch import alone
from train_jobs import SMALL, differences, here, records, series, train

from mpinn.errors import FatalError, InputError
from mpinn.storage.directory import RunDirectory
from mpinn.storage.index import digest, read_index
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import newest

STOPPED = 75
SIZE = 16 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of SIZE bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place], stderr=subprocess.PIPE)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, free: int) -> Path:
    """A file that takes all of the disk but ``free`` bytes."""
    filler = disk / "filler"
    with open(filler, "wb") as file:
        found = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - free)
    return filler


def sound(run: Path) -> dict[str, bytes]:
    """The checkpoints of a run, each of them whole and as listed, the newest of them the one in use; their contents."""
    listed = read_index(RunDirectory(run))
    assert listed
    present = [entry for entry in listed if (run / entry.file).exists()]
    for entry in present:
        assert digest(run / entry.file) == entry.sha256
        with Checkpoint(run / entry.file) as checkpoint:
            checkpoint.verify()
    said: list[str] = []
    assert newest(run, said.append) == run / present[-1].file
    assert all("listed in checkpoints.json, but missing" in line for line in said), said
    assert [path.name for path in reversed(RunDirectory(run).checkpoints())] == [entry.file for entry in present]
    assert list(run.glob(".*.partial")) == []
    return {entry.file: (run / entry.file).read_bytes() for entry in present}


def allow_writing(disk: Path, allowed: bool) -> None:
    subprocess.run(["mount", "-o", f"remount,{'rw' if allowed else 'ro'}", disk], check=True)


def test_a_directory_that_cannot_be_written_is_one_message_and_loses_nothing(disk: Path) -> None:
    """Neither a run that goes on, nor a new one, nor one that would be moved aside."""
    run, read_only = disk / "run", "cannot be written: Read-only file system"
    assert here(run, *SMALL, stop_after=9) == STOPPED
    held = {path.name: path.read_bytes() for path in run.iterdir()}
    allow_writing(disk, False)
    for words in ((run, *SMALL), (disk / "new", *SMALL), (run, *SMALL, "--fresh")):
        job = train(2, *words)
        assert (job.returncode, job.stderr.count("\n")) == (2, 1)
        assert job.stderr.startswith("mpinn: run.directory: ")
        assert job.stderr.endswith(f"{read_only}\n")
        fresh = "--fresh" in words
        with pytest.raises(InputError, match=f"^run.directory: .*{read_only}$"):
            here(words[0], *SMALL, fresh=fresh)
        assert {path.name: path.read_bytes() for path in run.iterdir()} == held
    assert alone("-m", "mpinn", "evaluate", str(run)).returncode == 0
    allow_writing(disk, True)
    assert here(run, *SMALL) == 0
    assert [line["step"] for line in records(run) if "loss" in line] == [4, 8, 12, 16, 18]


def test_a_run_fills_the_disk_and_goes_on_when_there_is_room(disk: Path, tmp_path: Path) -> None:
    run = disk / "run"
    settings = ("model.widths=[300]", *SMALL[1:], "checkpoint.every=1 step", "checkpoint.keep=100")
    filler = fill(disk, 3 << 20)
    job = train(2, run, *settings)
    assert job.returncode == 1
    full = rf"mpinn: {re.escape(str(run))}: the checkpoint was not saved: checkpoint-\d+\.h5: No space left on device\n"
    assert re.fullmatch(full, job.stderr)
    assert not (run / "lock").exists()
    assert not (run / "requeue").exists()
    held = sound(run)
    assert 2 < len(held) < 18

    told = alone("-m", "mpinn", "evaluate", str(run))
    assert (told.returncode, told.stderr) == (0, "")
    assert "accuracy" in told.stdout

    # still full: nothing is lost by trying
    assert train(2, run, *settings).returncode == 1
    assert sound(run).items() >= held.items()

    filler.unlink()
    whole = tmp_path / "whole"
    again = series(2, (run, settings, 0), (whole, settings, 0))
    assert again.stderr == ""
    assert f"resumed from {run}/{max(held)} at step " in again.stdout
    assert sound(run).items() >= held.items()
    assert differences(run / "latest", whole / "latest") == ["configuration"]
    assert [line["step"] for line in records(run) if "loss" in line] == [4, 8, 12, 16, 18]


def test_wherever_the_disk_becomes_full_nothing_is_lost(disk: Path) -> None:
    """With a page more each time, from none at all to what a run writes until its checkpoint has its name."""
    run = disk / "run"
    assert here(run, *SMALL, stop_after=9) == STOPPED
    held = sound(run)
    told = [
        f"run.directory: '{run}' cannot be written: ",
        f"{run}: the checkpoint was not saved: checkpoint-00000010.h5: ",
    ]
    met: set[str] = set()
    ended: int | str = ""
    for pages in range(100):
        filler = fill(disk, pages * PAGE)
        try:
            ended = here(run, *SMALL, stop_after=10)
        except (InputError, FatalError) as error:
            ended = str(error)
            assert ended in [f"{what}No space left on device" for what in told]
            met.add(ended)
        assert sound(run).items() >= held.items()
        filler.unlink()
        if ended == STOPPED:
            break
    assert (ended, len(met)) == (STOPPED, len(told))
    assert here(run, *SMALL) == 0
    assert [line["step"] for line in records(run) if "loss" in line] == [4, 8, 12, 16, 18]
