"""From the outbox to the broker: claim, publish, mark what was confirmed. Imports `machine` and `events`.

Rule: a row is marked sent only after the broker has confirmed its message. A crash in between publishes it again under the same
id, which is harmless. What could not be published is tried again: soon by this relay while its claim holds, later by any.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from bus import broker_connection as links
from bus import database_probe as presences
from bus import publisher
from events import errors as event_errors
from machine import errors, failpoints, ports, supervised_task

log = structlog.get_logger()

POLL_S = 0.5
BATCH = 200
HOLD_S = 15.0
AGAIN_S = 1.0
LAST_ROUND_S = 3.0
# Failures in a row, with a database that answers, after which the fault is ours: the process ends and is started anew.
FAILURES_BEFORE_END = 5


@dataclass(slots=True)
class _Claim:
    """A row that this relay may publish from `due_s` until `until_s`, and that is anybody's from `over_s` (monotonic)."""

    message: ports.Message
    until_s: float
    over_s: float
    due_s: float = 0.0
    confirmed: bool = False


class Relay:
    """Publishes what waits in the outbox, a batch at a time, all of it in flight at once."""

    def __init__(self, store: presences.Store, link: links.Link, *, presence: presences.Presence, hold_s: float = HOLD_S) -> None:
        self._store = store
        self._link = link
        self._presence = presence
        self._hold_s = hold_s
        self._claimed: dict[int, _Claim] = {}
        self._reason = ""
        self._turn = asyncio.Lock()
        self.loop = supervised_task.SupervisedTask("bus.relay", self._run)

    async def stop(self) -> None:
        """End after the round that is under way, if that ends soon, and leave to the others what is claimed and not published;
        harmless to repeat."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ROUND_S):
                # A round that is cut off may have claimed what nobody would know of.
                async with self._turn:
                    await self.loop.stop()
        await self.loop.stop()
        left = [seq for seq, claim in self._claimed.items() if not claim.confirmed]
        self._claimed.clear()
        if left:
            try:
                async with asyncio.timeout(LAST_ROUND_S):
                    await self._store.release(left)
            except Exception as error:  # noqa: BLE001 - not swallowed: it is told, and the claims end by themselves
                log.warning("bus.claims_kept", messages=len(left), reason=type(error).__name__, hold_s=self._hold_s)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                # Nothing is claimed while there is nowhere to publish to.
                await self._link.session()
                async with self._turn:
                    sent, left = await self._round()
                failures = 0
            except Exception as error:
                failures = failures + 1 if await self._presence.answers() else 0
                await self._presence.back()
                if failures >= FAILURES_BEFORE_END:
                    raise
                log.exception("bus.relay_failed", failures=failures, reason=type(error).__name__)
                sent, left = 0, 0
            if left or not sent:
                await supervised_task.pause(self._store.changed, POLL_S)

    async def _round(self) -> tuple[int, int]:
        """Publish what is due; how many went and how many did not."""
        failpoints.hit("outbox.claim.before")
        messages = await self._due()
        again_s = time.monotonic() + AGAIN_S
        failpoints.hit("outbox.claim.after")
        for message, confirmed in zip(messages, await asyncio.gather(*map(self._publish, messages)), strict=True):
            claim = self._claimed[message.seq]
            claim.confirmed, claim.due_s = confirmed, again_s
        sent = [seq for seq, claim in self._claimed.items() if claim.confirmed]
        left = sum(not self._claimed[message.seq].confirmed for message in messages)
        if left:
            log.warning("bus.not_published", messages=left, reason=self._reason)
        if sent:
            # Where this fails, what the broker has is marked in the next round, not published again.
            failpoints.hit("outbox.mark.before")
            await self._store.mark_all_sent(sent)
            failpoints.hit("outbox.mark.after")
        for seq in sent:
            del self._claimed[seq]
        return len(sent), left

    async def _due(self) -> Sequence[ports.Message]:
        """What this relay holds and may still publish, and what it claims beside that; in the order of the outbox."""
        now_s = time.monotonic()
        self._claimed = {seq: claim for seq, claim in self._claimed.items() if claim.over_s > now_s}
        if sum(claim.until_s > now_s for claim in self._claimed.values()) < BATCH:
            # Published only until well before the claim ends: another relay may not take what we are about to publish. Remembered
            # until after its end: what the broker has is marked as long as that, and not published again.
            until_s, over_s = now_s + self._hold_s * 2 / 3, now_s + self._hold_s + AGAIN_S
            fresh = await self._store.claim_unsent(BATCH, round(self._hold_s * 1000))
            self._claimed |= {message.seq: _Claim(message, until_s, over_s) for message in fresh}
        due = [c for _, c in sorted(self._claimed.items()) if c.due_s <= now_s < c.until_s and not c.confirmed]
        return [claim.message for claim in due]

    async def _publish(self, message: ports.Message) -> bool:
        """Publish one; whether the broker has it, or it can never have it."""
        try:
            made = publisher.outgoing(message.channel, message.type, message.node, message.body)
        except event_errors.InvalidEvent as error:
            # Written by our own codec in the same transaction as the decision: this is damage, and never heals.
            log.error("bus.dead_letters", seq=message.seq, channel=message.channel, reason=str(error))
            await self._store.mark_sent(message.seq, parked=str(error))
            return True
        try:
            await publisher.publish(self._link, made)
        except links.Unroutable as error:
            hint = "is the queue of that node, or of that kind of work, deleted? It is declared anew by any node that starts"
            log.error("bus.unroutable", seq=message.seq, key=made.key, reason=error.message, hint=hint)
            self._reason = error.message
            return False
        except errors.Unavailable as error:
            log.debug("bus.not_published", seq=message.seq, key=made.key, reason=error.message)
            self._reason = error.message
            return False
        return True
