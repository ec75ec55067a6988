"""The last fault of this worker's spool: a full disk, or a mount that is lost.

Rules:
- For a while after a fault the worker takes no capture and no transcode, so that another worker gets the job.
- A job that ended by a fault of storage is no proof: the spool must fail a probe as well. The fault may have been another disk's,
  or be over.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()

PAUSE_S = 10.0


class SpoolFault:
    """Remembers the fault for `PAUSE_S`. A job tries the spool after that."""

    def __init__(self, probe: Callable[[], Awaitable[str]], clock_s: Callable[[], float] = time.monotonic) -> None:
        """`probe` returns why the spool cannot be written and read now, or ""."""
        self._probe = probe
        self._clock_s = clock_s
        self._detail = ""
        self._until_s = 0.0

    async def examine(self, detail: str) -> None:
        """A job ended, probably because of the spool: note it if the spool fails its probe."""
        if found := await self._probe():
            self.note(f"{detail} {found}")
        else:
            log.info("worker.spool_works", detail=detail)

    def note(self, detail: str) -> None:
        """The spool takes no files now."""
        log.warning("worker.spool_fault", detail=detail, pause_s=PAUSE_S)
        self._detail, self._until_s = detail, self._clock_s() + PAUSE_S

    def reason(self) -> str:
        """Why no job that writes is taken now; "" if one would be."""
        return f"its spool failed a moment ago: {self._detail}" if self._clock_s() < self._until_s else ""
