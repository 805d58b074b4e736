"""Trains whole programs on the device and compares them: ``python tests/gpu/whole_program.py [--quick]``.

Each case is trained on the host and on the device, with messages through the host and, where the MPI library reads
device memory, without. Several jobs run at once, as many as there are cores for their ranks. ``--stand-in``: on the
stand-in for CuPy in tests/emulation.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from launch import ROOT, alone, mpirun  # noqa: E402
from train_jobs import arguments, datasets, differences  # noqa: E402

from gpu.cases import CASES, SMALL, STOP, Case, settings_of  # noqa: E402
from mpinn.array.device import count_devices  # noqa: E402
from mpinn.comm.findings import Findings  # noqa: E402

TIME_LIMIT = 100
"""Seconds of one job, of which the first few compile kernels."""
STOPPED = 75
LINE = 240
"""Characters of a failure in one line."""
PROBE = """
import cupy
from mpi4py import MPI

world = MPI.COMM_WORLD
cupy.cuda.Device(world.rank % cupy.cuda.runtime.getDeviceCount()).use()
array = cupy.full(1 << 20, 1.0 + world.rank)
cupy.cuda.Device().synchronize()
{what}.Wait()
assert float(array.sum()) == {found} * (1 << 20)
"""
MESSAGES = PROBE.format(what="(world.Irecv(array, 0) if world.rank else world.Isend(array, 1))", found=1)
SUMS = PROBE.format(what="world.Iallreduce(MPI.IN_PLACE, array)", found=3)
"""What the program asks of MPI: a library may do the one, or blocking sums, and crash in the other."""


class CaseError(Exception):
    """What a case should not have done."""


@dataclass(frozen=True)
class Result:
    """What became of a case: how far it is from the host's, what else was found equal to the last bit, or a failure."""

    case: Case
    seconds: float
    apart: float = float("nan")
    equal: tuple[str, ...] = ()
    failure: str = ""


class Slots:
    """As many ranks run at once as there are slots."""

    def __init__(self, count: int):
        self._count = self._free = count
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def taken(self, ranks: int) -> Iterator[None]:
        """Wait for a slot for each rank, or for all slots."""
        wanted = min(ranks, self._count)
        # one waits at a time, so that no small job takes what a large one waits for
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


@dataclass(frozen=True)
class Jobs:
    """Starts runs of cases below a folder, on the host or on the device."""

    folder: Path
    slots: Slots
    device: Mapping[str, str]
    """Environment of jobs on the device."""

    def train(self, case: Case, name: str, where: str, *more: str, code: int = 0) -> Path:
        """Train, or go on, and give back the newest checkpoint; ``where``: cpu, or the transport of a device."""
        directory = self.folder / "".join(c if c.isalnum() else "-" for c in case.name) / name
        placed = ("run.device=cpu", *case.cpu_only) if where == "cpu" else ("run.device=gpu", f"run.transport={where}")
        line = arguments(directory, *settings_of(case), *placed, *more)
        environment = {} if where == "cpu" else dict(self.device)
        if environment:  # of the stand-in, whose NCCL leaves files in a folder for them
            environment |= {"MPINN_EMULATED_GPUS": str(case.gpus), "TMPDIR": str(self.folder)}
        with self.slots.taken(case.ranks):
            try:
                if case.ranks == 1:
                    job = alone(*line, timeout=TIME_LIMIT, env=environment)
                else:
                    job = mpirun(case.ranks, *line, timeout=TIME_LIMIT, env=environment)
            except subprocess.TimeoutExpired as error:
                said = f"{name} is not done after {TIME_LIMIT} s\n{error.output}\n{error.stderr}"
                raise CaseError(said) from None
        said = f"{job.stdout}\n{job.stderr}"
        if job.returncode != code:
            raise CaseError(f"{name} ended with {job.returncode}, not {code}\n{said}")
        if ("device gpu" in job.stdout) != (where != "cpu"):
            raise CaseError(f"{name} was trained elsewhere\n{said}")
        return directory / "latest"


def compare(case: Case, jobs: Jobs, direct: Findings) -> Result:
    """Train a case in all its ways."""
    begun = time.monotonic()
    try:
        apart, equal = _compared(case, jobs, bool(direct.messages and (case.mail or direct.sums)))
    except CaseError as failure:
        return Result(case, time.monotonic() - begun, failure=str(failure))
    return Result(case, time.monotonic() - begun, apart, equal)


def _compared(case: Case, jobs: Jobs, direct: bool) -> tuple[float, tuple[str, ...]]:
    staged, host = jobs.train(case, "staged", "staged"), jobs.train(case, "cpu", "cpu")
    apart, equal = distance(staged, host), []
    _limited("staged and cpu", apart, case)
    if direct and case.ranks > 1 and case.direct:
        found = jobs.train(case, "direct", "direct")
        _limited("direct and cpu", distance(found, host), case)
        if case.mail:
            _same("direct and staged", found, staged)
            equal.append("direct")
    if case.twice:
        if "direct" not in equal:
            _same("again and staged", jobs.train(case, "again", "staged"), staged)
            equal.append("again")
        # a timeline is of passes that are not recorded
        _same("not recorded and staged", jobs.train(case, "plain", "staged", "--trace"), staged)
        equal.append("plain")
        jobs.train(case, "stopped", "staged", "--stop-after", STOP, code=STOPPED)
        _same("stopped and staged", jobs.train(case, "stopped", "staged"), staged)
        equal.append("resumed")
    return apart, tuple(equal)


def _limited(what: str, apart: float, case: Case) -> None:
    if not apart <= case.apart:
        raise CaseError(f"{what} are {apart:.1e} apart, and may be {case.apart:.0e}")


def _same(what: str, one: Path, other: Path) -> None:
    # which tells the directory, and where it was trained
    if found := [name for name in differences(one, other) if name != "configuration"]:
        raise CaseError(f"{what} differ in {', '.join(found[:8])}, and {max(0, len(found) - 8)} more")


def distance(one: Path, other: Path) -> float:
    """The largest distance of what two checkpoints hold, kind by kind: of weights, statistics, each slot, each replica.

    As a share of the norm.
    """
    first, second = datasets(one), datasets(other)
    sums: dict[str, list[float]] = {}
    for name, values in second.items():
        if not name.startswith(("model/", "state/", "optimizer/", "replica/")) or values.dtype.kind != "f":
            continue
        if name not in first or first[name].shape != values.shape:
            return float("inf")
        kind = name.split("/network")[0].split("/auxiliary")[0]
        own = sums.setdefault(kind, [0.0, 0.0])
        own[0] += float(np.square(first[name] - values).sum(dtype=np.float64))
        own[1] += float(np.square(values).sum(dtype=np.float64))
    if "model" not in sums:
        return float("inf")
    return max((above / below) ** 0.5 if below else float(above > 0) for above, below in sums.values())


def environment_of(stand_in: bool) -> dict[str, str]:
    """That of jobs on the device."""
    if not stand_in:
        return {}
    path = [str(TESTS / "emulation"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, path)), "MPINN_EMULATED": "1"}


def reads_device_memory(program: str) -> bool:
    """Whether two ranks can do this with arrays of the device as they are; a library that cannot often crashes."""
    try:
        return mpirun(2, "-c", program, timeout=TIME_LIMIT).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def run(cases: Sequence[Case], jobs: Jobs, direct: Findings, at_once: int) -> list[Result]:
    """Compare all cases, and print each as soon as it is known."""
    results = []
    with ThreadPoolExecutor(at_once) as pool:
        for done in as_completed([pool.submit(compare, case, jobs, direct) for case in cases]):
            result = done.result()
            results.append(result)
            # now, since those that are still to come may be cut off
            print(
                "\n".join([line_of(result), *([f"    {cause(result.failure)}"] if result.failure else [])]), flush=True
            )
    return results


def cause(failure: str) -> str:
    """What a case should not have done, and the last error that it told of, in one line."""
    first, *said = failure.strip().splitlines()
    errors = [line.strip() for line in said if re.search(r"(Error|Exception|Interrupt|Signal|error)\b.*:", line)]
    return ": ".join([first, *errors[-1:]])[:LINE]


def said_of(direct: Findings) -> str:
    """What MPI does without the host."""
    does = [name for name, able in (("messages", direct.messages), ("sums", direct.sums)) if able]
    return " and ".join(does) or "no"


def line_of(result: Result) -> str:
    """One line of the table."""
    said = "FAILED" if result.failure else f"{result.apart:.1e}"
    return (
        f"{result.case.name:46}  {result.case.ranks}  {said:>8}  {', '.join(result.equal):24}  {result.seconds:5.1f} s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 if a case has failed."""
    parser = argparse.ArgumentParser(description="Train whole programs on the device, and compare them.")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--small", action="store_true", help="very few cases")
    parser.add_argument("--only", action="append", default=[], help="cases with this in their name")
    parser.add_argument("--stand-in", action="store_true", help="on the stand-in for a device")
    parser.add_argument("--direct", choices=("auto", "yes", "no"), default="auto", help="messages from device memory")
    parser.add_argument("--slots", type=int, default=len(os.sched_getaffinity(0)), help="ranks at once")
    parser.add_argument("--keep", type=Path, help="where the runs are kept; else they are not")
    given = parser.parse_args(arguments)
    chosen = [
        case
        for case in CASES
        if (case.quick or not given.quick) and (case.name in SMALL or not given.small)
        and (not given.only or any(text in case.name for text in given.only))
    ]  # fmt: skip
    if not chosen:
        parser.error("no case has such a name")
    gpus = max(case.gpus for case in CASES) if given.stand_in else count_devices()[0]
    if left_out := [case for case in chosen if case.gpus > gpus]:
        print(f"{len(left_out)} cases need more GPUs than {gpus}, and are left out", flush=True)
        chosen = [case for case in chosen if case.gpus <= gpus]
    begun = time.monotonic()
    known = given.direct == "yes" if given.direct != "auto" or given.stand_in else None
    direct = Findings(*(reads_device_memory(each) if known is None else known for each in (MESSAGES, SUMS)))
    print(f"{len(chosen)} cases, {given.slots} ranks at once, device memory read by MPI: {said_of(direct)}")
    print(f"{'case':46}  n  {'from cpu':>8}  {'equal bit for bit':24}  {'time':>7}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        jobs = Jobs(given.keep or Path(folder), Slots(given.slots), environment_of(given.stand_in))
        results = run(chosen, jobs, direct, at_once=max(2, given.slots))
    failed = [result for result in results if result.failure]
    for result in failed:
        print(f"\n--- {result.case.name}\n{result.failure[-4000:]}")
    for result in failed:
        print(f"{result.case.name}: {cause(result.failure)}")
    print(f"{len(results) - len(failed)} of {len(results)} cases passed in {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
