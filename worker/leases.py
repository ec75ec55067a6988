"""Lease renewal of a worker's jobs, and the leases that an earlier process of this node left.

Rules:
- A refused renewal ends the job, and nothing more is written for it. An unanswered renewal is no refusal: the database may be
  restarting.
- At start, leases of an earlier process are voided. The spool, not memory, tells what their captures left.
- A job whose outcome has moved nothing for several leases is given up: its lease ends, and `worker-lost` issues it again.
- A capture ends when its row says so, even if the command `stop-capture` was lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from events import codec
from machine import due_work, errors, failpoints, internal_events, job_key, metrics, model, ports, states, supervised_task
from worker import job_metrics, leased_job, outcomes, work_ports

log = structlog.get_logger()

RENEW_EVERY_S = 5.0
# Rows of one transaction: on SQLite all other writers wait for it.
RENEWED_TOGETHER = 500
MIN_RENEW_EVERY_S = 0.5
# An outcome that moved nothing for so many leases is lost, or counts as a repeat in a database that was restored.
OUTCOME_LEASES = 4


class HeldLeases:
    """The jobs that this node holds, by owner and epoch. Their leases are renewed until the job is removed or refused."""

    def __init__(
        self, store: ports.Store, work: work_ports.Work, *, node: str, policy: model.Policy, clock: Callable[[], int]
    ) -> None:
        self._store = store
        self._work = work
        self._node = node
        self._policy = policy
        self._clock = clock
        self._ending: set[asyncio.Future[list[Any]]] = set()
        self._stops_s = 0.0
        # A renewal also carries the time of the last packet, by which the machine detects an idle recording. It must therefore
        # come well within IDLE_TIMEOUT.
        self._every_s = min(RENEW_EVERY_S, policy.lease_ms / 6000, max(MIN_RENEW_EVERY_S, policy.idle_timeout_ms / 3000))
        self.jobs: dict[tuple[job_key.JobKey, int], leased_job.AnyJob] = {}
        self.task = supervised_task.SupervisedTask("worker.leases", self._run)

    async def start(self) -> None:
        """Void the leases of an earlier process of this node, then begin to renew."""
        await asyncio.gather(*(self._void(lease) for lease in await self._store.leases.of_node(self._node)))
        self.task.start()

    async def stop(self) -> list[leased_job.AnyJob]:
        """End the renewal and all jobs; returns these jobs."""
        await self.task.stop()
        jobs = list(self.jobs.values())
        self.jobs.clear()
        ending = [task for job in jobs for task in _abandon(job)]
        await asyncio.gather(*ending, *self._ending, return_exceptions=True)
        return jobs

    async def take(self, owner: leased_job.Owner, epoch: int, kind: str) -> leased_job.LeasedJob[leased_job.Owner] | None:
        """Take the lease of a job; None if it is held, ended or superseded."""
        failpoints.hit("lease.take.before")
        if not await self._store.leases.take(owner, epoch, self._node, self._policy.lease_ms):
            log.info("job.not_taken", owner=owner, epoch=epoch, kind=kind, reason="it is held, ended or superseded")
            return None
        failpoints.hit("lease.take.after")
        job = leased_job.LeasedJob(owner=owner, epoch=epoch, kind=kind)
        self.jobs[job.key] = job
        return job

    def release(self, job: leased_job.AnyJob) -> None:
        """Stop renewing a job, so that its lease expires and becomes `worker-lost`."""
        self.jobs.pop(job.key, None)

    async def _run(self) -> None:
        every_s, answered = self._every_s, True
        while True:
            await asyncio.sleep(supervised_task.jittered_s(every_s if answered else min(outcomes.RETRY_S, every_s)))
            answered = await self.renew()

    async def renew(self) -> bool:
        """Renew all leases, captures first, and end the jobs whose renewal is refused; returns whether the database answered.
        The progress of captures follows in a transaction of its own: it may wait for a decision, and no lease does."""
        due = sorted(self.jobs.values(), key=lambda job: job.kind != states.CAPTURE)
        try:
            for first in range(0, len(due), RENEWED_TOGETHER):
                await self._renew(due[first : first + RENEWED_TOGETHER])
            try:
                await self._note_progress()
            except errors.Conflict as error:
                log.info("capture.progress_waits", reason=error.message)  # it is noted with the next renewal
            await self._see_stops()
        except Exception:
            log.exception("lease.unanswered", jobs=len(due))
            return False
        return True

    async def _renew(self, jobs: Sequence[leased_job.AnyJob]) -> None:
        failpoints.hit("lease.renew.before")
        refused = await self._store.leases.renew_all([j.key for j in jobs], self._node, self._policy.lease_ms)
        failpoints.hit("lease.renew.after")
        for job in jobs:
            if job.key in refused:
                self._refused(job)
            elif job.ended:
                self._await_effect(job)

    def _await_effect(self, job: leased_job.AnyJob) -> None:
        """Count a renewal of a job whose outcome has moved nothing yet. After several leases its lease is given up. Renewals are
        counted, and not the time: while the database is away nothing can move."""
        job.renewals += 1
        if job.renewals * self._every_s * 1000 > OUTCOME_LEASES * self._policy.lease_ms:
            log.warning("outcome.without_effect", owner=job.owner, epoch=job.epoch, kind=job.kind)
            self.release(job)

    async def _note_progress(self) -> None:
        """Note the progress of captures that grew since the last time."""
        live = [(j, j.capture.progress) for j in self.jobs.values() if j.capture is not None and not j.ended]
        grown = [(job, progress) for job, progress in live if progress.last_packet_ms is not None and progress != job.noted]
        if grown:
            await self._store.segments.note_progress({job.key: progress for job, progress in grown})
        for job, progress in grown:
            job_metrics.captured(job, progress.size_bytes)
            job.noted = progress

    async def _see_stops(self) -> None:
        """End captures that are asked to stop, once in a lease: their command may be lost."""
        if time.monotonic() < self._stops_s:
            return
        running = [j for j in self.jobs.values() if j.kind == states.CAPTURE and not (j.ended or j.stop_requested)]
        asked = await self._store.leases.to_stop([j.key for j in running]) if running else set()
        for job in running:
            if job.key in asked:
                log.warning("capture.stop_seen", owner=job.owner, epoch=job.epoch)
                job.stop()
        self._stops_s = time.monotonic() + self._policy.lease_ms / 1000

    def _refused(self, job: leased_job.AnyJob) -> None:
        """End a job. Its tasks may wait for a file system that hangs, and no other lease waits for them."""
        self.release(job)
        if not job.ended:
            log.warning("lease.refused", owner=job.owner, epoch=job.epoch, kind=job.kind)
            metrics.LEASES_REFUSED.inc()
            ending = asyncio.gather(*_abandon(job), return_exceptions=True)
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _void(self, lease: due_work.Lease) -> None:
        """Publish `worker-lost` for a lease of an earlier process."""
        lost = internal_events.WorkerLost(owner=lease.owner, epoch=lease.epoch, node=lease.node)
        if isinstance(lease.owner, job_key.RecordingKey):
            assignment = await self._store.assignments.recording(lease.owner)
            if assignment is not None and assignment.recording.state in states.CAPTURING:
                lost = await self._with_media(lost, assignment)
        log.info("lease.voided", owner=lease.owner, epoch=lease.epoch, media_ms=lost.media_ms)
        # The sweeper may have published its `worker-lost` a moment before, without the media on disk. Hence another id.
        event = codec.make(
            "worker-lost",
            id=f"voided.{lease.owner}.{lease.epoch}",
            time_ms=self._clock(),
            data=codec.from_payload(lost),
            subject=lease.owner.text,
        )
        await self._store.outbox.send("event", event, lease.owner.task_id)

    async def _with_media(self, lost: internal_events.WorkerLost, assignment: due_work.Assignment) -> internal_events.WorkerLost:
        """Add the media that a capture left. The node takes no work before this is published, so it must be quick: a long segment
        counts as noted before, an unreadable one as nothing."""
        parts = await self._store.segments.of_recording(assignment.recording.key)
        known_ms = max((s.media_ms for s in parts if s.epoch == lost.epoch), default=0)
        try:
            found = await self._work.scan(assignment, lost.epoch, known_ms)
        except OSError as error:
            log.error("segment.not_read", owner=lost.owner, epoch=lost.epoch, error=error.strerror, media_ms=known_ms)
            return lost
        return replace(lost, media_ms=found.media_ms, size_bytes=found.size_bytes, last_packet_ms=found.last_packet_ms)


def _abandon(job: leased_job.AnyJob) -> list[asyncio.Task[None]]:
    """Kill a job's capture and cancel its tasks; returns these tasks."""
    if job.capture is not None and not job.ended:
        job.capture.kill()
    tasks = [t for t in (job.task, *job.publishing) if t is not None]
    for task in tasks:
        task.cancel()
    return tasks
