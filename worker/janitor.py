"""Janitor: deletes files that are no longer needed from this node's spool.

Rules:
- A file is deleted only after its row gave it up, and only files of the epochs that gave it up, because a replay may have come
  first.
- Files of sessions that the database does not know stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from machine import failpoints, job_key, model, ports, segments, supervised_task
from worker import work_ports

log = structlog.get_logger()

EVERY_S = 5.0
# For files without a row for this node: copies of other nodes' segments, and files of workers that were superseded or died.
SCAN_EVERY_MS = 30 * model.SECOND
SESSIONS_PER_QUERY = 100
HINT = (
    "Let the service's user delete it, or delete it by hand: nothing needs it any more. The janitor retries every few seconds"
    " until it is gone."
)


class Janitor:
    """Deletes the files of recordings that are Done, and of failed ones after KEEP_FAILED, whichever node wrote them here; also
    outputs of transcodes other than the verified one. `node` owns the spool; "" for a spool that all nodes share."""

    def __init__(
        self, store: ports.Store, work: work_ports.Work, *, policy: model.Policy, clock: Callable[[], int], node: str = ""
    ) -> None:
        self._store = store
        self._work = work
        self._node = node
        self._policy = policy
        self._clock = clock
        self._next_scan_ms = 0
        self.task = supervised_task.SupervisedTask("janitor", self._run)

    async def start(self) -> None:
        """Begin to clean every `EVERY_S`."""
        self.task.start()

    async def stop(self) -> None:
        """End the cleaning."""
        await self.task.stop()

    async def _run(self) -> None:
        while True:
            try:
                await self.clean()
            except Exception:
                # The next round retries. A start is refused on a full disk when it arrives, not here.
                log.exception("janitor.round_failed")
            await asyncio.sleep(supervised_task.jittered_s(EVERY_S))

    async def clean(self) -> None:
        """Clean once: the files that rows gave up, and from time to time the files without a row."""
        failed_before_ms = self._clock() - self._policy.keep_failed_ms
        for recording in await self._store.spool_files.removable(failed_before_ms):
            await self._store.spool_files.give_up(recording, failed_before_ms)
        given_up = await self._store.spool_files.given_up(self._node)
        for recording in given_up:
            await self._remove(recording)
        if self._clock() >= self._next_scan_ms:
            self._next_scan_ms = self._clock() + SCAN_EVERY_MS
            await self._scan_spool(set(given_up))

    async def _remove(self, recording: job_key.RecordingKey) -> None:
        files = await self._store.spool_files.of_recording(recording, self._node)
        if files is None:
            return
        failpoints.hit("cleanup.remove.before")
        if await self._delete(recording, self._work.remove(recording, files.until_epoch)) is None:
            return
        failpoints.hit("cleanup.remove.after")
        await self._store.spool_files.forget(recording, self._node, files.segments)
        log.info("spool.removed", owner=recording)

    async def _scan_spool(self, cleaned: set[job_key.RecordingKey]) -> None:
        """Delete leftovers on the spool, except those of the recordings `cleaned` in this round."""
        task_ids = await self._work.task_ids_on_spool()
        for first in range(0, len(task_ids), SESSIONS_PER_QUERY):
            for each in await self._store.spool_files.leftovers(task_ids[first : first + SESSIONS_PER_QUERY]):
                if each.recording not in cleaned:
                    await self._remove_leftovers(each)

    async def _remove_leftovers(self, each: segments.Leftovers) -> None:
        if each.given_up:
            removing = self._work.remove(each.recording, each.epoch)
        elif each.output_epoch is not None:
            removing = self._work.remove_outputs(each.recording, each.epoch, each.output_epoch)
        else:
            return
        if files := await self._delete(each.recording, removing):
            log.info("spool.leftover_removed", owner=each.recording, files=files)

    async def _delete(self, recording: job_key.RecordingKey, removing: Awaitable[int]) -> int | None:
        """Await a removal; returns the number of deleted files, or None if a file could not be deleted. One such file must not
        keep all others on the disk."""
        try:
            return await removing
        except OSError as error:
            reason = error.strerror or str(error)
            log.error("janitor.not_removed", owner=recording, file=str(error.filename or ""), error=reason, hint=HINT)
            return None
