"""Checks and measures everything on a machine with a GPU, each stage within a time limit, and sums up.

A log, figures and the summary go to a folder: four files. What is printed is short. The exit code is 1 if any stage
failed, and 2 where there is no GPU to work with.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from launch import ROOT, descendants  # noqa: E402

SHOWN = 1500
"""Characters of what a stage has said where it failed, about, and three times as many of figures: the log has all."""
QUICK = 540.0
"""Seconds in which all ends with ``--quick``, the last stages early if need be."""
LEAST = 10.0
"""With fewer seconds left no stage begins."""
TO_END = 5.0
"""Seconds in which a stage may still say what it has found, once its time is over."""
LOG = "log.txt"
PEERS = "^  PyTorch"
"""Rows of training steps that ratios in other rows tell of."""
AS_EXPECTED = r"  \d\.\de[-+]\d+  .* s$"
"""Rows of programs that are as far from those of the host as they may be."""
FAST_ENOUGH = r"  \d+%(  small)?$"
"""Rows of kernels that are as fast as they may be expected to be."""
PRINTING = threading.Lock()
HEARS = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
"""Where a shell without job control has started this in the background, its children would not be told to end."""
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
    """A command of Python's, and the seconds that it may take.

    ``shown``: whether what it says is worth reading if all goes well; ``hidden``: lines of it that are not.
    """

    name: str
    arguments: tuple[str, ...]
    limit: float
    shown: bool = False
    hidden: str = ""

    def within(self, seconds: float) -> "Stage":
        """The same, with so many seconds at most."""
        return replace(self, limit=min(self.limit, seconds))


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
        if self.code is None and not self.seconds:
            return "not begun: no time"
        if self.code is None:
            return f"not done after {self.stage.limit:.0f} s"
        return "passed" if self.code == 0 else f"FAILED ({self.code})"

    @property
    def last(self) -> str:
        """The last line that it said."""
        lines = self.output.strip().splitlines()
        return lines[-1].strip("= ") if lines else ""

    @property
    def told(self) -> str:
        """What is worth reading of all that it said; of a long failure the beginning and the end."""
        lines = self.output.strip().splitlines()
        own = [line for line in lines if not (self.stage.hidden and re.search(self.stage.hidden, line))]
        if len(own) < len(lines):
            own.append(f"({len(lines) - len(own)} more rows in {LOG})")
        text, most = "\n".join(own), SHOWN * (3 if self.stage.shown else 1)
        if self.code == 0 or len(text) <= most:
            return text
        return f"{text[: most // 3]}\n... ({len(text) - most:,} characters more in {LOG})\n{text[-2 * most // 3 :]}"


def run(stage: Stage, folder: Path, environment: dict[str, str]) -> Ended:
    """Run a stage to its end, or to its limit; what it says is added to the log when it has ended."""
    own, begun = folder / f"{stage.name.replace(' ', '-')}.log", time.monotonic()
    with own.open("w") as file:
        job = subprocess.Popen(
            [sys.executable, *stage.arguments], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=HEARS,
        )  # fmt: skip
        try:
            code: int | None = job.wait(stage.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if job.poll() is None:
                _end(job)
    ended = Ended(stage, code, time.monotonic() - begun, own.read_text(errors="replace"))
    with PRINTING:
        with (folder / LOG).open("a") as log:
            log.write(f"--- {stage.name}: {ended.verdict}, {ended.seconds:.0f} s\n{ended.output.strip()}\n\n")
        own.unlink()
        if code == 0 and not stage.shown:
            print(f"{stage.name}: {ended.verdict} in {ended.seconds:.0f} s", flush=True)
        else:
            print(f"--- {stage.name}\n{ended.told}\n--- {ended.verdict}, {ended.seconds:.0f} s\n", flush=True)
    return ended


def _end(job: "subprocess.Popen[bytes]") -> None:
    """Let it say what it has found, then kill it and all below it: launchers have process groups of their own."""
    below = descendants(job.pid)
    job.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        job.wait(TO_END)
    for process in {*below, *descendants(job.pid), job.pid}:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    job.wait()


def stages(quick: bool, folder: Path, stand_in: bool) -> tuple[list[Stage], list[Stage]]:
    """Those that may run side by side, and those that need the device for themselves."""
    fast = ["--quick"] if quick else []
    size = ["--small", "--stand-in"] if stand_in else fast
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--tb=short")
    # each in a process of its own: after an illegal access to memory nothing in a process can use the device any more
    files = sorted((ROOT / "tests" / "device").glob("test_*.py"))
    checks = [
        Stage("whole programs", ("tests/gpu/whole_program.py", *size), 300, hidden=AS_EXPECTED),
        *(Stage(f"device {file.stem[5:]}", (*tests, str(file)), 900 if stand_in else 200) for file in files),
    ]
    bench = ("-m", "mpinn", "bench", "gpu", *fast, "--json")
    benches = [
        Stage("training steps", (*bench, str(folder / "steps.json")), 150 if quick else 400, True, PEERS),
        Stage("kernels", (*bench, str(folder / "kernels.json"), "--kernels"), 90 if quick else 150, True, FAST_ENOUGH),
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
    rows = [f"{e.stage.name:26}  {e.verdict:22}  {e.seconds:5.0f} s  {e.last[:70]}" for e in found]
    return "\n".join([*rows, f"{'all':26}  {'':22}  {seconds:5.0f} s"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"fewer cases, fewer rounds, within {QUICK:.0f} s")
    parser.add_argument("--skip", choices=("checks", "benches"), action="append", default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder for logs and figures")
    parser.add_argument(
        "--stand-in", action="store_true", help="rehearse on the stand-in for a device, without benches"
    )
    given = parser.parse_args(arguments)
    folder, begun = given.out.resolve(), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).unlink(missing_ok=True)
    environment = environment_of(given.stand_in)

    def in_time(stage: Stage) -> Ended:
        left = begun + QUICK - TO_END - time.monotonic() if given.quick else stage.limit
        return run(stage.within(left), folder, environment) if left > LEAST else Ended(stage, None, 0.0, "")

    looked = run(Stage("look", ("tests/gpu/look.py",), 60, shown=True), folder, environment)
    if looked.code == 2:
        print("there is no GPU that CuPy can use: nothing is checked")
        return 2
    checks, benches = stages(given.quick, folder, given.stand_in)
    found = [looked]
    if "checks" not in given.skip:
        with ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0)))) as pool:
            found += pool.map(in_time, checks)
    if "benches" not in given.skip and not given.stand_in:
        found += map(in_time, benches)
    text = summary(found, time.monotonic() - begun)
    (folder / "summary.txt").write_text(text + "\n")
    print(text)
    return int(any(ended.code != 0 for ended in found))


if __name__ == "__main__":
    sys.exit(main())
