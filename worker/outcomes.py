"""Publishes job outcomes. The event id is derived from job and epoch, so a repeat is a duplicate.

Rule: an outcome is published once it is in the outbox. A job whose lease was refused publishes none, except a capture: its
segment is media.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from events import codec
from machine import capture_progress, errors, failpoints, internal_events, ports, states, supervised_task
from machine.reasons import Reason
from worker import job_metrics, leased_job

log = structlog.get_logger()

RETRY_S = 1.0
# While the node stops, an outcome does not wait longer than this for the database.
STOPPING_TIMEOUT_S = 2.0


class OutcomePublisher:
    """Publishes the outcomes of one node's jobs."""

    def __init__(self, store: ports.Store, *, node: str, clock: Callable[[], int]) -> None:
        self._store = store
        self._node = node
        self._clock = clock

    def capture_started(self, job: leased_job.RecordingJob, progress: capture_progress.CaptureProgress) -> None:
        """Publish that media is on disk, in a task of its own."""
        job_metrics.first_packet(job)
        task = asyncio.create_task(self._capture_started(job, progress.first_packet_ms or self._clock()))
        job.publishing.add(task)

    async def _capture_started(self, job: leased_job.RecordingJob, first_packet_ms: int) -> None:
        try:
            await self._store.segments.update(job.owner, job.epoch, {"first_packet_ms": first_packet_ms})
        except Exception:
            # The capture must not wait for an unavailable database. capture-started and ffmpeg-exit carry the same time.
            log.exception("segment.not_noted", owner=job.owner, epoch=job.epoch)
        await self._publish(job, internal_events.CaptureStarted(epoch=job.epoch, first_packet_ms=first_packet_ms))
        failpoints.hit("capture.media.after")

    async def ended(self, job: leased_job.AnyJob, outcome: internal_events.WorkerEvent) -> None:
        """Publish the outcome of a job, and retry until it is in the outbox. Raises LeaseRefused."""
        await self._publish(job, outcome)
        job.ended = True
        job_metrics.ended(job, outcome)

    async def fault(self, job: leased_job.AnyJob, detail: str) -> None:
        """Publish that a job ended through an unexpected fault, which a retry may pass."""
        match job.kind:
            case states.CAPTURE:
                progress = capture_progress.CaptureProgress()
                if job.capture is not None:
                    job.capture.kill()
                    progress = job.capture.progress
                await self.ended(job, capture_exit(job.epoch, Reason.ERROR, detail, progress))
            case states.TRANSCODE:
                await self.ended(job, transcode_failure(job.epoch, Reason.ERROR, detail, retry=True))
            case states.UPLOAD:
                failed = internal_events.UploadFailure(epoch=job.epoch, reason=Reason.ERROR, detail=detail, retry=True)
                await self.ended(job, failed)
            case _:
                undelivered = internal_events.DeliveryFailure(epoch=job.epoch, reason=Reason.ERROR, detail=detail, retry=True)
                await self.ended(job, undelivered)

    async def node_stopping(self, job: leased_job.AnyJob) -> None:
        """Publish for a transcode that its node stops, so that it does not count as failed. For other jobs `worker-lost` is
        enough. It is also enough if this cannot be published within `STOPPING_TIMEOUT_S`."""
        if job.kind != states.TRANSCODE or job.ended:
            return
        detail = "Its node stopped; the transcode starts over."
        try:
            async with asyncio.timeout(STOPPING_TIMEOUT_S):
                await self.ended(job, transcode_failure(job.epoch, Reason.NODE_STOPPING, detail, retry=True))
        except (TimeoutError, errors.LeaseRefused) as error:
            log.info("outcome.not_published", owner=job.owner, epoch=job.epoch, reason=type(error).__name__)

    async def _publish(self, job: leased_job.AnyJob, outcome: internal_events.WorkerEvent) -> None:
        type_ = internal_events.TYPE_OF[type(outcome)]
        event = codec.make(
            type_,
            id=f"{type_}.{job.owner}.{job.epoch}",
            time_ms=self._clock(),
            data=job.owner.fields() | codec.from_payload(outcome),
            subject=job.owner.text,
            traceparent=job.traceparent,
        )
        while True:
            try:
                # A worker that was frozen may finish its work before its renewal is refused.
                if job.kind != states.CAPTURE and not await self._store.leases.is_held(job.owner, job.epoch, self._node):
                    raise errors.LeaseRefused
                await self._store.outbox.send("event", event, job.owner.task_id)
                return
            except errors.LeaseRefused:
                raise
            except Exception:
                log.exception("outcome.not_written", owner=job.owner, epoch=job.epoch, event_type=type_)
                await asyncio.sleep(supervised_task.jittered_s(RETRY_S))


def capture_exit(epoch: int, reason: str, detail: str, progress: capture_progress.CaptureProgress) -> internal_events.FfmpegExit:
    """The outcome of a capture, with its media on disk."""
    return internal_events.FfmpegExit(
        epoch=epoch,
        job=states.CAPTURE,
        reason=reason,
        detail=detail,
        media_ms=progress.media_ms,
        size_bytes=progress.size_bytes,
        first_packet_ms=progress.first_packet_ms,
        last_packet_ms=progress.last_packet_ms,
        anchors=progress.anchors,
    )


def transcode_failure(epoch: int, reason: str, detail: str, *, retry: bool) -> internal_events.FfmpegExit:
    """The outcome of a transcode without an output."""
    return internal_events.FfmpegExit(epoch=epoch, job=states.TRANSCODE, reason=reason, detail=detail, retry=retry)
