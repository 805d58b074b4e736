"""The schedules by name."""

from mpinn.config import Config
from mpinn.schedules.decoupled import DDGOptions, DecoupledOptions, FROptions
from mpinn.schedules.layerwise import LayerwiseOptions
from mpinn.schedules.local import LocalOptions
from mpinn.schedules.options import ScheduleOptions
from mpinn.schedules.parareal import PararealOptions
from mpinn.schedules.pipeline import GPipeOptions, NaiveOptions, OneFOneBOptions
from mpinn.schedules.serial import SerialOptions

SCHEDULES: dict[str, type[ScheduleOptions]] = {
    "serial": SerialOptions,
    "naive": NaiveOptions,
    "gpipe": GPipeOptions,
    "1f1b": OneFOneBOptions,
    "fdg": DecoupledOptions,
    "ddg": DDGOptions,
    "fr": FROptions,
    "layerwise": LayerwiseOptions,
    "local": LocalOptions,
    "parareal": PararealOptions,
}


def options_of(config: Config, name: str) -> ScheduleOptions:
    """Those of a schedule: as configured, or its defaults where another one is configured."""
    options: ScheduleOptions = config.schedule
    return options if config.names["schedule"] == name else SCHEDULES[name]()
