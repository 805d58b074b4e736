"""The command ``import``: a run that begins with the weights of a safetensors or npz file."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from mpinn.array.typing import Array
from mpinn.comm.grid import World
from mpinn.config import Config, InputError, load, read_toml
from mpinn.datasets.source import open_source
from mpinn.nn.layout import Layout
from mpinn.nn.part import Part
from mpinn.partition.cuts import cut
from mpinn.run.checks import Request, Start, check
from mpinn.run.experiment import build
from mpinn.signals import Signals
from mpinn.storage.schema import NORMALISATION, ORIGIN
from mpinn.training.choices import CHOICES, DEFAULTS, build_model, outputs_of
from mpinn.training.trainer import Moment
from mpinn.words import loss_text


@dataclass(frozen=True)
class Given:
    """Arrays by their names, and what the file says of them, if anything."""

    path: str
    arrays: Mapping[str, Array]
    facts: Mapping[str, Any]

    def fill(self, layout: Layout, vector: Array) -> None:
        """Copy every array of a layout, in its type; `fits` has looked at them."""
        for entry in layout:
            vector[entry.slice] = self.arrays[entry.name].reshape(-1)

    def fits(self, *layouts: Layout) -> None:
        """Raise InputError unless the file has exactly these arrays; the normalisation may stand beside them."""
        rest = {name for name in self.arrays if name not in NORMALISATION}
        for layout in layouts:
            for entry in layout:
                if entry.name not in self.arrays:
                    raise InputError(self.path, f"{entry.name} is missing")
                found = self.arrays[entry.name]
                if found.shape != entry.shape:
                    wanted = f"the model needs {entry.shape}"
                    raise InputError(self.path, f"{entry.name} has shape {found.shape}, {wanted}")
                if found.dtype.kind != "f":
                    raise InputError(self.path, f"{entry.name} is {found.dtype}, the model needs floats")
                rest.discard(entry.name)
        if rest:
            raise InputError(self.path, f"{min(rest)} is not in the model")


def intake(
    world: World, file: Path, directory: Path, config: str | None, overrides: tuple[str, ...], signals: Signals
) -> int:
    """Make a run directory whose checkpoint, of step 0, has the weights of the file; the exit code."""
    if world.size > 1:
        raise InputError("", "import runs on one rank; the run that it makes goes on with any number")
    if directory.exists():
        raise InputError(str(directory), "it exists: name a directory that does not")
    if any(own.partition("=")[0].strip() == "run.directory" for own in overrides):
        raise InputError("run.directory", f"the run directory is {str(directory)!r}, as named: leave this out")
    given = read_arrays(file)
    tables = read_toml(config) if config else _tables(given)
    start = check(Request({**tables, "run": {**tables.get("run", {}), "directory": str(directory)}}, overrides), 1)
    try:
        notes = _look(start, given)
        experiment = build(world, start, signals)
        part = experiment.trainer.schedule.parts["network"]
        _fill(part, given)
        classes = experiment.trainer.classes
        quality = experiment.measure.quality("validation")
        quality = quality if classes else replace(quality, accuracy=nan)
        score = quality.accuracy if classes else -quality.loss
        experiment.keeper.save(Moment(0, quality, score, np.ones(1), 0, 0.0))
        experiment.keeper.close()
    finally:
        start.lock.release()
    accuracy = f", accuracy {quality.accuracy:.4f}" if classes else ""
    for note in notes:
        print(note)
    measured = f"validation loss {loss_text(quality.loss)}{accuracy}"
    print(f"{directory}: {part.layout.count:,} parameters of {file}, {measured}")
    print(f"train it      python -m mpinn {quote(str(experiment.keeper.directory.config))}", flush=True)
    return 0


def read_arrays(file: Path) -> Given:
    """The arrays of a file and what it says of them; InputError if it is neither safetensors nor npz."""
    if not file.is_file():
        raise InputError(str(file), "there is no such file")
    try:
        return _npz(file) if zipfile.is_zipfile(file) else _safetensors(file)
    except ImportError as error:
        raise InputError(str(file), f"safetensors needs pip install 'mpinn[export]' ({error})") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(str(file), f"cannot be read as safetensors or npz: {error}") from None


def _npz(file: Path) -> Given:
    with np.load(file, allow_pickle=False) as contents:
        arrays = {name: contents[name] for name in contents.files if name != ORIGIN}
        return Given(str(file), arrays, json.loads(str(contents[ORIGIN])) if ORIGIN in contents.files else {})


def _safetensors(file: Path) -> Given:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as contents:
            arrays = {name: contents.get_tensor(name) for name in contents.keys()}  # noqa: SIM118  it is no mapping
            told = (contents.metadata() or {}).get(ORIGIN, "{}")
    except SafetensorError as error:
        raise ValueError(error) from None
    return Given(str(file), arrays, json.loads(told))


def _tables(given: Given) -> dict[str, Any]:
    """The configuration that the file comes with, for one rank, and with its cuts where they make the network."""
    facts = given.facts
    if "configuration" not in facts:
        raise InputError(given.path, "it does not say what model it is: give its configuration with --config")
    tables = {**facts["configuration"], "grid": {"replicas": 0, "stages": 1, "shards": 1}}
    if tables["schedule"]["name"] == "parareal":
        config = load(tables, (), CHOICES, DEFAULTS)
        names = build_model(config, tuple(facts["sample_shape"]), facts["outputs"]).network.names
        starts = [names[bound] for bound in facts["bounds"][1:-1]]
        tables["schedule"] = {**tables["schedule"], **({"cut": starts} if starts else {})}
    return tables


def _look(start: Start, given: Given) -> list[str]:
    """The arrays must fit the model, before anything is written; what is to be said of the data."""
    config: Config = start.config
    if config.names["schedule"] == "parareal" and config.schedule.blocks > 1 and isinstance(config.schedule.cut, str):
        raise InputError("schedule.cut", "name the layers with which the fine blocks begin, as the file has them")
    source = open_source(config.data)
    outputs = outputs_of(source.summary())
    model = build_model(config, source.sample_shape, outputs)
    bounds = cut(config, model, outputs, 1, None, measure=False).bounds  # type: ignore[arg-type]
    network = config.schedule.network(config.model, model, bounds)
    given.fits(*(Layout(shapes, config.run.dtype) for shapes in (network.parameters(model.shape),
                                                                 network.state(model.shape))))  # fmt: skip
    mean, std = (given.arrays.get(name) for name in NORMALISATION)
    if mean is None or std is None:
        return ["the file does not say how samples were normalised: those of the data set's training split are"]
    if mean.shape == source.mean.shape and np.allclose([mean, std], [source.mean, source.std], rtol=1e-6):
        return []
    return ["samples were normalised with other numbers than this data set has: its own are used from now on"]


def _fill(part: Part, given: Given) -> None:
    given.fill(part.layout, part.weights)
    given.fill(part.state_layout, part.state)
