"""Which device a run may compute with."""

from pathlib import Path
from typing import Any

import pytest
from launch import alone
from train_jobs import arguments

from mpinn.array import device
from mpinn.errors import InputError
from mpinn.run import checks
from mpinn.run.checks import Request, check


def found(monkeypatch: pytest.MonkeyPatch, count: int, why: str = "") -> None:
    for module in (checks, device):
        monkeypatch.setattr(module, "count_devices", lambda: (count, why))


@pytest.mark.parametrize(
    ("settings", "count", "said"),
    [
        (("run.device=gpu",), 0, "run.device: gpu: no GPU is visible; choose cpu, or auto"),
        (("run.bf16=true",), 0, "run.bf16: only a GPU computes in bfloat16: no GPU is visible"),
        (("run.bf16=true", "run.device=cpu"), 1, "run.bf16: only a GPU computes in bfloat16: run.device is cpu"),
        (
            ("schedule.name=layerwise", "schedule.overlap=always"),
            1,
            "schedule.overlap: always: a GPU computes one pass",
        ),
        (("run.bf16=true", "model.name=population"), 1, "run.bf16: a population is trained in float32 or float64"),
    ],
)
def test_what_no_device_here_can_do_is_refused(
    settings: tuple[str, ...], count: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found(monkeypatch, count, "no GPU is visible")
    with pytest.raises(InputError) as raised:
        check(Request(overrides=(f"run.directory={tmp_path / 'run'}", *settings)), 1)
    assert said in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_bfloat16_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, 1)

    def missing() -> Any:
        raise ModuleNotFoundError("No module named 'ml_dtypes'")

    monkeypatch.setattr(checks, "bfloat16", missing)
    with pytest.raises(InputError, match=r"run\.bf16: ml_dtypes can't be imported .* it comes with mpinn\[gpu\]"):
        check(Request(overrides=("run.bf16=true",)), 1)


def test_bfloat16_on_the_host_is_refused_by_the_program(tmp_path: Path) -> None:
    done = alone(*arguments(tmp_path / "run", "run.bf16=true", "run.device=cpu"))
    assert done.returncode == 2
    assert "run.bf16: only a GPU computes in bfloat16: run.device is cpu" in done.stderr
    assert not (tmp_path / "run").exists()
