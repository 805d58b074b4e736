"""The device that a plan is of: that of the run, which the machine that plans need not have if it measures nothing."""

from types import ModuleType

from mpinn.array import ops as plain
from mpinn.array.device import check_bf16, choose_device, count_devices
from mpinn.config import Config
from mpinn.errors import InputError
from mpinn.run.checks import check_bfloat16, check_kernels, check_types


def on_gpu(config: Config) -> bool:
    """Whether the run has a GPU: it asks for one, or takes the one that is here."""
    run = config.run
    return run.device == "gpu" or run.bf16 or (run.device == "auto" and count_devices()[0] > 0)


def kernels_of(config: Config, measured: bool) -> ModuleType:
    """What costs are measured with; raises InputError for what this machine lacks for that.

    Where nothing is measured, only for what no machine has.
    """
    run = config.run
    check_types(config)
    check_bf16(run.bf16 and run.device == "cpu", run.device, "")
    if not measured:
        if run.bf16:
            check_bfloat16()
        return plain
    if run.bf16 and not count_devices()[0]:
        raise InputError("run.bf16", "without a GPU nothing is measured in bfloat16: --estimated counts operations")
    check_kernels(config)
    return choose_device(run.device, run.kernels, 0, run.tf32).kernels
