"""The passes of one block of a parareal network, which speaks with the blocks beside it; see `mpinn.nn.parareal`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpinn.array.pool import Pool
from mpinn.array.typing import Array
from mpinn.nn.block import Block, Links
from mpinn.nn.layer import EMPTY, Finish, Pass, Saved, Tree
from mpinn.nn.network import Network, Swept


@dataclass(slots=True)
class ForwardSweeps:
    """All sweeps of a block forward."""

    block: Block
    weights: Tree
    state: Tree
    context: Pass
    links: Links

    def run(self, x: Array) -> tuple[Array, Saved]:
        """x: (B, *shape) to (B, *output_shape), on the last block the output of the network, and what was kept."""
        block, context = self.block, self.context
        guess, predicted = self.through("predictor", block.predictor, x) if block.predictor else (x, None)
        fines: list[Saved] = []
        coarses: list[Saved] = []
        follow = context.update_state
        for sweep in block.rounds:
            context.update_state = follow and sweep == block.rounds[-1]
            if sweep in block.sweeps:
                y, kept = self.through("fine", block.fine, guess)
                fines.append(kept)
                if not block.last:
                    self.links.send("fine", sweep, y)
            if sweep in block.heard:
                guess, correction = self.correct(sweep, guess, coarses)
                if correction is not None and block.last:
                    y = context.ops.add(y, correction, context.pool)
        context.update_state = follow
        y, kept = block.head.forward(self.weights, self.state, y, context)
        return y, [predicted, fines, coarses, kept]

    def correct(self, sweep: int, guess: Array, coarses: list[Saved]) -> tuple[Array, Array | None]:
        """The guess of the next sweep, and c_j where the block computes in this one."""
        block, context = self.block, self.context
        better = fine = self.links.receive("fine", sweep)
        coarse = self.links.receive("coarse", sweep) if block.corrected(sweep) else None
        if coarse is not None and (block.form == "difference" or sweep < block.rounds[-1]):
            better = context.ops.add(fine, coarse, context.pool)
        if sweep not in block.sweeps or block.coarse is None:
            return better, None
        if block.form == "residual":
            error = minus(fine, guess, context.pool)
            if coarse is not None:
                np.add(error, coarse, out=error)
            correction, kept = self.through("coarse", block.coarse, error)
            coarses.append([kept])
        else:
            new, kept = self.through("coarse", block.coarse, better)
            old, before = self.through("coarse", block.coarse, guess)
            correction = minus(new, old, context.pool)
            coarses.append([kept, before])
        if not block.last:
            self.links.send("coarse", sweep, correction)
        return better, correction

    def through(self, kind: str, network: Network, x: Array) -> tuple[Array, Saved]:
        """The forward pass of one of the block's networks."""
        name = f"{kind}{self.block.number}"
        return network.forward(self.weights.get(name, EMPTY), self.state.get(name, EMPTY), x, self.context)


@dataclass(slots=True)
class BackwardSweeps:
    """The adjoint of all sweeps of a block: l and V are those of `mpinn.nn.parareal`."""

    block: Block
    weights: Tree
    context: Pass
    links: Links

    def run(self, saved: Saved, dy: Any) -> Swept:
        """(name, dx, finish) of the layers of the head, then of each network; dx is that of x, in the last of them.

        dy: (B, *output_shape) on the last block; the others receive theirs. ``saved`` is consumed.
        """
        predicted, fines, coarses, kept = saved
        saved.clear()
        block, wanted = self.block, self.context.wants_dx
        self.context.wants_dx = True
        for name, inside, finish in block.head.sweep(self.weights, kept, dy, self.context):
            dy = inside
            yield name, None, finish
        self.context.wants_dx = wanted
        guess, done = self._sweeps(fines, coarses, dy)
        if block.predictor is not None:
            guess, finish = self.back("predictor", block.predictor, predicted, guess, wanted)
            done["predictor"] = [finish]
        elif block.number > 1:
            guess = None
        for kind, finishes in done.items():
            yield f"{kind}{block.number}", guess if kind == [*done][-1] else None, all_of(finishes, self.context.pool)

    def _sweeps(self, fines: list[Saved], coarses: list[Saved], dy: Any) -> tuple[Any, dict[str, list[Finish]]]:
        """V of the first sweep in which the block computes, and what its networks have left to do."""
        block, ops, pool = self.block, self.context.ops, self.context.pool
        done: dict[str, list[Finish]] = {"fine": []} if block.coarse is None else {"coarse": [], "fine": []}
        later: Any = None
        for sweep in reversed(block.rounds):
            if sweep not in block.sweeps:
                self.links.send("adjoint", sweep, later)
                continue
            if not block.last:
                dy = self.links.receive("adjoint", sweep)
            less = None
            if sweep in block.heard:
                less, arrived = self.back_coarse(coarses.pop(), dy, done["coarse"])
                self.links.send("adjoint", sweep, arrived if later is None else ops.add(arrived, later, pool))
            wanted = block.number > 1 or self.context.wants_dx
            later, finish = self.back("fine", block.fine, fines.pop(), dy, wanted)
            done["fine"].append(finish)
            if less is not None:
                later = minus(later, less, pool)
        return later, done

    def back_coarse(self, kept: list[Saved], dy: Array, finishes: list[Finish]) -> tuple[Array, Array]:
        """What V loses, and m."""
        coarse, pool = self.block.coarse, self.context.pool
        if coarse is None:
            raise AssertionError("a block that computes while it hears has a coarse network")
        arrived, finish = self.back("coarse", coarse, kept.pop(0), dy, True)
        finishes.append(finish)
        if not kept:
            return arrived, arrived
        opposite = np.negative(dy, out=pool.empty(dy.shape, dy.dtype))
        gained, finish = self.back("coarse", coarse, kept.pop(), opposite, True)
        finishes.append(finish)
        return np.negative(gained, out=pool.empty(gained.shape, gained.dtype)), arrived

    def back(self, kind: str, network: Network, saved: Saved, dy: Array, wanted: bool) -> tuple[Any, Finish]:
        """The backward pass of one of the block's networks."""
        context, weights = self.context, self.weights.get(f"{kind}{self.block.number}", EMPTY)
        outer, context.wants_dx = context.wants_dx, wanted
        found = network.backward(weights, saved, dy, context)
        context.wants_dx = outer
        return found


def minus(one: Array, other: Array, pool: Pool) -> Array:
    """The difference of two arrays, in a buffer of the pool."""
    difference: Array = np.subtract(one, other, out=pool.empty(one.shape, one.dtype))
    return difference


def all_of(finishes: Sequence[Finish], pool: Pool) -> Finish:
    """The finish of a network that has run several times: the sum of theirs."""
    if len(finishes) == 1:
        return finishes[0]

    def finish(grads: Tree) -> None:
        finishes[0](grads)
        for other in finishes[1:]:
            spare = _like(grads, pool)
            other(spare)
            _add(grads, spare)

    return finish


def _like(tree: Tree, pool: Pool) -> Tree:
    return {
        name: _like(item, pool) if isinstance(item, Mapping) else pool.empty(item.shape, item.dtype)
        for name, item in tree.items()
    }


def _add(tree: Tree, other: Tree) -> None:
    for name, item in tree.items():
        if isinstance(item, Mapping):
            _add(item, other[name])
        else:
            np.add(item, other[name], out=item)
