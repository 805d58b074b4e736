"""Write digits.h5 from scikit-learn's digits.csv.gz: python data/make_digits.py digits.csv.gz [digits.h5]."""

import sys
from pathlib import Path

import h5py
import numpy as np

SEED = 1998
HELD_OUT = 300
"""Samples of the validation split and of the test split, each."""


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 8, 1) of values 0 to 16, and labels (n,), from a table with 64 pixels and a label on each line."""
    table = np.loadtxt(path, delimiter=",").astype(np.uint8)
    return table[:, :64].reshape(-1, 8, 8, 1), table[:, 64]


def split(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The samples of each split, ascending; each split has every label in proportion, to within one sample.

    The samples are shuffled, then sorted by label; of that sequence the held-out samples are taken at equal distances,
    for validation and for test in turn.
    """
    shuffled = np.random.default_rng(SEED).permutation(len(labels))
    sequence = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = sequence[(np.arange(2 * HELD_OUT) * len(labels)) // (2 * HELD_OUT)]
    validation, test = np.sort(held_out[::2]), np.sort(held_out[1::2])
    return {"train": np.setdiff1d(np.arange(len(labels)), held_out), "validation": validation, "test": test}


def write(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the file; equal inputs give equal bytes."""
    samples = split(labels)
    with h5py.File(path, "w") as file:
        for name, chosen in samples.items():
            group = file.create_group(name)
            for key, values in {"x": images[chosen], "target": labels[chosen]}.items():
                group.create_dataset(
                    key, data=values, chunks=values.shape, compression=9, shuffle=True, fletcher32=True
                )
        train = images[samples["train"]].astype(np.float64)
        file.attrs["mean"] = train.mean(axis=(0, 1, 2))
        file.attrs["std"] = train.std(axis=(0, 1, 2))
        file.attrs["classes"] = 10
        file.attrs["title"] = "Optical recognition of handwritten digits, 8x8"
        file.attrs["origin"] = "E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49"
        file.attrs["licence"] = "CC BY 4.0"


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("digits.h5")
    write(target, *read_csv(Path(sys.argv[1])))
