"""CuPy writes a folder when it is imported: another one is chosen for it, or the user is told."""

import os
import shutil
from pathlib import Path

import pytest
from launch import ROOT, alone
from train_jobs import SMALL, arguments

FAKE = """
import os
place = os.environ.get("CUPY_CACHE_DIR", os.path.expanduser("~/.cupy/kernel_cache"))
if os.path.isfile(os.path.join(os.path.dirname(place), "locked")):
    raise PermissionError(13, "Permission denied", place)
os.makedirs(place, exist_ok=True)
"""
RUNTIME = """
class CUDARuntimeError(RuntimeError):
    pass
def getDeviceCount():
    return 0
"""
ASK = "from mpinn.array.device import count_devices; print(count_devices()); print(count_devices())"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A package that does as CuPy at its import, a home that is a file, and a folder for temporary files."""
    package = tmp_path / "packages" / "cupy" / "cuda"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text(FAKE)
    (package / "__init__.py").touch()
    (package / "runtime.py").write_text(RUNTIME)
    (tmp_path / "home").touch()
    (tmp_path / "temporary").mkdir()
    path = os.pathsep.join([str(tmp_path / "packages"), str(ROOT)])
    return {"PYTHONPATH": path, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}


def test_kernels_are_kept_elsewhere_where_the_home_directory_cannot_be_written(
    environment: dict[str, str], tmp_path: Path
) -> None:
    job = alone("-c", ASK, env=environment)
    assert (job.stdout, job.stderr) == ("(0, 'no GPU is visible')\n" * 2, "")
    place = tmp_path / "temporary" / f"mpinn-{os.getuid()}" / "cupy"
    assert place.is_dir()
    assert place.parent.stat().st_mode & 0o777 == 0o700
    job = alone("-c", ASK, env={**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert job.stdout.startswith("(0, 'no GPU is visible')")
    assert (tmp_path / "cache" / "mpinn" / "cupy").is_dir()


def test_a_home_that_can_be_written_is_used(environment: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "own"
    home.mkdir()
    alone("-c", ASK, env={**environment, "HOME": str(home)})
    assert (home / ".cupy" / "kernel_cache").is_dir()
    assert not any((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("link", [True, False])
def test_a_folder_that_others_can_write_is_not_used(link: bool, environment: dict[str, str], tmp_path: Path) -> None:
    shared = tmp_path / "temporary" / f"mpinn-{os.getuid()}"
    if link:
        (tmp_path / "of-others").mkdir(mode=0o700)
        shared.symlink_to(tmp_path / "of-others")
    else:
        shared.mkdir()
        shared.chmod(0o777)
    job = alone("-c", ASK, env=environment)
    assert "CUPY_CACHE_DIR" in job.stdout
    assert not any(shared.iterdir())


def test_a_folder_that_cannot_be_written_is_told_with_what_to_set(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "locked").touch()
    place = tmp_path / "kernels"
    denied = {**environment, "CUPY_CACHE_DIR": str(place)}
    job = alone(*arguments(tmp_path / "run", *SMALL, "run.device=gpu"), env=denied)
    wrong = f"CuPy cannot be imported (it cannot write {str(place)!r}: Permission denied; let CUPY_CACHE_DIR name a"
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr.startswith(f"mpinn: run.device: gpu: {wrong} folder that can be written); choose cpu")
    job = alone(*arguments(tmp_path / "run", *SMALL), env=denied)
    assert (job.returncode, job.stderr) == (0, "")
    assert f"device cpu: {wrong}" in job.stdout
    job = alone("-m", "mpinn", "doctor", env=denied)
    assert (job.returncode, job.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("g++") is None, reason="kernels are compiled by g++")
def test_the_log_says_where_kernels_are_kept(environment: dict[str, str], tmp_path: Path) -> None:
    stand_in = os.pathsep.join([str(ROOT / "tests" / "emulation"), str(ROOT)])
    emulated = {**environment, "PYTHONPATH": stand_in, "MPINN_EMULATED": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    job = alone(*arguments(tmp_path / "run", *SMALL), env=emulated, timeout=180)
    assert job.returncode == 0, job.stderr
    place = tmp_path / "cache" / "mpinn" / "cupy"
    assert (
        f"CuPy keeps its kernels in {place}, since {tmp_path}/home/.cupy/kernel_cache cannot be written" in job.stdout
    )
