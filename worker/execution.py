"""Executes the jobs of a worker: capture, transcode, upload, delivery. Each publishes its outcome.

The contract of a job (precondition · effect · outcome):

1. capture     job queued · lease, segment registered, ffmpeg · capture-started, ffmpeg-exit
2. transcode   job queued · lease, partial file, verified, renamed · ffmpeg-exit
3. upload      job queued · lease, upload resumed or begun, compared · upload-finished or upload-failed
4. delivery    job queued · lease, one POST (a manifest: one PUT) · callback-finished or callback-failed
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from machine import capture_progress, due_work, errors, failpoints, internal_events, model, ports, segments, spool_wait
from machine.reasons import Reason
from worker import leased_job, outcomes, receivers, spool_fault, work_ports

log = structlog.get_logger()


class Execution:
    """Executes jobs that a lease was taken for. `place` is the node whose spool holds the files, "" for a shared spool."""

    def __init__(
        self,
        store: ports.Store,
        work: work_ports.Work,
        publisher: outcomes.OutcomePublisher,
        *,
        node: str,
        place: str,
        policy: model.Policy,
        clock: Callable[[], int],
        deliveries: int,
        fault: spool_fault.SpoolFault,
    ) -> None:
        self._store = store
        self._work = work
        self._publisher = publisher
        self._node = node
        self._place = place
        self._policy = policy
        self._clock = clock
        self._receivers = receivers.Receivers(deliveries)
        self._fault = fault

    async def capture(self, job: leased_job.RecordingJob) -> None:
        """Capture one speaker's stream until it ends or is stopped."""
        assignment = await self._assignment(job)
        await self._store.segments.register(job.owner, job.epoch, self._node)
        job.capture = capture = self._work.capture(
            assignment, job.epoch, lambda progress: self._publisher.capture_started(job, progress)
        )
        # A stop that arrived before this node took the lease found no job here.
        job.stop_requested |= assignment.recording.stop_requested
        if job.stop_requested or not await self._store.leases.is_held(job.owner, job.epoch, self._node):
            await self._never_began(job, Reason.STOPPED, "It was stopped before it began.")
            return
        if job.handed_over:
            await self._never_began(job, Reason.NODE_STOPPING, "Its node stopped before it began.")
            return
        await capture.start()
        log.info("capture.running", owner=job.owner, epoch=job.epoch)
        if job.stop_requested or job.handed_over:
            capture.stop()
        ended = await capture.wait()
        await asyncio.gather(*job.publishing)
        failpoints.hit("segment.close.before")
        said = {"reason": ended.reason, "detail": ended.detail, "media_ms": ended.progress.media_ms}
        log.info("capture.ended", owner=job.owner, epoch=job.epoch, **said)
        await self._examine(ended.reason, ended.detail)
        handed_over = job.handed_over and not job.stop_requested and ended.reason == Reason.STOPPED
        reason = Reason.NODE_STOPPING if handed_over else ended.reason
        progress = await self._on_disk(job, assignment, ended) if ended.reason == Reason.ERROR else ended.progress
        await self._publisher.ended(job, outcomes.capture_exit(job.epoch, reason, ended.detail, progress))
        failpoints.hit("segment.close.after")

    async def _on_disk(
        self, job: leased_job.RecordingJob, assignment: due_work.Assignment, ended: capture_progress.CaptureExit
    ) -> capture_progress.CaptureProgress:
        """The media of a run that failed. If the database was restored, a segment of this epoch may be on the spool already. No
        capture overwrites it, and its media counts."""
        if ended.progress.media_ms:
            return ended.progress
        try:
            return await self._work.scan(assignment, job.epoch, 0)
        except OSError as error:
            log.error("segment.not_read", owner=job.owner, epoch=job.epoch, error=error.strerror)
            return ended.progress

    async def _never_began(self, job: leased_job.RecordingJob, reason: Reason, detail: str) -> None:
        await self._publisher.ended(job, outcomes.capture_exit(job.epoch, reason, detail, capture_progress.CaptureProgress()))

    async def _examine(self, reason: str, detail: str) -> None:
        # Before the outcome is published: this worker might get the job again at once.
        if reason in spool_wait.FAULTS:
            await self._fault.examine(detail)

    async def transcode(self, job: leased_job.RecordingJob) -> None:
        """Make the finished file from the segments that can be reached."""
        assignment = await self._assignment(job)
        parts = await self._store.segments.of_recording(job.owner)
        try:
            missing = await self._fetch_missing(assignment, parts)
            made = await self._work.transcode(assignment, job.epoch, [s for s in parts if s.epoch not in missing])
        except errors.TranscodeFailed as error:
            log.warning("transcode.failed", owner=job.owner, epoch=job.epoch, reason=error.reason, detail=error.detail)
            await self._examine(error.reason, error.detail)
            failure = outcomes.transcode_failure(job.epoch, error.reason, error.detail, retry=error.retry)
            await self._publisher.ended(job, failure)
            return
        log.info("transcode.done", owner=job.owner, epoch=job.epoch, duration_ms=made.duration_ms, missing=len(missing))
        gaps = leased_job.gaps_with_missing(made, parts, missing)
        output = replace(made, missing=len(missing), gaps=gaps, pulls=segments.pauses(parts))
        done = internal_events.FfmpegExit(epoch=job.epoch, job=job.kind, reason=Reason.OK, output=output, node=self._place)
        await self._publisher.ended(job, done)

    async def _fetch_missing(self, assignment: due_work.Assignment, parts: Sequence[segments.Segment]) -> set[int]:
        """Fetch the segments that are on other nodes; returns the epochs of the unreachable ones.

        Raises TranscodeFailed (node-away) within NODE_RETURN, so that their node can come back. A segment without an outcome may
        hold media that no row knows of, because its worker died or froze before its first report. It is fetched if possible, and
        not waited for."""
        if not self._place:
            return set()
        missing = set()
        for segment in parts:
            if segment.node == self._node or (segment.reason and not segment.media_ms):
                continue
            if not await self._fetch(assignment, segment) and segment.media_ms:
                missing.add(segment.epoch)
        over_ms = assignment.recording.stage_started_ms + self._policy.node_return_ms
        if missing and self._clock() < over_ms:
            nodes = ", ".join(sorted({s.node for s in parts if s.epoch in missing}))
            detail = f"Segments are on {nodes}, which does not answer. The transcode waits for it until NODE_RETURN is over."
            raise errors.TranscodeFailed(detail, reason=Reason.NODE_AWAY, retry=True)
        return missing

    async def _fetch(self, assignment: due_work.Assignment, segment: segments.Segment) -> bool:
        url = await self._store.nodes.url(segment.node, self._clock() - 2 * self._policy.lease_ms)
        return bool(url) and await self._work.fetch(assignment, segment.epoch, url)

    async def upload(self, job: leased_job.RecordingJob) -> None:
        """Upload the finished file, or resume its upload."""
        assignment = await self._assignment(job)
        job.bucket = assignment.session.request.bucket
        state = await self._store.uploads.state(job.owner)

        async def save(reached: dict[str, Any]) -> None:
            job.moved_s = time.monotonic()
            if not await self._store.uploads.save(job.owner, job.epoch, self._node, reached):
                raise errors.LeaseRefused

        try:
            done = await self._work.upload(assignment, state, save)
        except errors.UploadFailed as error:
            log.warning("upload.failed", owner=job.owner, epoch=job.epoch, reason=error.reason, detail=error.detail)
            await self._examine(error.reason, error.detail)
            failure = internal_events.UploadFailure(epoch=job.epoch, reason=error.reason, detail=error.detail, retry=error.retry)
            await self._publisher.ended(job, failure)
            return
        log.info("upload.done", owner=job.owner, epoch=job.epoch, size_bytes=done.size_bytes)
        failpoints.hit("upload.done.before")
        finished = internal_events.UploadFinished(epoch=job.epoch, size_bytes=done.size_bytes, crc64=done.crc64, url=done.url)
        await self._publisher.ended(job, finished)
        failpoints.hit("upload.done.after")
        # After the outcome: a crash between the two would otherwise upload hours of video again.
        await self._store.uploads.delete(job.owner, job.epoch)

    async def deliver(self, job: leased_job.DeliveryJob) -> None:
        """Post a result to its callback URL, once, when it is the turn of its receiver."""
        receiver = await self._store.assignments.receiver(job.owner)
        try:
            async with self._receivers.turn(receiver) as turn:
                await self._post(job, turn)
        except errors.DeliveryFailed as error:
            log.warning("callback.failed", owner=job.owner, epoch=job.epoch, reason=error.reason, detail=error.detail)
            failure = internal_events.DeliveryFailure(
                epoch=job.epoch, reason=error.reason, detail=error.detail, retry=error.retry
            )
            await self._publisher.ended(job, failure)
            return
        failpoints.hit("callback.mark.before")
        log.info("callback.delivered", owner=job.owner, epoch=job.epoch)
        await self._publisher.ended(job, internal_events.DeliveryFinished(epoch=job.epoch))
        failpoints.hit("callback.mark.after")

    async def _post(self, job: leased_job.DeliveryJob, turn: receivers.Turn) -> None:
        """Post in the receiver's turn. Raises DeliveryFailed; without a connection if the receiver's circuit is open."""
        # Not before the turn: the line may be long, the bodies large, and a newer revision may have cancelled this one.
        delivery = await self._store.assignments.delivery(job.owner)
        if delivery is None or delivery.job is None or delivery.epoch != job.epoch:
            raise errors.LeaseRefused
        # The last attempt is always a real one.
        if turn.open and delivery.failures < len(self._policy.delivery_backoff_ms):
            detail = "The receiver did not answer several times in a row. It is tried again after a pause."
            raise errors.DeliveryFailed(detail, reason=Reason.NETWORK, retry=True)
        try:
            if delivery.is_manifest:
                await self._write_manifest(job)
            else:
                await self._work.deliver(delivery)
            turn.answered = True
        except errors.DeliveryFailed as error:
            if error.tried and error.reason not in (Reason.BAD_URL, Reason.PRIVATE_ADDRESS):
                turn.answered = error.reason not in (Reason.TIMEOUT, Reason.NETWORK)
            raise

    async def _write_manifest(self, job: leased_job.DeliveryJob) -> None:
        manifest = await self._store.assignments.manifest(job.owner)
        if manifest is None:
            raise errors.NotFound(f"There is no result for {job.owner}.")
        failpoints.hit("manifest.put.before")
        await self._work.write_manifest(manifest)
        failpoints.hit("manifest.put.after")

    async def _assignment(self, job: leased_job.RecordingJob) -> due_work.Assignment:
        found = await self._store.assignments.recording(job.owner)
        if found is None:
            raise errors.NotFound(f"There is no recording {job.owner}.")
        return found
