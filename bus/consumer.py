"""Consumer of one queue, with a bounded number of messages in flight.

Rules:
- A message is acknowledged only after it was handled, or after the broker confirmed its dead letter. An event is handled once it
  is committed, a command once its worker holds the lease.
- Handlers run in tasks of this process. aiormq cancels the tasks of a channel that closes, and a job whose lease was just taken
  would be lost. `message.process()` is not used for the same reason: a cancelled one rejects without requeue, and the message is
  gone.
- Beside nodes of release 0.1.0 a retry waits here and is requeued: they park a message that comes from a queue of retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog
from aio_pika import abc

from bus import attempts, broker_connection, dead_letter_envelope, delivery_policy, publisher, redaction, retries
from bus import topology as topologies
from events import codec
from machine import encryption, errors, failpoints, supervised_task

log = structlog.get_logger()

OPEN_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 10.0
HOLD_S = 2.0
PARKED_FULL_BACKOFF_S = 30.0


class Consumer:
    """Consumes one queue while `enabled`, on the session that is current."""

    def __init__(
        self,
        connection: broker_connection.BrokerConnection,
        queue: topologies.Queue,
        kind: str,
        policy: delivery_policy.DeliveryPolicy,
        *,
        keyring: encryption.Keyring,
        clock: Callable[[], int],
        prefetch: int,
        returns: topologies.Queue | None = None,
        beside_older: Callable[[], bool] = lambda: False,
    ) -> None:
        """`returns`: the queue in which a retry comes again, if not `queue`. `beside_older`: whether nodes of release 0.1.0
        consume the same queue."""
        self._connection = connection
        self._kind = kind
        self._policy = policy
        self._keyring = keyring
        self._clock = clock
        self._prefetch = prefetch
        self._returns = returns or queue
        self._beside_older = beside_older
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel: abc.AbstractChannel | None = None
        self._queue: abc.AbstractQueue | None = None
        self._underlay: Any = None
        self._tag = ""
        self._lock = asyncio.Lock()
        self._draining = asyncio.Event()
        self.queue = queue
        self.enabled = True
        self.received = 0

    async def open(self, session: broker_connection.BrokerSession) -> None:
        """Begin to consume on a new session.

        Raises Unavailable when the queue does not answer. A quorum queue without a leader accepts the request and stays silent,
        and must not keep the other consumers from working."""
        async with self._lock:
            self._tag, self._queue, self._channel = "", None, None
            with broker_connection.translate_errors(f"consuming {self.queue.name}"):
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    channel = await session.unguarded_channel()
                    await channel.set_qos(prefetch_count=self._prefetch)
                    self._underlay = await channel.get_underlay_channel()
                    self._queue = await channel.get_queue(self.queue.name, ensure=False)
                    await self._apply()
            # The broker cancels a consumer whose queue was deleted or moved. Its channel stays open and silent.
            self._underlay.on_consumer_cancel_callbacks.add(lambda _: session.end(f"consumer of {self.queue.name} cancelled"))
            session.guard(channel)
            self._channel = channel

    async def enable(self, enabled: bool) -> None:
        """Consume from now on, or stop consuming. Idempotent. Messages that were delivered before are still handled."""
        self.enabled = enabled
        async with self._lock:
            if self.is_open:
                with broker_connection.translate_errors(f"consumer of {self.queue.name}"):
                    async with asyncio.timeout(REPLY_TIMEOUT_S):
                        await self._apply()

    async def drain(self, timeout_s: float) -> None:
        """Let running handlers end within `timeout_s`, then cancel them: their messages are delivered again."""
        self._draining.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._draining.clear()

    @property
    def is_open(self) -> bool:
        """Whether the queue answered on an open channel."""
        return self._channel is not None and not self._channel.is_closed

    @property
    def forgotten(self) -> bool:
        """Whether aiormq lost track of this consumer: it then drops the deliveries."""
        return bool(self._tag) and self._tag not in self._underlay.consumers

    @property
    def below_prefetch(self) -> bool:
        """Whether the broker would deliver another message."""
        return len(self._tasks) < self._prefetch

    async def _apply(self) -> None:
        if self._queue is None:
            return
        if self.enabled and not self._tag:
            # A callback, because the queue's iterator goes deaf on cancellation.
            self._tag = await self._queue.consume(self._receive)
        elif not self.enabled and self._tag:
            tag, self._tag = self._tag, ""
            await self._queue.cancel(tag)

    async def _receive(self, message: abc.AbstractIncomingMessage) -> None:
        self.received += 1
        task = asyncio.create_task(self._handle(message), name=f"bus.{self.queue.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, message: abc.AbstractIncomingMessage) -> None:
        disposition = await self._decide(message)
        failpoints.hit("bus.acknowledge.before")
        key, message_id = message.routing_key or "", message.message_id or ""
        try:
            await self._settle(message, disposition)
        except errors.Unavailable as error:
            # The channel is closed, so the broker delivers the message again. The inbox deduplicates it.
            log.info("bus.answer_lost", key=key, message_id=message_id, reason=error.message)
        except Exception as error:
            log.exception("bus.answer_failed", key=key, message_id=message_id)
            await self._hold(message, str(error))

    async def _decide(self, message: abc.AbstractIncomingMessage) -> delivery_policy.Disposition:
        path = bypass(message, self._connection.topology)
        if path:
            return delivery_policy.park(f"refused: {path}")
        key, message_id = message.routing_key or "", message.message_id or ""
        # The broker's id and not the one in the body: an attempt is counted before the body is read.
        named = message_id or hashlib.sha256(message.body).hexdigest()
        return await self._policy.handle(
            delivery_policy.Incoming(
                key=key,
                body=message.body,
                message_id=message_id,
                attempt_key=attempts.key(self._kind, key, named),
                redelivered=bool(message.redelivered) or retries.returned(message, self._connection.topology),
                traceparent=codec.traceparent(message.headers),
            )
        )

    async def _settle(self, message: abc.AbstractIncomingMessage, disposition: delivery_policy.Disposition) -> None:
        """Acknowledge, requeue or park. Raises Unavailable when the channel is gone."""
        if disposition.kind == "requeue" and not disposition.backoff_s:
            await self._requeue(message)
            return
        if disposition.kind == "requeue" and self._beside_older():
            await self._hold(message, disposition.reason, min(disposition.backoff_s, HOLD_S))
            return
        if disposition.kind != "done":
            try:
                await self._publish_copy(message, disposition)
            except errors.Unavailable as error:
                await self._hold(message, error.message)
                return
        with broker_connection.translate_errors("acknowledging"):
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                await message.ack()
        failpoints.hit("bus.acknowledge.after")

    async def _publish_copy(self, message: abc.AbstractIncomingMessage, disposition: delivery_policy.Disposition) -> None:
        """Publish a message that was not handled: as a retry, which holds no slot while it waits, or as a dead letter."""
        backoff_s, topology = disposition.backoff_s, self._connection.topology
        if disposition.kind == "park":
            try:
                await self._park(message, disposition.reason)
                return
            except broker_connection.QueueFull:
                self._connection.dead_letters.note_refusal()
                log.error("bus.parked_full", key=message.routing_key or "", message_id=message.message_id or "")
                # As a retry, a message that bypassed the permissions would be admitted.
                if bypass(message, topology):
                    raise
                backoff_s = PARKED_FULL_BACKOFF_S
        await publisher.publish(self._connection, retries.outgoing(message, self._returns, topology, backoff_s))

    async def _hold(self, message: abc.AbstractIncomingMessage, reason: str, hold_s: float = HOLD_S) -> None:
        """Hold a message of which no copy waits at the broker, then requeue it. A draining node requeues it at once."""
        log.warning("bus.held", key=message.routing_key or "", message_id=message.message_id or "", reason=reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(supervised_task.jittered_s(hold_s)):
                await self._draining.wait()
        with contextlib.suppress(errors.Unavailable):
            await self._requeue(message)

    async def _requeue(self, message: abc.AbstractIncomingMessage) -> None:
        with broker_connection.translate_errors("giving back"):
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                await message.nack(requeue=True)

    async def _park(self, message: abc.AbstractIncomingMessage, reason: str) -> None:
        headers = self._dead_letter_headers(message, reason)
        dead_letter = dead_letter_envelope.encrypt(retries.original(message, self._connection.topology), self._keyring, headers)
        await publisher.publish(self._connection, replace(dead_letter, exchange=self._connection.topology.parked))
        log.error(
            "bus.parked",
            key=dead_letter.key,
            message_id=message.message_id or "",
            queue=self.queue.name,
            reason=headers["x-reason"],
        )

    def _dead_letter_headers(self, message: abc.AbstractIncomingMessage, reason: str) -> dict[str, Any]:
        """Headers that a dead letter gains: why and when (Unix ms) it was parked, and from which queue. Secrets are masked."""
        headers: dict[str, Any] = {
            "x-reason": redaction.masked(reason)[:1_000],
            "x-routing-key": redaction.masked(message.routing_key or ""),
            "x-queue": self.queue.name,
            "x-parked-ms": self._clock(),
        }
        path = bypass(message, self._connection.topology)
        return headers | ({dead_letter_envelope.BYPASS: path} if path else {})


def bypass(message: abc.AbstractIncomingMessage, topology: topologies.Topology) -> str:
    """How a message reached its queue other than by being published to `recorder` under its key; "" if it did not.

    The broker grants permissions by routing key on publishing alone. Of the messages that a queue dead-lettered, only the
    recorder's own retries are admitted: they come by an exchange that nobody else may write to."""
    if retries.returned(message, topology):
        return ""
    exchange = topology.exchange
    if (message.exchange or "") != exchange:
        return f"it was published to the exchange {message.exchange or ''!r} and not to {exchange!r}"
    if "x-death" in message.headers:
        return "it was not published under this key: a queue dead-lettered it (x-death)"
    return ""
