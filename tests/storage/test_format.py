"""The written format against files of every kind of run, against one that is kept, and against h5py alone."""

import json
import re
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
from train_jobs import SMALL, here, train

import mpinn
from mpinn.commands.extract import extract
from mpinn.config import InputError
from mpinn.storage import schema
from mpinn.storage.reader import Checkpoint

PAGE = Path(mpinn.__file__).parent / "storage" / "FORMAT.md"
KEPT = Path(__file__).with_name(f"version{schema.VERSION}.h5")
"""Two replicas that differ after five steps of digits, with batch norm, adamw and the score accuracy."""
DEEP = (*SMALL, "model.widths=[12,12,12]", "grid.stages=2", "schedule.cut=estimated", "consensus.name=gradients")
RUNS = {
    "averaging": (2, (*SMALL, "model.norm=batch", "optimizer.name=adamw")),
    "gossip": (2, (*SMALL, "consensus.name=gossip")),
    "outer": (2, (*SMALL, "consensus.name=outer")),
    "one rank": (0, (*SMALL, "consensus.name=gradients", "optimizer.momentum=0.0")),
    "in flight": (2, (*DEEP, "schedule.name=fdg", "--stop-after", "7")),
    "recomputed": (2, (*DEEP, "schedule.name=layerwise", "--stop-after", "7")),
    "local": (2, (*DEEP, "schedule.name=local", "schedule.width=5")),
    "population": (
        2,
        (*SMALL[1:], "model.name=population", "model.layers=[1,2]", "model.widths=[2,3]", "grid.shards=0"),
    ),
    "parareal": (2, (*DEEP, "schedule.name=parareal")),
}
CHANGED = "a name of the format has changed: that needs another schema.VERSION, and a file that is kept from it"


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of the page."""
    text = PAGE.read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:3] == "| `"]


def pattern(path: str) -> re.Pattern[str]:
    """What `<layer>` and the others stand for."""
    several = {"<layer>", "<kind>", "<name>", "<part>"}
    parts = re.split(r"(<\w+>)", path)
    found = [(".+" if part in several else "[^/]+") if part[:1] == "<" else re.escape(part) for part in parts]
    return re.compile("".join(found))


PATTERNS = {path: pattern(path) for path, *_ in rows("Data sets")}


def check(path: Path) -> None:
    """A file has what the page says that every file has, and nothing that the page does not know."""
    names: list[str] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: names.append(f"/{name}") if isinstance(item, h5py.Dataset) else None)
        assert sorted(file.attrs) == sorted(name for name, *_ in rows("Attributes of the file")), CHANGED
    unknown = [name for name in names if not any(known.fullmatch(name) for known in PATTERNS.values())]
    assert unknown == [], f"{PAGE.name} does not say what these are; if they have replaced others, {CHANGED}"
    for title, _, _, where, _ in rows("Data sets"):
        if where == "every file":
            assert any(PATTERNS[title].fullmatch(name) for name in names), f"{title}: {CHANGED}"


def texts_of_any_length(path: Path) -> list[str]:
    """Attributes and data sets whose texts are in HDF5's global heap, where it may read damaged ones for ever."""
    found: list[str] = []

    def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
        dtypes = {f"{name}@{own}": item.attrs.get_id(own).dtype for own in item.attrs}
        if isinstance(item, h5py.Dataset):
            dtypes[name] = item.dtype
        found.extend(own for own, dtype in dtypes.items() if dtype.hasobject)

    with h5py.File(path) as file:
        look("", file)
        file.visititems(look)
    return found


@pytest.fixture(scope="module", params=RUNS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest file of a run."""
    directory = tmp_path_factory.mktemp("run") / "run"
    ranks, settings = RUNS[request.param]
    done = train(ranks, directory, *settings)
    assert done.returncode in (0, 75), done.stderr
    return directory / "latest"


def test_the_page_knows_what_is_written(written: Path) -> None:
    check(written)
    assert texts_of_any_length(written) == []
    assert "@format" in texts_of_any_length(KEPT)


def test_the_page_is_that_of_this_version() -> None:
    assert PAGE.read_text().startswith(f"# The checkpoint format, version {schema.VERSION}\n")
    assert ["format", "text", schema.FORMAT] in rows("Attributes of the file")


def test_a_file_that_is_kept_is_still_read() -> None:
    check(KEPT)
    with Checkpoint(KEPT) as file:
        assert (file.step, file.grid, file.replicas) == (5, (2, 1, 1), [0, 1])
        assert {"model/network", "state/network", "optimizer/first_moment/network"} <= {*file.kinds()}
        assert {"samples", "seconds", "bounds", "behind", "meeting_weights"} <= {*file.scalars}
        assert file.configuration["consensus"]["score"] == "accuracy"
        assert np.array_equal(file.history["step"], [4, 5, 5])


def by_hand(file: h5py.File, x: np.ndarray, replica: str = "") -> np.ndarray:
    """What the model predicts for samples, from h5py, NumPy and the words of the page alone."""
    weights, state = file[f"{replica}/model/network"], file[f"{replica}/state/network"]
    x = (x - file["data/mean"][:]) / file["data/std"][:]
    y = x.reshape(len(x), -1) @ weights["hidden1/dense/weight"][:]
    norm, running = weights["hidden1/norm"], state["hidden1/norm"]
    y = (y - running["mean"][:]) / np.sqrt(running["variance"][:] + 1e-5) * norm["scale"][:] + norm["shift"][:]
    return np.maximum(y, 0) @ weights["output/weight"][:] + weights["output/bias"][:]


@pytest.mark.parametrize("replica", [None, 1])
def test_a_file_that_is_kept_predicts_what_h5py_alone_makes_of_it(replica: int | None) -> None:
    x = np.random.default_rng(0).integers(0, 17, (300, 8, 8, 1))
    with h5py.File(KEPT) as file:
        expected = by_hand(file, x, f"replica/{replica}" if replica else "")
        assert json.loads(file["configuration"][()])["model"]["widths"] == [12]
    with mpinn.open(KEPT, replica=replica) as saved:
        found = saved.predict(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def member_by_hand(file: h5py.File, number: int, x: np.ndarray) -> np.ndarray:
    """What a member of a population of relu predicts, from h5py, NumPy and the words of the page alone."""
    model = json.loads(file["configuration"][()])["model"]
    axes = product(model["activations"], model["layers"], range(model["repetitions"]), model["widths"])
    members = [(layers, width) for _, layers, _, width in axes]
    panel, place = file["scalars/member_panel"][:], file["scalars/member_place"][:]
    before = np.flatnonzero((panel == panel[number]) & (place < place[number]))
    layers, width = members[number]
    first = sum(members[other][1] for other in before)
    matrix = sum(members[other][1] ** 2 for other in before)
    units = slice(first, first + width)
    arrays = file[f"model/network/population/panel{panel[number]}"]
    x = ((x - file["data/mean"][:]) / file["data/std"][:]).reshape(len(x), -1)
    y = np.maximum(x @ arrays["hidden1/weight"][units].T + arrays["hidden1/bias"][units], 0)
    for depth in range(2, layers + 1):
        weight = arrays[f"hidden{depth}/weight"][matrix : matrix + width**2].reshape(width, width)
        y = np.maximum(y @ weight.T + arrays[f"hidden{depth}/bias"][units], 0)
    return y @ arrays["output/weight"][units] + arrays["output/bias"][len(before)]


def test_every_member_predicts_what_h5py_alone_makes_of_it(tmp_path: Path) -> None:
    population = ("model.name=population", "model.layers=[1,2,3]", "model.widths=[2,3,5]", "model.repetitions=2")
    assert here(tmp_path / "run", *SMALL[1:], *population, 'model.activations=["relu"]') == 0
    x = np.random.default_rng(0).integers(0, 17, (50, 8, 8, 1))
    with h5py.File(tmp_path / "run" / "latest") as file:
        expected = [member_by_hand(file, number, x) for number in range(18)]
    for number, values in enumerate(expected):
        extract(tmp_path / "run", number, tmp_path / f"member-{number}")
        with mpinn.open(tmp_path / f"member-{number}") as saved:
            np.testing.assert_allclose(saved.predict(x), values, rtol=1e-4, atol=1e-5)


def test_another_version_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(KEPT.read_bytes())
    with h5py.File(path, "a") as file:
        file.attrs["version"] = schema.VERSION + 1
    with pytest.raises(InputError, match=f"format version {schema.VERSION + 1}, this program reads {schema.VERSION}"):
        Checkpoint(path)
