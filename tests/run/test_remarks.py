"""What the log says of choices that may surprise: when, and that what it advises helps."""

from pathlib import Path

import pytest
from crew import Crews
from train_jobs import here, summary

from mpinn.config import Config
from mpinn.run.checks import Request, check
from mpinn.run.remarks import remarks
from mpinn.training.choices import build_model

OUTER = "outer steps add up to {} times what replicas have moved: if the validation gets worse at meetings, a smaller "
PARAREAL = "a parareal network bears smaller steps than the network that is cut: if the loss grows, a smaller "
PIXEL = (
    "[{kind='residual',projection=[{kind='conv',outputs=2,kernel=8,padding='valid'}],"
    "body=[{kind='conv',outputs=2,kernel=8,padding='valid'},{kind='batch_norm'}]},"
    "{kind='flatten'},{kind='dense',outputs=10}]"
)
SHORT = ("train.epochs=15", "train.evaluate=15 epochs", "data.batch=64", "model.widths=[32,32,32]")


def told(chosen: Config, replicas: int, stages: int) -> list[str]:
    """The remarks about a run on the digits, besides that of how samples are dealt."""
    found = remarks(chosen, build_model(chosen, (8, 8, 1), 10), replicas, stages)
    assert found[: replicas > 1] == [text for text in found if text.startswith("data.deal is ")]
    return found[replicas > 1 :]


def config(directory: Path, ranks: int, *settings: str) -> Config:
    return check(Request(None, (f"run.directory={directory / 'run'}", *settings)), ranks).config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((), "fixed, which the consensus averaging prefers: each replica has a shard of its own"),
        (
            ("consensus.name=gradients",),
            "redealt, which the consensus gradients prefers: a replica sees other samples in each epoch",
        ),
        (("data.deal=skewed",), "skewed: each replica has a shard of few labels"),
        (("data.deal=same", "consensus.name=gossip"), "same: every replica sees all samples"),
    ],
)
def test_how_samples_are_dealt(settings: tuple[str, ...], said: str, tmp_path: Path) -> None:
    chosen = config(tmp_path, 2, *settings)
    assert remarks(chosen, build_model(chosen, (8, 8, 1), 10), 2, 1)[0] == f"data.deal is {said}"


@pytest.mark.parametrize(
    ("settings", "replicas", "said"),
    [
        ((), 2, OUTER.format("7")),
        (("consensus.rate=1", "consensus.momentum=0.7"), 2, OUTER.format("3.33")),
        (("consensus.momentum=0",), 2, ""),
        ((), 1, ""),
    ],
)
def test_outer_steps_that_add_up(settings: tuple[str, ...], replicas: int, said: str, tmp_path: Path) -> None:
    chosen = config(tmp_path, replicas, "consensus.name=outer", *settings)
    found = [text for text in told(chosen, replicas, 1) if text.startswith("outer steps")]
    assert found == [f"{said}consensus.momentum helps"] * bool(said)


@pytest.mark.parametrize(
    ("settings", "stages", "said"),
    [
        (("grid.stages=2",), 2, True),
        (("schedule.blocks=2",), 1, True),
        ((), 1, False),
        (("grid.stages=2", "train.clip=1"), 2, False),
    ],
)
def test_a_parareal_network_bears_smaller_steps(
    settings: tuple[str, ...], stages: int, said: bool, tmp_path: Path
) -> None:
    chosen = config(tmp_path, stages, "consensus.name=gradients", "schedule.name=parareal", *settings)
    assert told(chosen, 1, stages) == [f"{PARAREAL}optimizer.rate or train.clip = 1 helps"] * said


@pytest.mark.parametrize(
    ("settings", "replicas", "said"),
    [
        ((), 2, True),
        (("grid.replicas=2",), 2, False),
        (("grid.shards=0",), 1, False),
        (("grid.shards=2", "grid.replicas=0"), 1, False),
        (("model.name=mlp",), 2, False),
    ],
)
def test_replicas_of_a_population_that_nobody_asked_for(
    settings: tuple[str, ...], replicas: int, said: bool, tmp_path: Path
) -> None:
    chosen = config(tmp_path, 2, "model.name=population", *settings)
    dealt = "each of the 2 replicas trains all members, on samples of its own: grid.shards = 0 deals members to the "
    assert any(text.startswith(dealt) for text in told(chosen, replicas, 1)) == said


@pytest.mark.parametrize(
    ("settings", "ranks", "said"),
    [
        ((), 1, ["one replica never meets: this is plain training of one model"]),
        (("schedule.name=fdg", "grid.stages=2", "train.clip=1"), 2, ["one replica never meets"]),
        (("data.batch=3",), 4, ["warning: data.batch: 3 leaves some of the 4 replicas without samples"]),
        (("data.batch=4",), 4, []),
    ],
)
def test_replicas(settings: tuple[str, ...], ranks: int, said: list[str], tmp_path: Path) -> None:
    chosen = config(tmp_path, ranks, *settings)
    assert told(chosen, ranks // chosen.grid.stages, chosen.grid.stages) == said


@pytest.mark.parametrize(
    ("settings", "ranks", "dealt"),
    [
        (("model.norm=batch", "data.batch=4"), 4, "4 over 4 replicas"),
        (("model.norm=batch", "data.batch=7"), 4, "7 over 4 replicas"),
        (("model.norm=batch", "data.batch=8"), 4, ""),
        (("model.norm=batch", "data.batch=1"), 1, "1"),
        (("model.norm=layer", "data.batch=4"), 4, ""),
        (
            ("model.norm=batch", "data.batch=6", "grid.stages=2", "schedule.name=1f1b"),
            4,
            "6 over 2 replicas and 4 micro-batches",
        ),
        (("model.norm=batch", "data.batch=8", "schedule.name=gpipe", "grid.stages=2"), 2, ""),
        (("model.name=cnn", "model.widths=[]", "data.batch=4"), 4, ""),
        (("model.name=cnn", "model.widths=[8]", "data.batch=4"), 4, "4 over 4 replicas"),
        (("model.name=resnet", "model.depth=8", "data.batch=4"), 4, ""),
        (("model.name=layers", f"model.layers={PIXEL}", "data.batch=4"), 4, "4 over 4 replicas"),
        (("model.name=population", "data.batch=4", "grid.replicas=4"), 4, ""),
    ],
)
def test_a_batch_norm_of_single_samples(settings: tuple[str, ...], ranks: int, dealt: str, tmp_path: Path) -> None:
    chosen = config(tmp_path, ranks, "train.clip=1", "consensus.name=gradients", *settings)
    stages = chosen.grid.stages
    said = f"warning: data.batch: {dealt} leaves a batch norm single samples, all of which it normalises to zero"
    assert told(chosen, ranks // stages, stages) == [said] * bool(dealt)


def test_single_samples_teach_a_batch_norm_nothing(tmp_path: Path) -> None:
    accuracies = []
    for batch in (1, 8):
        few = ("train.epochs=1", "model.norm=batch", f"data.batch={batch}", "optimizer.rate=0.01")
        assert here(tmp_path / str(batch), *few) == 0
        accuracies.append(summary(tmp_path / str(batch))["test"]["accuracy"])
    assert accuracies[0] < 0.3 < 0.85 < accuracies[1]


def test_a_parareal_network_that_is_clipped_learns_at_the_rate_of_the_network_that_is_cut(tmp_path: Path) -> None:
    """Without clipping each of these seeds diverges at this rate, which is the default."""
    parareal, found = ("schedule.name=parareal", "schedule.blocks=2", "schedule.cut=estimated", "train.clip=1"), []
    for seed in range(3):
        assert here(tmp_path / str(seed), *SHORT, *parareal, f"run.seed={seed}") == 0
        found.append(summary(tmp_path / str(seed))["test"]["accuracy"])
    assert sum(found) / 3 > 0.95


def test_outer_steps_without_momentum_learn_as_one_rank_does(tmp_path: Path, crews: Crews) -> None:
    """With the default momentum the mean over these seeds is 0.65."""
    found = []
    for seed in range(3):
        settings = (*SHORT, "consensus.name=outer", "consensus.momentum=0", f"run.seed={seed}")
        done = crews.train(2, tmp_path / str(seed), *settings)
        assert done.returncode == 0, done.stderr
        assert "outer steps" not in done.stdout
        found.append(summary(tmp_path / str(seed))["test"]["accuracy"])
    assert sum(found) / 3 > 0.95
