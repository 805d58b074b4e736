"""The consensuses by name."""

from mpinn.consensus.averaging import AveragingOptions
from mpinn.consensus.gossip import GossipOptions
from mpinn.consensus.gradients import GradientsOptions
from mpinn.consensus.independent import IndependentOptions
from mpinn.consensus.outer import OuterOptions

CONSENSUSES: dict[str, type] = {
    "averaging": AveragingOptions,
    "gossip": GossipOptions,
    "gradients": GradientsOptions,
    "none": IndependentOptions,
    "outer": OuterOptions,
}
