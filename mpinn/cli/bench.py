"""The command that measures speed."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from mpinn.cli.files import choose

benches = typer.Typer()

ALONE = ("mlp", "layers", "networks")
TOGETHER = ("replicas", "depth", "parareal", "checkpoint")
"""What rows are measured of, on one rank and on all; `mpinn.bench` has a module of each name."""
OTHERS = ("population", "fleet", "gpu", "messages")


@benches.command()
def bench(
    what: Annotated[str, typer.Argument(help="Such as mlp, networks, population, gpu, replicas, depth.")],
    full: Annotated[bool, typer.Option("--full", help="Of population, all works instead of some.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Of gpu, fewer rounds.")] = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="Of gpu, single kernels instead of steps.")] = False,
    compiled: Annotated[bool, typer.Option("--compiled", help="Of gpu, torch.compile too.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Of gpu, a file that is to have all figures.")] = None,
) -> None:
    """Measure speed, beside PyTorch's where PyTorch is installed, as ratios from one run.

    \b
    python -m mpinn bench mlp
    python -m mpinn bench networks
    python -m mpinn bench population
    python -m mpinn bench gpu --kernels
    mpirun -n 2 python -m mpinn bench messages
    mpirun -n 2 python -m mpinn bench replicas
    mpirun -n 2 python -m mpinn bench depth
    mpirun -n 4 python -m mpinn bench parareal
    mpirun -n 2 python -m mpinn bench checkpoint
    """
    choose("bench", what, (*ALONE, *TOGETHER, *OTHERS))
    if what == "population":
        from mpinn.bench import population

        for work in population.ALL if full else population.SOME:
            population.print_rows(population.run((work,)))
    elif what == "fleet":
        from mpinn.bench import fleet

        fleet.run()
    elif what == "gpu":
        from mpinn.bench import gpu

        gpu.show(quick, kernels, compiled, json)
    elif what == "messages":
        _messages()
    else:
        _rows(what)


def _rows(what: str) -> None:
    module = import_module(f"mpinn.bench.{what}")
    if what in ALONE:
        module.print_rows(module.run())
        return
    from mpinn.comm.grid import connect

    world = connect()
    rows = module.run(world)
    if world.rank == 0:
        module.print_rows(rows)


def _messages() -> None:
    from mpinn.array.device import choose_device
    from mpinn.bench import device_messages, messages, window
    from mpinn.comm.grid import connect

    world = connect()
    device = choose_device("auto", "plain", world.local_rank)
    rows, windows = messages.run(world), window.run(world, device)
    between_devices = device_messages.run(world, device)
    if world.rank == 0:
        messages.print_rows(rows)
        window.print_rows(windows)
        if between_devices:
            device_messages.print_rows(between_devices)
