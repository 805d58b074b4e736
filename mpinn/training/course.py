"""Lengths in the options that must fall within the run, as they are written for a run that is to begin."""

from itertools import pairwise

from mpinn.config import Config
from mpinn.errors import InputError


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
    deal = config.consensus.deal if config.data.deal == "auto" else config.data.deal
    batch = config.data.batch // replicas if deal == "same" else config.data.batch
    epoch = -(-samples // max(1, batch))
    places, total = [rung.steps(epoch) for rung in rungs], train.epochs * epoch
    if train.epochs and any(one >= other for one, other in pairwise([0, *places, total])):
        given = ", ".join(f'"{rung}"' for rung in rungs)
        within = f"after the start and before the end of the {_count(train.epochs, 'epoch')} of {_count(epoch, 'step')}"
        raise InputError("model.rungs", f"expected lengths that rise, {within}, got [{given}]")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number > 1 else ''}"
