"""Publishing that knows what became of it: confirmed by the broker within a time, or an error. Imports `machine` and `events`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aio_pika
from pamqp import encode

from bus import broker_connection as links
from events import codec
from machine import failpoints

PUBLISH_LIMIT_S = 10.0
# A header frame must fit the broker's frame_max (128 KiB by default), with properties and our own reasons.
MAX_HEADERS_BYTES = 64 * 1024
MAX_PROPERTY_BYTES = 255
# What the broker would act on once more: sender-selected queues.
ACTED_ON = ("CC", "BCC")
# What of a message of others is kept when it is published again. Not its expiration, which would end it where it is parked, nor
# its user_id, which the broker compares with ours.
PROPERTIES = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "timestamp", "type", "app_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message on its way out. `properties` are those of AMQP beside delivery mode and headers."""

    key: str
    body: bytes
    properties: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    mandatory: bool = True
    node: str = ""


async def publish(link: links.Link, message: Outgoing, *, parked: bool = False, limit_s: float = PUBLISH_LIMIT_S) -> None:
    """Publish to `recorder` (or to `recorder.parked`) and wait for the broker's confirmation. Raises Unavailable when it does not
    come within `limit_s` (waiting for a connection included), Unroutable when no queue takes the message."""
    made = aio_pika.Message(
        message.body,
        headers=sendable(message.headers),
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        **message.properties,
    )
    # `publish(timeout=)` of aio_pika does not cover all it may wait for.
    with links.wrapped("publishing"):
        async with asyncio.timeout(limit_s):
            session = await link.session()
            if message.node:
                await session.declare_node(message.node)
            exchange = session.parked if parked else session.exchange
            failpoints.hit("bus.publish.before")
            await exchange.publish(made, message.key, mandatory=message.mandatory)
    failpoints.hit("bus.confirm.after")


def outgoing(channel: str, type_: str, node: str, body: bytes) -> Outgoing:
    """A message of the outbox: its routing key and properties. A result that nobody subscribes to is no error."""
    head = codec.parse(body)
    properties = {"message_id": _short(head["id"]), "content_type": codec.CONTENT_TYPE, "type": type_, "app_id": codec.SOURCE}
    # AMQP takes fewer bytes there than CloudEvents takes characters; the body says it in any case.
    if head.get("correlationid") and len(head["correlationid"].encode()) <= MAX_PROPERTY_BYTES:
        properties["correlation_id"] = head["correlationid"]
    named = node if channel == "command" else ""
    key = ".".join(part for part in (channel, type_, named) if part)
    return Outgoing(key=key, body=body, properties=properties, mandatory=channel != "result", node=named)


def _short(id_: str) -> str:
    """The id, or where AMQP has no room for it a digest of it: who has two messages of one id must see that in either."""
    raw = id_.encode()
    return id_ if len(raw) <= MAX_PROPERTY_BYTES else f"sha256-{hashlib.sha256(raw).hexdigest()}"


def sendable(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers that can be sent: those of others may be of a kind, or a size, that cannot."""
    kept = {name: value for name, value in headers.items() if name not in ACTED_ON}
    try:
        if len(encode.field_table(kept)) <= MAX_HEADERS_BYTES:
            return kept
    except (TypeError, ValueError):
        pass
    return {_text(name): _text(str(value)[:1_000]) for name, value in list(kept.items())[-32:]}


def _text(words: str) -> str:
    return words.encode("utf-8", "replace").decode()
