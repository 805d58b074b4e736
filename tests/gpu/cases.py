"""Which programs are trained on the device and compared: every schedule, every consensus, on 1, 2 and 4 ranks."""

from dataclasses import dataclass
from typing import Any

EXACT = 1e-9
"""How far float64 weights may be apart, as a share of their norm: other orders of sums, no more."""
BASE = (
    "data.batch=150", "train.epochs=1", "train.log=1 epoch", "run.dtype=float64", "run.kernels=plain",
    "run.deterministic=true", "run.patience=60", "model.widths=[24,20,16,12]",
)  # fmt: skip
"""Eight steps of a perceptron on the digits that come with the program."""
STOP = "5"
"""The step after which a run is stopped to go on later."""
SHORT = ("run.dtype=float32", "run.bf16=true")
ROUGH: dict[str, Any] = {"apart": 0.1, "cpu_only": ("run.bf16=false",)}
CNN = ("model.name=cnn", "model.channels=[4,6]", "model.kernel=3", "model.widths=[16]")
STAGES = ("schedule.cut=estimated", "consensus.name=gradients")
NOISY = ("model.dropout=0.2", "model.norm=batch", "train.clip=0.5", "data.batch=160", "train.epochs=3")
"""Seven batches in an epoch and one of half the size, which comes often enough to be recorded too."""


@dataclass(frozen=True)
class Case:
    """A program. On the device and on the host its weights are the same up to ``apart``.

    ``mail``: whether ranks exchange messages between two of them only, so that the way of a message changes no bit;
    ``twice``: whether it is also trained again, then without recordings, and also stopped and gone on with, to the same
    bits. ``direct``: whether its messages are tried without the host.
    """

    name: str
    ranks: int
    settings: tuple[str, ...]
    mail: bool = False
    twice: bool = False
    direct: bool = True
    quick: bool = True
    apart: float = EXACT
    cpu_only: tuple[str, ...] = ()
    """Settings of the run on the host alone."""
    gpus: int = 1
    """How many GPUs it needs."""


def _alone() -> tuple[Case, ...]:
    resnet = ("model.name=resnet", "model.depth=8", "optimizer.nesterov=true", "optimizer.weight_decay=1e-3")
    adam = ("optimizer.name=adamw", "train.clip=0.5", "model.dropout=0.2", "model.norm=layer", "model.activation=gelu")
    return (
        Case("perceptron", 1, (), twice=True),
        Case("perceptron, float32", 1, ("run.dtype=float32",), twice=True, apart=1e-4),
        Case(
            "perceptron, TF32",
            1,
            ("run.dtype=float32", "run.tf32=true"),
            twice=True,
            apart=2e-2,
            cpu_only=("run.tf32=false",),
        ),
        Case("adamw, clip, dropout, layer norm, gelu", 1, adam, twice=True),
        Case("cnn, batch norm, dropout, cropped", 1, (*CNN, "model.dropout=0.2", "data.crop=1")),
        Case("cnn without norm, squared error", 1, (*CNN, "model.norm=none", "loss.name=squared_error"), quick=False),
        Case("resnet", 1, (*_without_widths(resnet),)),
        Case("resnet, float32", 1, _without_widths((*resnet, "run.dtype=float32")), twice=True, apart=1e-3),
        Case("cnn, bfloat16", 1, (*CNN, *SHORT), twice=True, **ROUGH),
        Case("cnn, TF32", 1, (*CNN, "run.dtype=float32", "run.tf32=true"), apart=2e-2, cpu_only=("run.tf32=false",)),
    )


def _without_widths(settings: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a model that has no widths."""
    return ("-model.widths", *settings)


def _replicas(ranks: int) -> tuple[Case, ...]:
    few = ranks == 2
    named = {
        "gradients": ("consensus.name=gradients",),
        "averaging": ("consensus.period=3 steps", "consensus.slots=average"),
        "averaging by fisher": ("consensus.period=4 steps", "consensus.score=fisher"),
        "averaging, the best": ("consensus.score=best",),
        "gossip": ("consensus.name=gossip",),
        "gossip before the update": ("consensus.name=gossip", "consensus.form=combine_then_adapt"),
        "gossip on a torus": ("consensus.name=gossip", "consensus.graph=torus"),
        "outer": ("consensus.name=outer", "consensus.period=3 steps"),
        "none": ("consensus.name=none",),
    }
    quick = {"gradients", "averaging", "gossip before the update"} | ({*named} if few else set())
    chosen = {name: own for name, own in named.items() if not (few and "torus" in name)}
    return tuple(
        Case(
            f"{ranks} replicas, {name}", ranks, own, mail="gossip" in name, quick=name in quick,
            direct=name not in ("averaging by fisher", "averaging, the best", "none"),
            twice=name == "gradients" or (few and name == "gossip before the update"),
        )
        for name, own in chosen.items()
    )  # fmt: skip


def _stages() -> tuple[Case, ...]:
    schedules = ("naive", "gpipe", "1f1b", "fdg", "ddg", "fr", "layerwise", "local", "parareal")
    two = (
        Case(
            f"2 stages, {name}", 2, (*STAGES, "grid.stages=2", f"schedule.name={name}"), mail=True,
            twice=name in ("fdg", "layerwise"),
        )
        for name in schedules
    )  # fmt: skip
    four = (
        Case(
            f"4 stages, {name}", 4, (*STAGES, "grid.stages=4", f"schedule.name={name}"), mail=True, quick=name == "fdg"
        )
        for name in ("1f1b", "fdg", "fr", "parareal")
    )
    images = ("grid.stages=2", "schedule.name=fdg", *STAGES, *CNN)
    short = (*images, *SHORT)
    noisy = (
        Case(
            f"{ranks} stages, {name}, noisy", ranks, (*STAGES, *NOISY, f"grid.stages={ranks}", *own), mail=True,
            twice=True, quick=quick,
        )
        for ranks, name, quick, own in (
            (2, "local", True, ("schedule.name=local", "schedule.width=12")),
            (3, "local", False, ("schedule.name=local",)),
            (2, "parareal", True, ("schedule.name=parareal",)),
            (3, "parareal in a chain", False, ("schedule.name=parareal", "schedule.sweep=chain")),
            (3, "parareal gathered", True, ("schedule.name=parareal", "schedule.sweep=gather")),
            (3, "parareal, two sweeps", False, ("schedule.name=parareal", "schedule.iterations=2")),
        )
    )  # fmt: skip
    return (
        *two, *four, *noisy, Case("2 stages, fdg, cnn", 2, images, mail=True, quick=False),
        Case("2 stages, fdg, cnn, bfloat16", 2, short, mail=True, twice=True, **ROUGH),
        Case("2 stages, parareal, bfloat16", 2, (*STAGES, "grid.stages=2", "schedule.name=parareal", *SHORT), mail=True,
             **ROUGH),
    )  # fmt: skip


def _both() -> tuple[Case, ...]:
    pairs = (
        ("1f1b", "gradients"), ("fdg", "gradients"), ("ddg", "gossip"), ("layerwise", "averaging"), ("local", "outer"),
        ("parareal", "gradients"),
    )  # fmt: skip
    return tuple(
        Case(
            f"2 stages of 2 replicas, {schedule}, {consensus}", 4,
            ("schedule.cut=estimated", "grid.stages=2", f"schedule.name={schedule}", f"consensus.name={consensus}"),
            mail=consensus == "gossip", twice=schedule == "fdg", quick=schedule in ("1f1b", "fdg", "ddg"),
        )
        for schedule, consensus in pairs
    )  # fmt: skip


def _nccl(ranks: int) -> tuple[Case, ...]:
    """Sums in order are gathered by NCCL, others are its own."""
    named = {
        "gradients": ("consensus.name=gradients", "consensus.bucket=0.001"),
        "gradients, in order": ("consensus.name=gradients", "consensus.bucket=0.001"),
        "averaging": ("consensus.period=3 steps", "consensus.slots=average"),
        "averaging, the best": ("consensus.score=best",),
    }
    return tuple(
        Case(
            f"{ranks} replicas, {name}, NCCL", ranks,
            (*own, "run.collectives=nccl", f"run.deterministic={str(name.endswith('order')).lower()}"),
            twice=name == "gradients", direct=False, cpu_only=("run.collectives=mpi",), gpus=ranks,
        )
        for name, own in named.items()
    )  # fmt: skip


def _nccl_of_stages() -> tuple[Case, ...]:
    """Each rank is in two groups, and messages between stages go beside them by MPI."""
    return tuple(
        Case(
            f"2 stages of 2 replicas, {schedule}, gradients, NCCL", 4,
            ("schedule.cut=estimated", "grid.stages=2", f"schedule.name={schedule}", "consensus.name=gradients",
             "consensus.bucket=0.001", "train.clip=1.0", "run.collectives=nccl"),
            direct=False, cpu_only=("run.collectives=mpi",), gpus=4,
        )
        for schedule in ("1f1b", "fdg")
    )  # fmt: skip


CASES: tuple[Case, ...] = (
    *_both(),
    *_replicas(4),
    *_nccl(4),
    *_nccl_of_stages(),
    *_stages(),
    *_replicas(2),
    *_nccl(2),
    *_alone(),
)
"""Those of most ranks first, so that none is left for the end alone."""
SMALL = ("perceptron", "2 replicas, gradients", "2 replicas, gradients, NCCL", "2 stages, fdg")
"""What a stand-in for a device trains in half a minute."""


def settings_of(case: Case) -> tuple[str, ...]:
    """All of them; one that begins with a dash takes a key of `BASE` away."""
    gone = {own[1:] for own in case.settings if own.startswith("-")}
    kept = [own for own in BASE if own.partition("=")[0] not in gone]
    return (*kept, *(own for own in case.settings if not own.startswith("-")))
