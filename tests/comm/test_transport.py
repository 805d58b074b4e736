"""Which transport is chosen, and what it does with arrays that stand in for those of a device."""

from pathlib import Path

import numpy as np
import pytest

from mpinn.array.typing import Array, Dtype, Shape
from mpinn.comm.transport import Direct, HostMemory, Staged, choose_transport, probe_file, save_probe
from mpinn.config import InputError


class Device:
    """A memory that writes down what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def synchronize(self) -> None:
        self.asked.append("synchronize")

    def is_host(self, array: Array) -> bool:
        return False

    def pinned_empty(self, shape: Shape, dtype: Dtype) -> Array:
        self.asked.append("pinned_empty")
        return np.full(shape, 99, dtype)

    def copy(self, into: Array, source: Array) -> None:
        self.asked.append("copy")
        np.copyto(into, source)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def chosen(setting: str, memory: Device | HostMemory | None = None) -> tuple[str, str]:
    transport, reason = choose_transport(setting, "MPICH 5", memory)
    return transport.name, reason


def test_host_arrays_go_directly() -> None:
    assert chosen("auto") == ("direct", "arrays are in host memory")
    assert chosen("auto", HostMemory()) == ("direct", "arrays are in host memory")


@pytest.mark.parametrize("setting", ["direct", "staged"])
def test_the_user_decides(setting: str) -> None:
    save_probe("MPICH 5", direct=setting != "direct")
    assert chosen(setting, Device()) == (setting, f"the configuration says {setting}")


def test_an_unknown_setting_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match=r"run\.transport: 'fast' is not one of auto, direct, staged"):
        chosen("fast")


def test_device_arrays_are_staged_until_a_probe_has_succeeded() -> None:
    name, reason = chosen("auto", Device())
    assert name == "staged"
    assert "no probe" in reason
    save_probe("another", direct=True)
    assert chosen("auto", Device())[0] == "staged"
    save_probe("MPICH 5", direct=True)
    assert chosen("auto", Device()) == ("direct", "a probe has shown that this MPI library reads device memory")
    save_probe("MPICH 5", direct=False)
    assert chosen("auto", Device())[0] == "staged"
    probe_file().write_text("{ damaged")
    assert "no probe" in chosen("auto", Device())[1]


def test_direct_waits_for_the_device_and_lends_the_array_itself() -> None:
    device, array = Device(), np.arange(3.0)
    assert Direct(device).lend(array, filled=False) is array
    assert device.asked == ["synchronize"]


def test_staged_copies_only_what_is_needed_and_keeps_its_buffers() -> None:
    device, array = Device(), np.arange(3.0)
    transport = Staged(device)
    first, second = transport.lend(array, filled=True), transport.lend(array, filled=False)
    assert device.asked == ["pinned_empty", "copy", "pinned_empty"]
    assert first.tolist() == [0, 1, 2]
    assert second.tolist() == [99, 99, 99]
    transport.take_back(first, None)
    transport.take_back(second, array)
    assert array.tolist() == [99, 99, 99]
    assert device.asked[3:] == ["copy"]
    assert transport.lend(array, filled=False) is second
    assert transport.lend(array, filled=False) is first
    assert transport.lend(array.astype("float32"), filled=False).dtype == np.float32
