"""Doing: what is not needed any more leaves this node's spool. Imports `machine` and `events`.

Rule: a file goes only after its row has given it up, and only if no replay came first; what the database does not know stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from handlers import adapters
from machine import background, faults, model, ports

log = structlog.get_logger()

EVERY_S = 5.0


class Janitor:
    """Removes what is not needed any more from this node's spool: the files of recordings that are Done, and failed ones after
    KEEP_FAILED. Rule: a file goes only after its row has given it up."""

    def __init__(
        self, store: ports.Store, steps: adapters.Steps, *, policy: model.Policy, clock: Callable[[], int], node: str = ""
    ) -> None:
        """`node` is whose spool it is; "" for one that all nodes share."""
        self._store = store
        self._steps = steps
        self._node = node
        self._policy = policy
        self._clock = clock
        self.cleaning = background.Background("janitor", self._run)

    async def start(self) -> None:
        """Remove what an earlier life left of sessions that nobody wants any more, then begin to clean."""
        for task_id in await self._steps.kept_sessions():
            if await self._store.spent(task_id):
                await self._steps.remove_session(task_id)
                log.info("spool.leftover_removed", task_id=task_id)
        self.cleaning.start()

    async def stop(self) -> None:
        """End the cleaning."""
        await self.cleaning.stop()

    async def _run(self) -> None:
        while True:
            try:
                await self._round()
            except Exception:
                # What could not be removed now is looked at again; a full disk is refused at the door, not here.
                log.exception("janitor.round_failed")
            await asyncio.sleep(EVERY_S)

    async def _round(self) -> None:
        for recording_id in await self._store.removable(self._clock() - self._policy.keep_failed_ms):
            await self._store.mark_removed(recording_id)
        for recording_id in await self._store.given_up(self._node):
            try:
                await self._remove(recording_id)
            except OSError:
                # One file that cannot be deleted must not keep all others on the disk.
                log.exception("janitor.not_removed", owner=recording_id)

    async def _remove(self, recording_id: str) -> None:
        epochs = await self._store.files_of(recording_id, self._node)
        if epochs is None:
            return
        faults.faultpoint("cleanup.remove.before")
        await self._steps.remove(recording_id, epochs)
        faults.faultpoint("cleanup.remove.after")
        await self._store.forget_files(recording_id, self._node, epochs)
        log.info("spool.removed", owner=recording_id)
