"""What a node says of its jobs: outcomes, each under an id that is made of the job and its epoch. Imports `machine` and `events`.

Rule: an outcome stands in the outbox, or it was not said. No outcome is said for a job whose lease was refused, but for a
capture's: what it wrote is media.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from events import codec
from machine import errors, failpoints, internal_events, ports, states
from machine.reasons import Reason
from worker import leased_job, work_ports

log = structlog.get_logger()

SAY_AGAIN_S = 1.0
# For what is said while the node stops: a database that is away is not waited for.
LAST_WORD_S = 2.0


class Outcomes:
    """The words of one node."""

    def __init__(self, store: ports.Store, *, node: str, clock: Callable[[], int]) -> None:
        self._store = store
        self._node = node
        self._clock = clock

    def capture_started(self, job: leased_job.Job, progress: work_ports.Progress) -> None:
        """Say that media is on disk, beside the capture."""
        task = asyncio.create_task(self._started(job, progress.first_packet_ms or self._clock()))
        job.said.add(task)

    async def _started(self, job: leased_job.Job, first_packet_ms: int) -> None:
        try:
            await self._store.segments.update(job.owner, job.epoch, {"first_packet_ms": first_packet_ms})
        except Exception:
            # The same time comes with capture-started and with the exit; the capture must not wait for a database that is away.
            log.exception("segment.not_noted", owner=job.owner, epoch=job.epoch)
        await self._send(job, internal_events.CaptureStarted(epoch=job.epoch, first_packet_ms=first_packet_ms))
        failpoints.hit("capture.media.after")

    async def broken(self, job: leased_job.Job, detail: str) -> None:
        """Publish that a job ended through a fault that a retry may pass."""
        reason = Reason.ERROR
        match job.kind:
            case states.CAPTURE:
                if job.capture is not None:
                    job.capture.kill()
                progress = job.capture.progress if job.capture is not None else None
                await self.outcome(job, leased_job.capture_exit(job, reason, detail, progress))
            case states.TRANSCODE:
                await self.outcome(job, leased_job.transcode_exit(job, reason, detail, retry=True))
            case states.UPLOAD:
                await self.outcome(job, internal_events.UploadFailed(epoch=job.epoch, reason=reason, detail=detail, retry=True))
            case _:
                await self.outcome(job, internal_events.CallbackFailed(epoch=job.epoch, reason=reason, detail=detail, retry=True))

    async def last_word(self, job: leased_job.Job) -> None:
        """Say of a transcode that its node stops, which is no fault of it; of all else `worker-lost` says as much. Gives up soon:
        then this is said, too."""
        if job.kind != states.TRANSCODE or job.ended:
            return
        detail = "Its node stopped; the transcode begins anew."
        try:
            async with asyncio.timeout(LAST_WORD_S):
                await self.outcome(job, leased_job.transcode_exit(job, Reason.NODE_STOPPING, detail, retry=True))
        except (TimeoutError, errors.LeaseRefused) as error:
            log.info("outcome.left_unsaid", owner=job.owner, epoch=job.epoch, reason=type(error).__name__)

    async def outcome(self, job: leased_job.Job, outcome: internal_events.WorkerEvent) -> None:
        """Publish the job's outcome: returns once it is in the outbox."""
        await self._send(job, outcome)
        job.ended = True

    async def _send(self, job: leased_job.Job, outcome: internal_events.WorkerEvent) -> None:
        type_ = internal_events.TYPE_OF[type(outcome)]
        event = codec.make(
            type_,
            id=f"{type_}.{job.owner}.{job.epoch}",
            time_ms=self._clock(),
            data=leased_job.names(job) | codec.from_payload(outcome),
            subject=job.owner,
        )
        while True:
            try:
                # A worker that stood still may end its work before its renewal is refused.
                if job.kind != states.CAPTURE and not await self._store.leases.is_held(job.owner, job.epoch, self._node):
                    raise errors.LeaseRefused
                await self._store.outbox.send("event", event, job.owner[:26])
                return
            except errors.LeaseRefused:
                raise
            except Exception:
                log.exception("outcome.not_written", owner=job.owner, epoch=job.epoch, event_type=type_)
                await asyncio.sleep(SAY_AGAIN_S)
