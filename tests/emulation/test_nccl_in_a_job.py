"""NCCL in whole jobs on the stand-in: what waiting for it is told, how it fails and hangs, and how it ends."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from types import MappingProxyType

import pytest
from launch import ROOT, finish, start

from emulation.child import HERE

STOPPED = 75
START = """
import os, sys, time
from pathlib import Path
import cupy, numpy as np
from mpinn.run import binding
from mpinn.array.device import choose_device
from mpinn.comm import groups, mpi
from mpinn.comm.abort import install_abort_hook, leave
from mpinn.comm.grid import connect
from mpinn.comm.launch import read_launch, silence_other_ranks
from mpinn.comm.transport import Staged, same
from mpinn.schedules.serial import Serial
from dataclasses import replace
nccl = cupy.cuda.nccl if hasattr(cupy.cuda, "nccl") else __import__("cupy.cuda.nccl").cuda.nccl
RANK = read_launch().rank
def at(index, work):
    step = Serial.step
    def patched(self, batch, update):
        if batch.index == index:
            work()
        return step(self, batch, update)
    Serial.step = patched
"""
TRAIN = "\nfrom mpinn.cli.main import main\nmain(sys.argv[1:])\n"
CHANNEL = """
silence_other_ranks()
install_abort_hook()
world = connect()
device = choose_device("gpu", "plain", world.local_rank)
joined, said = binding.choose_nccl(world, device)
channel = world.channel("tried", transports=replace(same(Staged(device.memory)), nccl=joined))
"""
GRADIENTS = (
    *("run.device=gpu", "run.collectives=nccl", "consensus.name=gradients", "model.widths=[12,12]", "data.batch=200"),
    *("train.epochs=4", "train.log=4 steps"),
)
LONG = ("train.epochs=100000", "optimizer.decay=constant", "run.patience=3")


def job(
    ranks: int, folder: Path, code: str, *settings: str, late: bool = True, gpus: int = 4,
    env: Mapping[str, str] = MappingProxyType({}),
) -> CompletedProcess[str]:  # fmt: skip
    """Run a program on some ranks; its NCCL leaves files in the folder."""
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "MPINN_EMULATED": "1", "TMPDIR": str(folder),
        "XDG_CACHE_HOME": str(folder), "MPINN_EMULATED_GPUS": str(gpus), "MPINN_EMULATED_LATE": "1" if late else "",
        **env,
    }  # fmt: skip
    line = [word for setting in (f"run.directory={folder}/run", *settings) for word in ("--set", setting)]
    return finish(start(ranks, "-c", START + code, *(line if settings else ()), env=environment), timeout=120)


def ends(folder: Path) -> list[str]:
    """How communicators ended."""
    return sorted(path.name for path in folder.glob("nccl-*/*ed-*"))


APART = """
from mpinn.comm import grid
grid.connect = lambda: replace(connect(), machine=RANK % 2)
"""


@pytest.mark.parametrize(("ranks", "machines"), [(2, ""), (4, APART)], ids=["one machine", "two machines"])
def test_the_table_says_how_long_the_computing_waits(ranks: int, machines: str, tmp_path: Path) -> None:
    """All ranks but the last are early by 40 ms in each of 24 steps."""
    slow = f"for index in range(24): at(index, lambda: time.sleep(0.04 * (RANK == {ranks - 1})))\n"
    done = job(ranks, tmp_path, slow + machines + TRAIN, *GRADIENTS)
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    rows, late = summary["ranks"], 24 * 0.04
    waiting = [row["waiting"] * summary["seconds"] for row in rows]
    assert min(waiting[:-1]) > 0.7 * late
    assert waiting[-1] < 0.3 * late
    assert all(sum(row[name] for name in ("computing", "communicating", "waiting")) == pytest.approx(1) for row in rows)


def test_no_thread_of_a_rank_takes_memory_of_another_ones_gpu(tmp_path: Path) -> None:
    """Neither that which prepares batches, nor that which watches NCCL."""
    code = """
import json
from threading import enumerate as threads
from mpinn.comm import grid
grid.connect = lambda: replace(connect(), cores=8)
def tell():
    time.sleep(1)
    found = sorted(cupy._streams.TOUCHED), sorted(thread.name for thread in threads())
    Path(os.environ["TMPDIR"], f"touched-{RANK}").write_text(json.dumps(found))
at(20, tell)
"""
    images = ("model.name=cnn", "model.channels=[3]", "model.kernel=3", "data.crop=1", "run.patience=5")
    done = job(2, tmp_path, code + TRAIN, *GRADIENTS, *images, gpus=2)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        devices, threads = json.loads((tmp_path / f"touched-{rank}").read_text())
        assert devices == [rank]
        assert any(name.startswith("ahead") for name in threads), threads
        assert "watchdog" in threads


def test_timing_takes_few_events(tmp_path: Path) -> None:
    """Two that are recorded for each collective, from a stock that does not grow."""
    code = """
made, recorded = [], []
class Event(cupy.cuda.Event):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        made.append(self.timed)
    def record(self, stream=None):
        recorded.append(self.timed)
        super().record(stream)
cupy.cuda.Event = Event
""" + CHANNEL + """
array = cupy.ones(1000)
made.clear(), recorded.clear()
for turn in range(100):
    channel.all_sum(array).wait()
    float(array[0])
    array /= 2
found = made.count(True), recorded.count(True), made.count(False), recorded.count(False)
seconds = [channel.meter.drain()[0].size, channel.meter.drain()[0].size]
if RANK == 0: print(found, seconds)
leave(0)
"""  # fmt: skip
    done = job(2, tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "(4, 200, 200, 200) [0, 100]\n"


HANGS = {
    "in Python": ("time.sleep(1000)", "{who}: after step 8 does not wait for a message", "{who} did not ask for it"),
    "stopped": (
        "os.kill(os.getpid(), 19)", "{who}: no answer, dead or stopped", "nobody knows whether {who} asked for it"
    ),
}  # fmt: skip


@pytest.mark.parametrize("late", [True, False], ids=["waits for the device", "waits to be asked"])
@pytest.mark.parametrize("how", HANGS)
def test_who_waits_for_nccl_says_for_what_and_who_is_missing_is_named(how: str, late: bool, tmp_path: Path) -> None:
    work, said, why = HANGS[how]
    code = f"if RANK == 1: at(8, lambda: {work})\n"
    done = job(3, tmp_path, code + TRAIN, *GRADIENTS, *LONG, late=late)
    assert done.returncode not in (0, 2, STOPPED)
    assert done.stderr.count("no progress for 3 s: the job is ended") == 1, done.stderr
    assert f"\n{said.format(who='rank 1')}\n" in done.stderr
    # one sum of the gradient in each step, and one number as NCCL was tried
    named = "collective 10 of ranks 0-2"
    doing = rf"after step \d+ waits for NCCL's {named} \(replicas: all_sum, 5,120 bytes\)"
    waits = rf"\nranks 0, 2: {doing}( and \d+ more)?\n"
    assert re.search(waits, done.stderr), done.stderr
    assert f"\n{named}: {why.format(who='rank 1')}\n" in done.stderr
    assert "Traceback" not in done.stderr, "what the main thread meets while the job is ended is no news"
    aborted = [int(name[-1]) for name in ends(tmp_path)]
    assert aborted, "at least the rank that ends the job gives its communicators up"
    assert set(ends(tmp_path)) == {f"aborted-{rank}" for rank in aborted}


def test_an_error_that_nccl_meets_alone_ends_the_job(tmp_path: Path) -> None:
    """Long before anybody has lost patience."""
    code = "at(8, lambda: [(path / 'failed').touch() for path in Path(os.environ['TMPDIR']).glob('nccl-*')])\n"
    done = job(2, tmp_path, code + TRAIN, *GRADIENTS, *LONG)
    assert done.returncode not in (0, 2, STOPPED)
    assert "\nNCCL fails among ranks 0-1: NCCL_ERROR_REMOTE_ERROR: remote process exited or" in done.stderr
    assert "the job is ended: after step " in done.stderr
    assert "no progress" not in done.stderr


def test_a_rank_that_fails_gives_its_communicators_up(tmp_path: Path) -> None:
    """As the interpreter or the driver would otherwise wait for what the others never do."""
    done = job(2, tmp_path, "at(8, lambda: RANK == 1 and 1 / 0)\n" + TRAIN, *GRADIENTS, *LONG)
    assert done.returncode not in (0, 2, STOPPED)
    assert "ZeroDivisionError" in done.stderr
    assert "aborted-1" in ends(tmp_path)
    assert "destroyed-1" not in ends(tmp_path)


ENDINGS = {
    "done": ((), 0, ""),
    "stopped": (("--stop-after", "9"), STOPPED, ""),
    "diverged": (("optimizer.rate=1e30",), 1, "not finite"),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_communicators_end_before_mpi_does(how: str, tmp_path: Path) -> None:
    settings, code, said = ENDINGS[how]
    checked = """
destroy = nccl.NcclCommunicator.destroy
def last(self):
    assert not mpi.MPI.Is_finalized()
    mpi.MPI.COMM_WORLD.Barrier()
    destroy(self)
nccl.NcclCommunicator.destroy = last
"""
    more = f"sys.argv += {list(settings)}\n" if settings[:1] == ("--stop-after",) else ""
    done = job(2, tmp_path, checked + more + TRAIN, *GRADIENTS, *(() if more else settings))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "never ended" not in done.stderr
    assert ends(tmp_path) == ["destroyed-0", "destroyed-1"]


def test_what_nccl_never_does_is_found_at_the_door_and_given_up(tmp_path: Path) -> None:
    """As where something between the GPUs blocks what they send each other."""
    never = """
nccl.NcclCommunicator.all_here = lambda self, number: self._aborted.is_set()
binding.PATIENCE = groups.PATIENCE = 0.5
"""
    done = job(2, tmp_path, never + TRAIN, *GRADIENTS)
    assert done.returncode == 2, done.stderr
    told = "nccl: NCCL 2.27.3 does not add up here (a sum of one number is not done after 0.5 s"
    assert f"run.collectives: {told}: NCCL_DEBUG=INFO says more); choose mpi" in done.stderr
    assert not (tmp_path / "run").exists()
    assert ends(tmp_path) == ["aborted-0", "aborted-1"]


def test_who_cannot_begin_is_told_to_all_at_the_door(tmp_path: Path) -> None:
    code = """
def fails(): raise nccl.NcclError("NCCL_ERROR_SYSTEM_ERROR: no socket interface found")
if RANK == 0: nccl.get_unique_id = fails
"""
    done = job(2, tmp_path, code + TRAIN, *GRADIENTS)
    assert done.returncode == 2, done.stderr
    assert "does not add up here (NCCL_ERROR_SYSTEM_ERROR: no socket interface found); choose mpi" in done.stderr


def test_machines_are_told_apart_by_what_mpi_says(tmp_path: Path) -> None:
    """Not by their names: two may have one, and containers of one machine have many."""
    code = """
silence_other_ranks()
install_abort_hook()
world = connect()
device = choose_device("gpu", "plain", world.local_rank)
print("MPI:", world.gather_text(str(world.machine)))
for changed in (replace(world, machine=world.rank), replace(world, host=f"box-{world.rank}")):
    try:
        print(binding.choose_nccl(changed, device)[1])
    except binding.InputError as error:
        print(error)
leave(0)
"""
    found = [job(2, tmp_path, code, gpus=gpus).stdout.splitlines() for gpus in (1, 2)]
    apart = "NCCL 2.27.3 has nothing to do: no two ranks share a machine"
    assert found[0] == ["MPI: ['0', '0']", apart, "run.collectives: nccl: ranks 0-1 share GPUs; choose mpi"]
    assert found[1] == ["MPI: ['0', '0']", apart, "collectives within a machine by NCCL 2.27.3"]
    alone = job(2, tmp_path, code, env={"MPIR_CVAR_NOLOCAL": "1"}).stdout.splitlines()
    assert alone[0] == "MPI: ['0', '1']"


def test_a_message_moves_on_while_the_device_waits_for_its_receiver(tmp_path: Path) -> None:
    """As NCCL's documentation demands where it works beside MPI."""
    code = CHANNEL + """
large, array = np.zeros(20_000_000), cupy.ones(1000)
channel.all_sum(array).wait()
device.kernels.synchronize()
if RANK == 0:
    sent = channel.send(large, 1)
    channel.all_sum(array).wait()
    # it is copied to the host only after the sum, which rank 1 asks for when it has the large message
    channel.send(array, 1).wait()
    sent.wait()
else:
    time.sleep(0.2)
    channel.receive(large, 0).wait()
    channel.all_sum(array).wait()
    device.kernels.synchronize()
    channel.receive(array, 0).wait()
    print(float(array.get().sum()), file=sys.__stdout__, flush=True)
leave(0)
"""  # fmt: skip
    # without CMA the receiver cannot take the message while the sender is elsewhere
    done = job(2, tmp_path, code, env={"MPIR_CVAR_CH4_CMA_ENABLE": "0"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "4000.0\n"
