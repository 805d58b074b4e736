"""What the README and its pages show is what is printed, but for times; and what they name exists."""

import re
from pathlib import Path

import numpy as np
import pytest
from launch import ROOT, mpirun
from train_jobs import here, records

from mpinn.scaling.answer import Inquiry, outlook
from mpinn.words import size_text

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("mpinn/*/*.md")]
"""The README, and what it leads to."""
FOLDERS = ("mpinn/", "tests/", "jobs/", "data/")


def after(line: str) -> list[str]:
    """The indented lines from the first that contains ``line`` on, without what a prompt says."""
    rest = README[README.index(line) :]
    return [text.removeprefix("    ") for text in re.split(r"\n(?!    |\n    )", rest)[0].splitlines()]


def test_paths_that_they_name_exist() -> None:
    words = re.split(r"[\s()\]\[]+", " ".join(page.read_text() for page in PAGES))
    named = {word.strip("`'\".,:;()[]") for word in words}
    paths = {re.sub(r"#.*", "", word) for word in named if word.startswith(FOLDERS)}
    assert {"mpinn/nn/layer.py", "jobs/cifar10.toml", "tests/gpu/run.sh"} <= paths
    assert len(paths) > 40
    assert [path for path in sorted(paths) if not list(ROOT.glob(path))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not heading or heading in headings(linked), f"{target}#{heading}"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


def test_the_message_about_mistakes_is_what_is_printed(tmp_path: Path) -> None:
    command, *told = after("$ mpirun -n 4 python -m mpinn --set optimizer.decay=cosin")
    line = command.split("python ")[1].split()
    job = mpirun(4, *line, cwd=tmp_path)
    assert job.returncode == 2
    assert job.stderr.splitlines()[: len(told)] == told
    assert len(told) == 3


def test_what_the_first_command_ends_with_is_what_is_printed(tmp_path: Path) -> None:
    job = mpirun(4, "-m", "mpinn", cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    shown = after("run           mlp on digits")
    printed = job.stdout[job.stdout.index("run           mlp on digits") :].splitlines()
    assert len(printed) == len(shown)
    for one, other in zip(printed, shown, strict=True):
        assert _untimed(one) == _untimed(other)


def _untimed(line: str) -> str:
    """A line without what depends on the machine: seconds, samples a second, and shares of the time."""
    line = re.sub(r"in [\d.]+ s of training: [\d,]+ samples/s", "in time", line)
    return re.sub(r" +[\d.]+%", " share", line)


def test_what_it_shows_of_a_plan_is_what_is_predicted(tmp_path: Path) -> None:
    """Of the grid without stages, whose memory does not depend on where times have cut the depth."""
    page = (ROOT / "mpinn/scaling/README.md").read_text()
    command = next(line for line in page.splitlines() if "--ranks 1-100000 -o scaling" in line)
    settings = tuple(re.findall(r"--set (\S+)", command))
    assert settings == ("model.name=resnet", "data.batch=1024")
    found = outlook(Inquiry(overrides=settings, ranks="8", profile=tmp_path / "profile.json"))
    (one,) = (
        one
        for one in found.predictions
        if (one.replicas, one.stages, one.schedule, one.consensus) == (8, 1, "serial", "gradients")
    )
    row = next(line for line in page.splitlines() if re.match(r" +8 +8 x 1  gradients", line))
    assert re.findall(r"[\d.]+ [KM]iB", row) == [size_text(one.memory), size_text(one.sent)]


def test_data_of_one_s_own_are_trained_on_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file by its line of Python, and then its two commands."""
    monkeypatch.chdir(tmp_path)
    x, values = np.random.default_rng(0).normal(size=(2, 200, 3))
    line, *rest = after("numpy.savez(")
    known = {"numpy": np, "x": x, "x_test": x, "labels": np.arange(200) % 3, "labels_test": np.arange(200) % 3}
    exec(line, known)
    np.savez("values.npz", x_train=x, y_train=values, x_test=x, y_test=values)
    commands = "\n".join(rest).replace("\\\n", " ").split("\n")
    trained = [command.split("-m mpinn")[1].split() for command in commands if command.startswith("mpirun -n 4")]
    assert len(trained) == 2
    for command in trained:
        done = mpirun(4, "-m", "mpinn", *command, "--set", "train.epochs=1", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "test" in (tmp_path / "runs/mine/summary.json").read_text()
    assert "accuracy" not in (tmp_path / "runs/values/summary.json").read_text()


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits")
    assert here(run, "train.epochs=2") == 0
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        known = {"images": np.zeros((5, 8, 8, 1))}
        exec(block, known)
        assert known["weight"].shape == (64, 128)  # type: ignore[attr-defined]
        assert known["loss"].shape == (len(records(run)),)
        assert known["classes"].shape == (5,)
