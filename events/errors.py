"""The error of events/: `InvalidEvent` names the field and the reason, and never repeats a value."""

from __future__ import annotations


class InvalidEvent(ValueError):
    """A message is invalid: `field` is the place, `reason` the cause."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}" if field else reason)
