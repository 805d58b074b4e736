"""Which transport a run has, and why."""

from mpinn.comm.findings import Findings
from mpinn.comm.memory import Memory
from mpinn.comm.transport import Direct, Staged, Transports, same
from mpinn.errors import InputError

CHOICES = ("auto", "direct", "staged")
HINT = "mpirun -n 2 python -m mpinn doctor --probe"


def choose_transports(
    setting: str,
    library: str,
    found: Findings | None = None,
    memory: Memory | None = None,
    ranks: int = 2,
    nccl: bool = False,
) -> tuple[Transports, str]:
    """The transports for arrays in ``memory`` (None: the host's) and a sentence for the log: the choice, and why.

    Equal on all ranks of a job if ``setting`` and ``found`` are, whatever their memory: they have to cut messages
    alike. library: its name, for the log; found: what is known of it, None where no rank has a GPU; ranks: how many
    there are; nccl: whether it carries collectives, beside which MPI is not to reach for the memory of devices: "using
    both MPI and NCCL to perform transfers between the same sets of CUDA devices concurrently is not guaranteed to be
    safe" (NCCL's documentation, "NCCL and MPI"). Raises InputError.
    """
    if setting not in CHOICES:
        raise InputError("run.transport", f"{setting!r} is not one of {', '.join(CHOICES)}")
    if nccl and setting == "direct":
        raise InputError("run.transport", "direct: beside NCCL it may wait for ever; choose staged, or collectives mpi")
    direct, staged = Direct(memory), Staged(memory)
    if setting != "auto":
        transports, why = same(direct if setting == "direct" else staged), f"the configuration says {setting}"
    elif found is None:
        transports, why = same(direct), "arrays are in host memory"
    elif ranks == 1:
        transports, why = same(direct), "one rank sends none"
    elif nccl:
        transports, why = same(staged), "direct ones beside NCCL may wait for ever"
    else:
        transports = Transports(direct if found.messages else staged, direct if found.sums else staged)
        why = _why(found, library)
    return transports, f"{transports}: {why}"


def _why(found: Findings, library: str) -> str:
    shown = f"a probe has shown that {library}"
    if found.messages is None and not found.sums:
        return f"no probe has shown that {library} reads device memory ({HINT})"
    if found.messages and found.sums:
        return f"{shown} reads device memory"
    if found.messages:
        return f"{shown} reads device memory, " + (
            "but not in non-blocking sums" if found.sums is False else f"and has not tried sums ({HINT})"
        )
    return f"{shown} {'reads device memory in sums only' if found.sums else 'cannot read device memory'}"
