"""How often a caller may ask: a bucket for each, refilled all the time. Pure but for the clock. Imports nothing of ours.

Rule: only callers who are known have a bucket, so that strangers cannot fill the memory. Each node counts for itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MINUTE_S = 60.0


class Rates:
    """Lets each caller ask `per_minute` times a minute, all of them at once if it likes. 0: as often as anybody likes."""

    def __init__(self, per_minute: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._full = float(per_minute)
        self._per_s = per_minute / MINUTE_S
        self._clock_s = clock_s
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, who: str) -> float:
        """Count one request. 0.0: it may pass; else it may not, and in so many seconds the next one may."""
        if not self._full:
            return 0.0
        now_s = self._clock_s()
        left, at_s = self._buckets.get(who, (self._full, now_s))
        left = min(self._full, left + (now_s - at_s) * self._per_s)
        passes = left >= 1
        self._buckets[who] = (left - 1 if passes else left, now_s)
        return 0.0 if passes else (1 - left) / self._per_s
