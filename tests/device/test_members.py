"""Training of populations on a device: the CPU's numbers, no member on another, nothing read and nothing allocated."""

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np
import pytest
from packs import Plainly, batches, members, own, part_of, population

from mpinn.array import cpu, cuda
from mpinn.bench import fleet as bench
from mpinn.comm.channel import NullChannel
from mpinn.consensus.independent import Independent
from mpinn.datasets.batches import Batch
from mpinn.nn import fleet
from mpinn.nn.loss import CrossEntropy, SquaredError
from mpinn.nn.optimizer import SGD, Adam, Optimizer
from mpinn.nn.packed import Member, packed
from mpinn.nn.part import Part
from mpinn.population.update import MemberUpdate
from mpinn.schedules.members import Members, population_of_part

FEATURES = 12
SEVERAL = members([(1,), (40,), (100,), (3, 40), (5, 3, 6)])
CHOOSY = [Member(m.number, m.widths, m.activation, m.seed, 0.01 * (1 + m.number % 9), 1e-3) for m in SEVERAL]
"""Each with a rate and a decay of its own."""


def steps(dtype: str, on: Any, epochs: int = 4) -> list[Batch]:
    """Three batches an epoch, the last one ragged; where the kernels work."""
    rng = np.random.default_rng(4)
    x, target = rng.normal(size=(75, FEATURES)).astype(dtype), rng.integers(0, 3, 75)
    return batches(on.on_device(x), on.on_device(target), 32, epochs)


def trained(
    part: Part, given: Sequence[Batch], optimizer: Optimizer, clip: float = 0.0, loss: Any = None
) -> list[float]:
    schedule = Members(part, loss or CrossEntropy(), 0, share=0.5)
    update = MemberUpdate(Independent(NullChannel("alone")), optimizer, lambda step: 0.05, clip, schedule.parts)
    return [float(measured.loss) for batch in given for measured in schedule.step(batch, update)]


@pytest.mark.parametrize(
    ("optimizer", "clip", "several", "loss"),
    [
        (SGD(nesterov=True, weight_decay=1e-3), 0.0, SEVERAL, CrossEntropy()),
        (SGD(momentum=0.0), 0.5, SEVERAL, SquaredError()),
        (SGD(), 0.3, CHOOSY, CrossEntropy(0.1)),
        (Adam(epsilon=1e-2), 0.0, SEVERAL, CrossEntropy()),
    ],
    ids=["nesterov", "clipped", "choosy", "adam"],
)
@pytest.mark.parametrize("most", [500 * 8 * 25, fleet.MOST])
def test_the_steps_are_those_of_a_cpu(
    optimizer: Optimizer, clip: float, several: list[Member], loss: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "MOST", most)
    parts = [population(several, (FEATURES,), slots=optimizer.slots, ops=ops) for ops in (cpu, cuda)]
    start = parts[0].weights.copy()
    one, other = (trained(part, steps("float64", part.ops), optimizer, clip, loss) for part in parts)
    np.testing.assert_allclose(other, one, rtol=1e-11)
    for vector in ("weights", "grads"):
        expected = getattr(parts[0], vector)
        np.testing.assert_allclose(getattr(parts[1], vector).get(), expected, rtol=1e-11, atol=1e-12)
    assert np.abs(parts[0].weights - start).max() > 0.01


def test_every_member_is_measured_as_on_a_cpu() -> None:
    parts = [population(SEVERAL, (FEATURES,), ops=ops) for ops in (cpu, cuda)]
    schedules = [Members(part, CrossEntropy(), 0) for part in parts]
    for panels in (None, [name for name, _ in population_of_part(parts[0]).panels[1::3]]):
        one, other = (
            schedule.measure(steps("float64", part.ops, 1), panels, part.weights * 2)
            for schedule, part in zip(schedules, parts, strict=True)
        )
        assert isinstance(other, np.ndarray)
        np.testing.assert_allclose(other, one, rtol=1e-12)
        assert (one[:, 2] > 0).any()


def bits(part: Part, number: int) -> list[bytes]:
    """Of a member's weights and gradients."""
    found = []
    for vector in (part.weights, part.grads):
        for layer in own(part, number, vector.get()).values():
            found += [array.tobytes() for array in layer.values()]
    return found


def test_no_bit_of_a_member_depends_on_another() -> None:
    parts = [population(SEVERAL, (FEATURES,), 3, "float32", ("momentum",), cuda) for _ in range(2)]
    own(parts[1], 7)["hidden1"]["weight"].reshape(-1)[:1] = np.nan
    losses = [trained(part, steps("float32", cuda), SGD(), 0.3) for part in parts]
    assert not np.isfinite(own(parts[1], 7, parts[1].weights.get())["output"]["bias"]).all()
    assert np.isfinite(losses).all()
    for member in SEVERAL:
        assert (bits(parts[0], member.number) == bits(parts[1], member.number)) == (member.number != 7)


def test_a_member_computes_the_same_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, with few others, on a shard, in another order, in many fleets: to the last bit. Not so on a CPU."""
    whole = packed(SEVERAL, 3)
    sets = [whole, packed(SEVERAL[::3], 3), packed(SEVERAL[7:8], 3), whole.shard(0, 2, (9,)), whole.shard(1, 2, (9,))]
    first = part_of(whole, (FEATURES,), "float32", (), cuda)
    trained(first, steps("float32", cuda), SGD(momentum=0.0))
    for pack in sets:
        monkeypatch.setattr(fleet, "MOST", 300 * 4 * 25)
        part = part_of(pack, (FEATURES,), "float32", (), cuda)
        trained(part, steps("float32", cuda), SGD(momentum=0.0))
        for member in pack.members:
            assert bits(part, member.number) == bits(first, member.number), member


def test_a_run_repeats_bit_for_bit() -> None:
    ends = []
    for _ in range(2):
        part = population(SEVERAL, (FEATURES,), 3, "float32", ("momentum",), cuda)
        ends.append((trained(part, steps("float32", cuda), SGD(), 0.3), part.weights.get().tobytes()))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_step_reads_nothing_from_the_device(clip: float) -> None:
    """Nothing may be read while it is recorded, update included."""
    part = population(CHOOSY, (FEATURES,), 3, "float32", ("momentum",), cuda)
    given, optimizer = steps("float32", cuda, 1)[0], SGD()
    schedule = Members(part, CrossEntropy(), 0)
    update = MemberUpdate(Independent(NullChannel("alone")), optimizer, lambda step: 0.05, clip, schedule.parts)
    schedule.step(given, update)
    before = part.weights.get()
    current = cupy.cuda.get_current_stream()
    memory = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(memory.malloc):
        current.begin_capture()
        try:
            schedule._train(given, update.ready)
            update(part, given)
        finally:
            graph = current.end_capture()
    np.testing.assert_array_equal(part.weights.get(), before)
    graph.launch(current)
    assert (part.weights.get() != before).any()


def test_a_steady_step_allocates_nothing_large() -> None:
    part = population(CHOOSY, (FEATURES,), 3, "float32", ("momentum",), cuda)
    given = steps("float32", cuda, 1)[0]
    schedule = Members(part, CrossEntropy(), 0)
    update = MemberUpdate(Independent(NullChannel("alone")), SGD(), lambda step: 0.05, 0.5, schedule.parts)
    for _ in range(3):
        schedule.step(given, update)
    pool = cupy.get_default_memory_pool()
    held = part.pool.nbytes, pool.total_bytes(), pool.used_bytes()
    for _ in range(3):
        loss = schedule.step(given, update)[0].loss
        assert loss.shape == ()
        del loss
    assert (part.pool.nbytes, pool.total_bytes(), pool.used_bytes()) == held


def test_members_that_leave_and_panels_that_rest_change_what_is_recorded() -> None:
    losses = []
    for ops in (cpu, cuda):
        part, update = population(SEVERAL, (FEATURES,), ops=ops), Plainly(SGD(momentum=0.0), 0.05)
        given = steps("float64", ops, 1)[0]
        schedule = Members(part, CrossEntropy(), 0)

        def some(schedule: Members = schedule, given: Batch = given, update: Plainly = update) -> list[float]:
            return [float(schedule.step(given, update)[0].loss) for _ in range(3)]

        found = some()
        schedule.idle = frozenset(name for name, _ in schedule.population.panels[:2])
        found += some()
        schedule.replace(part_of(packed(SEVERAL[::2], 3), (FEATURES,), ops=ops))
        losses.append(found + some())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-11)


def test_the_bench_tells_of_every_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("LARGE", 64), ("COPIED", 1 << 16), ("CALLS", 1)):
        monkeypatch.setattr(bench, name, value)
    bench.run((bench.Load(1, (1, 2), 4, 8, 5),))
    told = capsys.readouterr().out
    assert "100 members, hidden layers (1, 2), 450 units" in told
    for line in ("step, recorded", "hidden 2, back", "output, back", "update", "error of the gradient"):
        assert line in told
