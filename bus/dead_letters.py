"""The dead letter queue `recorder.parked`, for operators: list, show, publish again, drop.

Rules:
- Reading takes messages and returns all of them, so it reaches at most the first `MAX_READ` at a time.
- Requeue acknowledges a message only after the broker confirmed the new one.
- Shown messages have their secrets masked and need no key. A requeued message is the decrypted original.
- A message that bypassed the broker's permissions is never requeued: it would gain the recorder's permissions.
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
from aio_pika import exceptions as amqp_errors

from bus import broker_connection, dead_letter_envelope, dead_letter_level, redaction
from bus import topology as topologies
from machine import encryption, errors

log = structlog.get_logger()

MAX_READ = 1_000
MAX_READ_BYTES = 256 * 1024 * 1024
TIMEOUT_S = 30.0
# For `level`: a person waits for the answer.
CONNECT_S = 2.0
# Headers added by the recorder's consumers.
ADDED = ("x-reason", "x-routing-key", "x-queue", "x-parked-ms", dead_letter_envelope.BYPASS, topologies.RETRY_QUEUE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One dead letter. `id` is a digest of key, message id and body. `parked_ms` is 0 if unknown. `key_id` names the encryption
    key, "" for a message that the broker dead-lettered."""

    id: str
    key: str
    message_id: str
    reason: str
    size_bytes: int
    parked_ms: int
    key_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedDeadLetter:
    """A dead letter with its headers and body as text. Secrets are masked, long text is cut."""

    dead_letter: DeadLetter
    headers: Mapping[str, Any]
    body: str


class DeadLetterQueue:
    """The queue `recorder.parked` of the broker at `url`. Each call opens a connection of its own and raises Unavailable."""

    def __init__(self, url: str, *, keyring: encryption.Keyring, prefix: str = "recorder") -> None:
        self._url = url
        self._keyring = keyring
        self._topology = topologies.Topology(prefix)

    async def list(self, limit: int = 100) -> tuple[list[DeadLetter], int]:
        """The first `limit` dead letters, and the total. The order only approximates that of parking: the broker puts a returned
        message behind those that were returned before."""
        async with self._open() as (session, queue):
            found = [_dead_letter(m) async for m in _read(queue, min(limit, MAX_READ))]
            declared = await session.declaring.declare_queue(queue.name, passive=True)
            return found, (declared.declaration_result.message_count or 0) + len(found)

    async def show(self, id_: str) -> MaskedDeadLetter:
        """One dead letter, masked. Raises NotFound."""
        async with self._open() as (_, queue):
            message = await _find(queue, id_)
            headers = redaction.masked(message.headers)
            if dead_letter_envelope.is_encrypted(message.headers):
                body = str(message.headers.get(dead_letter_envelope.SHOWN, ""))
                headers = {name: value for name, value in headers.items() if name != dead_letter_envelope.SHOWN}
            else:
                body = redaction.body(message.body)
            return MaskedDeadLetter(dead_letter=_dead_letter(message), headers=headers, body=body)

    async def requeue(self, id_: str) -> DeadLetter:
        """Publish a dead letter again under its routing key, and remove it. Raises NotFound, DecryptionFailed, and Refused for a
        message that its sender did not publish under this key."""
        async with self._open() as (session, queue):
            message = await _find(queue, id_)
            bypass = self._bypass(message.headers)
            if bypass:
                raise errors.Refused(
                    f"Message {id_} came past the broker's permissions ({bypass}). Requeued, it would have the recorder's own."
                    f" `recorder parked drop {id_}` deletes it; its sender may publish it to {self._topology.exchange!r} itself."
                )
            original = dead_letter_envelope.original(message)
            if dead_letter_envelope.is_encrypted(message.headers):
                original = dead_letter_envelope.decrypt(message.body, message.headers, self._keyring)
            await session.exchanges[self._topology.exchange].publish(_republished(original), original.key, mandatory=True)
            await message.ack()
            log.info("parked.requeued", parked_id=id_, key=message.routing_key)
            return _dead_letter(message)

    async def drop(self, id_: str) -> DeadLetter:
        """Delete a dead letter. Raises NotFound."""
        async with self._open() as (_, queue):
            message = await _find(queue, id_)
            await message.ack()
            log.info("parked.dropped", parked_id=id_, key=message.routing_key)
            return _dead_letter(message)

    def _bypass(self, headers: Mapping[str, Any]) -> str:
        """How a message reached the recorder other than by being published under its key; "" if it did not. Either its consumer
        noted the path, or the broker noted the queues that dead-lettered it. The recorder's own queues do not count."""
        if headers.get(dead_letter_envelope.BYPASS):
            return str(headers[dead_letter_envelope.BYPASS])
        deaths = headers.get("x-death")
        queues = [str(death.get("queue")) for death in deaths if isinstance(death, dict)] if isinstance(deaths, list) else []
        foreign = [queue for queue in queues if not self._topology.owns(queue)]
        return f"the queue {foreign[0]!r} dead-lettered it" if foreign else ""

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[tuple[broker_connection.BrokerSession, abc.AbstractQueue]]:
        """Open a session that returns all unacknowledged messages to the queue at its end."""
        with broker_connection.translate_errors("parked messages"):
            async with asyncio.timeout(TIMEOUT_S):
                connection = await broker_connection.connect(self._url, "recorder parked")
                session = broker_connection.BrokerSession(connection, self._topology)
                try:
                    await session.open()
                    channel = await session.channel()
                    try:
                        yield session, await channel.get_queue(self._topology.parked, ensure=False)
                    finally:
                        await _return_all(channel)
                finally:
                    await session.close()


async def level(url: str, prefix: str = "recorder") -> dead_letter_level.DeadLetterLevel:
    """How full the queue is, without a change on the broker. Without the queue, the level of an empty one."""
    with broker_connection.translate_errors("counting parked messages"):
        async with asyncio.timeout(TIMEOUT_S):
            connection = await broker_connection.connect(url, "recorder parked", CONNECT_S)
            try:
                return await _level(connection, topologies.Topology(prefix))
            finally:
                await connection.close()


async def _level(connection: abc.AbstractConnection, topology: topologies.Topology) -> dead_letter_level.DeadLetterLevel:
    """A passive declaration counts. A repeated one tells whether the queue has its limit: it changes no existing queue."""
    name = topology.parked
    try:
        async with connection.channel() as channel:
            count = (await channel.declare_queue(name, passive=True)).declaration_result.message_count
    except amqp_errors.ChannelNotFoundEntity:
        return dead_letter_level.DeadLetterLevel(name, count=0)
    try:
        async with connection.channel() as channel:
            await topologies.declare_parked(channel, topology)
    except amqp_errors.ChannelPreconditionFailed:
        return dead_letter_level.DeadLetterLevel(name, limited=False, count=count)
    return dead_letter_level.DeadLetterLevel(name, limited=True, count=count)


async def _return_all(channel: abc.AbstractChannel) -> None:
    """Return all messages and wait for the broker's answer, so that the next reader finds them without a delay."""
    underlay = await channel.get_underlay_channel()
    await underlay.basic_nack(0, multiple=True, requeue=True)
    await channel.set_qos(prefetch_count=0)


async def _read(queue: abc.AbstractQueue, limit: int) -> AsyncIterator[abc.AbstractIncomingMessage]:
    """Take the first messages. They belong to this session until it ends or acknowledges them."""
    read_bytes = 0
    for _ in range(limit):
        message = await queue.get(fail=False)
        if message is None or read_bytes > MAX_READ_BYTES:
            return
        read_bytes += len(message.body)
        yield message


async def _find(queue: abc.AbstractQueue, id_: str) -> abc.AbstractIncomingMessage:
    async for message in _read(queue, MAX_READ):
        if _id(message) == id_:
            return message
    raise errors.NotFound(f"No such message among the first {MAX_READ} parked ones; `recorder parked list` shows them.")


def _id(message: abc.AbstractIncomingMessage) -> str:
    digest = hashlib.sha256(f"{message.routing_key}\n{message.message_id}\n".encode())
    digest.update(message.body)
    return digest.hexdigest()[:12]


def _dead_letter(message: abc.AbstractIncomingMessage) -> DeadLetter:
    at_ms, size = message.headers.get("x-parked-ms", 0), message.headers.get(dead_letter_envelope.SIZE)
    return DeadLetter(
        id=_id(message),
        key=message.routing_key or "",
        message_id=message.message_id or "",
        reason=_reason(message.headers),
        size_bytes=size if isinstance(size, int) else len(message.body),
        parked_ms=at_ms if isinstance(at_ms, int) else 0,
        key_id=str(message.headers.get(dead_letter_envelope.KEY_ID, "")),
    )


def _reason(headers: Mapping[str, Any]) -> str:
    if headers.get("x-reason"):
        return str(headers["x-reason"])
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return f"dead-lettered by the broker: {deaths[0].get('reason')} in {deaths[0].get('queue')}"
    return "no queue is bound for its routing key"


def _republished(original: dead_letter_envelope.Original) -> aio_pika.Message:
    headers = {n: v for n, v in original.headers.items() if n not in ADDED and not dead_letter_envelope.added_by_broker(n)}
    return aio_pika.Message(
        original.body, headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **dict(original.properties)
    )
