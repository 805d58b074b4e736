"""NCCL in a group of one rank: what one GPU can show of it. Where CuPy finds no NCCL there is nothing to show."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mpinn.array.device import choose_device, open_nccl
from mpinn.comm.group import IDENTITY, SUMMABLE
from mpinn.errors import InputError

DEVICE = choose_device("gpu", "plain", 0)
try:
    NCCL, VERSION = open_nccl(DEVICE, 0)
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)
GROUP: Any = NCCL.group(NCCL.identity(), 0, 1)
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "all_sum": lambda array, now: GROUP.all_sum(array, now),
    "all_max": lambda array, now: GROUP.all_max(array, now),
    "all_gather": lambda array, now: GROUP.all_gather(array[None], now),
    "broadcast": lambda array, now: GROUP.broadcast(array, 0, now),
    "collect": lambda array, now: GROUP.collect([array], now),
    "spread": lambda array, now: GROUP.spread([array], now),
}


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """The group is given back when nothing is left to do."""
    yield
    DEVICE.kernels.synchronize()
    GROUP.close()


def test_nothing_has_gone_wrong_and_another_thread_may_ask() -> None:
    from threading import Thread

    said: list[str] = []

    def ask() -> None:
        NCCL.here()
        said.append(GROUP.failure())

    thread = Thread(target=ask)
    thread.start()
    thread.join()
    assert said == [""]


def test_its_version_is_a_version() -> None:
    assert [int(part) >= 0 for part in VERSION.split(".")] == [True] * 3


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_alone_every_array_stays_what_it_is_in_the_order_of_the_device(name: str, dtype: str) -> None:
    library = DEVICE.kernels.LIBRARY
    array, busy = library.zeros(100_003, dtype), library.zeros(1_000_000)
    for turn in range(5):
        busy += 1
        array += 1
        end = OPERATIONS[name](array, NCCL.memory.now())
        NCCL.memory.follow(end)
        array += turn
    assert (DEVICE.kernels.on_host(array) == 5 + sum(range(5))).all()


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_too_short(name: str) -> None:
    array = DEVICE.kernels.LIBRARY.zeros(0)
    NCCL.memory.follow(OPERATIONS[name](array, NCCL.memory.now()))
    assert array.size == 0


def test_its_name_has_the_length_that_ranks_expect() -> None:

    assert len(NCCL.identity()) == IDENTITY == 128


def test_what_it_adds_up_is_what_a_channel_gives_it() -> None:
    from mpinn.array.cuda_nccl import KINDS

    assert {*KINDS} == {*SUMMABLE}
    for character in SUMMABLE:
        array = DEVICE.kernels.on_device(np.ones(3, character))
        NCCL.memory.follow(GROUP.all_sum(array, NCCL.memory.now()))
        assert DEVICE.kernels.on_host(array).tolist() == [1, 1, 1]
