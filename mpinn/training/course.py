"""Lengths in the options that fall within the run: those that must, where one begins, and those that had better."""

from itertools import pairwise
from typing import Any

from mpinn.config import Config
from mpinn.datasets.deal import epoch_steps
from mpinn.errors import InputError
from mpinn.nn.optimizer import Optimizer
from mpinn.words import counted


def check_course(config: Config, samples: int, replicas: int) -> None:
    """That the rungs of a population rise, before the end of the run, and that the decay ``step`` has milestones.

    ``samples`` are those of the training split. Raises InputError. Of a run that goes on this is not asked: its length
    may have changed, and these options may not.
    """
    optimizer, train = config.optimizer, config.train
    if optimizer.decay == "step" and not optimizer.milestones:
        raise InputError(
            "optimizer.milestones", 'decay = "step" needs at least one, such as ["30 epochs", "45 epochs"], got none'
        )
    rungs = getattr(config.model, "rungs", ())
    epoch = epoch_steps(samples, config.data.batch, config.deal, replicas)
    places, total = [rung.steps(epoch) for rung in rungs], train.epochs * epoch
    if train.epochs and any(one >= other for one, other in pairwise([0, *places, total])):
        given = ", ".join(f'"{rung}"' for rung in rungs)
        within = (
            f"after the start and before the end of the {counted(train.epochs, 'epoch')} of {counted(epoch, 'step')}"
        )
        raise InputError("model.rungs", f"expected lengths that rise, {within}, got [{given}]")


def unreached(optimizer: Optimizer, steps_per_epoch: int, total: int) -> list[str]:
    """Warnings for the log: parts of the learning rate's course that a run of ``total`` steps does not reach.

    None of them is an error, since a longer run may follow.
    """
    if not total:
        return []
    said, end = [], f"before the end of this run, which is step {total:,}"
    late = [f'"{length}"' for length in optimizer.milestones if length.steps(steps_per_epoch) >= total]
    if optimizer.milestones and optimizer.decay != "step":
        said.append(f"optimizer.milestones: they play no part, since optimizer.decay is {optimizer.decay}, not step")
    elif late:
        said.append(f"optimizer.milestones: {', '.join(late)} {'are' if len(late) > 1 else 'is'} not {end}")
    if optimizer.warmup.steps(steps_per_epoch) >= total:
        said.append(f'optimizer.warmup: "{optimizer.warmup}" does not end {end}: the rate rises all the time')
    return [f"warning: {text}" for text in said]


def rare(consensus: Any, replicas: int, steps_per_epoch: int, total: int) -> list[str]:
    """A warning for the log, if the period in which replicas meet or mix is longer than a run of ``total`` steps."""
    period = getattr(consensus, "period", None)
    if replicas == 1 or not total or period is None or period.steps(steps_per_epoch) <= total:
        return []
    said = f'consensus.period: "{period}" is longer than this run of {counted(total, "step")}'
    return [f"warning: {said}: replicas {'meet once, at its end' if hasattr(consensus, 'score') else 'never mix'}"]
