"""The official data sets by name, and where the user keeps them."""

import os
from collections.abc import Mapping
from pathlib import Path

import h5py

from mpinn.config import Data, InputError
from mpinn.datasets.cifar import CIFAR10, CIFAR100
from mpinn.datasets.hdf5 import read_hdf5
from mpinn.datasets.idx import read_mnist
from mpinn.datasets.originals import Official
from mpinn.datasets.samples import Source

TORONTO = ("https://www.cs.toronto.edu/~kriz/",)

OFFICIAL: Mapping[str, Official] = {
    "mnist": Official(
        "MNIST",
        classes=10,
        validation=12,
        read=read_mnist,
        places=("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        downloads=(
            ("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            ("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            ("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            ("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "cifar10": Official(
        "CIFAR-10",
        classes=10,
        validation=10,
        read=CIFAR10.read,
        places=TORONTO,
        downloads=(
            ("cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        ),
    ),
    "cifar100": Official(
        "CIFAR-100",
        classes=100,
        validation=10,
        read=CIFAR100.read,
        places=TORONTO,
        downloads=(
            ("cifar-100-binary.tar.gz", "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        ),
    ),
}  # fmt: skip


def directory() -> Path:
    """Where converted data sets are kept: MPINN_DATA, or a directory of the user's own."""
    return Path(os.environ.get("MPINN_DATA") or Path.home() / ".local" / "share" / "mpinn")


def official(data: Data, read: int) -> Source:
    """The converted file in the user's directory; or what ``data.path`` is, a file, a folder or an archive."""
    if not data.path:
        file = directory() / f"{data.name}.h5"
        if file.is_file():
            return read_hdf5(file, read)
        command = f"python -m mpinn data {data.name}"
        raise InputError(
            "data.name",
            f"{data.name} is not on this machine yet ({file}): type `{command}` to download it, "
            f"or `{command} --from FOLDER` if you have its files",
        )
    path = Path(data.path)
    if path.is_file() and h5py.is_hdf5(path):
        return read_hdf5(path, read)
    source, _ = OFFICIAL[data.name].source(path)
    return source
