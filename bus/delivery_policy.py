"""One message from the broker and what becomes of it: done, parked, or delivered again. Imports `machine` and `events`.

Rule: `judge` decides and touches no broker. Invalid, unknown, too large and refused for good → parked with the reason, whole;
temporary → again, until the message itself has been tried `attempts.TRIES_BEFORE_PARKED` times; database away, or worker full →
again, nothing is counted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from bus import attempts, redaction
from bus import database_probe as presences
from events import codec
from events import errors as event_errors
from machine import errors

log = structlog.get_logger()

MAX_BODY_BYTES = 16 * 1024 * 1024
# What others say is no larger than the same by HTTP (web/request_body.py). Ours grows with the gaps of a day.
MAX_FOREIGN_BYTES = 256 * 1024
# A transaction, or a lease taken: what takes longer hangs.
HANDLER_LIMIT_S = 300.0
# The header of a parked message that came past the broker's permissions, and how it did.
DETOUR = "x-detour"
# For another node to take what this one has no room for.
FULL_S = 1.0

Handler = Callable[[codec.Event], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """What of a delivery matters here. `again`: the broker delivered it before. `detour`: how it came past the permissions that
    the broker gives by routing key, "" for a message that its sender published under `key`."""

    key: str
    body: bytes
    message_id: str
    again: bool = False
    detour: str = ""


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
        tries: attempts.Tries,
        presence: presences.Presence,
        clock: Callable[[], int],
        limit_s: float = HANDLER_LIMIT_S,
    ) -> None:
        self._kind = kind
        inside = codec.types("command" if kind == "command" else "inside")
        self._types = inside if kind == "command" else (*codec.types("in"), *inside)
        self._ours = {f"{kind}.{type_}" for type_ in inside}
        self._handler = handler
        self._presence = presence
        self._clock = clock
        self._limit_s = limit_s
        self._tries = tries

    async def judge(self, message: Incoming) -> Verdict:
        """Handle one message; returns what becomes of it. Raises nothing but cancellation."""
        if message.detour:
            return Verdict(kind="park", reason=f"refused: {message.detour}")
        allowed = MAX_BODY_BYTES if message.key in self._ours else MAX_FOREIGN_BYTES
        if len(message.body) > allowed:
            return Verdict(kind="park", reason=f"the body has {len(message.body)} bytes, and {allowed} are allowed")
        # Not by the id in the body: what reading it does to this process is counted, too.
        name = attempts.name(self._kind, message.key, message.message_id or hashlib.sha256(message.body).hexdigest())
        try:
            async with self._tries.begun(name, again=message.again) as counted:
                return await self._try(message, name, counted)
        except attempts.TriedTooOften as error:
            return Verdict(kind="park", reason=str(error))
        except Exception:
            # The counts cannot be read or written: nothing is decided either while the database is away.
            log.exception("bus.tries_not_counted", key=message.key, message_id=message.message_id)
            await self._presence.back()
            return Verdict(kind="again", reason="the database was away", pause_s=attempts.pause_s(1))

    async def _try(self, message: Incoming, name: str, counted: int) -> Verdict:
        """Read and handle it once. Raises what the counts raise."""
        try:
            event = self._decode(message)
            async with asyncio.timeout(self._limit_s):
                await self._handler(event)
        except errors.Full as error:
            await self._tries.excused(name, counted)
            return Verdict(kind="again", reason=error.message, pause_s=FULL_S)
        except event_errors.InvalidEvent as error:
            return await self._over(name, counted, Verdict(kind="park", reason=f"invalid: {error}"))
        except errors.RecorderError as error:
            reason = f"{error.code}: {error.message}"
            if not error.retry:
                return await self._over(name, counted, Verdict(kind="park", reason=f"refused: {reason}"))
            return await self._again(message, name, counted, reason)
        except Exception as error:  # noqa: BLE001 - not swallowed: logged where it is the message's, and the message comes again
            return await self._again(message, name, counted, f"{type(error).__name__}: {error}", fault=error)
        return await self._over(name, counted, DONE)

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

    async def _over(self, name: str, counted: int, verdict: Verdict) -> Verdict:
        try:
            await self._tries.over(name, counted)
        except Exception:
            # The verdict stands all the same: a count that is left behind is forgotten by age.
            log.exception("bus.tries_not_forgotten")
        return verdict

    async def _again(self, message: Incoming, name: str, counted: int, reason: str, fault: Exception | None = None) -> Verdict:
        if not await self._presence.answers():
            await self._presence.back()
            await self._tries.excused(name, counted)
            return Verdict(kind="again", reason="the database was away")
        if fault is not None:
            log.error("bus.handler_raised", key=message.key, message_id=message.message_id, exc_info=fault)
        tries = await self._tries.failed(name, counted)
        if tries >= attempts.TRIES_BEFORE_PARKED:
            verdict = Verdict(kind="park", reason=f"failed {tries} times, at last with {reason}")
            return await self._over(name, tries, verdict)
        log.warning("bus.retry", key=message.key, message_id=message.message_id, tries=tries, reason=reason)
        return Verdict(kind="again", reason=reason, pause_s=attempts.pause_s(tries))

    def parked_headers(self, message: Incoming, queue: str, reason: str) -> dict[str, Any]:
        """What is added to a message that is parked: where it came from, when (Unix ms), and why. Nothing in it is a secret."""
        said = redaction.masked(reason)[:1_000]
        key = redaction.masked(message.key)
        headers = {"x-reason": said, "x-routing-key": key, "x-queue": queue, "x-parked-ms": self._clock()}
        return headers | ({DETOUR: message.detour} if message.detour else {})
