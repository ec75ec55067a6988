"""The database's time inside a process: what its clock shows now, and how far this machine's clock is off.

Rules: statements ask the database itself. Everything else (times of media, events, ages of rows) takes this estimate, which is
measured with each heartbeat. Between two measurements it follows the monotonic clock, so that a step of the machine's clock, or
a wrong one, moves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from machine import model

# From here on a clock counts as off. Only warnings depend on it.
OFF_MS = 1 * model.SECOND
# The estimate is off by half a round trip at most, and by this part of its age: clocks drift.
_DRIFT = 1 / 1_000


REMEDY = "`timedatectl set-ntp true` there sets it by NTP."


def off(skew_ms: int) -> str:
    """The second half of the sentence about a machine's clock, or "" for one that is right."""
    if abs(skew_ms) < OFF_MS:
        return ""
    way = "ahead of" if skew_ms > 0 else "behind"
    return f"is {abs(skew_ms) / 1000:.1f} s {way} the database's. The recorder goes by the database's."


def unix_ms() -> int:
    """This machine's clock, in Unix ms."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> float:
    """A clock for spans, which nobody sets."""
    return time.monotonic_ns() / 1_000_000


class DatabaseClock:
    """Unix ms by the database's clock. Before the first measurement, by the machine's."""

    def __init__(self, machine: Callable[[], int] = unix_ms, monotonic: Callable[[], float] = monotonic_ms) -> None:
        self._machine = machine
        self.monotonic_ms = monotonic
        self._offset_ms = machine() - monotonic()
        self._error_ms = float("inf")
        self._measured_ms = monotonic()

    def __call__(self) -> int:
        """The database's time now."""
        return round(self._offset_ms + self.monotonic_ms())

    @property
    def skew_ms(self) -> int:
        """How far this machine's clock is ahead of the database's; negative if it is behind."""
        return self._machine() - self()

    async def measure(self, read: Callable[[], Awaitable[int]]) -> int:
        """Measure the database's clock by `read`, and return its time. A slow answer tells less than a quick one a while ago,
        unless the two contradict each other: then the clock was set."""
        asked_ms = self.monotonic_ms()
        database_ms = await read()
        answered_ms = self.monotonic_ms()
        offset_ms, error_ms = database_ms - (asked_ms + answered_ms) / 2, (answered_ms - asked_ms) / 2 + 1
        known_ms = self._error_ms + (answered_ms - self._measured_ms) * _DRIFT
        if error_ms <= known_ms or abs(offset_ms - self._offset_ms) > error_ms + known_ms:
            self._offset_ms, self._error_ms, self._measured_ms = offset_ms, error_ms, answered_ms
        return database_ms

    def warnings(self) -> list[str]:
        """What an operator must do about this machine's clock."""
        told = off(self.skew_ms)
        return [f"This machine's clock {told} {REMEDY}"] if told else []
