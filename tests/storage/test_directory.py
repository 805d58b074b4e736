import errno
import os
import stat
from pathlib import Path

import pytest

from mpinn.storage.directory import RunDirectory, move_aside, step_of, write_text


def test_moving_aside_never_overwrites(tmp_path):
    run = tmp_path / "x"
    for number in (1, 2, 3):
        run.mkdir()
        (run / "config.toml").write_text(f"seed = {number}")
        assert move_aside(run) == tmp_path / f"x.{number}"
    assert [(tmp_path / f"x.{n}" / "config.toml").read_text() for n in (1, 2, 3)] == [
        "seed = 1",
        "seed = 2",
        "seed = 3",
    ]
    assert move_aside(run) is None


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_what_is_no_directory_is_not_moved(make, tmp_path):
    make(tmp_path / "x")
    with pytest.raises(NotADirectoryError, match="Not a directory"):
        move_aside(tmp_path / "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_a_link_stays_and_what_it_leads_to_is_moved_and_made_again(tmp_path):
    run, scratch = tmp_path / "run", tmp_path / "scratch" / "run"
    run.symlink_to(scratch)
    RunDirectory(run).create()
    assert scratch.is_dir()
    (run / "config.toml").write_text("seed = 1")
    assert move_aside(run) == tmp_path / "scratch" / "run.1"
    assert (tmp_path / "scratch" / "run.1" / "config.toml").read_text() == "seed = 1"
    RunDirectory(run).create()
    assert run.is_symlink()
    assert scratch.is_dir()
    assert not list(scratch.iterdir())


def test_writing_text_replaces_it_at_once(tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    write_text(path, "größe = 1\n")
    assert path.read_text(encoding="utf-8") == "größe = 1\n"

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "größe = 2\n")
    assert path.read_text(encoding="utf-8") == "größe = 1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_latest_is_text_where_links_are_impossible(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    run.point_latest("checkpoint-00000001.h5")
    assert os.readlink(run.latest) == "checkpoint-00000001.h5"
    run.point_latest("checkpoint-00000002.h5")
    assert os.readlink(run.latest) == "checkpoint-00000002.h5"

    def refuse(*_, **__):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    run.point_latest("checkpoint-00000003.h5")
    assert run.latest.read_text() == "checkpoint-00000003.h5\n"
    assert not run.latest.is_symlink()


def test_checkpoints_are_found_by_name_the_highest_step_first(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (5, 123456789, 70):
        run.checkpoint(step).touch()
    (tmp_path / "checkpoint-final.h5").touch()
    assert [step_of(path) for path in run.checkpoints()] == [123456789, 70, 5]
    with pytest.raises(ValueError, match="final"):
        step_of(tmp_path / "checkpoint-final.h5")


def test_creating_leaves_what_is_there(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "x")
    run.create()
    run.config.write_text("a")
    run.create()
    assert run.config.read_text() == "a"


@pytest.mark.parametrize(("code", "fine"), [(errno.EINVAL, True), (errno.EACCES, True), (errno.EIO, False)])
def test_a_file_system_that_syncs_files_alone_is_enough(code: int, fine: bool, tmp_path, monkeypatch) -> None:
    """But not one whose disk fails."""
    sync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if fine:
        RunDirectory(tmp_path / "run").create()
        write_text(tmp_path / "run" / "config.toml", "")
        assert move_aside(tmp_path / "run") == tmp_path / "run.1"
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            RunDirectory(tmp_path / "run").create()
