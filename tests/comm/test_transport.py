"""What transports do with arrays of a memory that is as late as a device may be."""

import numpy as np
import pytest
from late import POISON, LateMemory

from mpinn.comm.transport import ALL, NOTHING, Direct, Staged, Transports, same


@pytest.fixture
def memory() -> LateMemory:
    return LateMemory()


def test_direct_lends_the_array_itself_once_what_was_asked_before_is_done(memory: LateMemory) -> None:
    array = np.zeros(3)
    memory.compute(lambda: array.fill(1))
    (loan,) = Direct(memory).lend([array], ALL, False)
    memory.compute(lambda: array.fill(2))
    assert not array.any()
    assert loan.begin() is array
    assert array.tolist() == [1, 1, 1], "waited for too little, or for what was asked later"
    assert memory.diary == ["wait for computing"]
    loan.end()
    loan.settle()
    assert memory.diary == ["wait for computing"]


def test_direct_is_ready_when_the_device_is(memory: LateMemory) -> None:
    memory.compute(bool)
    (loan,) = Direct(memory).lend([np.zeros(3)], NOTHING, True)
    assert not loan.ready
    assert loan.ready
    loan.begin()
    assert memory.diary == []


@pytest.mark.parametrize("kind", [Direct, Staged])
def test_arrays_of_the_host_need_no_loan_in_a_run_on_a_device(memory: LateMemory, kind: type[Direct | Staged]) -> None:
    array, own = np.zeros(3), np.zeros(3)
    memory.host.append(own)
    assert kind(memory).takes(array)
    assert not kind(memory).takes(own)
    assert memory.diary == []


def test_without_a_device_only_staged_lends() -> None:
    assert not Direct().takes(np.zeros(3))
    assert Staged().takes(np.zeros(3))


def test_staged_shows_mpi_what_was_computed_before(memory: LateMemory) -> None:
    array = np.zeros(3)
    memory.compute(lambda: array.fill(1))
    (loan,) = Staged(memory).lend([array], ALL, False)
    memory.compute(lambda: array.fill(2))
    assert loan.begin().tolist() == [1, 1, 1]
    assert memory.diary == ["pinned", "out", "wait for out"]
    loan.end()
    loan.settle()
    assert memory.diary == ["pinned", "out", "wait for out"]


def test_staged_copies_only_what_mpi_is_shown(memory: LateMemory) -> None:
    rows = np.arange(6.0).reshape(3, 2)
    (loan,) = Staged(memory).lend([rows], slice(1, 2), True)
    shown = loan.begin()
    assert shown[1].tolist() == [2, 3]
    assert (shown[[0, 2]].view(np.uint8) == POISON).all()


def test_staged_brings_values_after_what_was_computed_before_and_before_what_comes(memory: LateMemory) -> None:
    array, seen = np.zeros(3), np.ones(3)
    memory.compute(lambda: np.copyto(seen, array))  # still reads what the message will overwrite
    (loan,) = Staged(memory).lend([array], NOTHING, True)
    assert memory.diary == ["pinned"]
    loan.begin().fill(7)
    loan.end()
    assert not array.any()
    loan.settle()
    assert memory.diary == ["pinned", "in", "follow"], "the host has waited"
    memory.inward.run(1)  # as soon as it may
    assert seen.tolist() == [0, 0, 0]
    assert array.tolist() == [7, 7, 7]


def test_what_is_computed_after_a_message_comes_after_its_copy(memory: LateMemory) -> None:
    array = np.zeros(3)
    (loan,) = Staged(memory).lend([array], NOTHING, True)
    loan.begin().fill(7)
    loan.end()
    loan.settle()
    memory.compute(lambda: np.add(array, 1, out=array))
    memory.finish()
    assert array.tolist() == [8, 8, 8]


def test_a_buffer_is_used_again_once_its_values_have_been_copied(memory: LateMemory) -> None:
    first, second = np.zeros(3), np.zeros(3)
    transport = Staged(memory)
    (loan,) = transport.lend([first], NOTHING, True)
    buffer = loan.begin()
    buffer.fill(1)
    loan.end()
    loan.settle()
    (other,) = transport.lend([second], NOTHING, True)
    assert np.shares_memory(other.begin(), buffer)
    assert memory.diary == ["pinned", "in", "follow", "wait for in"]
    assert first.tolist() == [1, 1, 1]
    other.end()
    # what is copied out comes after what was copied in
    third = np.full(3, 5.0)
    (last,) = transport.lend([third], ALL, False)
    assert last.begin().tolist() == [5, 5, 5]
    assert second.tolist() == [1, 1, 1]


def test_as_many_buffers_as_messages_under_way(memory: LateMemory) -> None:
    transport = Staged(memory)
    for _ in range(3):
        loans = [transport.lend([np.zeros(4, dtype)], ALL, False)[0] for dtype in ("f8", "c8", "i8")]
        assert len({loan.begin().ctypes.data for loan in loans}) == 3
        for loan in loans:
            loan.end()
    assert memory.diary.count("pinned") == 3


@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), (2, 5)])
@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", "f2", "?"])
def test_staged_keeps_shape_and_dtype(shape: tuple[int, ...], dtype: str, memory: LateMemory) -> None:
    array = np.ones(shape, dtype)
    (loan,) = Staged(memory).lend([array], ALL, True)
    lent = loan.begin()
    assert (lent.shape, lent.dtype) == (array.shape, array.dtype)
    assert lent.tobytes() == array.tobytes()


def test_it_is_said_where_sums_differ() -> None:
    assert str(same(Direct())) == "messages direct"
    assert str(same(Staged())) == "messages staged"
    assert str(Transports(Direct(), Staged())) == "messages direct, sums staged"
