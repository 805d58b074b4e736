"""Parareal networks: fine blocks that run at the same time, joined by predictors and coarse networks.

Lee, Lee and Park, Parareal neural networks emulating a parallel-in-time algorithm; the iteration is that of Lions,
Maday and Turinici, 2001. A network is cut into N fine blocks g^1, ..., g^N, which would run one after the other.
Predictors C^j guess the input of block j >= 2 from the sample x itself (the first block has x), so that all fine blocks
can begin at once, and coarse networks F^j, cheap imitations of g^j, carry the error of the guesses on:

    v_1 = x,  v_j = C^j(x)                             guesses of the interfaces
    y_j = g^j(v_j)                                     fine, all at once
    c_1 = 0,  c_j = F^j(R_{j-1})                       coarse, one after the other
    R_j = y_j - v_{j+1} + c_j                          the error of the guess at interface j
    output = y_N + c_N

That is ``form = "residual"``, the paper's. With ``form = "difference"`` it is the correction of classical parareal,

    c_j = F^j(w_j) - F^j(v_j),   w_j = y_{j-1} + c_{j-1} = v_j + R_{j-1}

The two are the same where F^j is linear. For nonlinear blocks either one is an architecture of its own, trained end to
end. Both give the network that was cut, exactly, where all guesses are right, since then R = 0 and F(0) = 0 (which a
coarse network must fulfil: no bias, no batch norm), and for affine blocks with their linear parts as coarse networks,
whatever the guesses; the difference form does wherever F^j = g^j.

Several ``iterations``: a sweep makes the guesses of the next one, v_j <- w_j. One sweep (k = 1) is the network above;
in general u^s_j = g^j(u^{s-1}_{j-1}) + c^s_j, with c^s_j from u^s_{j-1} and u^{s-1}_{j-1}, which are w_j and v_j. After
k sweeps the interfaces 0..k are those of the network that was cut, to the last bit, and after N all are. Block j
computes in the sweeps max(1, k - N + j) .. min(j, k) only: what it would compute before reaches no output, and
afterwards its input does not change. So with k = N every block runs once, in turn, and predictors are needed up to
block N - k + 1.

The backward pass is the exact adjoint through all sweeps. With l^s_j the cotangent of w^s_{j+1}, and so of y^s_j and
of c^s_j (l^k_N = dL/d output), and V^s_j that of v^s_j:

    residual      m = F^j'(R_{j-1})^T l_j                      l_{j-1} = m + V^{s+1}_j    V^s_j = g^j'(v_j)^T l_j - m
    difference    m = F^j'(w_j)^T l_j,  n = F^j'(v_j)^T l_j    l_{j-1} = m + V^{s+1}_j    V^s_j = g^j'(v_j)^T l_j - n

and V^1_j goes into the predictor. In the last sweep l_{j-1} = m: the chain back does not wait for a fine block either.

Running statistics move in the last sweep of a block. Dropout drops the same elements in every sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mpinn.array.typing import Array, Shape, Shapes
from mpinn.nn.block import Block, Way
from mpinn.nn.layer import EMPTY, Draws, Finish, Pass, Saved, Tree
from mpinn.nn.network import Swept
from mpinn.nn.sweeps import BackwardSweeps, ForwardSweeps

Letters: TypeAlias = dict[tuple[Way, int, int], Array]
"""Arrays by (way, interface, sweep)."""


@dataclass(frozen=True)
class Parareal:
    """Blocks in one process, itself a layer: what N ranks compute, without messages and to the same bit.

    A part of the blocks is a network too, for which the blocks that it lacks send zeros: enough for a rehearsal.
    """

    blocks: Sequence[Block]

    def __post_init__(self) -> None:
        numbers = [block.number for block in self.blocks]
        kinds = {(block.count, block.form, block.iterations) for block in self.blocks}
        if len(kinds) != 1 or numbers != [*range(numbers[0], numbers[-1] + 1)]:
            raise ValueError("these are not the blocks of one network, in order")

    def __getitem__(self, part: slice) -> "Parareal":
        return Parareal(self.blocks[part])

    def parameters(self, shape: Shape) -> Shapes:
        return {name: tree for block in self.blocks for name, tree in block.parameters(shape).items()}

    def state(self, shape: Shape) -> Shapes:
        return {name: tree for block in self.blocks for name, tree in block.state(shape).items()}

    def output_shape(self, shape: Shape) -> Shape:
        inputs = shape if self.blocks[0].number == 1 else self.blocks[0].inputs
        for block in self.blocks:
            if block.inputs != inputs:
                raise ValueError(f"block {block.number} takes samples of shape {block.inputs}, not {inputs}")
            inputs, found = block.outputs, block.output_shape(shape)
        return found

    def initialize(self, weights: Tree, state: Tree, rng: Draws) -> None:
        for block in self.blocks:
            block.initialize(weights, state, rng)

    def forward(self, weights: Tree, state: Tree, x: Array, context: Pass) -> tuple[Array, Saved]:
        letters: Letters = {}
        passes = [
            ForwardSweeps(block, weights, state, context, self._links(block, x, letters)).run(x)
            for block in self.blocks
        ]
        return passes[-1][0], [kept for _, kept in passes]

    def backward(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> tuple[Any, Finish]:
        finishes = []
        dx: Any = None
        for name, dx, finish in self.sweep(weights, saved, dy, context):  # noqa: B007
            finishes.append((name, finish))

        def finish_all(grads: Tree) -> None:
            for name, finish in finishes:
                finish(grads.get(name, EMPTY))

        return dx, finish_all

    def sweep(self, weights: Tree, saved: Saved, dy: Array, context: Pass) -> Swept:
        """The backward pass: (name, dx so far, finish) of each network, those of the last block first."""
        letters: Letters = {}
        total: Any = None
        for block in reversed(self.blocks):
            links = self._links(block, dy, letters)
            for name, dx, finish in BackwardSweeps(block, weights, context, links).run(saved.pop(), dy):
                if dx is not None:
                    total = dx if total is None else context.ops.add(total, dx, context.pool)
                yield name, total, finish

    def _links(self, block: Block, like: Array, letters: Letters) -> "_Mailbox":
        return _Mailbox(block, [other.number for other in self.blocks], like, letters)


@dataclass(slots=True)
class _Mailbox:
    """Links within one process, where who sends comes before who receives; like: (B, ...)."""

    block: Block
    present: Sequence[int]
    like: Array
    letters: Letters

    def send(self, way: Way, sweep: int, array: Array) -> None:
        self.letters[way, self.block.number - (way == "adjoint"), sweep] = array

    def receive(self, way: Way, sweep: int) -> Array:
        before = way != "adjoint"
        if self.block.number + (-1 if before else 1) in self.present:
            return self.letters.pop((way, self.block.number - before, sweep))
        shape = self.block.inputs if before else self.block.outputs
        return np.zeros_like(self.like, shape=(len(self.like), *shape))
