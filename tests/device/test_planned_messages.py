"""What ranks with bfloat16 send on a device, beside what a plan says: bytes and calls of every rank, exactly."""

import pytest
from launch import no_launcher

from mpinn.array import cuda
from mpinn.datasets.source import open_source
from mpinn.scaling import check
from mpinn.scaling.check import Case, Subject, run
from mpinn.scaling.predict import Samples
from mpinn.scaling.work import work_of
from mpinn.training.choices import build_model, outputs_of, read_config

SETTINGS = ("model.widths=[24,16,8]", "model.norm=layer", "data.batch=100", "run.bf16=true", "train.clip=1",
            "schedule.name=gpipe", "schedule.micro_batches=3")  # fmt: skip
CASES = [
    Case("serial", "gradients", 1, 2),
    Case("serial", "averaging", 1, 2),
    Case("gpipe", "gradients", 2, 1),
    Case("fdg", "gradients", 2, 1),
    Case("layerwise", "gradients", 2, 1),
    Case("local", "gradients", 2, 1),
    Case("parareal", "gradients", 2, 1),
]


@pytest.mark.skipif(bool(no_launcher()), reason="no mpirun")
def test_ranks_send_what_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SECONDS", 0.0)
    monkeypatch.setattr(check, "STEPS", (10, 10))
    config = read_config(None, SETTINGS)
    source = open_source(config.data)
    summary = source.summary()
    model = build_model(config, source.sample_shape, outputs_of(summary))
    work = work_of(config, model, source, cuda, measured=False)
    subject = Subject(config, model, work, Samples(summary["sizes"]["train"], summary["sizes"]["validation"]))
    outcomes = run(subject, 2, chosen=CASES)[1]
    for case, one in zip(CASES, outcomes, strict=True):
        assert one.sent == one.expected, f"{case.schedule}, {case.consensus}"
        assert any(one.sent), case
