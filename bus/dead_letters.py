"""What lies in `recorder.parked`: looked at, published again, or thrown away by an operator. Imports `machine` and `events`.

Rule: looking takes messages and gives all of them back, so at most the first `MAX_LOOKED` at a time; requeue acknowledges
only what the broker has confirmed anew. What is shown has its secrets masked, and needs no key; what is published again is the
original, out of its seal where it has one. What came past the broker's permissions is not published again: it would have ours.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aio_pika
import structlog
from aio_pika import abc

from bus import broker_connection as links
from bus import delivery_policy, envelope, redaction
from bus import topology as topologies
from machine import encryption, errors

log = structlog.get_logger()

MAX_LOOKED = 1_000
MAX_LOOKED_BYTES = 256 * 1024 * 1024
LIMIT_S = 30.0
# What the broker and our consumers added; RabbitMQ would take a message with its x-death for one that goes in circles.
ADDED = ("x-death", "x-reason", "x-routing-key", "x-queue", "x-parked-ms", "x-delivery-count", delivery_policy.DETOUR)
ADDED_PREFIXES = ("x-first-death-", "x-last-death-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """One parked message. `id` is made from key, message id and body; `parked_ms` is 0 where it is not known; `key_id` is that of
    the key it is sealed under, "" for one that the broker parked by itself."""

    id: str
    key: str
    message_id: str
    reason: str
    size_bytes: int
    parked_ms: int
    key_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A parked message with its headers and body as text; secrets masked, long ones cut."""

    parked: Parked
    headers: Mapping[str, Any]
    body: str


class ParkedMessages:
    """The queue `recorder.parked` of the broker at `url`; each call is a connection of its own. Raises Unavailable."""

    def __init__(self, url: str, *, keyring: encryption.Keyring, prefix: str = "recorder") -> None:
        self._url = url
        self._keyring = keyring
        self._topology = topologies.Topology(prefix)

    async def list(self, limit: int = 100) -> tuple[list[Parked], int]:
        """The first `limit` parked messages, and how many there are in all. The broker puts what is given back
        behind what was given back before: the order is about that of parking, no more."""
        async with self._session() as (session, queue):
            found = [_parked(m) async for m in _look(queue, min(limit, MAX_LOOKED))]
            declared = await session.asking.declare_queue(queue.name, passive=True)
            return found, (declared.declaration_result.message_count or 0) + len(found)

    async def show(self, id_: str) -> Shown:
        """One message, masked. Raises NotFound."""
        async with self._session() as (_, queue):
            message = await _find(queue, id_)
            if not envelope.is_encrypted(message.headers):
                return Shown(
                    parked=_parked(message), headers=redaction.masked(message.headers), body=redaction.body(message.body)
                )
            headers = {name: value for name, value in redaction.masked(message.headers).items() if name != envelope.SHOWN}
            return Shown(parked=_parked(message), headers=headers, body=str(message.headers.get(envelope.SHOWN, "")))

    async def requeue(self, id_: str) -> Parked:
        """Publish one dead letter again under its routing key, and remove it. Raises NotFound, DecryptionFailed, and Refused for
        one that its sender did not publish under this key."""
        async with self._session() as (session, queue):
            message = await _find(queue, id_)
            detour = self._detour(message.headers)
            if detour:
                raise errors.Refused(
                    f"Message {id_} came past the broker's permissions ({detour}); sent anew it would have the recorder's own. "
                    f"`recorder parked drop {id_}` gives it up; its sender may publish it to {self._topology.exchange!r} itself."
                )
            original = envelope.of(message)
            if envelope.is_encrypted(message.headers):
                original = envelope.opened(message.body, message.headers, self._keyring)
            await session.exchange.publish(_anew(original), original.key, mandatory=True)
            await message.ack()
            log.info("parked.requeued", parked_id=id_, key=message.routing_key)
            return _parked(message)

    async def drop(self, id_: str) -> Parked:
        """Take one message out for good. Raises NotFound."""
        async with self._session() as (_, queue):
            message = await _find(queue, id_)
            await message.ack()
            log.info("parked.dropped", parked_id=id_, key=message.routing_key)
            return _parked(message)

    def _detour(self, headers: Mapping[str, Any]) -> str:
        """How a message came to us other than by being published under its key, "" if it did not: as its consumer found, or as
        the broker says of one that was delivered too often. Our own queues dead-letter nowhere but here."""
        if headers.get(delivery_policy.DETOUR):
            return str(headers[delivery_policy.DETOUR])
        deaths = headers.get("x-death")
        queues = [str(death.get("queue")) for death in deaths if isinstance(death, dict)] if isinstance(deaths, list) else []
        foreign = [queue for queue in queues if not self._topology.owns(queue)]
        return f"the queue {foreign[0]!r} dead-lettered it" if foreign else ""

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[tuple[links.Session, abc.AbstractQueue]]:
        """A session that gives back at its end all that was taken and not acknowledged."""
        with links.wrapped("parked messages"):
            async with asyncio.timeout(LIMIT_S):
                session = links.Session(await links.connect(self._url, "recorder parked"), self._topology)
                try:
                    await session.open()
                    channel = await session.channel()
                    try:
                        yield session, await channel.get_queue(self._topology.parked, ensure=False)
                    finally:
                        await _give_back(channel)
                finally:
                    await session.close()


async def _give_back(channel: abc.AbstractChannel) -> None:
    """All at once, and with an answer: who looks next finds them, not some time later when the end of this is noticed."""
    underlay = await channel.get_underlay_channel()
    await underlay.basic_nack(0, multiple=True, requeue=True)
    await channel.set_qos(prefetch_count=0)


async def _look(queue: abc.AbstractQueue, limit: int) -> AsyncIterator[abc.AbstractIncomingMessage]:
    """The first messages; they are ours until the session ends, or they are acknowledged."""
    seen_bytes = 0
    for _ in range(limit):
        message = await queue.get(fail=False)
        if message is None or seen_bytes > MAX_LOOKED_BYTES:
            return
        seen_bytes += len(message.body)
        yield message


async def _find(queue: abc.AbstractQueue, id_: str) -> abc.AbstractIncomingMessage:
    async for message in _look(queue, MAX_LOOKED):
        if _id(message) == id_:
            return message
    raise errors.NotFound(f"No such message among the first {MAX_LOOKED} parked ones; `recorder parked list` shows them.")


def _id(message: abc.AbstractIncomingMessage) -> str:
    digest = hashlib.sha256(f"{message.routing_key}\n{message.message_id}\n".encode())
    digest.update(message.body)
    return digest.hexdigest()[:12]


def _parked(message: abc.AbstractIncomingMessage) -> Parked:
    at_ms, size = message.headers.get("x-parked-ms", 0), message.headers.get(envelope.SIZE)
    return Parked(
        id=_id(message),
        key=message.routing_key or "",
        message_id=message.message_id or "",
        reason=_reason(message.headers),
        size_bytes=size if isinstance(size, int) else len(message.body),
        parked_ms=at_ms if isinstance(at_ms, int) else 0,
        key_id=str(message.headers.get(envelope.KEY_ID, "")),
    )


def _reason(headers: Mapping[str, Any]) -> str:
    if headers.get("x-reason"):
        return str(headers["x-reason"])
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return f"dead-lettered by the broker: {deaths[0].get('reason')} in {deaths[0].get('queue')}"
    return "no queue is bound for its routing key"


def _anew(original: envelope.Original) -> aio_pika.Message:
    kept = {n: v for n, v in original.headers.items() if n not in ADDED and not n.startswith(ADDED_PREFIXES)}
    return aio_pika.Message(
        original.body, headers=kept, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **dict(original.properties)
    )
