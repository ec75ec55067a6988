"""The one error of this room. `InvalidEvent` names the field and the reason, and never repeats a value."""

from __future__ import annotations


class InvalidEvent(ValueError):
    """A message cannot be taken: `field` says where, `reason` why."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}" if field else reason)
