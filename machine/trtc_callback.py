"""A verified TRTC callback: the event it stands for, or the reason why it changes nothing. `tencent` makes it, `web` takes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackEvent:
    """The event of one callback. `data` may have more fields than the event's schema; `event_ms` is Tencent's time in Unix ms."""

    type: str
    id: str
    data: dict[str, object]
    event_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoredCallback:
    """A genuine callback that changes nothing, and the reason. `unknown`: its type is not one of TRTC's documented ones."""

    reason: str
    unknown: bool = False
