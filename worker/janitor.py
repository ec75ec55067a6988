"""Doing: what is not needed any more leaves this node's spool. Imports `machine` and `events`.

Rules: a file goes only after its row has given it up, and only what its epoch gave up, because a replay may have come first; what
the database does not know stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from machine import failpoints, model, ports, segments, supervised_task
from worker import work_ports

log = structlog.get_logger()

EVERY_S = 5.0
# What no row says of this disk: copies of other nodes' segments, and what workers left that were superseded, or died.
DISK_EVERY_MS = 30 * model.SECOND
SESSIONS_AT_ONCE = 100
HINT = (
    "Let the service's user delete it, or delete it by hand: nothing needs it any more. It is tried again every few seconds until"
    " it is gone."
)


class Janitor:
    """Removes what is not needed any more from this node's spool: the files of recordings that are Done, and failed ones after
    KEEP_FAILED, whoever wrote them there; and what transcodes made before the one whose file counts."""

    def __init__(
        self, store: ports.Store, steps: work_ports.Steps, *, policy: model.Policy, clock: Callable[[], int], node: str = ""
    ) -> None:
        """`node` is whose spool it is; "" for one that all nodes share."""
        self._store = store
        self._steps = steps
        self._node = node
        self._policy = policy
        self._clock = clock
        self._next_disk_ms = 0
        self.cleaning = supervised_task.SupervisedTask("janitor", self._run)

    async def start(self) -> None:
        """Begin to clean."""
        self.cleaning.start()

    async def stop(self) -> None:
        """End the cleaning."""
        await self.cleaning.stop()

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:
                # What could not be removed now is looked at again; a full disk is refused at the door, not here.
                log.exception("janitor.round_failed")
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """One round: what rows say lies here, and now and then what lies here besides."""
        failed_before_ms = self._clock() - self._policy.keep_failed_ms
        for recording_id in await self._store.spool_files.removable(failed_before_ms):
            await self._store.spool_files.give_up(recording_id, failed_before_ms)
        listed = await self._store.spool_files.given_up(self._node)
        for recording_id in listed:
            await self._remove(recording_id)
        if self._clock() >= self._next_disk_ms:
            self._next_disk_ms = self._clock() + DISK_EVERY_MS
            await self._look_at_disk(set(listed))

    async def _remove(self, recording_id: str) -> None:
        files = await self._store.spool_files.of_recording(recording_id, self._node)
        if files is None:
            return
        failpoints.hit("cleanup.remove.before")
        if await self._tell_stuck(recording_id, self._steps.remove(recording_id, files.until_epoch)) is None:
            return
        failpoints.hit("cleanup.remove.after")
        await self._store.spool_files.forget(recording_id, self._node, files.segments)
        log.info("spool.removed", owner=recording_id)

    async def _look_at_disk(self, listed: set[str]) -> None:
        """Remove what lies here and nothing can want, but for the recordings `listed`, which were looked at already."""
        kept = await self._steps.kept_sessions()
        for first in range(0, len(kept), SESSIONS_AT_ONCE):
            for each in await self._store.spool_files.leftovers(kept[first : first + SESSIONS_AT_ONCE]):
                if each.recording_id not in listed:
                    await self._remove_remains(each)

    async def _remove_remains(self, each: segments.Leftovers) -> None:
        if each.given_up:
            removing = self._steps.remove(each.recording_id, each.epoch)
        elif each.output_epoch is not None:
            removing = self._steps.remove_outputs(each.recording_id, each.epoch, each.output_epoch)
        else:
            return
        if files := await self._tell_stuck(each.recording_id, removing):
            log.info("spool.leftover_removed", owner=each.recording_id, files=files)

    async def _tell_stuck(self, recording_id: str, removing: Awaitable[int]) -> int | None:
        """How many files went; None if one could not be deleted, which must not keep all others on the disk."""
        try:
            return await removing
        except OSError as error:
            said = error.strerror or str(error)
            log.error("janitor.not_removed", owner=recording_id, file=str(error.filename or ""), error=said, hint=HINT)
            return None
