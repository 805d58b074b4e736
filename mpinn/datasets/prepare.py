"""The command ``data``: from the official files, the user's own or downloaded ones, to one HDF5 file."""

from pathlib import Path
from shlex import quote

from mpinn.config import InputError, not_one_of
from mpinn.datasets.hdf5 import write_hdf5
from mpinn.datasets.official import OFFICIAL, directory
from mpinn.datasets.originals import Official

TIMEOUT = 30
"""Seconds without an answer after which a place is given up."""


def prepare(name: str, originals: Path | None, to: Path | None) -> None:
    """Write the data set ``name`` to a file and say what it holds; raises InputError."""
    if name not in OFFICIAL:
        raise not_one_of("data", name, tuple(OFFICIAL))
    known, file = OFFICIAL[name], to or directory() / f"{name}.h5"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = originals or _download(name, known, file.parent / "originals" / name)
        source, names = known.source(folder)
        about = {"title": known.title, "origin": f"{known.title}'s official files, in {folder.absolute()}"}
        write_hdf5(file, source, about | ({"class_names": names} if names else {}))
    except OSError as error:
        raise InputError(str(file), f"cannot be written: {error}") from error
    counts = ", ".join(f"{split.size:,} {split_name}" for split_name, split in source.splits.items())
    print(f"{known.title}: {counts} samples of {source.sample_shape}, {known.classes} classes, in {file}")
    if to is None:
        print(f"python -m mpinn --set data.name={name} trains on it")
    else:
        print(f"python -m mpinn --set data.name={name} --set {quote(f'data.path={file}')} trains on it")


def _download(name: str, known: Official, folder: Path) -> Path:
    """The folder with the official files, which stay there for the next time; raises InputError."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    for file, digest in known.downloads:
        if (folder / file).is_file() and pooch.file_hash(folder / file) == digest:
            continue
        problems = []
        for place in known.places:
            print(f"{place}{file}", flush=True)
            try:
                fetch = pooch.HTTPDownloader(timeout=TIMEOUT)
                pooch.retrieve(place + file, f"sha256:{digest}", fname=file, path=folder, downloader=fetch)
                break
            except (OSError, ValueError) as error:  # no network, or another file than it should be
                problems.append(f"{place}: {_short(error)}")
        else:
            raise InputError(
                f"data {name}",
                f"{file} cannot be downloaded ({'; '.join(problems)}). Fetch "
                f"{', '.join(known.places[0] + file for file, _ in known.downloads)} where there is a network, put it "
                f"in a folder, and type `python -m mpinn data {name} --from FOLDER`",
            )
    return folder


def _short(error: Exception) -> str:
    return "it is not the official file" if isinstance(error, ValueError) else type(error).__name__
