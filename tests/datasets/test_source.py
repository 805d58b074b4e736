"""Reading data sets: what a sound file gives, and what is said of each that is not."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpinn.config import Data, InputError
from mpinn.datasets.sound import statistics
from mpinn.datasets.source import check_source, open_source


def contents(n: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """A small sound file: every data set by its path."""
    rng = np.random.default_rng(seed)
    sizes = {"train": n, "validation": 10, "test": 12}
    x = {f"{name}/x": rng.normal(3, 2, (size, 5, 4, 2)).astype(np.float32) for name, size in sizes.items()}
    return x | {f"{name}/target": np.arange(size) % 3 for name, size in sizes.items()}


def write(path: Path, arrays: dict[str, np.ndarray], **attributes: object) -> Data:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        file.attrs.update(attributes)
    return Data(name="hdf5", path=str(path), batch=8)


def refusal(data: Data) -> str:
    with pytest.raises(InputError) as caught:
        check_source(data)
    return str(caught.value)


def test_the_digits_come_with_the_program():
    source = open_source(Data())
    assert {name: split.size for name, split in source.splits.items()} == {
        "train": 1197,
        "validation": 300,
        "test": 300,
    }
    assert (source.sample_shape, source.classes, source.note) == ((8, 8, 1), 10, "")
    assert source.splits["train"].x.dtype == np.uint8
    assert source.splits["train"].target.dtype == np.int64
    mean, std = statistics(source.splits["train"].x)
    np.testing.assert_allclose(source.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(source.std, std, rtol=1e-12)


def test_the_splits_of_the_digits_hold_every_label_in_proportion_and_no_sample_twice():
    splits = open_source(Data()).splits
    for split in splits.values():
        shares = np.bincount(split.target, minlength=10) / split.size
        assert np.abs(shares - 0.1).max() < 0.01
    images = np.concatenate([split.x[:].reshape(split.size, -1) for split in splits.values()])
    assert len(np.unique(images, axis=0)) == 1797


def test_the_summary_can_be_broadcast_as_json():
    summary = check_source(Data())
    assert json.loads(json.dumps(summary)) == summary
    assert summary == {
        "sizes": {"train": 1197, "validation": 300, "test": 300},
        "sample_shape": [8, 8, 1],
        "target_shape": [],
        "classes": 10,
        "mean": [4.878315580618212],
        "std": [6.010185739758007],
        "note": "",
    }


def test_values_are_kept_as_they_are_in_the_file(tmp_path):
    arrays = contents()
    source = open_source(write(tmp_path / "a.h5", arrays, mean=[1.0, 2.0], std=[3.0, 4.0], classes=7))
    for name, split in source.splits.items():
        np.testing.assert_array_equal(split.x[:], arrays[f"{name}/x"])
        np.testing.assert_array_equal(split.target, arrays[f"{name}/target"])
        assert split.x.dtype == np.float32
    assert source.classes == 7
    np.testing.assert_array_equal(source.mean, [1, 2])
    np.testing.assert_array_equal(source.std, [3, 4])


def test_what_the_file_does_not_say_is_computed_over_train(tmp_path):
    arrays = contents(n=2500)
    arrays["train/x"][..., 1] = 5
    source = open_source(write(tmp_path / "a.h5", arrays))
    first = arrays["train/x"][..., 0].astype(np.float64)
    np.testing.assert_allclose(source.mean, [first.mean(), 5], rtol=1e-12)
    np.testing.assert_allclose(source.std, [first.std(), 1], rtol=1e-12)
    assert source.classes == 3


@pytest.mark.parametrize("value", [0.1, 273.15, 1e10 + 0.1])
def test_a_constant_channel_deviates_by_1_however_its_mean_is_rounded(value: float):
    x = np.stack([np.full(1000, value), np.arange(1000.0)], axis=1)
    mean, std = statistics(x)
    assert mean[0] != value, "a value whose mean is not rounded shows nothing"
    np.testing.assert_allclose(std, [1, np.arange(1000).std()], rtol=1e-12)


def test_what_is_stored_in_more_bits_than_float64_has_statistics_in_float64(tmp_path):
    arrays = contents()
    summary = check_source(write(tmp_path / "a.h5", arrays))
    wide = {name: values.astype(np.longdouble) if name.endswith("x") else values for name, values in arrays.items()}
    told = json.loads(json.dumps(check_source(write(tmp_path / "b.h5", wide))))
    assert told["mean"] == summary["mean"]
    np.testing.assert_allclose(told["std"], summary["std"], rtol=1e-15)


def test_without_validation_a_fixed_tenth_of_train_is_taken(tmp_path):
    arrays = {name: values for name, values in contents().items() if not name.startswith("validation")}
    arrays["train/x"] = np.arange(40 * 4, dtype=np.uint8).reshape(40, 4)
    arrays["test/x"] = arrays["train/x"][:12]
    data = write(tmp_path / "a.h5", arrays)
    source, again = open_source(data), open_source(data)
    train, validation = source.splits["train"], source.splits["validation"]
    assert (train.size, validation.size) == (36, 4)
    both = np.concatenate([train.x[:], validation.x[:]])
    np.testing.assert_array_equal(np.sort(both[:, 0]), arrays["train/x"][:, 0])
    np.testing.assert_array_equal(validation.target, validation.x[:][:, 0] // 4 % 3)
    np.testing.assert_array_equal(again.splits["validation"].x[:], validation.x[:])
    assert check_source(data)["note"] == "a.h5 has no validation split: 4 samples of train are taken"
    np.testing.assert_allclose(source.mean, train.x[:].mean(axis=0))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (range(3), ""),
        (range(1, 4), "of 4 classes, which labels count from 0, 1 have no sample in train: 0"),
        (range(0, 20, 2), "of 19 classes, which labels count from 0, 9 have no sample in train: 1, 3, 5, 7, 9, ..."),
    ],
)
def test_labels_that_are_not_there_are_told_of(labels: range, said: str, tmp_path: Path) -> None:
    x, target = np.random.default_rng(0).normal(size=(40, 3)), np.resize([*labels], 40)
    own = {f"{kind}_{split}": it for split in ("train", "validation", "test") for kind, it in (("x", x), ("y", target))}
    np.savez(tmp_path / "a.npz", **own)
    assert check_source(Data(name="npz", path=str(tmp_path / "a.npz"), batch=4))["note"] == said


def test_a_regression_has_no_classes(tmp_path):
    arrays = contents()
    for name in ("train", "validation", "test"):
        arrays[f"{name}/target"] = np.ones((len(arrays[f"{name}/x"]), 2), np.float32)
    summary = check_source(write(tmp_path / "a.h5", arrays))
    assert (summary["classes"], summary["target_shape"]) == (0, [2])


@pytest.mark.parametrize("memory", [0, 1])
def test_images_without_an_axis_of_channels_and_labels_in_a_column(memory, tmp_path):
    arrays = contents()
    grey = {name: values[..., :1] if name.endswith("/x") else values for name, values in arrays.items()}
    bare = {name: values[..., 0] if name.endswith("/x") else values[:, None] for name, values in grey.items()}
    sources = []
    for name, values in (("grey", grey), ("bare", bare)):
        data = replace(write(tmp_path / f"{name}.h5", values), memory=memory)
        assert check_source(data)["sample_shape"] == [5, 4, 1]
        sources.append(open_source(data))
    full, found = sources
    assert found.summary() == full.summary()
    for split, there in full.splits.items():
        np.testing.assert_array_equal(found.held(split)[:], there.x[:])
        np.testing.assert_array_equal(found.splits[split].target, there.target)


def test_labels_may_be_stored_as_whole_floats(tmp_path):
    arrays = contents()
    arrays["test/target"] = arrays["test/target"].astype(np.float32)
    target = open_source(write(tmp_path / "a.h5", arrays)).splits["test"].target
    np.testing.assert_array_equal(target, np.arange(12) % 3)
    assert target.dtype == np.int64


def altered(name: str, index: object, value: object) -> dict[str, np.ndarray]:
    arrays = contents()
    arrays[name] = arrays[name].astype(type(value)) if isinstance(value, float) else arrays[name]
    arrays[name][index] = value
    return arrays


def without(*names: str) -> dict[str, np.ndarray]:
    return {name: values for name, values in contents().items() if name not in names}


BAD = {
    "x missing": (without("train/x"), {}, "train/x: this data set is missing"),
    "target missing": (without("test/target"), {}, "test/target: this data set is missing"),
    "test missing": (without("test/x", "test/target"), {}, "test/x: this data set is missing"),
    "validation incomplete": (without("validation/x"), {}, "validation/x: this data set is missing"),
    "group for x": (without("train/x") | {"train/x/y": np.ones(3)}, {}, "train/x: this data set is missing"),
    "strings": (
        contents() | {"train/x": np.array([b"a"])},
        {},
        "train/x: expected integers or floats, got the type |S1",
    ),
    "length": (contents() | {"test/target": np.zeros(11, int)}, {}, "test/target: 11 targets for 12 samples of x"),
    "five axes": (
        contents() | {"train/x": np.ones((40, 5, 4, 2, 1))},
        {},
        "train/x: expected the shape (n, features), (n, height, width) or (n, height, width, channels), "
        "got (40, 5, 4, 2, 1)",
    ),
    "scalar target": (
        contents() | {"train/target": np.ones((40, 1, 1))},
        {},
        "train/target: expected the shape (n,) or (n, outputs), got (40, 1, 1)",
    ),
    "empty": (
        contents() | {"test/x": np.ones((0, 5, 4, 2)), "test/target": np.ones(0, int)},
        {},
        "test/x: there are no values in it: its shape is (0, 5, 4, 2)",
    ),
    "another shape": (
        contents() | {"test/x": np.ones((12, 5, 4, 3))},
        {},
        "test/x: a sample has the shape (5, 4, 3), in train (5, 4, 2)",
    ),
    "another target": (
        contents() | {"test/target": np.ones((12, 2))},
        {},
        "test/target: a target has the shape (2,), in train ()",
    ),
    "negative": (altered("train/target", 3, -1), {}, "train/target: labels must lie in 0 to 2, these lie in -1 to 2"),
    "too large": (altered("test/target", 3, 3), {}, "test/target: labels must lie in 0 to 2, these lie in 0 to 3"),
    "beyond classes": (contents(), {"classes": 2}, "train/target: labels must lie in 0 to 1, these lie in 0 to 2"),
    "fraction": (
        altered("train/target", 3, 0.5),
        {},
        "train/target: labels must be whole numbers; the targets of a regression are (n, outputs)",
    ),
    "nan label": (
        altered("train/target", 3, float("nan")),
        {},
        "train/target: labels must be whole numbers; the targets of a regression are (n, outputs)",
    ),
    "infinite label": (
        altered("test/target", 3, float("inf")),
        {},
        "test/target: labels must be whole numbers; the targets of a regression are (n, outputs)",
    ),
    "integer regression": (
        contents() | {"train/target": np.ones((40, 2), int)},
        {},
        "train/target: a target of shape (n, outputs) must be floats, got int64; labels are (n,)",
    ),
    "nan": (
        altered("train/x", (3, 1, 1, 1), np.nan),
        {},
        "train/x: there are values that are not finite (NaN or infinity)",
    ),
    "infinity": (
        altered("test/x", (3, 1, 1, 1), -np.inf),
        {},
        "test/x: there are values that are not finite (NaN or infinity)",
    ),
    "nan target": (
        contents() | {"train/target": np.full((40, 1), np.nan)},
        {},
        "train/target: there are values that are not finite (NaN or infinity)",
    ),
    "mean": (
        contents(),
        {"mean": [1.0], "std": [1.0, 1.0]},
        ": the attribute mean must be 2 finite numbers, one for each channel",
    ),
    "std": (contents(), {"mean": [1.0, 1.0], "std": [1.0, 0.0]}, ": the attribute std must be above zero, got [1. 0.]"),
    "classes": (contents(), {"classes": 0}, ": the attribute classes must be a positive integer, got 0"),
    "classes as text": (
        contents(),
        {"classes": "ten"},
        ": the attribute classes must be numeric",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_file_is_said(case: str, tmp_path):
    arrays, attributes, message = BAD[case]
    data = write(tmp_path / "bad.h5", arrays, **attributes)
    assert refusal(data) == f"{data.path}:/{message}"


def test_a_data_set_without_a_shape_is_named(tmp_path):
    data = write(tmp_path / "bad.h5", contents() | {"validation/x": h5py.Empty("f4")})
    assert refusal(data) == f"{data.path}:/validation/x: there are no values in it"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_called_so_where_samples_stay_in_the_file(value: float, tmp_path):
    data = write(tmp_path / "bad.h5", altered("train/x", (3, 1, 1, 1), value))
    said = "there are values that are not finite (NaN or infinity)"
    assert refusal(replace(data, memory=0.0)) == f"{data.path}:/train/x: {said}"


def test_files_that_cannot_be_opened(tmp_path):
    missing, text, cut = tmp_path / "none.h5", tmp_path / "text.h5", tmp_path / "cut.h5"
    text.write_text("x, y\n")
    write(cut, contents())
    cut.write_bytes(cut.read_bytes()[:5000])
    assert refusal(Data(name="hdf5", path=str(missing))) == f"data.path: there is no file '{missing}'"
    assert refusal(Data(name="hdf5", path=str(tmp_path))) == f"data.path: there is no file '{tmp_path}'"
    assert refusal(Data(name="hdf5", path=str(text))) == f"data.path: '{text}' is not an HDF5 file"
    message = refusal(Data(name="hdf5", path=str(cut)))
    assert message.startswith(f"data.path: '{cut}' cannot be read: ")
    assert "truncated" in message


def test_a_damaged_chunk_is_found(tmp_path):
    path = tmp_path / "a.h5"
    data = write(path, without("train/x"))
    with h5py.File(path, "a") as file:
        chunked = file.create_dataset("train/x", data=contents()["train/x"], chunks=(40, 5, 4, 2), fletcher32=True)
        place = chunked.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 100] ^= 1
    path.write_bytes(content)
    assert refusal(data).startswith(f"data.path: '{path}' cannot be read: ")


def test_what_the_table_itself_has_wrong(tmp_path):
    data = write(tmp_path / "a.h5", contents())
    assert refusal(Data(name="hdf5", path=data.path, batch=41)) == (
        "data.batch: 41 is more than the 40 samples of the training split"
    )
    assert check_source(Data(name="hdf5", path=data.path, batch=40))["sizes"]["train"] == 40
    assert (
        refusal(Data(name="digit"))
        == "data.name: 'digit' is not one of digits, mnist, cifar10, cifar100, hdf5, npz (did you mean digits?)"
    )
    assert refusal(Data(name="hdf5")) == 'data.path: data.name = "hdf5" needs the path of a file'
    assert refusal(Data(path="a.h5")) == (
        "data.path: the digits come with the program and have no path, got 'a.h5'; "
        "data.name = hdf5 or npz is for a file of your own"
    )


def test_one_sample_is_not_divided(tmp_path):
    arrays = contents(n=1)
    data = write(tmp_path / "a.h5", {name: a for name, a in arrays.items() if not name.startswith("validation")})
    assert refusal(data).endswith("train/x: one sample cannot be divided into training and validation")


def test_the_digits_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("mpinn.__file__", str(tmp_path / "mpinn" / "__init__.py"))
    message = refusal(Data())
    assert message.startswith("data.name: digits needs the file ")
    assert str(tmp_path / "data" / "digits.h5") in message
