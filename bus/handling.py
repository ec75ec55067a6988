"""One message from the broker and what becomes of it: done, parked, or delivered again. Imports `machine` and `events`.

Rule: `judge` decides and touches no broker. Invalid, unknown, too large and refused for good → parked with the reason, whole;
temporary → again, until the message itself has failed `TRIES_BEFORE_PARKED` times; database away → wait, nothing is counted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from bus import presence as presences
from events import codec
from events import errors as event_errors
from machine import errors

log = structlog.get_logger()

MAX_BODY_BYTES = 16 * 1024 * 1024
# A transaction, or a lease taken: what takes longer hangs.
HANDLER_LIMIT_S = 300.0
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TRIES_BEFORE_PARKED = 25
REMEMBERED = 10_000

Handler = Callable[[codec.Event], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """What of a delivery matters here. `deliveries`: how often the broker delivered it before, as it counts."""

    key: str
    body: bytes
    message_id: str
    deliveries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do with a delivery: `done`, `park` (for `reason`) or `again` (after `pause_s`)."""

    kind: str
    reason: str = ""
    pause_s: float = 0.0


DONE = Verdict(kind="done")


class Judge:
    """Hands the messages of one kind, `event` or `command`, to their handler."""

    def __init__(
        self,
        kind: str,
        handler: Handler,
        *,
        presence: presences.Presence,
        clock: Callable[[], int],
        limit_s: float = HANDLER_LIMIT_S,
    ) -> None:
        self._kind = kind
        self._types = codec.types("command") if kind == "command" else (*codec.types("in"), *codec.types("inside"))
        self._handler = handler
        self._presence = presence
        self._clock = clock
        self._limit_s = limit_s
        # The broker counts deliveries in its own way, which differs between versions: what failed here is counted here as well.
        self._tries: OrderedDict[str, int] = OrderedDict()

    async def judge(self, message: Incoming) -> Verdict:
        """Handle one message; returns what becomes of it. Raises nothing but cancellation."""
        if len(message.body) > MAX_BODY_BYTES:
            return Verdict(kind="park", reason=f"the body has {len(message.body)} bytes, and {MAX_BODY_BYTES} are allowed")
        try:
            event = self._decode(message)
            async with asyncio.timeout(self._limit_s):
                await self._handler(event)
        except event_errors.InvalidEvent as error:
            return Verdict(kind="park", reason=f"invalid: {error}")
        except errors.RecorderError as error:
            if not error.retry:
                return Verdict(kind="park", reason=f"refused: {error.code}: {error.message}")
            return await self._again(message, f"{error.code}: {error.message}")
        except Exception as error:  # noqa: BLE001 - not swallowed: logged where it is the message's, and the message comes again
            return await self._again(message, f"{type(error).__name__}: {error}", fault=error)
        self._tries.pop(message.message_id, None)
        return DONE

    def _decode(self, message: Incoming) -> codec.Event:
        kind, _, type_ = message.key.partition(".")
        if not type_:
            raise event_errors.InvalidEvent("routing key", f"must be {self._kind}. and a type")
        bare = {"bare_type": type_, "bare_id": message.message_id} if self._kind == "event" else {}
        event = codec.decode(message.body, now_ms=self._clock(), **bare)
        if event.type not in self._types:
            raise event_errors.InvalidEvent("type", f"{event.type!r} is no {self._kind}")
        # The broker's permissions are given by routing key: a body that says something else would pass them by.
        if kind != self._kind or type_.split(".")[0] != event.type:
            raise event_errors.InvalidEvent("type", f"{event.type!r} does not belong under the routing key {message.key[:128]!r}")
        return event

    async def _again(self, message: Incoming, reason: str, fault: Exception | None = None) -> Verdict:
        if not await self._presence.answers():
            await self._presence.back()
            return Verdict(kind="again", reason="the database was away")
        if fault is not None:
            log.error("bus.handler_raised", key=message.key, message_id=message.message_id, exc_info=fault)
        tries = max(self._tries.pop(message.message_id, 0), message.deliveries) + 1
        if tries >= TRIES_BEFORE_PARKED:
            return Verdict(kind="park", reason=f"failed {tries} times, at last with {reason}")
        if message.message_id:
            self._tries[message.message_id] = tries
        while len(self._tries) > REMEMBERED:
            self._tries.popitem(last=False)
        log.warning("bus.retry", key=message.key, message_id=message.message_id, tries=tries, reason=reason)
        return Verdict(kind="again", reason=reason, pause_s=RETRY_S[min(tries, len(RETRY_S)) - 1])

    def parked_headers(self, message: Incoming, queue: str, reason: str, headers: Mapping[str, Any]) -> dict[str, Any]:
        """The headers under which a message is parked: its own, where it came from, when (Unix ms), and why."""
        ours = {"x-reason": reason[:1_000], "x-routing-key": message.key, "x-queue": queue, "x-parked-ms": self._clock()}
        return dict(headers) | ours
