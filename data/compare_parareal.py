"""Train a parareal network of 1, 2, 3 and 4 fine blocks for equally many epochs, and print a table of what they reach.

    python data/compare_parareal.py FOLDER jobs/parareal.toml --set data.name=mnist --set train.epochs=5

One block is the network itself. Every run is on one rank, which trains the same network as one rank for each block
does; finished runs in FOLDER are not trained again. Accuracy is that of the test split, mean and standard deviation
over seeds. With ``--at-once 4`` four runs go on at a time, which a GPU has room for.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from mpinn.storage.reader import Checkpoint


def main() -> None:
    """Train what has not been trained, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("job")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=1)
    asked = parser.parse_args()
    with ThreadPoolExecutor(asked.at_once) as starter:
        pairs = [(blocks, seed) for seed in asked.seeds for blocks in asked.blocks]
        done = dict(zip(pairs, starter.map(lambda pair: trained(asked, *pair), pairs), strict=True))
    print("| fine blocks | parameters | test accuracy | seeds | seconds of training |\n|---|---|---|---|---|")
    for blocks in asked.blocks:
        runs = [done[blocks, seed] for seed in asked.seeds]
        reached = [100 * summary["test"]["accuracy"] for summary in map(summary_of, runs)]
        spread = f" ± {stdev(reached):.2f}" if len(reached) > 1 else ""
        seconds = mean(summary_of(run)["seconds"] for run in runs)
        name = "1 (serial)" if blocks == 1 else str(blocks)
        told = ", ".join(f"{value:.2f}" for value in reached)
        print(
            f"| {name} | {parameters(runs[0]):,} | {mean(reached):.2f}{spread} % | {told} | {seconds:.0f} |", flush=True
        )


def trained(asked: argparse.Namespace, blocks: int, seed: int) -> Path:
    """The directory of a run, after it has been trained."""
    run = asked.folder / f"{blocks}-blocks-seed-{seed}"
    own = [f"run.directory={run}", f"run.seed={seed}", "grid.stages=1", f"schedule.blocks={blocks}"]
    settings = [word for setting in (*asked.settings, *own) for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "mpinn", "train", asked.job, *settings], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr or f"{run}: it was stopped")
    return run


def summary_of(run: Path) -> dict:
    """What a finished run says of itself."""
    return json.loads((run / "summary.json").read_text())


def parameters(run: Path) -> int:
    """Of the network of a run."""
    with Checkpoint(run / "latest") as checkpoint:
        kind = checkpoint.model()
        return sum(checkpoint.weights(entry.name, kind).size for entry in checkpoint.parameters(kind))


if __name__ == "__main__":
    main()
