"""CPU usage of a worker's live work: this process and the ffmpegs of its captures.

Transcodes do not count. They may fill every core and take only time that captures leave unused. Neither the load average nor the
machine's pressure figures separate the two, and both ignore a container's quota.

Rule: an unreadable figure counts as nothing. A limit is a guard and must not stop a service on a system without these files.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

WINDOW_S = 30.0
# A shorter window would let a single burst decide.
MIN_WINDOW_S = 5.0
OWN = 0
# A container's CPU quota, in versions 2 and 1 of Linux's control groups.
QUOTA_V2 = "cpu.max"
QUOTA_V1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")

# Seconds of CPU used so far, by process id.
Reading = Callable[[], Mapping[int, float]]


class LiveCpu:
    """The share of `cpus` that was used in the last `WINDOW_S`."""

    def __init__(self, read: Reading, *, cpus: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._cpus = cpus
        self._clock_s = clock_s
        self._last: Mapping[int, float] = {}
        self._used_s = 0.0
        self._points: deque[tuple[float, float]] = deque()

    def sample(self) -> None:
        """Read the usage once. Call this about every second."""
        now_s, read = self._clock_s(), dict(self._read())
        if self._points:
            # A new process counts in full since the last sample; an ended process is not subtracted.
            self._used_s += sum(max(used_s - self._last.get(pid, 0.0), 0.0) for pid, used_s in read.items())
        self._last = read
        self._points.append((now_s, self._used_s))
        while self._points[0][0] < now_s - WINDOW_S:
            self._points.popleft()

    @property
    def share(self) -> float:
        """The share from 0 to 1; 0 while the samples span less than `MIN_WINDOW_S`."""
        if not self._points:
            return 0.0
        (from_s, before_s), (to_s, after_s) = self._points[0], self._points[-1]
        return (after_s - before_s) / (to_s - from_s) / self._cpus if to_s - from_s >= MIN_WINDOW_S else 0.0


def usable(groups: Path = Path("/sys/fs/cgroup")) -> float:
    """The number of CPUs that this process may use, by its affinity and its container's quota."""
    return min(float(len(os.sched_getaffinity(0))), _quota(groups))


def reading(pids: Callable[[], list[int]], proc: Path = Path("/proc")) -> Reading:
    """Make a reader of the usage of this process and of `pids`."""
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
