"""The worker of a node: takes a command's job under a lease, executes it, and publishes its outcome.

A second delivery of a command finds the lease taken and does nothing. A second `stop-capture` asks ffmpeg to stop again.

Rules:
- A job whose lease was refused ends without an outcome, and nothing more is written for it.
- A node that stops publishes no outcomes, except for transcodes. The next start voids its leases, as after a crash.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog

from events import codec
from machine import errors, failpoints, job_key, model, ports, states, storage_fault, tracing
from worker import capacity, execution, job_metrics, leased_job, leases, outcomes, spool_fault, work_ports

log = structlog.get_logger()

# Posts at a time. A delivery waits for the receiver's server and takes a socket.
DELIVERIES = 64


class Worker:
    """Executes the jobs of one node. `shared_spool`: every node can reach the files that this one writes."""

    def __init__(
        self,
        store: ports.Store,
        work: work_ports.Work,
        *,
        node: str,
        policy: model.Policy,
        clock: Callable[[], int],
        shared_spool: bool = True,
        deliveries: int = DELIVERIES,
    ) -> None:
        """`deliveries` is the number of posts at a time. The other kinds have their limits in capacity.Capacity."""
        place = "" if shared_spool else node
        self._work = work
        self._running: Counter[str] = Counter()
        self._running_of: Counter[tuple[str, str]] = Counter()
        self.freed = asyncio.Event()
        self.spool_fault = spool_fault.SpoolFault(work.probe_spool)
        self._clock = clock
        self._publisher = outcomes.OutcomePublisher(store, node=node, clock=clock)
        self.leases = leases.HeldLeases(store, work, node=node, policy=policy, clock=clock)
        self._execution = execution.Execution(
            store,
            work,
            self._publisher,
            node=node,
            place=place,
            policy=policy,
            clock=clock,
            deliveries=deliveries,
            fault=self.spool_fault,
        )

    async def start(self) -> None:
        """Void the leases of an earlier process of this node, then begin to renew leases."""
        await self.leases.start()

    def hand_over(self) -> list[leased_job.AnyJob]:
        """End each capture, so that the next segment is another node's; returns their jobs. A capture that was handed over before
        is not stopped again."""
        running = [j for j in self.leases.jobs.values() if j.kind == states.CAPTURE and not j.ended]
        for job in running:
            # A job whose ffmpeg is not started yet checks this before it starts one.
            if not job.handed_over and job.capture is not None:
                job.capture.stop()
            job.handed_over = True
        return running

    async def drain(self) -> None:
        """Hand the captures over. Returns when all outcomes are published. The caller must have cancelled the consumers of
        commands."""
        running = self.hand_over()
        await asyncio.gather(*(j.task for j in running if j.task is not None), return_exceptions=True)

    async def stop(self) -> None:
        """End all work. Files stay on the spool. Transcodes publish that their node stopped, because a restart does not count
        towards giving up, and a worker's death does."""
        jobs = await self.leases.stop()
        await asyncio.gather(*(self._publisher.node_stopping(job) for job in jobs))

    def progress(self) -> dict[job_key.RecordingKey, int]:
        """Media of the running captures: recording → ms."""
        running = [j for j in self.leases.jobs.values() if j.capture is not None and not j.ended]
        return {j.owner: j.capture.progress.media_ms for j in running if j.capture is not None}

    def running(self, kind: str) -> int:
        """The number of jobs of a kind that this node executes, including those that have only just begun; of capacity.FOLLOWED,
        the transcodes of recordings that it followed when they began."""
        return self._running[kind]

    def running_of(self, kind: str, session: str) -> int:
        """How many of them are of one session."""
        return self._running_of[kind, session]

    def expected_bytes(self, reserve_bytes: int) -> int:
        """Bytes of the spool that the running captures still need: for each a reserve, plus a finished file of the size captured
        so far, unless that file is being written meanwhile."""
        running = [j for j in self.leases.jobs.values() if j.capture is not None and not j.ended]
        written = [j.capture.progress.size_bytes for j in running if j.capture is not None and not self._work.follows(j.owner)]
        return sum(written) + reserve_bytes * len(running)

    async def start_capture(self, command: codec.Event) -> None:
        """Begin a capture."""
        await self._begin(job_key.RecordingKey.of(command.data), command, states.CAPTURE, self._execution.capture)

    async def stop_capture(self, command: codec.Event) -> None:
        """Ask the capture of this epoch to end, if it runs here. Its own outcome reports the end."""
        owner, epoch = job_key.RecordingKey.of(command.data), command.data["Epoch"]
        job = self.leases.jobs.get((owner, epoch))
        if job is None:
            log.info("capture.stop_ignored", owner=owner, epoch=epoch, reason="it does not run here")
            return
        failpoints.hit("capture.stop.before")
        job.stop()
        failpoints.hit("capture.stop.after")

    async def start_transcode(self, command: codec.Event) -> None:
        """Begin a transcode."""
        await self._begin(job_key.RecordingKey.of(command.data), command, states.TRANSCODE, self._execution.transcode)

    async def start_upload(self, command: codec.Event) -> None:
        """Begin or resume an upload."""
        await self._begin(job_key.RecordingKey.of(command.data), command, states.UPLOAD, self._execution.upload)

    async def send_callback(self, command: codec.Event) -> None:
        """Begin a delivery."""
        await self._begin(job_key.DeliveryKey.of(command.data), command, states.DELIVERY, self._execution.deliver)

    async def _begin(
        self,
        owner: leased_job.Owner,
        command: codec.Event,
        kind: str,
        execute: Callable[[leased_job.LeasedJob[leased_job.Owner]], Awaitable[None]],
    ) -> None:
        """Take the job's lease and execute the job in a task of its own."""
        job = await self.leases.take(owner, command.data["Epoch"], kind)
        if job is not None:
            job_metrics.began(job, self._clock() - command.time_ms)
            followed = isinstance(owner, job_key.RecordingKey) and kind == states.TRANSCODE and self._work.follows(owner)
            kinds = (kind, capacity.FOLLOWED) if followed else (kind,)
            self._count(kinds, job.owner.task_id, 1)
            job.traceparent = command.traceparent
            job.task = asyncio.create_task(self._run(job, execute), name=f"{kind} {job.owner}")
            job.task.add_done_callback(lambda _: self._over(kinds, owner.task_id))

    def _count(self, kinds: tuple[str, ...], session: str, jobs: int) -> None:
        for kind in kinds:
            self._running[kind] += jobs
            self._running_of[kind, session] += jobs
            if not self._running_of[kind, session]:
                del self._running_of[kind, session]

    def _over(self, kinds: tuple[str, ...], session: str) -> None:
        self._count(kinds, session, -1)
        self.freed.set()

    async def _run(self, job: leased_job.AnyJob, execute: Callable[[leased_job.AnyJob], Awaitable[None]]) -> None:
        try:
            with tracing.span(f"execute {job.kind}", parent=job.traceparent, owner=job.owner.text, epoch=job.epoch) as here:
                job.traceparent = here
                await self._execute(job, execute)
        except errors.LeaseRefused:
            log.warning("job.superseded", owner=job.owner, epoch=job.epoch, kind=job.kind)
        except Exception:
            log.exception("job.outcome_lost", owner=job.owner, epoch=job.epoch, kind=job.kind)
        finally:
            if not job.ended:
                # Without an outcome. A renewed lease would hold the job forever; an expired one becomes `worker-lost`.
                self.leases.release(job)

    async def _execute(self, job: leased_job.AnyJob, execute: Callable[[leased_job.AnyJob], Awaitable[None]]) -> None:
        try:
            await execute(job)
        except errors.LeaseRefused:
            raise
        except Exception as error:
            # A bug, or a fault of the database. With an outcome the machine retries at once and need not wait for the lease.
            log.exception("job.raised", owner=job.owner, epoch=job.epoch, kind=job.kind)
            if isinstance(error, OSError) and error.errno is not None and storage_fault.is_one(error):
                await self.spool_fault.examine(f"{type(error).__name__}: {error.strerror}.")
            if not job.ended:
                await self._publisher.fault(job, f"{type(error).__name__}: {error}")
