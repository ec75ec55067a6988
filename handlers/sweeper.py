"""Sweeper: publishes the events that time causes, `deadline-passed` and `worker-lost`, issues commands again that nobody has
taken, and sends the node's heartbeat.

Rules: it publishes only that something is over, and the handlers decide what follows. The database's clock tells what is over;
spans of this process are monotonic. It expires no lease until it has been connected for one lease itself, so that a database
outage does not look like dead workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from events import codec
from machine import database_clock, due_work, errors, internal_events, model, nodes, ports, states, supervised_task

log = structlog.get_logger()

POLL_MS = 250
# The pause while nothing is due, a second and more with its jitter. Deadlines that another node arms meanwhile are found late.
IDLE_MS = 1_250
MIN_PAUSE_MS = 20
BATCH = 100
RETRY_MS = 1_000
HEARTBEAT_MS = 2 * model.SECOND
CLEAN_EVERY_MS = model.HOUR
TELL_SKEW_EVERY_MS = model.MINUTE
# The pause between two searches for queued jobs that nobody takes.
SEARCH_QUEUED_MS = 5 * model.SECOND
# A gap between heartbeats of any node that is longer than this counts as downtime.
DOWNTIME_MS = 3 * HEARTBEAT_MS


class Sweeper:
    """Publishes `deadline-passed` for overdue deadlines and `worker-lost` for expired leases."""

    def __init__(
        self,
        store: ports.Store,
        *,
        node: str,
        policy: model.Policy,
        clock: database_clock.DatabaseClock,
        url: Callable[[], str] = str,
        spare: Callable[[], model.SpareCapacity | None] = lambda: None,
        report: Callable[[], nodes.NodeReport | None] = lambda: None,
        sweeps: bool = True,
    ) -> None:
        """`url` is the address at which other nodes fetch this node's files, "" for none; `spare` its capacity for captures, None
        for a node that takes none; `report` what operators see of it. Without `sweeps` it only sends heartbeats."""
        self._store = store
        self._node = node
        self._url = url
        self._spare = spare
        self._report = report
        self._sweeps = sweeps
        self._policy = policy
        self._clock = clock
        # Monotonic: the next round, the begin of the connection, the last heartbeat, the next search for queued jobs.
        self._next_ms = 0.0
        self._since_ms = self._beat_ms = float("-inf")
        self._queued_ms = 0.0
        # The database's time of the last heartbeat.
        self._seen_ms = 0
        self._told_ms, self._told_skew_ms = float("-inf"), 0
        self.sweep = supervised_task.SupervisedTask("sweeper", self._run)
        self.cleaning = supervised_task.SupervisedTask("cleaning", self._run_cleaning)

    async def start(self) -> None:
        """Send the first heartbeat, which extends deadlines by the downtime, then begin to sweep."""
        await self._beat()
        self.sweep.start()
        if self._sweeps:
            self.cleaning.start()

    async def stop(self) -> None:
        """Stop sweeping."""
        await self.cleaning.stop()
        await self.sweep.stop()

    async def _run(self) -> None:
        while True:
            try:
                await self.run_once()
            except errors.Outdated:
                raise
            except Exception:
                # Most likely the database does not answer. No lease expires until the sweeper has been connected for one lease
                # again. A defect shows in the log in each round.
                log.exception("sweeper.round_failed")
                self._since_ms = self._clock.monotonic_ms() + RETRY_MS
                await asyncio.sleep(RETRY_MS / 1000)
            await self._pause()

    async def _pause(self) -> None:
        """Sleep until the next round. A transaction of this process may arm an earlier deadline, which ends the sleep after
        POLL_MS."""
        rest_ms = self._rest_ms()
        await asyncio.sleep(min(rest_ms, POLL_MS) / 1000)
        if rest_ms > POLL_MS:
            await supervised_task.pause(self._store.armed, (rest_ms - POLL_MS) / 1000)

    def _rest_ms(self) -> float:
        """The time until the next deadline that is known, at most about IDLE_MS."""
        idle_ms = supervised_task.jittered_s(IDLE_MS / 1000) * 1000
        return max(min(self._next_ms - self._clock.monotonic_ms(), idle_ms), MIN_PAUSE_MS)

    async def run_once(self) -> None:
        """Run one round: a heartbeat if it is due, then the sweep."""
        self._next_ms = self._clock.monotonic_ms() + 2 * IDLE_MS
        if self._clock.monotonic_ms() >= self._beat_ms + HEARTBEAT_MS:
            await self._beat()
        if self._sweeps:
            await self._sweep()

    async def _beat(self) -> None:
        """Send a heartbeat. Each one extends deadlines by the downtime before it, because this process may freeze, or the
        database fail, at any point of a round. After downtime the time until leases expire starts again."""
        began_ms = self._clock.monotonic_ms()
        seen_ms = await self._clock.measure(self._store.nodes.now_ms)
        skew_ms = self._clock.skew_ms
        moved_ms = await self._store.nodes.heartbeat(
            self._node, self._url(), self._spare(), over_ms=DOWNTIME_MS, skew_ms=skew_ms, report=self._report()
        )
        if moved_ms > 0:
            log.info("sweeper.deadlines_extended", downtime_ms=moved_ms)
        elif moved_ms:
            log.warning("sweeper.database_clock_set_back", by_ms=-moved_ms)
        # The process stood still, or the database's clock was set.
        silent_ms = max(began_ms - self._beat_ms, abs(seen_ms - self._seen_ms))
        if silent_ms > DOWNTIME_MS:
            self._since_ms = began_ms
        # The times before the heartbeat: the database may have written it early in the call, and the rest may have been downtime.
        self._beat_ms, self._seen_ms = began_ms, seen_ms
        self._tell_skew(skew_ms, began_ms)

    def _tell_skew(self, skew_ms: int, now_ms: float) -> None:
        """Tell that this machine's clock is off: when it is set, and now and then."""
        was_set = abs(skew_ms - self._told_skew_ms) >= database_clock.OFF_MS
        if abs(skew_ms) >= database_clock.OFF_MS and (was_set or now_ms >= self._told_ms + TELL_SKEW_EVERY_MS):
            self._told_ms, self._told_skew_ms = now_ms, skew_ms
            log.warning("node.clock_off", node=self._node, skew_ms=skew_ms, hint="Set this machine's clock by NTP.")

    async def _sweep(self) -> None:
        """Publish overdue work: at most one batch of each kind, and the rest at once in the next round. If the node stood
        still since its heartbeat, the next one may extend some deadlines, and no lease is judged before."""
        fresh_until_ms = self._seen_ms + DOWNTIME_MS
        armed = await self._store.deadlines.due(BATCH, ahead_ms=2 * IDLE_MS)
        now_ms = self._clock.monotonic_ms()
        overdue: list[due_work.Overdue] = [d for d in armed if d.left_ms <= 0]
        self._next_ms = min((now_ms + d.left_ms for d in armed if d.left_ms > 0), default=self._next_ms)
        if now_ms >= self._since_ms + self._policy.lease_ms:
            overdue += await self._store.deadlines.expired(BATCH, fresh_until_ms=fresh_until_ms)
            overdue += await self._queued(now_ms)
        messages = [(item, self._message(item)) for item in overdue]
        published = await self._store.deadlines.publish(messages, fresh_until_ms=fresh_until_ms) if messages else 0
        # Other nodes may have published some of a full batch. If they published all of it, their rounds continue.
        if published and len(messages) >= BATCH:
            self._next_ms = now_ms

    async def _queued(self, now_ms: float) -> Sequence[due_work.QueuedJob]:
        """Queued jobs whose command is to be issued again, now and then: their pauses are a minute and longer."""
        if now_ms < self._queued_ms:
            return ()
        self._queued_ms = now_ms + round(supervised_task.jittered_s(SEARCH_QUEUED_MS / 1000) * 1000)
        return await self._store.deadlines.queued(BATCH)

    async def _run_cleaning(self) -> None:
        policy = self._policy
        every_ms = min(CLEAN_EVERY_MS, policy.keep_messages_ms // 4, policy.keep_sessions_ms // 4)
        while True:
            try:
                await self.clean()
            except Exception:
                # The next one continues: nothing depends on the age at which a row is deleted.
                log.exception("sweeper.cleaning_failed")
            await asyncio.sleep(supervised_task.jittered_s(every_ms / 1000))

    async def clean(self) -> None:
        """Delete rows older than the retention times, beside the rounds: after a long downtime it takes minutes."""
        now_ms, policy = self._clock(), self._policy
        if not await self._store.retention.delete_messages(now_ms - policy.keep_messages_ms):
            return  # another node is at it
        # Expired presence stays as long again, so that a start can tell whom it does not record.
        presence_before_ms = now_ms - 2 * policy.presence_kept_ms
        if deleted := await self._store.retention.delete_sessions(now_ms - policy.keep_sessions_ms, presence_before_ms):
            log.info("sweeper.sessions_deleted", sessions=deleted)

    def _message(self, item: due_work.Overdue) -> codec.Event:
        """The event of an overdue row, or the command of a queued job. Its id is the same each time: a repeated event is a
        duplicate, and a repeated command finds its lease taken."""
        if isinstance(item, due_work.QueuedJob):
            type_ = "send-callback" if item.kind == states.DELIVERY else f"start-{item.kind}"
            event_id, data = f"again.{item.owner}.{item.epoch}", item.owner.fields() | {"Epoch": item.epoch}
        elif isinstance(item, due_work.Deadline):
            passed = internal_events.DeadlinePassed(owner=item.owner, kind=item.kind, serial=item.serial)
            type_, event_id, data = "deadline-passed", f"deadline.{item.serial}", codec.from_payload(passed)
        else:
            lost = internal_events.WorkerLost(owner=item.owner, epoch=item.epoch, node=item.node)
            type_, event_id, data = "worker-lost", f"lost.{item.owner}.{item.epoch}", codec.from_payload(lost)
        return codec.make(type_, id=event_id, time_ms=self._clock(), data=data, subject=item.owner.text)
