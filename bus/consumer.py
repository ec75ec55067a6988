"""Takes the messages of one queue, a bounded number at a time, and gives each back with an answer. Imports `machine`, `events`.

Rule: acknowledged only when it is handled (an event: committed; a command: its lease held) or lies in `recorder.parked`,
confirmed. Handlers run in tasks of ours: aiormq cancels those of a channel that closes, and a job whose lease was just taken
would be lost. For the same reason not `message.process()`: cancelled, it rejects without requeue, and the message is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import structlog
from aio_pika import abc

from bus import broker_connection as links
from bus import delivery_policy, envelope, publisher
from bus import topology as topologies
from machine import encryption, errors, failpoints

log = structlog.get_logger()

OPEN_LIMIT_S = 5.0
ANSWER_LIMIT_S = 10.0
PARK_RETRY_S = 2.0


class Consumer:
    """The consumer of one queue. `wanted` says whether it should consume; the session that is present may not be the last."""

    def __init__(
        self,
        link: links.Link,
        queue: topologies.Queue,
        judge: delivery_policy.Judge,
        *,
        keyring: encryption.Keyring,
        prefetch: int,
    ) -> None:
        self._link = link
        self._keyring = keyring
        self._judge = judge
        self._prefetch = prefetch
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel: abc.AbstractChannel | None = None
        self._queue: abc.AbstractQueue | None = None
        self._underlay: Any = None
        self._tag = ""
        self._turn = asyncio.Lock()
        self._leaving = asyncio.Event()
        self.queue = queue
        self.wanted = True
        self.taken = 0

    async def open(self, session: links.Session) -> None:
        """Begin to consume on a new session. Raises Unavailable when the queue does not answer: one without a leader takes the
        request and is silent, and must not keep the others from working."""
        async with self._turn:
            self._tag, self._queue, self._channel = "", None, None
            with links.wrapped(f"consuming {self.queue.name}"):
                async with asyncio.timeout(OPEN_LIMIT_S):
                    channel = await session.loose_channel()
                    await channel.set_qos(prefetch_count=self._prefetch)
                    self._underlay = await channel.get_underlay_channel()
                    self._queue = await channel.get_queue(self.queue.name, ensure=False)
                    await self._renew()
            # A consumer that the broker cancels (its queue was deleted or moved) says no more, and its channel stays open.
            self._underlay.on_consumer_cancel_callbacks.add(lambda _: session.end(f"consumer of {self.queue.name} cancelled"))
            session.guard(channel)
            self._channel = channel

    async def want(self, wanted: bool) -> None:
        """Consume, or not, from now on; harmless to repeat. What was delivered before is handled all the same."""
        self.wanted = wanted
        async with self._turn:
            if self.open_now:
                with links.wrapped(f"consumer of {self.queue.name}"):
                    async with asyncio.timeout(ANSWER_LIMIT_S):
                        await self._renew()

    async def drain(self, limit_s: float) -> None:
        """Let the handlers under way end for `limit_s`, then cancel them: their messages are delivered again."""
        self._leaving.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._leaving.clear()

    @property
    def open_now(self) -> bool:
        """Whether it has a queue that answered."""
        return self._channel is not None and not self._channel.is_closed

    @property
    def lost(self) -> bool:
        """Whether aiormq has forgotten the consumer that we hold: it drops what is delivered to it then."""
        return bool(self._tag) and self._tag not in self._underlay.consumers

    @property
    def has_room(self) -> bool:
        """Whether the broker would deliver another message."""
        return len(self._tasks) < self._prefetch

    async def _renew(self) -> None:
        if self._queue is None:
            return
        if self.wanted and not self._tag:
            # Not the queue's iterator: it goes deaf on cancellation.
            self._tag = await self._queue.consume(self._take)
        elif not self.wanted and self._tag:
            tag, self._tag = self._tag, ""
            await self._queue.cancel(tag)

    async def _take(self, message: abc.AbstractIncomingMessage) -> None:
        self.taken += 1
        task = asyncio.create_task(self._handle(message), name=f"bus.{self.queue.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, message: abc.AbstractIncomingMessage) -> None:
        incoming = delivery_policy.Incoming(
            key=message.routing_key or "",
            body=message.body,
            message_id=message.message_id or "",
            again=bool(message.redelivered),
            detour=detour(message, self._link.topology.exchange),
        )
        verdict = await self._judge.judge(incoming)
        failpoints.hit("bus.acknowledge.before")
        try:
            await self._answer(message, incoming, verdict)
        except errors.Unavailable as error:
            # The channel is gone, and the broker delivers it again: the inbox knows it.
            log.info("bus.answer_lost", key=incoming.key, message_id=incoming.message_id, reason=error.message)
        except Exception as error:
            log.exception("bus.answer_failed", key=incoming.key, message_id=incoming.message_id)
            await self._later(message, incoming, str(error))

    async def _answer(
        self, message: abc.AbstractIncomingMessage, incoming: delivery_policy.Incoming, verdict: delivery_policy.Verdict
    ) -> None:
        if verdict.kind == "again":
            await self._rest(verdict.pause_s)
            await self._give_back(message)
            return
        if verdict.kind == "park":
            try:
                await self._park(message, incoming, verdict.reason)
            except errors.Unavailable as error:
                await self._later(message, incoming, error.message)
                return
        with links.wrapped("acknowledging"):
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await message.ack()
        failpoints.hit("bus.acknowledge.after")

    async def _later(self, message: abc.AbstractIncomingMessage, incoming: delivery_policy.Incoming, reason: str) -> None:
        log.warning("bus.not_parked", key=incoming.key, message_id=incoming.message_id, reason=reason)
        await self._rest(PARK_RETRY_S)
        with contextlib.suppress(errors.Unavailable):
            await self._give_back(message)

    async def _rest(self, pause_s: float) -> None:
        """Keep a message for a while; give it back at once when this node leaves: another may take it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._leaving.wait()

    async def _give_back(self, message: abc.AbstractIncomingMessage) -> None:
        with links.wrapped("giving back"):
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await message.nack(requeue=True)

    async def _park(self, message: abc.AbstractIncomingMessage, incoming: delivery_policy.Incoming, reason: str) -> None:
        ours = self._judge.parked_headers(incoming, self.queue.name, reason)
        parked = envelope.closed(envelope.of(message), self._keyring, ours)
        await publisher.publish(self._link, parked, parked=True)
        log.error(
            "bus.dead_letters", key=parked.key, message_id=incoming.message_id, queue=self.queue.name, reason=ours["x-reason"]
        )


def detour(message: abc.AbstractIncomingMessage, exchange: str) -> str:
    """How a message came here other than by being published to `exchange` under its key, "" if it did not: the broker holds the
    permissions by routing key against publishing alone. Ours are never dead-lettered into a queue that is worked on."""
    if (message.exchange or "") != exchange:
        return f"it was published to the exchange {message.exchange or ''!r} and not to {exchange!r}"
    if "x-death" in message.headers:
        return "it was not published under this key: a queue dead-lettered it (x-death)"
    return ""
