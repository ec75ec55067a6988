"""Ends the followers and live uploads of recordings that this node has lost, or that are over.

Rules:
- A recording stays followed while this node has a job of it, and while its next job may come to this node.
- What a live upload has sent is aborted unless it is saved as the recording's upload: then another node may complete it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from machine import job_key, model, ports, states, supervised_task
from worker import work_ports

log = structlog.get_logger()

EVERY_S = 5.0


class FollowWatch:
    """Looks at the followed recordings of one node, of which `jobs` are its jobs."""

    def __init__(
        self, store: ports.Store, work: work_ports.Work, *, node: str, jobs: Mapping[tuple[job_key.JobKey, int], Any]
    ) -> None:
        self._store = store
        self._work = work
        self._node = node
        self._jobs = jobs
        self.task = supervised_task.SupervisedTask("worker.follow_watch", self._run)

    async def start(self) -> None:
        """Begin to look every `EVERY_S`."""
        self.task.start()

    async def stop(self) -> None:
        """End the looks."""
        await self.task.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(supervised_task.jittered_s(EVERY_S))
            try:
                await self.look()
            except Exception:
                # Most likely the database is away; a later look finds the same.
                log.exception("follower.look_failed")

    async def look(self) -> None:
        """End what this node follows to no use. Raises the errors of the store."""
        for recording in self._work.followed():
            if not self._has_job(recording) and not await self._may_come(recording):
                saved = await self._store.uploads.state(recording)
                if not self._has_job(recording):
                    log.info("follower.dropped", recording=recording)
                    await self._work.unfollow(recording, saved)

    def _has_job(self, recording: job_key.RecordingKey) -> bool:
        return any(owner == recording for owner, _ in self._jobs)

    async def _may_come(self, recording: job_key.RecordingKey) -> bool:
        """Whether the next job of the recording may be this node's."""
        found = await self._store.assignments.recording(recording)
        return found is not None and _open_to(self._node, found.recording)


def _open_to(node: str, value: model.Recording) -> bool:
    if value.final or value.job is None:
        return not value.final
    return value.job.node == node or (value.job.state != states.LEASED and not value.job.node)
