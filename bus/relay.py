"""Relay from the outbox to the broker: claim, publish, mark the confirmed messages as sent.

Rules:
- A row is marked sent only after the broker confirmed its message. A crash in between publishes the message again under the same
  id, so consumers deduplicate it. A message that could not be published is retried: soon by this relay while its claim lasts,
  later by any relay.
- A message that the broker does not confirm delays the others by `SLOW_S` at most: one queue without a leader, such as a
  subscriber's, must not slow down every session.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace

import structlog

from bus import broker_connection, database_probe, publisher
from events import errors as event_errors
from machine import due_work, errors, failpoints, ports, supervised_task, tracing

log = structlog.get_logger()

# Each commit of this process wakes its relay. The poll finds messages of nodes that died.
POLL_S = 1.0
BATCH = 200
CLAIM_S = 15.0
RETRY_S = 1.0
SLOW_S = 0.5
LAST_ROUND_S = 3.0
# After so many failures in a row with an available database, the process ends and its supervisor restarts it.
FAILURES_BEFORE_END = 5


@dataclass(slots=True)
class _Claim:
    """A claimed row. This relay may publish it from `due_s` until `until_s`; from `expired_s` any relay may (monotonic)."""

    message: due_work.OutboxMessage
    until_s: float
    expired_s: float
    due_s: float = 0.0
    confirmed: bool = False
    publishing: asyncio.Task[bool] | None = None


class Relay:
    """Publishes the outbox in batches, with all messages of a batch in flight."""

    def __init__(
        self,
        store: ports.Store,
        connection: broker_connection.BrokerConnection,
        *,
        probe: database_probe.DatabaseProbe,
        claim_s: float = CLAIM_S,
    ) -> None:
        self._store = store
        self._connection = connection
        self._probe = probe
        self._claim_s = claim_s
        self._claims: dict[int, _Claim] = {}
        self._reason = ""
        self._lock = asyncio.Lock()
        self.task = supervised_task.SupervisedTask("bus.relay", self._run)

    async def stop(self) -> None:
        """Finish the current round within `LAST_ROUND_S`, then release unpublished claims to other relays. Idempotent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ROUND_S):
                # A round that is cancelled may have claimed rows that it did not note yet.
                async with self._lock:
                    await self.task.stop()
        await self.task.stop()
        flying = [claim.publishing for claim in self._claims.values() if claim.publishing]
        for each in flying:
            each.cancel()
        await asyncio.gather(*flying, return_exceptions=True)
        unpublished = [seq for seq, claim in self._claims.items() if not claim.confirmed]
        self._claims.clear()
        if unpublished:
            try:
                async with asyncio.timeout(LAST_ROUND_S):
                    await self._store.outbox.release(unpublished)
            except Exception as error:  # noqa: BLE001 - not swallowed: logged, and the claims expire
                log.warning("bus.claims_kept", messages=len(unpublished), reason=type(error).__name__, claim_s=self._claim_s)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                # Nothing is claimed while it could not be published.
                await self._connection.session()
                async with self._lock:
                    sent, unsent = await self._round()
                failures = 0
            except Exception as error:
                away = isinstance(error, errors.DatabaseUnavailable) or not await self._probe.available()
                failures = 0 if away else failures + 1
                await self._probe.wait_available()
                if failures >= FAILURES_BEFORE_END:
                    raise
                log.exception("bus.relay_failed", failures=failures, reason=type(error).__name__)
                sent, unsent = 0, 0
            if unsent or not sent:
                await supervised_task.pause(self._store.changed, supervised_task.jittered_s(POLL_S))

    async def _round(self) -> tuple[int, int]:
        """Publish the due messages; returns how many were sent and how many were not."""
        failpoints.hit("outbox.claim.before")
        due = await self._due()
        failpoints.hit("outbox.claim.after")
        for claim in due:
            claim.publishing = asyncio.create_task(self._publish(claim.message))
        if due:
            await asyncio.wait([claim.publishing for claim in due if claim.publishing], timeout=SLOW_S)
        retry_s = time.monotonic() + supervised_task.jittered_s(RETRY_S)
        unsent = 0
        for claim in self._claims.values():
            if claim.publishing and claim.publishing.done():
                task, claim.publishing, claim.due_s = claim.publishing, None, retry_s
                claim.confirmed = task.result()
                unsent += not claim.confirmed
        if unsent:
            log.warning("bus.not_published", messages=unsent, reason=self._reason)
        sent = [seq for seq, claim in self._claims.items() if claim.confirmed]
        if sent:
            # If this fails, the next round marks the confirmed messages and does not publish them again.
            failpoints.hit("outbox.mark.before")
            await self._store.outbox.mark_all_sent(sent)
            failpoints.hit("outbox.mark.after")
        for seq in sent:
            del self._claims[seq]
        return len(sent), unsent

    async def _due(self) -> list[_Claim]:
        """Claim another batch if there is capacity; returns the due messages in the order of the outbox."""
        now_s = time.monotonic()
        self._claims = {seq: claim for seq, claim in self._claims.items() if claim.expired_s > now_s or claim.publishing}
        if sum(claim.until_s > now_s for claim in self._claims.values()) < BATCH:
            # Published only until well before the claim ends, so that no other relay takes a message that is about to go out.
            # Remembered until after its end: a confirmed message is marked until then, and not published again.
            until_s, expired_s = now_s + self._claim_s * 2 / 3, now_s + self._claim_s + RETRY_S
            for message in await self._store.outbox.claim(BATCH, round(self._claim_s * 1000)):
                known = self._claims.get(message.seq)
                self._claims[message.seq] = _Claim(message, until_s, expired_s, publishing=known.publishing if known else None)
        return [c for _, c in sorted(self._claims.items()) if c.due_s <= now_s < c.until_s and not (c.confirmed or c.publishing)]

    async def _publish(self, message: due_work.OutboxMessage) -> bool:
        """Publish one message; returns whether the broker confirmed it, or it is parked because it can never be published."""
        try:
            outgoing = publisher.outgoing(message.channel, message.type, message.node, message.body)
        except event_errors.InvalidEvent as error:
            # The codec wrote it in the deciding transaction, so the row is damaged for good.
            log.error("bus.parked", seq=message.seq, channel=message.channel, reason=str(error))
            await self._store.outbox.mark_sent(message.seq, parked=str(error))
            return True
        try:
            await self._publish_traced(outgoing)
        except broker_connection.Unroutable as error:
            hint = "Was the queue of that node, or of that kind of work, deleted? Any node that starts declares it again."
            log.error("bus.unroutable", seq=message.seq, key=outgoing.key, reason=error.message, hint=hint)
            self._reason = error.message
            return False
        except errors.Unavailable as error:
            log.debug("bus.not_published", seq=message.seq, key=outgoing.key, reason=error.message)
            self._reason = error.message
            return False
        return True

    async def _publish_traced(self, outgoing: publisher.Outgoing) -> None:
        """Publish in a span of its own, if the message follows from one."""
        parent = str(outgoing.headers.get("traceparent", ""))
        if not parent:
            await publisher.publish(self._connection, outgoing)
            return
        with tracing.span(
            f"publish {outgoing.key.partition('.')[0]}", "producer", parent, type=outgoing.properties["type"]
        ) as here:
            await publisher.publish(self._connection, replace(outgoing, headers={"traceparent": here}))
