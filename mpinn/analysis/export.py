"""A saved model as one file for other programs: ONNX, safetensors, or NumPy's npz."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import mpinn
from mpinn.analysis.onnx_file import write_onnx
from mpinn.analysis.saved import SavedModel
from mpinn.array.typing import Array
from mpinn.config import InputError, not_one_of
from mpinn.storage.directory import partial
from mpinn.storage.restore import check_digest
from mpinn.storage.schema import NORMALISATION, ORIGIN


def export(path: Path, to: str, out: Path | None, replica: int | None, best: bool) -> None:
    """Write the model of a checkpoint, or of a run's newest or best one, and print where it is."""
    if to not in WRITERS:
        raise not_one_of("--to", to, tuple(WRITERS))
    out = out or (path / f"model.{to}" if path.is_dir() else path.with_suffix(f".{to}"))
    if out.suffix != f".{to}":
        raise InputError("--out", f"expected the name of a .{to} file, got {str(out)!r}")
    with SavedModel(path, replica, best) as model:
        check_digest(model.checkpoint.path)
        facts = describe(model)
        temporary = partial(out)
        try:
            WRITERS[to](temporary, model, facts)
            os.replace(temporary, out)
        except OSError as error:
            raise InputError("--out", f"{str(out)!r} cannot be written: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
        for note in model.notes:
            print(note)
        shape = ", ".join(["B", *map(str, model.trained.shape)])
        print(f"{out}: {model!r}; x is ({shape}), {facts['input']}; y is (B, {model.trained.outputs})")


def describe(model: SavedModel) -> dict[str, Any]:
    """What the file says of the model, whatever its format."""
    return {
        "program": mpinn.__version__,
        "step": model.step,
        "replica": model.replica,
        "sample_shape": list(model.trained.shape),
        "classes": model.trained.classes,
        "outputs": model.trained.outputs,
        "bounds": np.asarray(model.checkpoint.scalars.get("bounds", ())).tolist(),
        "input": f"{'channels-last, ' * (len(model.trained.shape) > 1)}as the data set has it, before normalisation",
        "normalisation": {"mean": model.normalisation.mean.tolist(), "std": model.normalisation.std.tolist()},
        "output": "before softmax" if model.trained.classes else "values",
        "configuration": model.configuration,
    }


def arrays(model: SavedModel) -> dict[str, Array]:
    """Weights and running statistics by their names in the checkpoint, and the normalisation."""
    found = {**model.weights, **model.state}
    numbers = (model.normalisation.mean, model.normalisation.std)
    return {**found, **dict(zip(NORMALISATION, numbers, strict=True))}


def _safetensors(path: Path, model: SavedModel, facts: Mapping[str, Any]) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise InputError("--to", f"safetensors needs pip install 'mpinn[export]' ({error})") from None
    save_file(arrays(model), path, metadata={ORIGIN: json.dumps(facts)})


def _npz(path: Path, model: SavedModel, facts: Mapping[str, Any]) -> None:
    found: dict[str, Any] = {ORIGIN: np.array(json.dumps(facts)), **arrays(model)}
    with open(path, "wb") as file:
        np.savez(file, **found)


WRITERS: dict[str, Callable[[Path, SavedModel, Mapping[str, Any]], None]] = {
    "onnx": write_onnx,
    "safetensors": _safetensors,
    "npz": _npz,
}
