"""Time as a source of events: overdue deadlines and ended leases. Imports `machine` and `events`.

Rule: it only says what is over; deciding what follows is the machine's. It expires no lease until it has itself been connected
for one lease, so that a database that was away does not look like dead workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from events import codec
from machine import internal_events, model, ports, supervised_task

log = structlog.get_logger()

POLL_S = 0.25
AGAIN_MS = 1_000
HEARTBEAT_MS = 2 * model.SECOND
CLEAN_EVERY_MS = model.HOUR
MAX_REMEMBERED = 10_000
# Less than this since the last sign of life of any node: somebody may well have been there.
AWAY_MS = 3 * HEARTBEAT_MS


class Sweeper:
    """Turns what is overdue into `deadline-passed` and `worker-lost`."""

    def __init__(
        self,
        store: ports.Store,
        *,
        node: str,
        policy: model.Policy,
        clock: Callable[[], int],
        url: Callable[[], str] = str,
        spare: Callable[[], model.SpareCapacity | None] = lambda: None,
        sweeps: bool = True,
    ) -> None:
        """`url` tells where other nodes fetch this one's files, "" for nowhere; `room` what room it has for captures, None for a
        node that takes none. Without `sweeps` it only gives signs of life."""
        self._store = store
        self._node = node
        self._url = url
        self._spare = spare
        self._sweeps = sweeps
        self._policy = policy
        self._clock = clock
        self._published: dict[str, None] = {}
        self._next_cleaning_ms = 0
        self._since_ms = self._beat_ms = 0
        self.sweep = supervised_task.SupervisedTask("sweeper", self._run)

    async def start(self) -> None:
        """Give live sessions back the time in which no node could have tried, then begin to sweep."""
        await self._beat()
        self.sweep.start()

    async def stop(self) -> None:
        """End the sweep."""
        await self.sweep.stop()

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:
                # The database is away, most likely: nothing is said meanwhile, and no lease is judged until we have been
                # connected for one lease again. A fault of ours shows in the log at each round.
                log.exception("sweeper.round_failed")
                self._since_ms = self._clock() + AGAIN_MS
                await asyncio.sleep(AGAIN_MS / 1000)
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """One round: a sign of life when it is time for one, then what is over."""
        if self._clock() >= self._beat_ms + HEARTBEAT_MS:
            await self._beat()
        if self._sweeps:
            await self._sweep()

    async def _beat(self) -> None:
        """A sign of life. Each gives sessions back the time in which no node gave one, because nobody can tell before where in a
        round this process will stand still, or the database be away; after such a time leases are counted anew."""
        now_ms = self._clock()
        if away_ms := await self._store.nodes.heartbeat(self._node, self._url(), self._spare(), over_ms=AWAY_MS):
            log.info("sweeper.downtime_forgiven", away_ms=away_ms)
        if now_ms > self._beat_ms + AWAY_MS:
            self._since_ms = now_ms
        # When it began, not when it was over: what passed meanwhile may have been after the database had written it down.
        self._beat_ms = now_ms

    async def _sweep(self) -> None:
        due = await self._store.deadlines.due()
        now_ms = self._clock()
        stood_still = now_ms > self._beat_ms + AWAY_MS
        for deadline in due:
            if stood_still and deadline.kind in model.EXTENDED_BY_DOWNTIME:
                continue  # the next sign of life may give it more time
            passed = internal_events.DeadlinePassed(owner=deadline.owner, kind=deadline.kind, serial=deadline.serial)
            await self._publish(f"deadline.{deadline.serial}", passed)
        if not stood_still and now_ms >= self._since_ms + self._policy.lease_ms:
            for lease in await self._store.leases.expired(now_ms):
                lost = internal_events.WorkerLost(owner=lease.owner, epoch=lease.epoch, node=lease.node)
                await self._publish(f"lost.{lease.owner}.{lease.epoch}", lost)
        if now_ms >= self._next_cleaning_ms:
            await self._clean(now_ms)

    async def _clean(self, now_ms: int) -> None:
        """Forget what is older than anybody can want; where there is much of it, the rest at the next look."""
        policy = self._policy
        every_ms = min(CLEAN_EVERY_MS, policy.keep_messages_ms // 4, policy.keep_sessions_ms // 4)
        # Before it is tried: cleaning that fails must not keep leases from being judged round after round.
        self._next_cleaning_ms = now_ms + every_ms
        await self._store.retention.delete_messages(now_ms - policy.keep_messages_ms)
        if gone := await self._store.retention.delete_sessions(now_ms - policy.keep_sessions_ms):
            log.info("sweeper.sessions_forgotten", sessions=gone)
            self._next_cleaning_ms = now_ms

    async def _publish(self, event_id: str, payload: internal_events.TimerEvent) -> None:
        """Publish an event once in the life of this process."""
        if event_id in self._published:
            return
        type_, data = internal_events.TYPE_OF[type(payload)], codec.from_payload(payload)
        event = codec.make(type_, id=event_id, time_ms=self._clock(), data=data, subject=payload.owner)
        await self._store.outbox.send("event", event, payload.owner[:26])
        self._published[event_id] = None
        while len(self._published) > MAX_REMEMBERED:
            self._published.pop(next(iter(self._published)))
