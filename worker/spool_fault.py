"""The last fault of this worker's spool: a full disk, or a mount that is lost.

Rule: for a while after a fault the worker takes no capture and no transcode, so that another worker gets the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

log = structlog.get_logger()

PAUSE_S = 10.0


class SpoolFault:
    """Remembers the fault for `PAUSE_S`. A job tries the spool after that."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._detail = ""
        self._until_s = 0.0

    def note(self, detail: str) -> None:
        """A job ended because of the spool."""
        log.warning("worker.spool_fault", detail=detail, pause_s=PAUSE_S)
        self._detail, self._until_s = detail, self._clock_s() + PAUSE_S

    def reason(self) -> str:
        """Why no job that writes is taken now; "" if one would be."""
        return f"its spool failed a moment ago: {self._detail}" if self._clock_s() < self._until_s else ""
