"""Which transports are chosen, and what is remembered of probes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from late import LateMemory

from mpinn.comm import grid
from mpinn.comm.choice import HINT, choose_transports
from mpinn.comm.findings import Findings, findings, keys, probe_file, read_findings, save_findings
from mpinn.comm.grid import build_of
from mpinn.errors import InputError

MPI = "MPICH 5"
SHOWN = f"a probe has shown that {MPI}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def chosen(setting: str, found: Findings | None, ranks: int = 2) -> tuple[str, str, str]:
    transports, said = choose_transports(setting, MPI, found, LateMemory(), ranks)
    return transports.messages.name, transports.sums.name, said


@pytest.mark.parametrize(
    ("messages", "sums", "names", "said"),
    [
        (True, True, "direct direct", f"messages direct: {SHOWN} reads device memory"),
        (
            True,
            False,
            "direct staged",
            f"messages direct, sums staged: {SHOWN} reads device memory, but not in non-blocking sums",
        ),
        (
            True,
            None,
            "direct staged",
            f"messages direct, sums staged: {SHOWN} reads device memory, and has not tried sums ({HINT})",
        ),
        (False, True, "staged direct", f"messages staged, sums direct: {SHOWN} reads device memory in sums only"),
        (False, False, "staged staged", f"messages staged: {SHOWN} cannot read device memory"),
        (False, None, "staged staged", f"messages staged: {SHOWN} cannot read device memory"),
        (None, True, "staged direct", f"messages staged, sums direct: {SHOWN} reads device memory in sums only"),
        (None, False, "staged staged", f"messages staged: no probe has shown that {MPI} reads device memory ({HINT})"),
        (None, None, "staged staged", f"messages staged: no probe has shown that {MPI} reads device memory ({HINT})"),
    ],
)
def test_a_probe_decides_for_each_kind(messages: bool | None, sums: bool | None, names: str, said: str) -> None:
    assert chosen("auto", Findings(messages, sums)) == (*names.split(), said)


@pytest.mark.parametrize("found", [None, Findings(), Findings(True, True), Findings(False, False)])
@pytest.mark.parametrize("setting", ["direct", "staged"])
def test_the_user_decides_for_all_kinds(setting: str, found: Findings | None) -> None:
    assert chosen(setting, found) == (setting, setting, f"messages {setting}: the configuration says {setting}")


def test_beside_nccl_mpi_does_not_reach_for_the_memory_of_devices() -> None:
    """NCCL's documentation calls it unsafe."""
    both = Findings(True, True)
    transports, said = choose_transports("auto", MPI, both, LateMemory(), 2, nccl=True)
    assert (str(transports), said) == ("messages staged", "messages staged: direct ones beside NCCL may wait for ever")
    assert choose_transports("staged", MPI, both, LateMemory(), 2, nccl=True)[0].messages.name == "staged"
    with pytest.raises(InputError, match=r"run\.transport: direct: beside NCCL it may wait for ever; choose staged"):
        choose_transports("direct", MPI, both, LateMemory(), 2, nccl=True)


def test_host_arrays_go_directly() -> None:
    transports, said = choose_transports("auto", MPI)
    assert (str(transports), said) == ("messages direct", "messages direct: arrays are in host memory")


def test_one_rank_on_a_device_is_not_told_to_probe() -> None:
    assert chosen("auto", Findings(), ranks=1)[2] == "messages direct: one rank sends none"


def test_an_unknown_setting_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match=r"run\.transport: 'fast' is not one of auto, direct, staged"):
        chosen("fast", None)


@pytest.mark.parametrize("messages", [True, False, None])
@pytest.mark.parametrize("sums", [True, False, None])
def test_findings_come_back(messages: bool | None, sums: bool | None) -> None:
    save_findings(["another"], Findings(not messages, not sums))
    save_findings(["this", "that"], Findings(messages, sums))
    for name in ("this", "that"):
        assert read_findings([name]) == Findings(messages, sums)
    assert read_findings(["another"]) == Findings(not messages, not sums)
    assert read_findings(["unknown"]) == Findings()


def test_only_what_is_true_of_all_kinds_of_gpu_is_relied_on() -> None:
    save_findings(["a"], Findings(True, True))
    save_findings(["b"], Findings(True, False))
    assert read_findings(["a", "b"]) == Findings(True, False)
    assert read_findings(["a", "unknown"]) == Findings(None, None)
    assert read_findings(["b", "unknown"]) == Findings(None, False)
    assert read_findings([]) == Findings()


DAMAGED = {
    "not JSON": b"{ damaged",
    "not text": b"\xff\xfe\x00",
    "a list": b"[1]",
    "as before kinds": b'{"this": true}',
    "kinds of another type": b'{"this": {"messages": 1, "sums": "yes"}}',
    "one kind": b'{"this": {"sums": null}}',
    "empty": b"",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_says_nothing_and_is_replaced(damage: str) -> None:
    probe_file().parent.mkdir()
    probe_file().write_bytes(DAMAGED[damage])
    assert read_findings(["this"]) == Findings()
    save_findings(["this"], Findings(True, False))
    assert read_findings(["this"]) == Findings(True, False)
    assert json.loads(probe_file().read_text())["this"] == {"messages": True, "sums": False}


def test_findings_hold_for_a_build_and_a_kind_of_gpu() -> None:
    world = replace(grid._alone(""), build="MPICH 5 (1234)")
    assert findings(world, "") is None
    assert findings(world, "H100") == Findings()
    save_findings(keys(world, ["H100"]), Findings(True, False))
    assert findings(world, "H100") == Findings(True, False)
    assert findings(world, "A100") == Findings()
    assert findings(replace(world, build="MPICH 5 (5678)"), "H100") == Findings()


def test_a_build_is_told_from_others_of_its_version() -> None:
    plain = build_of("Open MPI 4.1.4", "of Debian", {})
    assert plain.startswith("Open MPI 4.1.4 (")
    switched = {"MPICH_GPU_SUPPORT_ENABLED": "1", "MPIR_CVAR_ENABLE_GPU": "0", "OMPI_MCA_opal_cuda_support": "0"}
    others = [build_of("Open MPI 4.1.4", "of Debian", {name: value}) for name, value in switched.items()]
    others.append(build_of("Open MPI 4.1.4", "of the site, with CUDA", {}))
    assert len({plain, *others}) == 5
    assert build_of("Open MPI 4.1.4", "of Debian", {"HOME": "/root"}) == plain
