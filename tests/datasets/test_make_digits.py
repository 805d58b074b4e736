"""The script that made the digits: the same table gives the same file, with splits that cover it in proportion."""

import gzip
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np

from mpinn.config import Data
from mpinn.datasets.source import open_source

SCRIPT = Path(__file__).parents[2] / "data" / "make_digits.py"


def table(path: Path) -> np.ndarray:
    """A table as scikit-learn ships it; the first two pixels of a row are its number in base 17."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 17, (1500, 65))
    rows[:, 0], rows[:, 1], rows[:, 2] = np.arange(1500) // 289, np.arange(1500) // 17 % 17, np.arange(1500) % 17
    rows[:, 64] = rng.integers(0, 10, 1500)
    with gzip.open(path, "wt") as file:
        np.savetxt(file, rows, fmt="%d", delimiter=",")
    return rows


def test_the_script_makes_the_same_sound_file_twice(tmp_path):
    rows = table(tmp_path / "digits.csv.gz")
    for name in ("one.h5", "two.h5"):
        subprocess.run([sys.executable, SCRIPT, tmp_path / "digits.csv.gz", tmp_path / name], check=True, timeout=60)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    source = open_source(Data(name="hdf5", path=str(tmp_path / "one.h5")))
    assert {name: split.size for name, split in source.splits.items()} == {"train": 900, "validation": 300, "test": 300}
    found = np.concatenate([np.c_[s.x[:].reshape(s.size, 64), s.target] for s in source.splits.values()])
    number = found[:, :3].astype(int) @ [289, 17, 1]
    np.testing.assert_array_equal(found[np.argsort(number)], rows)
    np.testing.assert_allclose(source.mean, source.splits["train"].x[:].mean(), rtol=1e-12)
    np.testing.assert_allclose(source.std, source.splits["train"].x[:].std(), rtol=1e-12)


def test_each_split_has_each_label_in_proportion():
    labels = np.repeat(np.arange(4), (700, 100, 400, 300))
    samples = runpy.run_path(str(SCRIPT))["split"](labels)
    for name, share in {"train": 0.6, "validation": 0.2, "test": 0.2}.items():
        np.testing.assert_allclose(np.bincount(labels[samples[name]]), share * np.bincount(labels), atol=2)
