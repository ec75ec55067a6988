"""Publisher with confirmation: a message is confirmed by the broker in time, or publishing raises."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aio_pika
from pamqp import encode

from bus import broker_connection
from events import codec
from machine import failpoints

PUBLISH_TIMEOUT_S = 10.0
# A header frame must fit the broker's frame_max (128 KiB by default), together with properties and the reason of a dead letter.
MAX_HEADERS_BYTES = 64 * 1024
MAX_PROPERTY_BYTES = 255
# Headers that the broker acts on: sender-selected queues.
ROUTING_HEADERS = ("CC", "BCC")
# Properties that a foreign message keeps when it is published again. Not its expiration, which would end it in the dead letter
# queue, nor its user_id, which the broker compares with the recorder's user.
PROPERTIES = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "timestamp", "type", "app_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message to publish to `exchange` ("": `recorder`). `properties` are AMQP properties other than delivery mode and
    headers. A result is not `mandatory`: it may have no subscriber."""

    key: str
    body: bytes
    properties: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    mandatory: bool = True
    node: str = ""
    exchange: str = ""


async def publish(
    connection: broker_connection.BrokerConnection,
    message: Outgoing,
    *,
    timeout_s: float = PUBLISH_TIMEOUT_S,
) -> None:
    """Publish and wait for the broker's confirmation.

    Raises Unavailable when no confirmation arrives within `timeout_s`, the wait for a connection included. Raises Unroutable when
    no queue takes the message."""
    made = aio_pika.Message(
        message.body,
        headers=sendable(message.headers),
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        **message.properties,
    )
    # aio_pika's `publish(timeout=)` does not cover every wait.
    with broker_connection.translate_errors("publishing"):
        async with asyncio.timeout(timeout_s):
            session = await connection.session()
            if message.node:
                await session.declare_node(message.node)
            exchange = session.exchanges[message.exchange or session.topology.exchange] if message.mandatory else session.results
            failpoints.hit("bus.publish.before")
            await exchange.publish(made, message.key, mandatory=message.mandatory)
    failpoints.hit("bus.confirm.after")


def outgoing(channel: str, type_: str, node: str, body: bytes) -> Outgoing:
    """Make the message of an outbox row: its routing key and properties. A result without a subscriber is no error."""
    head = codec.parse(body)
    properties = {"message_id": _short(head["id"]), "content_type": codec.CONTENT_TYPE, "type": type_, "app_id": codec.SOURCE}
    # AMQP allows fewer bytes than CloudEvents allows characters. The body has the id in any case.
    if head.get("correlationid") and len(head["correlationid"].encode()) <= MAX_PROPERTY_BYTES:
        properties["correlation_id"] = head["correlationid"]
    named = node if channel == "command" else ""
    key = ".".join(part for part in (channel, type_, named) if part)
    traced = codec.traceparent(head)
    headers = {"traceparent": traced} if traced else {}
    return Outgoing(key=key, body=body, properties=properties, headers=headers, mandatory=channel != "result", node=named)


def _short(id_: str) -> str:
    """The id, or a digest of one that AMQP cannot hold. Equal ids stay equal in either form."""
    raw = id_.encode()
    return id_ if len(raw) <= MAX_PROPERTY_BYTES else f"sha256-{hashlib.sha256(raw).hexdigest()}"


def sendable(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers that can be sent. Foreign headers of an unsendable kind or size become text and are cut."""
    allowed = {name: value for name, value in headers.items() if name not in ROUTING_HEADERS}
    try:
        if len(encode.field_table(allowed)) <= MAX_HEADERS_BYTES:
            return allowed
    except (TypeError, ValueError):
        pass
    return {_text(name): _text(str(value)[:1_000]) for name, value in list(allowed.items())[-32:]}


def _text(words: str) -> str:
    return words.encode("utf-8", "replace").decode()
