"""Delivery policy of both buses: a message is acknowledged, requeued after a backoff, or parked as a dead letter.

Rules:
- An invalid or refused message is parked at once, with the reason. An invalid request of a user is answered and not parked.
- A temporary failure is requeued. After `attempts.MAX_ATTEMPTS` failures of its own the message is parked.
- While the database is unavailable, or refuses writes, or the worker is full, the message is requeued and nothing is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from bus import attempts, database_probe
from events import codec
from events import errors as event_errors
from machine import errors, metrics, tracing

log = structlog.get_logger()

# A handler runs one transaction or takes one lease. A longer run is a hang.
HANDLER_TIMEOUT_S = 300.0
# A full worker keeps a command this long, then another node may take it.
FULL_BACKOFF_S = 1.0
# A message that must be handled alone comes back so often, until it finds its turn.
ISOLATED_BACKOFF_S = 1.0

# Prefixes of routing keys; anything else is a publisher's mistake.
CHANNELS = ("event", "command", "result")

Handler = Callable[[codec.Event], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """One delivery of a message. `key` is its routing key, `attempt_key` its name in the table of counts, `traceparent`
    the span that published it, if its headers name one."""

    key: str
    body: bytes
    message_id: str
    attempt_key: str
    redelivered: bool = False
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disposition:
    """The policy's decision: kind `done`, `park` (with `reason`) or `requeue` (after `backoff_s`). `database_failed`: it is
    requeued for the database's sake. `full`: no slot was free for it, so nothing was begun."""

    kind: str
    reason: str = ""
    backoff_s: float = 0.0
    database_failed: bool = False
    full: bool = False


RefuseInvalid = Callable[[Incoming, event_errors.InvalidEvent], Awaitable[bool]]
"""Answers the publisher of an invalid message. Returns False if nobody can be answered."""
DONE = Disposition(kind="done")


def park(reason: str) -> Disposition:
    """Decide that a message becomes a dead letter."""
    return Disposition(kind="park", reason=reason)


class DeliveryPolicy:
    """Hands each message to `handler` and decides what becomes of it. `read` decodes and checks a message before, and raises
    InvalidEvent."""

    def __init__(
        self,
        read: Callable[[Incoming], codec.Event],
        handler: Handler,
        *,
        tracker: attempts.AttemptTracker,
        probe: database_probe.DatabaseProbe,
        refuse: RefuseInvalid | None = None,
        timeout_s: float = HANDLER_TIMEOUT_S,
    ) -> None:
        self._read = read
        self._handler = handler
        self._tracker = tracker
        self._probe = probe
        self._refuse = refuse
        self._timeout_s = timeout_s

    async def handle(self, message: Incoming) -> Disposition:
        """Handle one delivery. Raises nothing but cancellation."""
        disposition = await self._handle(message)
        channel = message.key.partition(".")[0]
        metrics.MESSAGES.labels(channel if channel in CHANNELS else "other", disposition.kind).inc()
        return disposition

    async def _handle(self, message: Incoming) -> Disposition:
        try:
            async with self._tracker.attempt(message.attempt_key, redelivered=message.redelivered) as counted:
                return await self._attempt(message, counted)
        except attempts.AttemptsExhausted as error:
            return park(str(error))
        except attempts.Isolated:
            return Disposition(kind="requeue", reason="another message is handled alone", backoff_s=ISOLATED_BACKOFF_S)
        except Exception:
            # The counts cannot be read or written, so nothing was decided either.
            log.exception("bus.tries_not_counted", key=message.key, message_id=message.message_id)
            await self._probe.wait_available()
            return _database_failed(attempts.backoff_s(1))

    async def _attempt(self, message: Incoming, counted: int) -> Disposition:
        """Read and handle a message once. Raises the errors of the counts."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._read_and_handle(message)
        except errors.WorkerFull as error:
            await self._tracker.uncount(message.attempt_key, counted)
            return Disposition(kind="requeue", reason=error.message, backoff_s=FULL_BACKOFF_S, full=True)
        except event_errors.InvalidEvent as error:
            return await self._finish(message, counted, park(f"invalid: {error}"))
        except errors.DatabaseUnavailable as error:
            return await self._fail(message, counted, error.message, database_failed=error.refused)
        except errors.RecorderError as error:
            reason = f"{error.code}: {error.message}"
            if not error.retry:
                return await self._finish(message, counted, park(f"refused: {reason}"))
            return await self._fail(message, counted, reason)
        except Exception as error:  # noqa: BLE001 - not swallowed: logged if it is the message's own, and the message is retried
            return await self._fail(message, counted, f"{type(error).__name__}: {error}", fault=error)
        return await self._finish(message, counted, DONE)

    async def _read_and_handle(self, message: Incoming) -> None:
        """Raises InvalidEvent for a message that is invalid and cannot be answered, and the handler's errors."""
        try:
            event = self._read(message)
        except event_errors.InvalidEvent as error:
            if self._refuse is None or not await self._refuse(message, error):
                raise
            return
        if message.traceparent:
            event = replace(event, traceparent=message.traceparent)
        if not event.traceparent:
            await self._handler(event)
            return
        with tracing.span(f"process {message.key}", "consumer", event.traceparent):
            await self._handler(event)

    async def _finish(self, message: Incoming, counted: int, disposition: Disposition) -> Disposition:
        """Forget the count of a message that is handled or parked."""
        try:
            await self._tracker.forget(message.attempt_key, counted)
        except Exception:
            # The decision holds: a count that remains expires by age.
            log.exception("bus.tries_not_forgotten", key=message.key, message_id=message.message_id)
        return disposition

    async def _fail(
        self, message: Incoming, counted: int, reason: str, fault: Exception | None = None, *, database_failed: bool = False
    ) -> Disposition:
        """Decide on a message that failed for now. A database that refused the work itself may accept less: such a message comes
        back after a pause, and is not counted."""
        if database_failed or not await self._probe.available():
            await self._probe.wait_available()
            await self._tracker.uncount(message.attempt_key, counted)
            return _database_failed(attempts.backoff_s(1) if database_failed else 0.0)
        if fault is not None:
            log.error("bus.handler_raised", key=message.key, message_id=message.message_id, exc_info=fault)
        tries = await self._tracker.record_failure(message.attempt_key, counted)
        if tries >= attempts.MAX_ATTEMPTS:
            return await self._finish(message, tries, park(f"failed {tries} times, at last with {reason}"))
        log.warning("bus.retry", key=message.key, message_id=message.message_id, tries=tries, reason=reason)
        return Disposition(kind="requeue", reason=reason, backoff_s=attempts.backoff_s(tries))


def _database_failed(backoff_s: float = 0.0) -> Disposition:
    return Disposition(kind="requeue", reason="the database was away", backoff_s=backoff_s, database_failed=True)
