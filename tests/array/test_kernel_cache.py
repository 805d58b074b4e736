"""The cache of compiled kernels: kept between processes, and never older than the sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT

import mpinn

PROGRAM = """
import numpy as np
from mpinn.array import cpu
from mpinn.array.cpu_losses import softmax_cross_entropy
from mpinn.array.pool import Pool
cpu.cross_entropy(np.ones((2, 3), np.float32), np.zeros(2, np.int64), 0.0, Pool())
print(sum(softmax_cross_entropy.stats.cache_hits.values()), sum(softmax_cross_entropy.stats.cache_misses.values()))
"""


def hits_and_misses(root: Path, program: str = PROGRAM) -> str:
    process = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_a_change_of_a_file_that_a_kernel_calls_compiles_it_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    shutil.copytree(Path(mpinn.__file__).parent, tmp_path / "mpinn", ignore=shutil.ignore_patterns("__pycache__"))
    assert hits_and_misses(tmp_path) == "0 1"
    assert hits_and_misses(tmp_path) == "1 0"
    called = tmp_path / "mpinn" / "array" / "cpu_math.py"
    called.write_text(called.read_text() + "\n# changed\n")
    assert hits_and_misses(tmp_path) == "0 1"


WITHOUT = """
import numpy as np
from mpinn.array.cpu_losses import softmax_cross_entropy
from mpinn.array.erf import erf
x = np.zeros(3)
erf(np.ones(3), out=x)
print(x[0].round(3), type(softmax_cross_entropy._cache).__name__)
"""


def test_where_nothing_can_be_kept_each_process_compiles(tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(Path(mpinn.__file__).parent, tmp_path / "mpinn", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mpinn/array/__pycache__").touch()
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "mpinn/array/__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0.843 NullCache\n"


def test_a_full_disk_keeps_nothing_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for the quota of a home directory."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n{PROGRAM}"
    assert hits_and_misses(ROOT, limited) == "0 1"
    assert hits_and_misses(ROOT) == "0 1"
    assert hits_and_misses(ROOT) == "1 0"


@pytest.mark.parametrize(("suffix", "left"), [(".nbi", 0), (".nbc", 40)])
def test_what_a_machine_that_died_has_left_is_made_anew(
    suffix: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    hits_and_misses(ROOT)
    (kept,) = tmp_path.rglob(f"*.softmax_cross_entropy-*{suffix}")
    kept.write_bytes(kept.read_bytes()[:left])
    assert hits_and_misses(ROOT) == "0 1"
    assert hits_and_misses(ROOT) == "1 0"


def test_a_numba_that_is_told_to_compile_nothing_is_none() -> None:
    program = "from mpinn.array.device import choose_kernels\nprint(choose_kernels('auto')[1])"
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("plain NumPy: numba can't be imported (NUMBA_DISABLE_JIT is set)\n", "")
