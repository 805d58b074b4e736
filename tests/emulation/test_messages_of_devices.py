"""The probe, ``doctor`` and staged messages under mpirun on the stand-in for CuPy, whose arrays any MPI can read."""

import json
import os
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from launch import ROOT, mpirun
from printed import facts, rows

from emulation.child import HERE
from mpinn.comm import probe
from mpinn.comm.channel import DONE
from mpinn.errors import FatalError

LATE = {"MPINN_EMULATED_LATE": "1"}
ORDERS = {"at once": {}, "late": LATE}
GPU = "Emulated GPU"
PROBE = """
from mpinn.array.device import choose_device
from mpinn.comm.abort import install_abort_hook, leave
from mpinn.comm.grid import connect
from mpinn.comm.launch import silence_other_ranks
from mpinn.comm import mpi, probe
import os, signal
silence_other_ranks()
install_abort_hook()
world = connect()
device = choose_device("auto", "plain", world.local_rank)
probe.SIZES = {"8 B": 2, "5 MB": 1300000}
{break_it}
def say(text):
    print(text, end="", flush=True)
found = probe.probe(world, device, say, scratch=2**16)
print(found)
leave(0)
"""


EARLY = """
import sys, time
import cupy, numpy as np
from mpinn.array.device import choose_device
from mpinn.comm.grid import connect
from mpinn.comm.transport import Staged, same
world = connect()
memory = choose_device("gpu", "plain", world.local_rank).memory
channel = world.channel("early", transports=same(Staged(memory, 2**16)))
array = cupy.zeros(100_000, np.float32)
for turn in range(8):
    if channel.rank == 1:
        array.fill(turn)
        channel.send(array, 0).wait()
    else:
        # the sender is early, and what came before may still be on its way to the device
        time.sleep(0.02)
        channel.receive(array, 1).wait()
if channel.rank == 0:
    print("all", float(array[0]), float(array[-1]))
"""


AS_OF = """
import cupy, numpy as np
from mpinn.array.cuda_memory import as_of
from mpinn.array.device import choose_device
from mpinn.comm.grid import connect
from mpinn.comm.transport import Direct, Staged, same
world = connect()
memory = choose_device("gpu", "plain", world.local_rank).memory
for name, transport in (("direct", Direct(memory)), ("staged", Staged(memory, 2**16))):
    channel = world.channel(name, transports=same(transport), ordered=True)
    array, busy = cupy.zeros(100_000, np.float32), cupy.zeros(1_000_000, np.float32)
    for turn in range(4):
        array.fill(turn + channel.rank)
        event = memory.now()
        for _ in range(20):
            busy += 1
        with as_of(event):
            rows = cupy.full((2, 100_000), -1.0, np.float32)
            gathered, summed = channel.all_gather(array, rows), channel.all_sum(array)
        gathered.wait()
        summed.wait()
        found = rows.get().min(axis=1).tolist(), rows.get().max(axis=1).tolist(), float(array.get().min())
        assert found == ([turn, turn + 1], [turn, turn + 1], 2 * turn + 1), (name, turn, found)
if channel.rank == 0:
    print("right")
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "mpinn/transport.json"


def job(ranks: int, cache: Path, *args: str, env: dict[str, str] | None = None) -> CompletedProcess[str]:
    settings = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
        "MPINN_EMULATED": "1",
        "XDG_CACHE_HOME": str(cache.parents[1]),
    }
    return mpirun(ranks, *args, env={**settings, **(env or {})})


def probed(
    break_it: str, cache: Path, ranks: int = 2, env: dict[str, str] | None = None
) -> tuple[CompletedProcess[str], dict[str, bool | None]]:
    """A probe with something broken, and what it has saved."""
    done = job(ranks, cache, "-c", PROBE.replace("{break_it}", break_it), env=env)
    (key, saved), *others = json.loads(cache.read_text()).items()
    assert key.endswith(f") on {GPU}")
    assert not others
    return done, saved


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_probe_of_a_library_that_reads_the_memory(ranks: int, order: str, cache: Path) -> None:
    done, saved = probed("", cache, ranks, ORDERS[order])
    assert done.returncode == 0, done.stderr
    assert saved == {"messages": True, "sums": True}
    table = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()[2:-1]]
    assert table == [[name, "right", "right"] for kind in probe.KINDS.values() for name in kind]
    assert done.stdout.splitlines()[-1] == "Findings(messages=True, sums=True)"


HASTY = (
    "from mpinn.comm.memory import PAST\nif world.rank == 0: type(device.memory).now = lambda self, fresh=False: PAST\n"
)


def test_a_probe_sees_that_nobody_waits_for_the_device(cache: Path) -> None:
    done, saved = probed(HASTY, cache, env=LATE)
    assert done.returncode == 0, done.stderr
    assert saved == {"messages": False, "sums": False}
    for line in done.stdout.splitlines()[2:-1]:
        assert "wrong" in line, line


def test_a_probe_sees_one_wrong_element_on_one_rank(cache: Path) -> None:
    break_it = """
def all_max(self, array, plain=mpi.MpiChannel.all_max):
    pending = plain(self, array)
    if self.name == "probe" and self.rank == 1 and array.size > 2:
        pending.wait()
        array[array.size - 1] += 1
    return pending
mpi.MpiChannel.all_max = all_max
"""
    done, saved = probed(break_it, cache)
    assert done.returncode == 0, done.stderr
    assert saved == {"messages": True, "sums": False}
    assert [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("all_max")] == [["right", "wrong"]]


@pytest.mark.parametrize(
    ("operation", "saved"),
    [("send", {"messages": False, "sums": None}), ("all_sum", {"messages": True, "sums": False})],
)
def test_a_crash_leaves_what_is_known(operation: str, saved: dict[str, bool | None], cache: Path) -> None:
    break_it = f"""
def crash(self, *arguments, plain=mpi.MpiChannel.{operation}):
    if self.name == "probe" and self.rank == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return plain(self, *arguments)
mpi.MpiChannel.{operation} = crash
"""
    done, found = probed(break_it, cache)
    assert done.returncode not in (0, 75)
    assert found == saved


def test_what_does_not_come_to_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        def test(self) -> bool:
            return False

        def wait(self) -> None:
            raise AssertionError

    monkeypatch.setattr(probe, "PATIENCE", 0.01)
    probe._finish(DONE, "send")
    with pytest.raises(FatalError, match=r"all_sum has not come to an end after 0\.01 s"):
        probe._finish(Never(), "all_sum")


def test_the_doctor_probes_and_then_knows(cache: Path) -> None:
    before = job(2, cache, "-m", "mpinn", "doctor")
    assert facts(before.stdout)["transport"].startswith("staged: no probe has shown")
    assert "warning: up to 2 ranks share a GPU" in before.stdout
    cells = " ".join(row[1] for row in rows(before.stdout) if len(row) == 2)
    assert "dense layers by cuBLASLt; convolutions by kernels of our own" in cells
    owners = [row[1:] for row in rows(before.stdout) if len(row) == 4]
    assert [row[1] for row in owners] == ["GPU", GPU, GPU]
    assert [row[2] for row in owners] == ["bus", "0:1:0", "0:1:0"]
    two = job(2, cache, "-m", "mpinn", "doctor", env={"MPINN_EMULATED_GPUS": "2", "TMPDIR": str(cache.parents[1])})
    assert [row[3] for row in rows(two.stdout) if len(row) == 4] == ["bus", "0:1:0", "0:2:0"]
    assert "warning: up to" not in two.stdout
    assert facts(before.stdout)["NCCL"] == "ranks 0-1 share GPUs"
    assert facts(two.stdout)["NCCL"].startswith("collectives within a machine by NCCL")
    done = job(2, cache, "-m", "mpinn", "doctor", "--probe")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("right") == 20
    assert done.stdout.splitlines()[-1] == f"saved in {cache}"
    after = job(2, cache, "-m", "mpinn", "doctor")
    assert facts(after.stdout)["transport"].startswith("direct: a probe has shown")


@pytest.mark.parametrize(
    ("ranks", "gpus", "told"),
    [(2, "0", "--probe: needs a GPU on every rank, and rank 0 has none: no GPU"), (1, "1", "--probe: needs two ranks")],
)
def test_what_cannot_be_probed_is_the_users_mistake(ranks: int, gpus: str, told: str, cache: Path) -> None:
    done = job(ranks, cache, "-m", "mpinn", "doctor", "--probe", env={"MPINN_EMULATED_GPUS": gpus})
    assert done.returncode == 2
    assert done.stderr.count(told) == 1
    assert not cache.exists()


BENCH = """
from mpinn.array.device import choose_device
from mpinn.bench import device_messages as bench
from mpinn.comm.findings import Findings, keys, save_findings
from mpinn.comm.grid import connect
from mpinn.comm.launch import silence_other_ranks
silence_other_ranks()
world = connect()
device = choose_device("auto", "plain", world.local_rank)
bench.SIZES, bench.SECONDS = {"8 B": 8, "5 MB": 5 * 2**20}, 0.05
for found in (Findings(), Findings(True, False), Findings(True, True)):
    world.verdict(lambda: save_findings(keys(world, [device.name]), found) or b"")
    bench.print_rows(bench.run(world, device))
"""


def test_only_what_a_probe_allows_is_measured(cache: Path) -> None:
    done = job(2, cache, "-c", BENCH)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("8 B", "5 MB", "all_sum"))]
    names = [line[:20].strip() for line in lines]
    assert names == ["8 B there and back", "5 MB there and back", "all_sum 8 B", "all_sum 5 MB"] * 3
    measured = [line[20:].count("(") for line in lines]
    assert measured == [2, 2, 2, 2, 3, 3, 2, 2, 3, 3, 3, 3]
    assert all((line.count("GB/s") == count) == ("5 MB" in line) for line, count in zip(lines, measured, strict=True))
    assert done.stdout.count("direct where a probe has shown") == 2
    assert "NCCL" not in done.stdout
    two = job(2, cache, "-c", BENCH, env={"MPINN_EMULATED_GPUS": "2", "TMPDIR": str(cache.parents[1])})
    assert (two.returncode, two.stderr) == (0, "")
    assert two.stdout.count("GPU, NCCL") == 3
    sums = [line[20:].count("(") for line in two.stdout.splitlines() if line.startswith("all_sum")]
    assert sums == [3, 3, 3, 3, 4, 4]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_staged_messages_of_a_device(ranks: int, order: str, cache: Path) -> None:
    chosen = ("-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", "-q", "tests/mpi/test_staged.py", "-k", "gpu")
    done = job(ranks, cache, *chosen, env=ORDERS[order])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "61 passed" in done.stdout


@pytest.mark.parametrize("order", ["late", "early"])
def test_collectives_by_nccl(order: str, cache: Path) -> None:
    """Early: what NCCL is asked for is done as soon as it may be, while all else is late."""
    early = {"MPINN_EMULATED_EARLY": "1"} if order == "early" else {}
    settings = {"MPINN_EMULATED_GPUS": "4", "TMPDIR": str(cache.parents[1]), **LATE, **early}
    chosen = ("-m", "pytest", "--with-mpi", "-p", "no:cacheprovider", "-q", "tests/mpi/test_nccl.py", "-k", "gpu")
    done = job(4, cache, *chosen, env=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "32 passed" in done.stdout


NCCL = ("-m", "mpinn", "--set", "run.device=gpu", "--set", "run.collectives=nccl", "--set", "train.epochs=1")


def test_the_log_says_who_carries_collectives(cache: Path) -> None:
    settings = {"MPINN_EMULATED_GPUS": "2", "TMPDIR": str(cache.parents[1])}
    done = job(2, cache, *NCCL, "--set", f"run.directory={cache.parent}", env=settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert "; collectives within a machine by NCCL 2.27.3\n" in done.stdout


def test_nccl_has_nothing_to_do_where_every_rank_is_on_a_machine_of_its_own(cache: Path) -> None:
    apart = "from dataclasses import replace\nworld = replace(world, machine=world.rank)\n"
    said = "from mpinn.run.binding import choose_nccl\nprint(choose_nccl(world, device)[1])\n"
    code = BENCH.replace("world = connect()\n", f"world = connect()\n{apart}") + said
    done = job(2, cache, "-c", code, env={"MPINN_EMULATED_GPUS": "2", "TMPDIR": str(cache.parents[1])})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "NCCL 2.27.3 has nothing to do: no two ranks share a machine"
    assert "GPU, staged" in done.stdout
    assert "GPU, NCCL" not in done.stdout


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"MPINN_EMULATED_GPUS": "1"}, "nccl: ranks 0-1 share GPUs; choose mpi"),
        ({"MPINN_EMULATED_GPUS": "2", "MPINN_EMULATED_WITHOUT_NCCL": "1"}, "nccl: CuPy finds no NCCL: pip install"),
    ],
)
def test_nccl_is_refused_at_the_door(env: dict[str, str], told: str, cache: Path) -> None:
    done = job(2, cache, *NCCL, "--set", f"run.directory={cache.parent}", env=env)
    assert done.returncode == 2
    assert done.stderr.count(f"run.collectives: {told}") == 1
    assert not cache.parent.exists()


@pytest.mark.parametrize("order", ORDERS)
def test_a_message_that_comes_early_is_received_whole(order: str, cache: Path) -> None:
    done = job(2, cache, "-c", EARLY, env=ORDERS[order])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["all", "7.0", "7.0"]


@pytest.mark.parametrize("order", ORDERS)
def test_sums_in_order_that_begin_as_of_an_earlier_moment_have_what_was_copied_since(order: str, cache: Path) -> None:
    done = job(2, cache, "-c", AS_OF, env=ORDERS[order])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "right\n"
