"""The command ``train``: check, build or resume, train, sum up."""

import json

from mpinn import __version__
from mpinn.agreement import Signals
from mpinn.comm.abort import leave
from mpinn.comm.grid import World
from mpinn.config import Config
from mpinn.experiment import Experiment, Request, Start, build, check
from mpinn.reporter import Silent, open_reporter
from mpinn.storage.directory import RunDirectory, write_text
from mpinn.storage.reader import Checkpoint
from mpinn.summary import collect, lines
from mpinn.trainer import Outcome

STOPPED = 75
"""Exit code of a run that a signal or --stop-after has ended early: its state is saved, run it again."""


def train(world: World, request: Request) -> int:
    """Train, or go on training; the exit code. Raises InputError, before anything is written, and `DivergedError`."""
    start = Start.decode(world.verdict(lambda: check(request, world.size).encode()))
    signals = Signals()
    with signals.listening():
        lately = _finished(world, start)
        if lately is not None:
            return lately
        experiment = build(world, start, Silent(), signals, request.stop_after)
        plan = experiment.trainer.plan
        experiment.trainer.reporter = open_reporter(world.rank, plan.total, plan.start)
        try:
            for text in _opening(world, experiment, start):
                experiment.trainer.reporter.line(text)
            outcome = experiment.trainer.run()
        finally:
            experiment.trainer.reporter.close()
        return _close(world, experiment, outcome, signals)


def _finished(world: World, start: Start) -> int | None:
    """0 if there is nothing left to train and the summary could be printed again."""
    directory = RunDirectory(start.config.run.directory)

    def look() -> bytes:
        if start.checkpoint is None or not directory.summary.exists():
            return b""
        summary = json.loads(directory.summary.read_text())
        with Checkpoint(start.checkpoint) as checkpoint:
            done = checkpoint.step == summary["steps"] and start.config.train.epochs == summary["epochs"]
        return json.dumps(summary).encode() if done else b""

    told = world.verdict(look)
    if not told:
        return None
    if world.rank == 0:
        print(f"{directory.path} is a finished run; --fresh starts it anew, a longer train.epochs continues it")
        print("\n".join(lines(json.loads(told))), flush=True)
    return 0


def _opening(world: World, experiment: Experiment, start: Start) -> list[str]:
    config, trainer = experiment.config, experiment.trainer
    (part,) = trainer.schedule.parts.values()
    shape = " x ".join(map(str, experiment.grid.shape))
    said = [
        f"mpinn {__version__}: {world.size} rank{'s' if world.size > 1 else ''} on {world.host}, {world.library}",
        *([world.note] if world.note else []),
        f"grid {shape} (replicas x stages x shards), messages {experiment.transport}",
        f"kernels {experiment.kernels}",
        f"{config.names['model']} with {part.layout.count:,} parameters on {config.data.name}, "
        f"consensus {_choice(config, 'consensus')}, {config.names['optimizer']}, {config.run.dtype}",
        *start.notes,
        *experiment.resumed,
    ]
    if start.checkpoint is not None:
        said.append(f"resumed from {start.checkpoint} at step {trainer.plan.start}")
    said.append(f"run directory {config.run.directory}")
    return said


def _choice(config: Config, table: str) -> str:
    score = getattr(getattr(config, table), "score", None)
    return config.names[table] + (f" by {score}" if score else "")


def _close(world: World, experiment: Experiment, outcome: Outcome, signals: Signals) -> int:
    directory = experiment.keeper.directory
    if outcome is Outcome.STOPPED:
        experiment.keeper.close()
        world.control.barrier()
        if world.rank == 0:
            write_text(directory.requeue, "")
            print(f"stopped with the state saved; the same command goes on from {directory.latest}", flush=True)
        return STOPPED
    summary = collect(experiment, outcome.value)
    experiment.keeper.close()
    if world.rank == 0:
        write_text(directory.summary, json.dumps(summary, indent=1) + "\n")
        print("\n".join(lines(summary)), flush=True)
    return 0


def exit_with(code: int) -> None:
    """End the rank with an agreed code."""
    leave(code)
