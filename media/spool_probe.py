"""Probe of the spool: writes a small file, reads it back and deletes it, in a thread because a network file system may hang.

Rule: a probe that does not answer within `ANSWER_S` has failed; it goes on, and no other one begins meanwhile.
"""

from __future__ import annotations

import asyncio

from media import file_threads, spool

ANSWER_S = 2.0


class SpoolProbe:
    """The probe of one spool."""

    def __init__(self, folder: spool.Spool) -> None:
        self._spool = folder
        self._probing: asyncio.Task[str] | None = None

    async def run(self) -> str:
        """Why the spool cannot be written and read now; "" if it can."""
        if self._probing is None:
            self._probing = asyncio.create_task(file_threads.LIVE.run(self._spool.probe), name="spool.probe")
        probing = self._probing
        await asyncio.wait((probing,), timeout=ANSWER_S)
        if not probing.done():
            return f"The spool {self._spool.root} does not answer."
        if probing is self._probing:
            self._probing = None
        return probing.result()
