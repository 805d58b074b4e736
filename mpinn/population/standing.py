"""The members of a population as a table: what each is, and how it did; for the summary and for a file."""

import csv
from collections.abc import Sequence
from io import StringIO
from math import isfinite
from typing import Any

from mpinn.nn.optimizer import Optimizer
from mpinn.nn.packed import Member
from mpinn.population.ranking import Ranking
from mpinn.words import loss_text

SHOWN = 10
"""Members that a summary shows."""


def standing(ranking: Ranking, members: Sequence[Member], optimizer: Optimizer) -> list[dict[str, Any]]:
    """A row for each member, the best first, and then those that have left, the latest first."""
    gone = sorted((n for n in range(len(members)) if ranking.left[n]), key=lambda n: (-int(ranking.left[n]), n))
    order = [*ranking.order().tolist(), *gone]
    return [_row(place, members[number], ranking, optimizer) for place, number in enumerate(order, 1)]


def _row(place: int, member: Member, ranking: Ranking, optimizer: Optimizer) -> dict[str, Any]:
    number = member.number
    decay = member.weight_decay
    return {
        "place": place,
        "member": number,
        "validation_accuracy": _known(ranking.accuracy[number]) if ranking.classes else None,
        "validation_loss": _known(ranking.loss[number]),
        "layers": len(member.widths),
        "width": member.widths[0],
        "activation": member.activation,
        "rate": optimizer.rate if member.rate is None else member.rate,
        "weight_decay": optimizer.weight_decay if decay is None else decay,
        "seed": member.seed,
        "left": int(ranking.left[number]),
        "stopped": int(ranking.stopped[number]),
    }


def _known(value: float) -> float | None:
    return float(value) if isfinite(value) else None


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a CSV file."""
    out = StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(rows: Sequence[dict[str, Any]], accuracy: bool) -> list[str]:
    """The best rows as they are printed."""
    measure = "validation_accuracy" if accuracy else "validation_loss"
    found = ["place   member  validation  hidden layers  activation       rate  weight decay  seed"]
    for row in rows[:SHOWN]:
        measured = "none" if row[measure] is None else loss_text(row[measure])
        hidden = f"{row['layers']} x {row['width']}"
        found.append(
            f"{row['place']:>5}  {row['member']:>7}  {measured:>10}  {hidden:>13}  {row['activation']:<10}"
            f"  {row['rate']:>9.3g}  {row['weight_decay']:>12.3g}  {row['seed']:>4}"
        )
    return found
