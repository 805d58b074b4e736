"""The tables that every configuration has. Below each key stands what it means, which `python -m mpinn keys` prints."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from mpinn.errors import InputError
from mpinn.length import Cadence, Period

Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where the run is kept and how its arithmetic is done."""

    directory: str = "runs/digits"
    """Where checkpoints, metrics and log are written; a run that is there goes on."""
    seed: Seed = 0
    """Of all that is drawn: initial weights, the order of samples, dropout, crops."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of weights, gradients and activations."""
    transport: Literal["auto", "direct", "staged"] = "auto"
    """How arrays on GPUs are sent: from where they are (direct) or through host memory (staged); ``auto`` is direct
    where a probe has shown that MPI reads the memory of GPUs. In host memory ``auto`` is direct."""
    collectives: Literal["mpi", "nccl"] = "mpi"
    """What sums and gathers arrays on GPUs; ``nccl`` works within a machine, needs a GPU for each rank, and beside it
    the transport of all else is not direct."""
    deterministic: bool = False
    """Add what ranks sum in the order of the ranks, whatever order MPI would choose. With NCCL it takes memory for the
    contributions of all."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """``auto`` is a GPU where there is one: that of the rank's number on its machine."""
    tf32: bool = False
    """Let a GPU multiply float32 in 10 bits of mantissa, which is several times as fast."""
    bf16: bool = False
    """Store activations on a GPU in bfloat16 and multiply them; weights, their gradients, statistics and the optimizer
    stay in float32."""
    kernels: Literal["auto", "plain", "compiled"] = "auto"
    """Of the CPU: by NumPy alone (plain) or by numba; ``auto`` is compiled where numba can be imported. They round
    differently: a run keeps its own."""
    survive: bool = False
    """Let replicas go on when ranks of others have died: needs an MPI that has ULFM, and two copies of the weights
    and of what the optimizer remembers on each rank."""
    patience: Amount = 600.0
    """Seconds without progress in training after which the job is ended, 0 for never; longer than all that a rank
    does while others wait, such as writing a checkpoint."""

    def __post_init__(self) -> None:
        if not self.directory.strip():
            raise InputError("run.directory", "expected the path of a directory, got an empty string")
        if self.bf16 and self.dtype != "float32":
            raise InputError("run.bf16", f"beside bfloat16 stand weights in float32, got run.dtype = {self.dtype!r}")
        if self.collectives == "nccl" and self.survive:
            raise InputError("run.collectives", "nccl: NCCL does not survive the death of a rank: choose mpi")


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is learnt from, and how it is dealt to the replicas."""

    name: str = "digits"
    """The data set, or the kind of file that has it."""
    path: str = ""
    """The file of ``hdf5`` and ``npz``; of mnist, cifar10 and cifar100 a file, folder or archive in place of the
    converted file; digits have none."""
    batch: Positive = 128
    """Samples of a step, of all replicas together: the global batch, which does not change with the grid."""
    deal: Literal["auto", "redealt", "fixed", "same", "skewed"] = "auto"
    """Which samples a replica sees: others in each epoch (redealt), a shard of its own for the whole run (fixed), all
    of them (same), in a run that keeps its number of replicas, or a shard of few labels (skewed); ``auto`` is what the
    consensus prefers."""
    crop: Natural = 0
    """Pixels of zeros around a training image, from which a window of the old size is cut at random; 0 for none."""
    flip: bool = False
    """Mirror one training image in two, drawn anew in each epoch."""
    memory: Amount = 2.0
    """GiB of a split of an HDF5 file that a rank holds; of a larger one it reads each batch from the file."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How many ranks stand on each axis; their product is the number of ranks."""

    replicas: Natural = 0
    """Copies of the network, which learn from different samples; 0 for as many as the ranks allow."""
    stages: Positive = 1
    """Into how many parts, each on a rank of its own, the depth of a network is cut; needs a schedule for stages."""
    shards: Natural = 1
    """Ranks to which the members of a population are dealt; 0 for as many as the ranks allow, of one replica then."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """The run's length and what is measured on the way."""

    epochs: Natural = 60
    """Passes over the training samples; a finished run goes on if this becomes more."""
    evaluate: Period = field(default=Period("1 epoch"))
    """How often the model is measured on the validation split, as it is at the end."""
    log: Period = field(default=Period("1 epoch"))
    """How often a line is written to the metrics; of these a log shows about twenty, at equal distances."""
    clip: Amount = 0.0
    """Largest norm of a mean gradient, to which a longer one is shortened; 0 for any. That of the whole network; of
    each stage for itself where stages apply gradients of different batches or losses (fdg, layerwise, ddg, fr, local);
    of each member of a population."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """How often the state is saved, and how much of it is kept."""

    every: Cadence = field(default=Cadence("10 epochs"))
    """How often the state is saved, as it is at the end and when the run is stopped."""
    keep: Positive = 3
    """How many of the newest checkpoints are kept; the best one is kept besides."""


FIXED: dict[str, type] = {"run": Run, "data": Data, "grid": Grid, "train": Train, "checkpoint": Checkpoint}
