"""The schedules by name."""

from mpinn.schedules.serial import SerialOptions

SCHEDULES: dict[str, type] = {"serial": SerialOptions}
