"""NumPy's own files."""

from pathlib import Path

import numpy as np
import pytest

from mpinn.config import Data, InputError
from mpinn.datasets.source import check_source, open_source


def arrays(x: str = "x_{}", y: str = "y_{}", splits: tuple[str, ...] = ("train", "test")) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    parts = {}
    for split in splits:
        parts[x.format(split)] = rng.integers(0, 256, (40, 5, 4)).astype(np.uint8)
        parts[y.format(split)] = np.arange(40).astype(np.uint8) % 4
    return parts


def write(path: Path, **values: np.ndarray) -> Data:
    np.savez(path, **values)
    return Data(name="npz", path=str(path), batch=8)


def refusal(data: Data) -> str:
    with pytest.raises(InputError) as caught:
        check_source(data)
    return str(caught.value)


@pytest.mark.parametrize(("x", "y"), [("x_{}", "y_{}"), ("{}_x", "{}_y"), ("{}_x", "{}_target")])
@pytest.mark.parametrize("splits", [("train", "test"), ("train", "validation", "test")])
def test_each_way_to_name_the_arrays(x: str, y: str, splits: tuple[str, ...], tmp_path):
    values = arrays(x, y, splits)
    data = write(tmp_path / "a.npz", **values)
    train, validation = (40, 40) if len(splits) == 3 else (36, 4)
    summary = check_source(data)
    assert summary["sizes"] == {"train": train, "validation": validation, "test": 40}
    assert (summary["sample_shape"], summary["classes"]) == ([5, 4, 1], 4)
    test = open_source(data).splits["test"]
    np.testing.assert_array_equal(test.x[..., 0], values[x.format("test")])
    np.testing.assert_array_equal(test.target, values[y.format("test")])


def test_labels_in_a_column_and_arrays_in_columns(tmp_path):
    values = {name: np.asfortranarray(array[:, None] if array.ndim == 1 else array) for name, array in arrays().items()}
    summary = check_source(write(tmp_path / "a.npz", **values))
    assert (summary["classes"], summary["target_shape"]) == (4, [])


def test_what_is_wrong_is_said(tmp_path):
    path = tmp_path / "a.npz"
    assert refusal(Data(name="npz")) == 'data.path: data.name = "npz" needs the path of a file'
    assert refusal(Data(name="npz", path=str(path))) == f"data.path: there is no file '{path}'"
    assert refusal(write(path, a=np.ones(3), b=np.ones(3))) == (
        f"{path}: expected x_train and y_train, or train_x and train_y, and so on; got a, b"
    )
    assert refusal(write(path, **arrays(splits=("train",)))) == f"{path}:x_test: this data set is missing"
    assert refusal(write(path, **arrays() | {"y_test": np.full(40, 9)})) == (
        f"{path}:y_test: labels must lie in 0 to 3, these lie in 9 to 9"
    )
    objects = arrays() | {"y_test": np.array([None] * 40, object)}
    convert = "convert it before it is saved, with astype(float) or astype(int)"
    assert refusal(write(path, **objects)) == (
        f"{path}:y_test: expected integers or floats, got the type object: {convert}"
    )
    assert refusal(write(path, **arrays() | {"y_train": np.array(3)})) == (
        f"{path}:y_train: expected the shape (n,) or (n, outputs), got ()"
    )
    path.write_bytes(b"not a zip")
    assert refusal(Data(name="npz", path=str(path))) == f"data.path: '{path}' is not a .npz file"
    np.save(tmp_path / "a.npy", np.ones(3))
    assert "is not a .npz file" in refusal(Data(name="npz", path=str(tmp_path / "a.npy")))


def test_what_else_is_in_the_file_is_not_read(tmp_path):
    """Such as the names of classes, which pandas has as objects."""
    data = write(tmp_path / "a.npz", **arrays(), class_names=np.array(["cat", "dog", "fish", None], object))
    assert check_source(data)["classes"] == 4


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(40) * 200_000_000, "the largest label is 7,800,000,000, which makes 7,800,000,001 classes for 40 "),
        (np.arange(40.0) * 1e30, "the largest label is 38,999,999,"),
        (np.arange(40).astype(np.uint64) + 2**63, "the largest label is 9,223,372,036,854,775,847: labels count"),
        (np.arange(40) - 40, "the largest label is -1: labels count classes from 0, and are no identifiers"),
    ],
)
def test_labels_that_are_identifiers_are_refused_with_the_largest(labels: np.ndarray, said: str, tmp_path):
    told = refusal(write(tmp_path / "a.npz", **arrays() | {"y_train": labels}))
    assert told.startswith(f"{tmp_path / 'a.npz'}:y_train: {said}")
    assert told.endswith("labels count classes from 0, and are no identifiers")


@pytest.mark.parametrize("largest", [9_999, 99_999])
def test_some_classes_without_samples_are_no_identifiers(largest: int, tmp_path):
    labels = np.linspace(0, largest, 40).astype(np.int64)
    assert check_source(write(tmp_path / "a.npz", **arrays() | {"y_train": labels}))["classes"] == largest + 1


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["x", "y"])
def test_values_that_float32_cannot_hold_are_refused(kind: str, split: str, tmp_path):
    x = {f"x_{name}": np.random.default_rng(0).normal(size=(40, 3)) for name in ("train", "test")}
    values = {**x, "y_train": x["x_train"][:, :2].copy(), "y_test": x["x_test"][:, :2].copy()}
    values[f"{kind}_{split}"][5, 1] = -1e300
    told = refusal(write(tmp_path / "a.npz", **values))
    said = "there are values beyond 3.4e+38, the largest of float32: scale them"
    assert told == f"{tmp_path / 'a.npz'}:{kind}_{split}: {said}"
    values[f"{kind}_{split}"][5, 1] = -1e30
    assert check_source(write(tmp_path / "a.npz", **values))["classes"] == 0


def test_values_that_have_no_deviation_are_refused_though_they_are_not_read_before(tmp_path):
    values = arrays() | {f"x_{name}": np.full((40, 3), 1e300) + np.arange(3) * 1e299 for name in ("train", "test")}
    values["x_train"][0] = 0
    data = write(tmp_path / "a.npz", **values)
    with pytest.raises(InputError, match="x_train: the values are too large for their mean and deviation"):
        open_source(data)
