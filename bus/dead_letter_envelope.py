"""Envelope of a dead letter: the original encrypted in the body, readable facts in the headers.

Rule: outside of the encrypted body only `redaction` decides which parts of the original appear. Messages that the broker
itself dead-letters (no queue for the key, delivered too often) never pass here and stay as they were published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aio_pika import abc
from pamqp import decode, encode

from bus import publisher, redaction
from machine import encryption, errors

# Authenticated with the ciphertext, so that no other encrypted value can take its place.
ABOUT = "parked message"
CONTENT_TYPE = "application/vnd.recorder.sealed"
KEY_ID, SHOWN, SIZE = "x-sealed-by", "x-shown", "x-size"
# The path of a message that reached its queue past the broker's permissions.
BYPASS = "x-detour"
# The header frame also holds foreign headers and the reason: publisher.MAX_HEADERS_BYTES.
MAX_SHOWN = 8 * 1024
# Headers that the broker adds to the messages that it delivers again or dead-letters.
_BY_BROKER, _BY_BROKER_PREFIXES = ("x-death", "x-delivery-count"), ("x-first-death-", "x-last-death-")
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A message as its publisher sent it."""

    key: str
    body: bytes
    properties: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)


def original(message: abc.AbstractIncomingMessage) -> Original:
    """The parts of a delivery that a dead letter keeps."""
    properties = {name: getattr(message, name) for name in publisher.PROPERTIES if getattr(message, name) is not None}
    headers = publisher.sendable(message.headers)
    return Original(key=message.routing_key or "", body=message.body, properties=properties, headers=headers)


def added_by_broker(header: str) -> bool:
    """Whether the broker adds this header. With an x-death, RabbitMQ takes a message that is published again for a cycle."""
    return header in _BY_BROKER or header.startswith(_BY_BROKER_PREFIXES)


def encrypt(message: Original, keyring: encryption.Keyring, added: Mapping[str, Any]) -> publisher.Outgoing:
    """Make the dead letter. `added` are headers that say why, when and from which queue it was parked."""
    head = encode.field_table({"key": message.key, "properties": dict(message.properties), "headers": dict(message.headers)})
    body = keyring.encrypt(len(head).to_bytes(_LENGTH_BYTES) + head + message.body, ABOUT)
    headers = {
        **redaction.masked(message.headers),
        **redaction.masked(added),
        KEY_ID: keyring.key_id,
        SIZE: len(message.body),
        SHOWN: redaction.body(message.body)[:MAX_SHOWN],
    }
    properties = {"content_type": CONTENT_TYPE}
    if message.properties.get("message_id"):
        properties["message_id"] = redaction.masked(str(message.properties["message_id"]))
    return publisher.Outgoing(key=redaction.masked(message.key), body=body, properties=properties, headers=headers)


def decrypt(body: bytes, headers: Mapping[str, Any], keyring: encryption.Keyring) -> Original:
    """Restore the original from a dead letter. Raises DecryptionFailed, which names the missing key."""
    try:
        clear = keyring.decrypt(body, ABOUT)
    except errors.DecryptionFailed as error:
        needed = str(headers.get(KEY_ID, "another one"))
        raise errors.DecryptionFailed(f"This message is encrypted under key {needed}, which is not in SECRET_KEYS.") from error
    length = int.from_bytes(clear[:_LENGTH_BYTES])
    head: dict[str, Any] = decode.field_table(clear[_LENGTH_BYTES : _LENGTH_BYTES + length])[1]
    rest = clear[_LENGTH_BYTES + length :]
    return Original(key=str(head["key"]), body=rest, properties=dict(head["properties"]), headers=dict(head["headers"]))


def is_encrypted(headers: Mapping[str, Any]) -> bool:
    """Whether a message was parked by a recorder, and not by the broker."""
    return KEY_ID in headers
