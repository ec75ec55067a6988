"""Rate limit: a token bucket for each caller.

Rules: only authenticated callers have a bucket, so that strangers cannot fill the memory. Each node counts on its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MINUTE_S = 60.0


class RateLimiter:
    """Allows each caller `per_minute` requests a minute, also as one burst. 0: no limit."""

    def __init__(self, per_minute: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._full = float(per_minute)
        self._per_s = per_minute / MINUTE_S
        self._clock_s = clock_s
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, caller: str) -> float:
        """Count one request. 0.0 allows it; otherwise it is refused, and the next one is allowed after so many seconds."""
        if not self._full:
            return 0.0
        now_s = self._clock_s()
        left, at_s = self._buckets.get(caller, (self._full, now_s))
        left = min(self._full, left + (now_s - at_s) * self._per_s)
        allowed = left >= 1
        self._buckets[caller] = (left - 1 if allowed else left, now_s)
        return 0.0 if allowed else (1 - left) / self._per_s
