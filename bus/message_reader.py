"""Reader of messages from the broker: size limits, routing key, and the event in the body.

Rule: the broker grants permissions by routing key, so a body must be of the type that its key names.
"""

from __future__ import annotations

from collections.abc import Callable

from bus import delivery_policy
from events import codec
from events import errors as event_errors

# Outcomes of workers grow with the gaps of a day.
MAX_BODY_BYTES = 16 * 1024 * 1024
# Messages of other publishers have HTTP's limit (web/request_body.py).
MAX_FOREIGN_BYTES = 256 * 1024


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
