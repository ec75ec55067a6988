"""What is parked by us: the original whole and sealed, and beside it what may be read. Imports `machine` and `events`.

Rule: of the original nothing is outside of the seal but what `masking` lets through. What the broker parks by itself (no queue
for its key, delivered too often) never passes here and lies as it was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aio_pika import abc
from pamqp import decode, encode

from bus import publisher, redaction
from machine import encryption, errors

ABOUT = "parked message"
CONTENT_TYPE = "application/vnd.recorder.sealed"
KEY_ID, SHOWN, SIZE = "x-sealed-by", "x-shown", "x-size"
# A header frame holds headers of others and our reasons, too: publisher.MAX_HEADERS_BYTES.
MAX_SHOWN = 8 * 1024
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A message as its publisher sent it."""

    key: str
    body: bytes
    properties: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)


def of(message: abc.AbstractIncomingMessage) -> Original:
    """What of a delivery is kept."""
    properties = {name: getattr(message, name) for name in publisher.PROPERTIES if getattr(message, name) is not None}
    headers = publisher.sendable(message.headers)
    return Original(key=message.routing_key or "", body=message.body, properties=properties, headers=headers)


def closed(original: Original, keyring: encryption.Keyring, ours: Mapping[str, Any]) -> publisher.Outgoing:
    """The message to park: `ours` are the headers that say why, when and from where."""
    head = encode.field_table({"key": original.key, "properties": dict(original.properties), "headers": dict(original.headers)})
    body = keyring.encrypt(len(head).to_bytes(_LENGTH_BYTES) + head + original.body, ABOUT)
    headers = {
        **redaction.masked(original.headers),
        **redaction.masked(ours),
        KEY_ID: keyring.key_id,
        SIZE: len(original.body),
        SHOWN: redaction.body(original.body)[:MAX_SHOWN],
    }
    properties = {"content_type": CONTENT_TYPE}
    if original.properties.get("message_id"):
        properties["message_id"] = redaction.masked(str(original.properties["message_id"]))
    return publisher.Outgoing(key=redaction.masked(original.key), body=body, properties=properties, headers=headers)


def opened(body: bytes, headers: Mapping[str, Any], keyring: encryption.Keyring) -> Original:
    """The opposite of `closed`. Raises DecryptionFailed, naming the key that is needed."""
    try:
        clear = keyring.decrypt(body, ABOUT)
    except errors.DecryptionFailed as error:
        needed = str(headers.get(KEY_ID, "another one"))
        raise errors.DecryptionFailed(f"This message is sealed under key {needed}, which is not in SECRET_KEYS.") from error
    length = int.from_bytes(clear[:_LENGTH_BYTES])
    head: dict[str, Any] = decode.field_table(clear[_LENGTH_BYTES : _LENGTH_BYTES + length])[1]
    rest = clear[_LENGTH_BYTES + length :]
    return Original(key=str(head["key"]), body=rest, properties=dict(head["properties"]), headers=dict(head["headers"]))


def is_encrypted(headers: Mapping[str, Any]) -> bool:
    """Whether a parked message was parked by us."""
    return KEY_ID in headers
