"""Checks and measures everything on a machine with a GPU, each stage within a time limit, and sums up.

Logs and figures go to a folder. The exit code is 1 if any stage failed, and 2 where there is no GPU to work with.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from launch import ROOT, descendants  # noqa: E402

LOOK = """
import cupy
from cupy.cuda import runtime
from mpinn.array.cuda_conv import frontend
from mpinn.array.cuda_epilogues import said
from mpinn.array.cuda_nccl import library
from mpinn.array.device import describe_devices

for line in describe_devices():
    print(line)
print("CuPy", cupy.__version__, "with CUDA", runtime.runtimeGetVersion())
cudnn = frontend()
print("cuDNN", "is missing: convolutions will be slow" if cudnn is None else cudnn.backend_version())
print("dense layers", said(tf32=False))
try:
    print("NCCL", library().get_version())
except ImportError as error:
    print(error)
"""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # jobs that run at once would all be bound to the first cores
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


@dataclass(frozen=True)
class Stage:
    """A command of Python's, and the seconds that it may take; ``shown``: whether all that it says is worth reading."""

    name: str
    arguments: tuple[str, ...]
    limit: float
    shown: bool = False


@dataclass(frozen=True)
class Ended:
    """What became of a stage."""

    stage: Stage
    code: int | None
    seconds: float
    output: str

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.code is None:
            return f"not done after {self.stage.limit:.0f} s"
        return "passed" if self.code == 0 else f"FAILED ({self.code})"

    @property
    def last(self) -> str:
        """The last line that it said."""
        lines = self.output.strip().splitlines()
        return lines[-1].strip("= ") if lines else ""


def run(stage: Stage, folder: Path, environment: dict[str, str]) -> Ended:
    """Run a stage to its end, or to its limit; its output goes to a log."""
    log, begun = folder / f"{stage.name.replace(' ', '-')}.log", time.monotonic()
    with log.open("w") as file:
        job = subprocess.Popen(
            [sys.executable, *stage.arguments], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = job.wait(stage.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if job.poll() is None:
                _end(job)
    ended = Ended(stage, code, time.monotonic() - begun, log.read_text(errors="replace"))
    if code == 0 and not stage.shown:
        print(f"{stage.name}: {ended.verdict} in {ended.seconds:.0f} s: {ended.last}", flush=True)
    else:
        print(f"--- {stage.name}\n{ended.output.strip()}\n--- {ended.verdict}, {ended.seconds:.0f} s\n", flush=True)
    return ended


def _end(job: "subprocess.Popen[bytes]") -> None:
    """Kill it and all below it: launchers have process groups of their own."""
    for process in (*descendants(job.pid), job.pid):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    job.wait()


def stages(quick: bool, folder: Path, stand_in: bool) -> tuple[list[Stage], list[Stage]]:
    """Those that may run side by side, and those that need the device for themselves."""
    fast = ["--quick"] if quick else []
    size = ["--small", "--stand-in"] if stand_in else fast
    checks = [
        Stage("whole programs", ("tests/gpu/whole_program.py", *size), 300),
        Stage("device tests", ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "tests/device"), 200),
    ]
    bench = ("-m", "mpinn", "bench", "gpu", *fast, "--json")
    benches = [
        Stage("training steps", (*bench, str(folder / "steps.json")), 150 if quick else 400, shown=True),
        Stage("kernels", (*bench, str(folder / "kernels.json"), "--kernels"), 90 if quick else 150, shown=True),
    ]
    return checks, benches


def environment_of(stand_in: bool) -> dict[str, str]:
    """That of all stages: the launcher is the one on the path, which must fit the library that mpi4py finds."""
    path = [str(ROOT / "tests" / "emulation")] if stand_in else []
    found = shutil.which("mpirun")
    return {
        **ENVIRONMENT,
        **({"MPINN_TEST_MPIRUN": found} if found else {}),
        **({"MPINN_EMULATED": "1"} if stand_in else {}),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [*path, str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "PYTHONUNBUFFERED": "1",
    }


def summary(found: Sequence[Ended], seconds: float) -> str:
    """A table."""
    rows = [f"{e.stage.name:16}  {e.verdict:22}  {e.seconds:5.0f} s  {e.last[:70]}" for e in found]
    return "\n".join([*rows, f"{'all':16}  {'':22}  {seconds:5.0f} s"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cases, fewer rounds")
    parser.add_argument("--skip", choices=("checks", "benches"), action="append", default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder for logs and figures")
    parser.add_argument(
        "--stand-in", action="store_true", help="rehearse on the stand-in for a device, without benches"
    )
    given = parser.parse_args(arguments)
    folder, begun = given.out.resolve(), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    environment = environment_of(given.stand_in)
    looked = run(Stage("look", ("-c", LOOK), 60, shown=True), folder, environment)
    if looked.code != 0:
        print("there is no GPU that CuPy can use: nothing is checked")
        return 2
    checks, benches = stages(given.quick, folder, given.stand_in)
    found = [looked]
    if "checks" not in given.skip:
        with ThreadPoolExecutor() as pool:
            found += pool.map(lambda stage: run(stage, folder, environment), checks)
    if "benches" not in given.skip and not given.stand_in:
        found += [run(stage, folder, environment) for stage in benches]
    text = summary(found, time.monotonic() - begun)
    (folder / "summary.txt").write_text(text + "\n")
    print(text)
    return int(any(ended.code != 0 for ended in found))


if __name__ == "__main__":
    sys.exit(main())
