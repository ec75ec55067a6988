"""How much of its CPUs a worker's live work takes: this process and the ffmpegs of its captures. Imports nothing of ours.

Transcodes do not count: they may fill every core and take nothing from captures but time that those do not use. The load average
and the pressure of the machine do not tell the two apart, and say nothing of a container's quota. Rule: what cannot be read
counts as nothing; a limit is a guard, and must not stop a service on a system that has no such file.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

WINDOW_S = 30.0
# Over less than this a single burst would decide.
LEAST_S = 5.0
OWN = 0
# How many CPUs a container may use, in versions 2 and 1 of Linux's control groups.
QUOTA_V2 = "cpu.max"
QUOTA_V1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")

# Seconds of CPU so far, by process.
Reading = Callable[[], Mapping[int, float]]


class LiveCpu:
    """The share of `cpus` that was used within the last half minute."""

    def __init__(self, read: Reading, *, cpus: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._cpus = cpus
        self._clock_s = clock_s
        self._last: Mapping[int, float] = {}
        self._used_s = 0.0
        self._points: deque[tuple[float, float]] = deque()

    def look(self) -> None:
        """Read once; to be called about every second."""
        now_s, read = self._clock_s(), dict(self._read())
        if self._points:
            # A process that is new has used what it used since the last look; one that is gone takes nothing back.
            self._used_s += sum(max(used_s - self._last.get(pid, 0.0), 0.0) for pid, used_s in read.items())
        self._last = read
        self._points.append((now_s, self._used_s))
        while self._points[0][0] < now_s - WINDOW_S:
            self._points.popleft()

    @property
    def share(self) -> float:
        """From 0 to 1, of all of them; 0 as long as too little was seen."""
        if not self._points:
            return 0.0
        (from_s, before_s), (to_s, after_s) = self._points[0], self._points[-1]
        return (after_s - before_s) / (to_s - from_s) / self._cpus if to_s - from_s >= LEAST_S else 0.0


def usable(groups: Path = Path("/sys/fs/cgroup")) -> float:
    """How many CPUs this process may use: those it may run on, or fewer by the quota of its container."""
    return min(float(len(os.sched_getaffinity(0))), _quota(groups))


def reading(pids: Callable[[], list[int]], proc: Path = Path("/proc")) -> Reading:
    """Reads this process and those of `pids`."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")

    def read() -> dict[int, float]:
        found = {OWN: time.process_time()}
        for pid in pids():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (proc / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
                found[pid] = (int(fields[11]) + int(fields[12])) * tick_s
        return found

    return read


def _quota(groups: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (groups / QUOTA_V2).read_text().split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota_us, period_us = (int((groups / name).read_text()) for name in QUOTA_V1)
        if quota_us > 0:
            return quota_us / period_us
    return float("inf")
