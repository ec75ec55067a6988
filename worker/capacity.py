"""Capacity of a worker: pauses the commands of each kind of job while no slot is free, so that other workers take them.

Rules:
- A worker takes a job only when it has a free slot for it: a lease that waits keeps the job from an idle worker.
- Transcodes of recordings that this worker follows have slots of their own, because only it has their files. Without a slot for
  the others it takes no transcode that any worker can do, and goes on with those that are for it alone.
- While other sessions wait for a slot, one session takes half of the slots at most.
- An upload whose bucket does not answer leaves its slot to uploads to other buckets (stalled_uploads.py).
- A limit never ends work that has begun. Captures, transcodes, uploads and deliveries in progress go on.
- A cordon is a limit on captures only: transcodes and uploads finish the files on this node's disk. A drain ends its captures.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from machine import errors, model, nodes, states, supervised_task
from worker import cpu_usage, stalled_uploads

log = structlog.get_logger()

CHECK_EVERY_S = 1.0
# A command that found no slot comes again after a second.
WAITS_S = 3.0
START_CAPTURE, START_TRANSCODE, START_UPLOAD = "start-capture", "start-transcode", "start-upload"
FOLLOWED = "followed"
"""The slots of transcodes that end what a follower has written, among those of START_TRANSCODE."""
KINDS = {
    START_CAPTURE: states.CAPTURE,
    START_TRANSCODE: states.TRANSCODE,
    START_UPLOAD: states.UPLOAD,
    "send-callback": states.DELIVERY,
}


Pause = Callable[[str, bool], Awaitable[None]]
"""Stops the commands of a type; if the second is true, those that only this node can do go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureLimits:
    """Limits on new captures; 0 is no limit. `captures` at a time, `cpu` as the share of this worker's CPUs that live work takes,
    `load` of the last minute per core. `free_bytes` of the spool must stay free."""

    captures: int
    cpu: float
    load: float
    free_bytes: Callable[[], int]


class Capacity:
    """Pauses and resumes the commands of a worker, by their type. `pause` and `resume` act on the bus and are idempotent.

    `slots` is the number of jobs at a time by command type, and FOLLOWED; `running` counts the jobs of a kind, `running_of` those
    of a session, both also for FOLLOWED. `follows`: whether this worker follows any recording. `freed` is set when a job ends.
    `measure` measures the spool, and `free_bytes` returns the last figure. `fault` is why the spool takes no job. `cordon` is
    what an operator asked of the node, and `hand_over` gives its captures to other nodes. Without `limits` captures are not
    limited, and no fault and no cordon counts: there is no other worker."""

    def __init__(
        self,
        limits: CaptureLimits | None,
        *,
        slots: Mapping[str, int],
        pause: Pause,
        resume: Callable[[str], Awaitable[None]],
        running: Callable[[str], int],
        running_of: Callable[[str, str], int] = lambda kind, session: 0,
        follows: Callable[[], bool] = lambda: False,
        freed: asyncio.Event,
        live: cpu_usage.LiveCpu,
        measure: Callable[[], Awaitable[None]],
        free_bytes: Callable[[], int],
        fault: Callable[[], str] = lambda: "",
        cordon: Callable[[], str] = lambda: nodes.ACTIVE,
        hand_over: Callable[[], object] = lambda: None,
        load: Callable[[], float] = lambda: os.getloadavg()[0] / (os.cpu_count() or 1),
        stalled: stalled_uploads.StalledUploads | None = None,
    ) -> None:
        self._limits = limits
        self._slots = slots
        self._pause = pause
        self._resume = resume
        self._running = running
        self._running_of = running_of
        self._follows = follows
        self._freed = freed
        self._live = live
        self._measure = measure
        self._free_bytes = free_bytes
        self._fault = fault
        self._cordon = cordon
        self._hand_over = hand_over
        self._load = load
        self._stalled = stalled
        types = [*(type_ for type_ in slots if type_ != FOLLOWED), *((START_CAPTURE,) if limits else ())]
        self._locks = {type_: asyncio.Lock() for type_ in types}
        # Whether a type is paused, and if it is, whether commands for this node alone go on.
        self._paused = dict.fromkeys(types, (False, False))
        # When a session's command found no slot (monotonic), by the names of the slots.
        self._waiting: dict[str, dict[str, float]] = {type_: {} for type_ in slots}
        self.task = supervised_task.SupervisedTask("capacity", self._run)

    async def start(self) -> None:
        """Begin the checks: when a job ends, and every `CHECK_EVERY_S`."""
        self.task.start()

    async def stop(self) -> None:
        """End the checks."""
        await self.task.stop()

    def busy(self) -> str:
        """Why no further capture is taken, apart from the spool's space; "" if one would be."""
        limits, share, running = self._limits, self._live.share, self._running(states.CAPTURE)
        if limits is None:
            return ""
        if fault := self._fault():
            return fault
        if self._cordon() != nodes.ACTIVE:
            return "it is cordoned"
        if limits.captures and running >= limits.captures:
            return f"{running} captures run, MAX_CAPTURES is {limits.captures}"
        if limits.cpu and share > limits.cpu:
            return f"live work takes {share:.0%} of the CPUs, MAX_CPU is {limits.cpu:.0%}"
        load = self._load()
        if limits.load and load > limits.load:
            return f"the load per core is {load:.1f}, MAX_LOAD is {limits.load:g}"
        return ""

    @property
    def live_share(self) -> float:
        """Share of this worker's CPUs that live work takes, from 0 to 1."""
        return self._live.share

    def spare(self) -> model.SpareCapacity:
        """The spare capacity for captures that this worker publishes with its heartbeat."""
        try:
            needed_bytes = self._limits.free_bytes() if self._limits else 0
            return model.SpareCapacity(free_bytes=self._free_bytes(), needed_bytes=needed_bytes, busy=self.busy())
        except errors.Unavailable as error:
            # An unreadable spool takes no capture, but it is not full: it may be back in a moment.
            return model.SpareCapacity(free_bytes=None, needed_bytes=0, busy=error.message)

    def full(self, type_: str = START_CAPTURE) -> str:
        """Why no further job of this command, or FOLLOWED, is taken; "" if one would be."""
        if type_ in self._slots:
            running, slots = _taken(type_, self._running), self._slots[type_]
            running -= self._stalled.left() if self._stalled and type_ == START_UPLOAD else 0
            if running >= slots:
                return f"{running} jobs of {slots} run"
            return self._fault() if self._limits and type_ in (START_TRANSCODE, FOLLOWED) else ""
        spare = self.spare()
        if spare.free_bytes is None or spare.busy or spare.free_bytes >= spare.needed_bytes:
            return spare.busy
        return f"the spool has {spare.free_bytes >> 20} MiB free, {spare.needed_bytes >> 20} MiB are needed"

    async def admit(self, type_: str, begin: Callable[[], Awaitable[None]], session: str = "", *, followed: bool = False) -> None:
        """Begin one more job of a session, or handle a command that needs no slot. `followed`: it is a transcode of a recording
        that this worker follows. Raises WorkerFull if no slot is free; the bus then requeues the command.

        One of a kind at a time: commands that were delivered before the consumer was paused arrive here too, and together they
        would exceed the limit."""
        if type_ not in self._locks:
            await begin()
            return
        slots = FOLLOWED if followed and FOLLOWED in self._slots else type_
        async with self._locks[type_]:
            if type_ == START_CAPTURE:
                await self._measure()
            reason = self.full(slots) or self._unfair(slots, session)
            waits = bool(reason)
            if not reason and self._stalled and type_ == START_UPLOAD:
                # It does not wait for the free slot: to bring it back at once for that would go on and on.
                reason = await self._stalled.refusal(session)
            if not reason:
                await begin()
            self._note_waiting(slots, session, waits=waits)
            await self._check(type_)
        if reason:
            raise errors.WorkerFull(f"This worker is full: {reason}.")

    def _unfair(self, type_: str, session: str) -> str:
        """Why the session has to leave a free slot to another one; "" if it need not."""
        if type_ not in self._slots:
            return ""
        running, most = _taken(type_, lambda kind: self._running_of(kind, session)), max(1, self._slots[type_] // 2)
        unfair = running >= most and self._others_wait(type_, session)
        return f"{running} jobs of its session run, and other sessions wait" if unfair else ""

    def _others_wait(self, type_: str, session: str = "") -> bool:
        since_s = time.monotonic() - WAITS_S
        return any(at_s > since_s for other, at_s in self._waiting.get(type_, {}).items() if other != session)

    def _note_waiting(self, type_: str, session: str, *, waits: bool) -> None:
        if type_ in self._slots:
            since_s = time.monotonic() - WAITS_S
            still = {other: at_s for other, at_s in self._waiting[type_].items() if at_s > since_s and other != session}
            self._waiting[type_] = still | ({session: time.monotonic()} if waits else {})

    async def _run(self) -> None:
        while True:
            self._live.sample()
            if self._limits is not None:
                await self._measure()
            if self._stalled is not None:
                await self._stalled.look()
            await self.check()
            await supervised_task.pause(self._freed, CHECK_EVERY_S)

    async def check(self) -> None:
        """Compare once with all limits, and pause or resume. A node that drains hands over its captures once none can come."""
        for type_ in self._locks:
            await self._check(type_)
        if self._limits is not None and self._cordon() == nodes.DRAINING:
            self._hand_over()

    async def _check(self, type_: str) -> None:
        reason = self.full(type_)
        but_own = bool(reason) and type_ == START_TRANSCODE and FOLLOWED in self._slots and self._follows()
        but_own = but_own and not self.full(FOLLOWED)
        paused = (bool(reason), but_own)
        # A slot that a session left to others is free for them now.
        left = (not reason and self._others_wait(type_)) or (but_own and self._others_wait(FOLLOWED))
        if paused == self._paused[type_] and not left:
            return
        level = log.info if type_ == START_CAPTURE else log.debug
        level("worker.capacity", command=type_, full=bool(reason), reason=reason)
        if reason:
            await self._pause(type_, but_own)
        else:
            await self._resume(type_)
        self._paused[type_] = paused


def _taken(slots: str, running: Callable[[str], int]) -> int:
    """How many of these slots are taken: a followed transcode takes none of the others."""
    if slots == START_TRANSCODE:
        return running(states.TRANSCODE) - running(FOLLOWED)
    return running(KINDS.get(slots, slots))
