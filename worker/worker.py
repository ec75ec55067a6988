"""Doing: a node's jobs, each under a lease that is renewed while it runs. Imports `machine` and `events`.

The contract of each command (precondition · effect · resulting event · what a second call does):

1. start-capture    job queued · lease, segment registered, ffmpeg · capture-started, ffmpeg-exit · refused by the lease
2. stop-capture     capture of this epoch runs here · ffmpeg asked to end · ffmpeg-exit (by 1) · asks again, harmless
3. start-transcode  job queued · lease, partial file, verified, renamed · ffmpeg-exit · refused by the lease
4. start-upload     job queued · lease, upload resumed or begun, compared · upload-finished, upload-failed · refused by the lease
5. send-callback    job queued · lease, one POST · callback-finished, callback-failed · refused by the lease

Rule: no outcome is said for a job whose lease was refused: the work is ended and nothing more is written. An unanswered
renewal is not a refusal (the database may be restarting). Stopping the node is no outcome either, but for transcodes: the next
start voids its leases, as after a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from events import codec
from machine import due_work, errors, failpoints, internal_events, model, ports, states, supervised_task
from machine.reasons import Reason
from worker import leased_job, outcomes, work_ports

log = structlog.get_logger()

RENEW_S = 5.0
LEAST_RENEW_S = 0.5
# A transcode fills a core, an upload a thread; more at once would only slow the captures beside them.
TRANSCODES = 2
UPLOADS = 4
# A callback waits for a stranger's server, each with a socket: many at once, and not as many as there are sessions.
CALLBACKS = 64


class Worker:
    """The jobs of one node."""

    def __init__(
        self,
        store: ports.Store,
        steps: work_ports.Steps,
        *,
        node: str,
        policy: model.Policy,
        clock: Callable[[], int],
        shared_spool: bool = True,
    ) -> None:
        """`shared_spool`: any node can reach the files that this one writes."""
        self._store = store
        self._steps = steps
        self._node = node
        self._place = "" if shared_spool else node
        self._policy = policy
        self._clock = clock
        self._say = outcomes.Outcomes(store, node=node, clock=clock)
        self._jobs: dict[tuple[str, int], leased_job.Job] = {}
        self._transcodes = asyncio.Semaphore(TRANSCODES)
        self._uploads = asyncio.Semaphore(UPLOADS)
        self._callbacks = asyncio.Semaphore(CALLBACKS)
        self.renewal = supervised_task.SupervisedTask("worker.leases", self._renew)

    async def start(self) -> None:
        """Void the leases that an earlier life of this node held: ask the disk, not memory, what they left."""
        await asyncio.gather(*(self._void(lease) for lease in await self._store.leases.of_node(self._node)))
        self.renewal.start()

    async def drain(self) -> None:
        """Hand the captures over: each ends, and says that the next segment is another node's. Returns when all have said so.

        Take no new jobs before: cancel the consumers of commands first."""
        running = [j for j in self._jobs.values() if j.kind == states.CAPTURE and not j.ended]
        for job in running:
            # Of one that is taken and has no ffmpeg yet, this is seen before it gets one.
            job.handed_over = True
            if job.capture is not None:
                job.capture.stop()
        await asyncio.gather(*(j.task for j in running if j.task is not None), return_exceptions=True)

    async def stop(self) -> None:
        """End all work. Files stay as they are, leases are voided at the next start. Of transcodes it is said that their node
        stopped: restarts are no reason to give up, and deaths of workers are."""
        await self.renewal.stop()
        jobs = list(self._jobs.values())
        self._jobs.clear()
        await asyncio.gather(*(self._abandon(job) for job in jobs))
        await asyncio.gather(*(self._say.last_word(job) for job in jobs))

    def progress(self) -> dict[str, int]:
        """Media captured so far by the captures that run here: recording id → ms."""
        running = [j for j in self._jobs.values() if j.capture is not None and not j.ended]
        return {j.owner: j.capture.progress.media_ms for j in running if j.capture is not None}

    def captures(self) -> int:
        """How many captures this node holds, those included whose ffmpeg is not started yet."""
        return sum(job.kind == states.CAPTURE and not job.ended for job in self._jobs.values())

    def expected_bytes(self, reserve_bytes: int) -> int:
        """What the captures that run here are expected to need of the spool still: a reserve each, and room for the finished
        file beside what is captured already."""
        running = [j.capture.progress.size_bytes for j in self._jobs.values() if j.capture is not None and not j.ended]
        return sum(size_bytes + reserve_bytes for size_bytes in running)

    # --- commands ---------------------------------------------------------------------------------------------------------
    async def start_capture(self, command: codec.Event) -> None:
        """Contract 1."""
        await self._take(command, states.CAPTURE, self._capture)

    async def stop_capture(self, command: codec.Event) -> None:
        """Contract 2."""
        job = self._jobs.get((leased_job.owner_of(command), command.data["Epoch"]))
        if job is None:
            log.info(
                "capture.stop_ignored",
                owner=leased_job.owner_of(command),
                epoch=command.data["Epoch"],
                reason="it does not run here",
            )
            return
        failpoints.hit("capture.stop.before")
        job.stop_asked = True
        if job.capture is not None:
            job.capture.stop()
        failpoints.hit("capture.stop.after")

    async def start_transcode(self, command: codec.Event) -> None:
        """Contract 3."""
        await self._take(command, states.TRANSCODE, self._transcode)

    async def start_upload(self, command: codec.Event) -> None:
        """Contract 4."""
        await self._take(command, states.UPLOAD, self._upload)

    async def send_callback(self, command: codec.Event) -> None:
        """Contract 5."""
        await self._take(command, states.CALLBACK, self._call_back)

    # --- the work ---------------------------------------------------------------------------------------------------------
    async def _capture(self, job: leased_job.Job) -> None:
        assignment = await self._assignment(job)
        await self._store.segments.register(job.owner, job.epoch, self._node)
        job.capture = capture = self._steps.capture(
            assignment, job.epoch, lambda progress: self._say.capture_started(job, progress)
        )
        # A stop that came before this node knew of its lease found no job here.
        job.stop_asked |= assignment.recording.stop_requested
        if job.stop_asked or not await self._store.leases.is_held(job.owner, job.epoch, self._node):
            await self._say.outcome(job, leased_job.capture_exit(job, Reason.STOPPED, "It was stopped before it began."))
            return
        if job.handed_over:
            await self._say.outcome(job, leased_job.capture_exit(job, Reason.NODE_STOPPING, "Its node stopped before it began."))
            return
        await capture.start()
        log.info("capture.running", owner=job.owner, epoch=job.epoch)
        if job.stop_asked or job.handed_over:
            capture.stop()
        ended = await capture.wait()
        await asyncio.gather(*job.said)
        failpoints.hit("segment.close.before")
        log.info("capture.ended", owner=job.owner, epoch=job.epoch, reason=ended.reason, media_ms=ended.progress.media_ms)
        handed_over = job.handed_over and not job.stop_asked and ended.reason == Reason.STOPPED
        reason = Reason.NODE_STOPPING if handed_over else ended.reason
        await self._say.outcome(job, leased_job.capture_exit(job, reason, ended.detail, ended.progress))
        failpoints.hit("segment.close.after")

    async def _assignment(self, job: leased_job.Job) -> due_work.Assignment:
        found = await self._store.assignments.recording(job.owner)
        if found is None:
            raise errors.NotFound(f"There is no recording {job.owner}.")
        return found

    async def _transcode(self, job: leased_job.Job) -> None:
        assignment = await self._assignment(job)
        segments: Sequence[Any] = await self._store.segments.of_recording(job.owner)
        try:
            missing = await self._gather(assignment, segments)
            async with self._transcodes:
                made = await self._steps.transcode(assignment, job.epoch, [s for s in segments if s.epoch not in missing])
        except errors.TranscodeFailed as error:
            log.warning("transcode.failed", owner=job.owner, epoch=job.epoch, reason=error.reason, detail=error.detail)
            await self._say.outcome(job, leased_job.transcode_exit(job, error.reason, error.detail, retry=error.retry))
            return
        log.info("transcode.done", owner=job.owner, epoch=job.epoch, duration_ms=made.output.duration_ms, missing=len(missing))
        output = replace(made.output, missing=len(missing), gaps=leased_job.with_missing(made.output, segments, missing))
        done = internal_events.FfmpegExit(epoch=job.epoch, job=job.kind, reason=Reason.OK, output=output, node=self._place)
        await self._say.outcome(job, done)

    async def _gather(self, assignment: due_work.Assignment, segments: Sequence[Any]) -> set[int]:
        """Fetch the segments that lie on other nodes; returns the epochs of those that cannot be reached. Raises TranscodeFailed
        (node-away) as long as NODE_RETURN gives their node time. One of which nobody has told how it ended may hold media that
        nobody knows of (its worker died, or stood still, before its first word): it is asked for, and not waited for."""
        if not self._place:
            return set()
        missing = set()
        for segment in segments:
            if segment.node == self._node or (segment.reason and not segment.media_ms):
                continue
            if not await self._fetch(assignment, segment) and segment.media_ms:
                missing.add(segment.epoch)
        over_ms = assignment.recording.stage_started_ms + self._policy.node_return_ms
        if missing and self._clock() < over_ms:
            nodes = ", ".join(sorted({s.node for s in segments if s.epoch in missing}))
            detail = f"Segments lie on {nodes}, which does not answer; the transcode waits for it until NODE_RETURN is over."
            raise errors.TranscodeFailed(detail, reason=Reason.NODE_AWAY, retry=True)
        return missing

    async def _fetch(self, assignment: due_work.Assignment, segment: Any) -> bool:
        url = await self._store.nodes.url(segment.node, self._clock() - 2 * self._policy.lease_ms)
        return bool(url) and await self._steps.fetch(assignment, segment.epoch, url)

    async def _upload(self, job: leased_job.Job) -> None:
        assignment = await self._assignment(job)
        state = await self._store.uploads.state(job.owner)

        async def save(reached: dict[str, Any]) -> None:
            if not await self._store.uploads.save(job.owner, job.epoch, self._node, reached):
                raise errors.LeaseRefused

        try:
            async with self._uploads:
                done = await self._steps.upload(assignment, state, save)
        except errors.UploadFailed as error:
            log.warning("upload.failed", owner=job.owner, epoch=job.epoch, reason=error.reason, detail=error.detail)
            failed = internal_events.UploadFailed(epoch=job.epoch, reason=error.reason, detail=error.detail, retry=error.retry)
            await self._say.outcome(job, failed)
            return
        log.info("upload.done", owner=job.owner, epoch=job.epoch, size_bytes=done.size_bytes)
        failpoints.hit("upload.done.before")
        stored = internal_events.UploadFinished(epoch=job.epoch, size_bytes=done.size_bytes, crc64=done.crc64, url=done.url)
        await self._say.outcome(job, stored)
        failpoints.hit("upload.done.after")
        # Not before it is said: a crash in between would upload hours of video once more.
        await self._store.uploads.delete(job.owner, job.epoch)

    async def _call_back(self, job: leased_job.Job) -> None:
        value = await self._store.assignments.delivery(job.owner)
        if value is None:
            return
        try:
            async with self._callbacks:
                await self._steps.deliver(value)
        except errors.CallbackFailed as error:
            log.warning("callback.failed", owner=job.owner, epoch=job.epoch, reason=error.reason, detail=error.detail)
            failed = internal_events.CallbackFailed(epoch=job.epoch, reason=error.reason, detail=error.detail, retry=error.retry)
            await self._say.outcome(job, failed)
            return
        failpoints.hit("callback.mark.before")
        log.info("callback.delivered", owner=job.owner, epoch=job.epoch)
        await self._say.outcome(job, internal_events.CallbackFinished(epoch=job.epoch))
        failpoints.hit("callback.mark.after")

    # --- leases -----------------------------------------------------------------------------------------------------------
    async def _take(self, command: codec.Event, kind: str, work: Callable[[leased_job.Job], Awaitable[None]]) -> None:
        owner, epoch = leased_job.owner_of(command), command.data["Epoch"]
        failpoints.hit("lease.take.before")
        if not await self._store.leases.take(owner, epoch, self._node, self._policy.lease_ms):
            log.info("job.not_taken", owner=owner, epoch=epoch, kind=kind, reason="it is held, ended or superseded")
            return
        failpoints.hit("lease.take.after")
        job = leased_job.Job(owner=owner, epoch=epoch, kind=kind)
        self._jobs[owner, epoch] = job
        job.task = asyncio.create_task(self._run(job, work), name=f"{kind} {owner}")

    async def _run(self, job: leased_job.Job, work: Callable[[leased_job.Job], Awaitable[None]]) -> None:
        try:
            await self._work(job, work)
        except errors.LeaseRefused:
            log.warning("job.superseded", owner=job.owner, epoch=job.epoch, kind=job.kind)
        finally:
            if not job.ended:
                # Ended without a word: renewed on, it would be held for ever; let go, it becomes `worker-lost`.
                self._jobs.pop((job.owner, job.epoch), None)

    async def _work(self, job: leased_job.Job, work: Callable[[leased_job.Job], Awaitable[None]]) -> None:
        try:
            await work(job)
        except errors.LeaseRefused:
            raise
        except Exception as error:
            # A fault of ours or of the database: say it, so that the machine tries again instead of waiting for the lease to end.
            log.exception("job.raised", owner=job.owner, epoch=job.epoch, kind=job.kind)
            if not job.ended:
                await self._say.broken(job, f"{type(error).__name__}: {error}")

    async def _renew(self) -> None:
        # A renewal tells when media last came, and by that a recording is idle or not: well within IDLE_TIMEOUT.
        every_s = min(RENEW_S, self._policy.lease_ms / 6000, max(LEAST_RENEW_S, self._policy.idle_timeout_ms / 3000))
        answered = True
        while True:
            await asyncio.sleep(every_s if answered else min(outcomes.SAY_AGAIN_S, every_s))
            answered = await self._end_refused()
            for job in list(self._jobs.values()):
                answered &= await self._renew_one(job)

    async def _end_refused(self) -> bool:
        """End the jobs whose leases are gone, all at once: after this node stood still there may be many, and renewing one after
        the other takes longer than their ffmpegs may live on. Returns whether the database answered."""
        jobs = dict(self._jobs)
        if not jobs:
            return True
        try:
            held = {(lease.owner, lease.epoch) for lease in await self._store.leases.of_node(self._node)}
        except Exception:
            log.exception("lease.unanswered", jobs=len(jobs))
            return False
        await asyncio.gather(*(self._refused(job) for key, job in jobs.items() if key not in held))
        return True

    async def _renew_one(self, job: leased_job.Job) -> bool:
        """Returns whether the database answered."""
        last_ms = job.capture.progress.last_packet_ms if job.capture is not None and not job.ended else None
        try:
            failpoints.hit("lease.renew.before")
            held = await self._store.leases.renew(job.owner, job.epoch, self._node, self._policy.lease_ms, last_ms)
            if held and job.capture is not None and not job.ended and last_ms is not None:
                await self._store.segments.update(job.owner, job.epoch, leased_job.segment(job.capture.progress))
            failpoints.hit("lease.renew.after")
        except Exception:
            log.exception("lease.unanswered", owner=job.owner, epoch=job.epoch)
            return False
        if not held:
            await self._refused(job)
        return True

    async def _refused(self, job: leased_job.Job) -> None:
        self._jobs.pop((job.owner, job.epoch), None)
        if not job.ended:
            log.warning("lease.refused", owner=job.owner, epoch=job.epoch, kind=job.kind)
            await self._abandon(job)

    async def _abandon(self, job: leased_job.Job) -> None:
        if job.capture is not None and not job.ended:
            job.capture.kill()
        tasks = [t for t in (job.task, *job.said) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _void(self, lease: due_work.Lease) -> None:
        lost = internal_events.WorkerLost(owner=lease.owner, epoch=lease.epoch, node=lease.node)
        if "/" in lease.owner:
            assignment = await self._store.assignments.recording(lease.owner)
            if assignment is not None and assignment.recording.state in states.CAPTURING:
                lost = await self._with_media(lost, assignment)
        log.info("lease.voided", owner=lease.owner, epoch=lease.epoch, media_ms=lost.media_ms)
        # Not the id of the sweeper's event, which may exist already and does not know what is on disk.
        id_, data = f"voided.{lease.owner}.{lease.epoch}", codec.from_payload(lost)
        event = codec.make("worker-lost", id=id_, time_ms=self._clock(), data=data, subject=lease.owner)
        await self._store.outbox.send("event", event, lease.owner[:26])

    async def _with_media(self, lost: internal_events.WorkerLost, assignment: due_work.Assignment) -> internal_events.WorkerLost:
        """Add what a capture left on disk. The node starts no job before this is published, so the scan is short: of a long
        segment it reports the media that was noted, and of an unreadable one nothing."""
        known_ms = max(
            (s.media_ms for s in await self._store.segments.of_recording(lost.owner) if s.epoch == lost.epoch), default=0
        )
        try:
            found = await self._steps.scan(assignment, lost.epoch, known_ms)
        except OSError as error:
            log.error("segment.not_read", owner=lost.owner, epoch=lost.epoch, error=error.strerror, media_ms=known_ms)
            return lost
        return replace(lost, media_ms=found.media_ms, size_bytes=found.size_bytes, last_packet_ms=found.last_packet_ms)
