"""Reader of messages from the broker: size limits, routing key, and the event in the body.

Rules: the broker grants permissions by routing key, so a body must be of the type that its key names. An invalid request of a
user is answered, as long as it has an id that the answer can name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

from bus import delivery_policy
from events import codec, requests
from events import errors as event_errors

# Outcomes of workers grow with the gaps of a day.
MAX_BODY_BYTES = 16 * 1024 * 1024
# Messages of other publishers have HTTP's limit (web/request_body.py).
MAX_FOREIGN_BYTES = 256 * 1024
MAX_ID = 256

Refuse = Callable[[codec.Event, event_errors.InvalidEvent], Awaitable[None]]
"""Answers an invalid request, which the event stands for."""


class MessageReader:
    """Decodes the messages of one kind, `event` or `command`."""

    def __init__(self, kind: str, *, clock: Callable[[], int]) -> None:
        self._kind = kind
        internal = codec.types("command" if kind == "command" else "inside")
        self._types = internal if kind == "command" else (*codec.types("in"), *internal)
        self._internal_keys = {f"{kind}.{type_}" for type_ in internal}
        self._clock = clock

    def read(self, message: delivery_policy.Incoming) -> codec.Event:
        """Decode one message. Raises InvalidEvent.

        The body of an event may be bare JSON. The routing key then names its type, and the message id becomes its id."""
        allowed = MAX_BODY_BYTES if message.key in self._internal_keys else MAX_FOREIGN_BYTES
        if len(message.body) > allowed:
            raise event_errors.InvalidEvent("body", f"has {len(message.body)} bytes, and {allowed} are allowed")
        kind, _, type_ = message.key.partition(".")
        if not type_:
            raise event_errors.InvalidEvent("routing key", f"must be {self._kind}. and a type")
        bare = {"bare_type": type_, "bare_id": message.message_id} if self._kind == "event" else {}
        event = codec.decode(message.body, now_ms=self._clock(), **bare)
        if event.type not in self._types:
            raise event_errors.InvalidEvent("type", f"{event.type!r} is no {self._kind}")
        if kind != self._kind or type_.split(".")[0] != event.type:
            raise event_errors.InvalidEvent("type", f"{event.type!r} does not belong under the routing key {message.key[:128]!r}")
        return event


def refusing(refuse: Refuse | None, *, by_message_id: bool, clock: Callable[[], int]) -> delivery_policy.RefuseInvalid | None:
    """How a bus answers invalid messages. `by_message_id`: the message id is the publisher's own."""
    if refuse is None:
        return None

    async def answer(message: delivery_policy.Incoming, error: event_errors.InvalidEvent) -> bool:
        request = invalid_request(message, message.message_id if by_message_id else "", clock())
        if request is None:
            return False
        await refuse(request, error)
        return True

    return answer


def invalid_request(message: delivery_policy.Incoming, message_id: str, now_ms: int) -> codec.Event | None:
    """The request that an invalid message stands for: its type and id, and a digest of its body as data. None for a message that
    is no user's request, and for one without an id."""
    kind, _, type_ = message.key.partition(".")
    type_ = type_.partition(".")[0]
    if kind != "event" or type_ not in requests.TYPES:
        return None
    id_ = _as_id(_id_in(message.body)) or _as_id(message_id)
    body = {"Body": hashlib.sha256(message.body).hexdigest()}
    return codec.Event(id=id_, type=type_, time_ms=now_ms, data=body) if id_ else None


def _id_in(body: bytes) -> object:
    if len(body) > MAX_FOREIGN_BYTES:
        return ""
    try:
        head = codec.parse(body)
    except event_errors.InvalidEvent:
        return ""
    return head.get("id") if "specversion" in head else ""


def _as_id(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= MAX_ID and codec.is_text(value) else ""
