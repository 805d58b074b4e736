"""What a run that goes on must agree on with the one that was saved, and what has changed since."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpinn.config import CHOSEN, MAY_CHANGE, Config, difference
from mpinn.datasets.deal import epoch_steps
from mpinn.errors import InputError
from mpinn.models.model import Model
from mpinn.nn.layout import Layout
from mpinn.run.keeper import bounds_of, saved_model
from mpinn.run.stored import stored_tables
from mpinn.storage.directory import RunDirectory
from mpinn.storage.history import read_summary
from mpinn.storage.reader import Checkpoint
from mpinn.words import counted


def check_resume(path: Path, config: Config, model: Model, data: Mapping[str, Any]) -> list[str]:
    """What a resumed run must agree on with the one that was saved; returns what has changed, to be said."""
    with Checkpoint(path) as checkpoint:
        stored = stored_tables(checkpoint)
        check_network(str(path.parent), stored["schedule"], config.tables()["schedule"])
        changes = told_changes(stored, config.tables())
        forbidden = [f"{key} ({given(old)} -> {given(new)})" for key, old, new in changes if not may_change(key)]
        if forbidden:
            hint = "go back to the old values, choose another run.directory, or start anew with --fresh"
            raise InputError(
                str(path.parent), f"this run was started with other values: {', '.join(forbidden)}; {hint}"
            )
        check_data(checkpoint, config, data)
        model = saved_model(path, model)
        bounds = bounds_of(path, config.schedule.pieces(config.grid.stages)) or (0, len(model.network))
        network = config.schedule.network(config.model, model, bounds)
        layout = Layout(network.parameters(model.shape), np.dtype(config.run.dtype))
        checkpoint.check(layout, "model/network")
        met_once_more = extra_meeting(checkpoint, config)
    said = [f"{key} was {given(old)} and is {given(new)}" for key, old, new in changes if key != "run.directory"]
    if any(key == "train.epochs" for key, _, _ in changes) and config.optimizer.decay == "cosine":
        said.append("with the length of the run the course of the cosine rate has changed")
    return said + met_once_more


def told_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs between two configurations; of a table with another name that name alone, as its options differ."""
    changes = difference(old, new)
    named = {f"{table}.name" for table in CHOSEN} & {key for key, _, _ in changes}
    others = tuple(name.removesuffix("name") for name in named)
    return [change for change in changes if change[0] in named or not change[0].startswith(others)]


def given(value: Any) -> str:
    """A value of a configuration in a sentence."""
    return "not set" if value is None else str(value)


def check_network(path: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """A schedule may change, but not into one that trains another network."""
    before, after = network_of(was), network_of(now)
    if before != after:
        hint = "choose another run.directory, or start anew with --fresh"
        raise InputError(path, f"this run trains {before}, but {after} is another architecture; {hint}")


def network_of(schedule: Mapping[str, Any]) -> str:
    """What the table [schedule] of a configuration, as used, makes of a model."""
    if schedule["name"] != "parareal" or schedule["blocks"] == 1:
        return "the model as it is"
    sweeps = f"{schedule['iterations']} sweep{'s' if schedule['iterations'] > 1 else ''}"
    return f"a parareal network of {schedule['blocks']} blocks ({schedule['form']}, {sweeps})"


def may_change(key: str) -> bool:
    """Whether a resumed run may give a key another value; a schedule does not change what is being trained."""
    return key in MAY_CHANGE or key.startswith("schedule.")


def check_data(checkpoint: Checkpoint, config: Config, data: Mapping[str, Any]) -> None:
    """The data may have moved, but must be what the run was started with, as far as its checkpoint knows that."""
    check_same_data(checkpoint.data, data, config, "this run was started with")


def check_same_data(known: Mapping[str, Any], data: Mapping[str, Any], config: Config, whose: str) -> None:
    """What describes data must be the same in both, as far as it is known; raises InputError."""
    changed = [name for name in data if name in known and not same(known[name], data[name])]
    # what samples are like differs where there are others
    changed = [name for name in changed if name not in ("mean", "std")] or changed
    others = [f"{name} ({known[name]} -> {data[name]})" for name in changed]
    if others:
        where = f"{config.data.path!r} holds" if config.data.path else f"{config.data.name} is"
        raise InputError("data.path", f"{where} other data than {whose}: {', '.join(others)}")


def check_steps(path: Path, config: Config, samples: int, replicas: int) -> None:
    """Steps must mean what they meant: a number of replicas on which an epoch has more or fewer of them is refused."""
    with Checkpoint(path) as checkpoint:
        was = checkpoint.grid[0]
    before, now = (epoch_steps(samples, config.data.batch, config.deal, count) for count in (was, replicas))
    if before != now:
        only = f"this run can go on with {counted(was, 'replica')} only, got {replicas}"
        why = f"with data.deal = same an epoch has {before} steps on {was} and {now} on {replicas}"
        raise InputError("grid.replicas", f"{only}: {why}")


def same(known: Any, found: Any) -> bool:
    """Whether two facts agree: texts exactly, numbers up to how a sum may have been rounded elsewhere."""
    if isinstance(known, str) or isinstance(found, str):
        return bool(known == found)
    return np.shape(known) == np.shape(found) and bool(np.allclose(known, found, rtol=1e-9, atol=0))


def extra_meeting(checkpoint: Checkpoint, config: Config) -> list[str]:
    """What to say of a finished run that becomes longer, if its replicas met at its end and not for their period."""
    before = checkpoint.configuration["train"]["epochs"]
    ended = 0 < before == checkpoint.epoch < config.train.epochs and checkpoint.data["batch"] == 0
    if config.names["consensus"] not in ("averaging", "outer") or not ended or checkpoint.grid[0] == 1:
        return []
    if checkpoint.step % config.consensus.period.steps(checkpoint.step // before) == 0:
        return []
    once = f"the replicas have met after step {checkpoint.step}, where the run ended before"
    return [f"{once}, though it is no multiple of consensus.period: in a run of the new length they would not have"]


def finished(directory: RunDirectory, checkpoint: Path, config: Config) -> Mapping[str, Any] | None:
    """The summary of a run with nothing left to do, as of where it is now; None where there is something."""
    summary = read_summary(directory.summary)
    if summary is None:
        return None
    if directory.checkpoint(summary["steps"]).name != checkpoint.name or summary["epochs"] != config.train.epochs:
        return None
    return {**summary, "checkpoint": str(checkpoint), "directory": str(directory.path)}
