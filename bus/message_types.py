"""Types of messages that both buses treat apart: requests of users, and commands that a worker can pause."""

from __future__ import annotations

from events import codec
from machine import errors

ALL = codec.types()

# Requests of users have slots of their own, because anybody may send any number of them.
REQUESTS = ("start", "stop", "replay", "resend")
# Commands that take a slot of a worker. A worker without a free one pauses that type.
PAUSABLE = ("start-capture", "start-transcode", "start-upload", "send-callback")


def pausable(command_type: str) -> str:
    """The type, if it can be paused. Raises InvalidParameter."""
    if command_type not in PAUSABLE:
        raise errors.InvalidParameter(f"{command_type!r} is none of {', '.join(PAUSABLE)}.", field="command_type")
    return command_type
