"""The consensuses by name."""

from mpinn.consensus.averaging import AveragingOptions
from mpinn.consensus.gradients import GradientsOptions
from mpinn.consensus.independent import IndependentOptions

CONSENSUSES: dict[str, type] = {
    "averaging": AveragingOptions,
    "gradients": GradientsOptions,
    "none": IndependentOptions,
}
