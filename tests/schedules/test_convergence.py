"""Delayed gradients still lead to a critical point if the rate diminishes (Pham & Ahn; Zhuang et al. 2021).

The stages are those of the simulator, which the program is bit for bit under mpirun (tests/mpi/test_decoupled.py): so
many of them need no ranks here.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from depth import Depth, Staged
from oracles import Problem, clusters, write_gradient

from mpinn.models.mlp import MLP
from mpinn.nn.optimizer import SGD

STAGES, REPLICAS = 4, 3


@dataclass(frozen=True, kw_only=True)
class Diminishing(Problem):
    """A smooth problem, all samples in every batch; rates ~ 1 / t^power."""

    power: float

    def rate(self, step: int) -> float:
        return self.optimizer.rate / (1 + step / 20) ** self.power


def norms(problem: Problem, depth: Depth, steps: tuple[int, ...]) -> list[float]:
    """Of the gradient at the weights that the stages have after so many steps."""
    staged, whole = Staged(problem, (0, 2, 3, 4, 5), depth, REPLICAS), problem.part()
    batch, found = problem.batches(1, 0).batch(0), []
    assert staged.count == STAGES
    for step in range(1, steps[-1] + 1):
        staged.step()
        if step in steps:
            for part in staged.replicas[0].parts:
                for layer, arrays in part.weight_views.items():
                    for name, values in arrays.items():
                        whole.weight_views[layer][name][...] = values
            write_gradient(problem, whole, batch)
            found.append(float(np.linalg.norm(whole.grads)) / batch.count)
    return found


PROBLEM = Diminishing(
    source=clusters(48, features=4, noise=2.0), batch=48, model=MLP(widths=(5, 5, 4), activation="identity"),
    optimizer=SGD(rate=0.5, momentum=0.0), power=0.75,
)  # fmt: skip


@pytest.mark.parametrize(
    ("depth", "power"),
    [(Depth(), 0.75), (Depth(), 1.0), (Depth(versions="mixed"), 0.75), (Depth(accumulate=2), 0.75)],
    ids=str,
)
def test_the_gradient_vanishes_as_the_rate_diminishes(depth: Depth, power: float) -> None:
    first, *later = norms(replace(PROBLEM, power=power), depth, (1, 100, 300, 900))
    assert later == sorted(later, reverse=True)
    assert later[-1] < first / 1000


def test_it_does_not_with_the_same_rate_for_ever() -> None:
    with np.errstate(all="ignore"):
        assert not np.isfinite(norms(replace(PROBLEM, power=0.0), Depth(), (300,))[0])
