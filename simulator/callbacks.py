"""TRTC's event callbacks: signed messages, Tencent's retry rule, and injected faults.

Rules (docs: "Room and media callbacks"):
- `Sign` is base64(HMAC-SHA256(key, raw body)). Only status 200 within 5 s is success.
- After a failure one immediate retry, then one every 10 s until the message is a minute old; then it is lost.
- A retry is the same event with another CallbackTs, so another body and signature.
- First attempts keep the order of a room's events; retries and faults break it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import structlog

ROOM, MEDIA = 1, 2
CREATED, DISMISSED, ENTERED, LEFT, ROLE_CHANGED = 101, 102, 103, 104, 105
VIDEO_ON, VIDEO_OFF, AUDIO_ON, AUDIO_OFF, SCREEN_ON, SCREEN_OFF = 201, 202, 203, 204, 205, 206
DROP, DELAY, DOUBLE, SWAP, FORGE = "drop", "delay", "double", "swap", "forge"
ACTIONS = (DROP, DELAY, DOUBLE, SWAP, FORGE)
KEPT = 10_000
PENDING, DELIVERED, LOST, DROPPED = "pending", "delivered", "lost", "dropped"
"""The fate of a message: in flight · answered 200 · never answered 200 within its minute · lost by a fault."""
FORGED = "-forged"
"""The suffix that a forger's key adds to the right one."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """A TRTC application as its console configures it: where callbacks go, their key, and the key of its UserSigs."""

    sdk_app_id: int
    callback_url: str = ""
    callback_key: str = ""
    user_sig_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """Tencent's figures, in seconds."""

    timeout_s: float = 5.0
    pause_s: float = 10.0
    give_up_after_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault for matching messages: lost, late by `delay_s`, sent twice, sent after the room's next message, or signed with a
    wrong key (every attempt, so that a receiver that checks never accepts it).

    `event_type` 0 and `user_id` "" match all; `times` 0 = always, else that many messages.
    """

    action: str
    event_type: int = 0
    user_id: str = ""
    times: int = 1
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One POST: its body, its time (Unix ms), and the status or error it got."""

    body: bytes
    at_ms: int
    status: int = 0
    error: str = ""


@dataclass(slots=True, kw_only=True)
class Message:
    """One event in flight: its form, every attempt, and its fate."""

    app: App
    event_group: int
    event_type: int
    info: Mapping[str, Any]
    room: str
    born_s: float
    forged: bool = False
    outcome: str = PENDING
    attempts: list[Attempt] = field(default_factory=list)
    passed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the next message of the room may go."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a message that waited for the next one may go."""
    follower: Message | None = None
    """The message that overtook this one; this one then releases the room's queue in its place."""
    first_tried: bool = False


def sign(key: str, body: bytes) -> str:
    """The `Sign` header for a raw body."""
    return base64.b64encode(hmac.new(key.encode(), body, hashlib.sha256).digest()).decode()


def encode(event_group: int, event_type: int, callback_ms: int, info: Mapping[str, Any]) -> bytes:
    """The body, in the layout Tencent's own JSON writer uses (tabs, newlines)."""
    whole = {"EventGroupId": event_group, "EventType": event_type, "CallbackTs": callback_ms, "EventInfo": info}
    return json.dumps(whole, indent="\t", separators=(",", ":\t"), ensure_ascii=False).encode()


class Callbacks:
    """Sends the messages of all rooms."""

    def __init__(self, *, rule: RetryRule | None = None, wall_ms: Callable[[], int] = lambda: time.time_ns() // 10**6):
        self.rule = rule or RetryRule()
        self.messages: list[Message] = []
        self._wall_ms = wall_ms
        self._faults: list[Fault] = []
        self._used: list[int] = []
        self._last: dict[str, Message] = {}
        self._held: dict[str, Message] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._last_event_ms = 0

    def start(self) -> None:
        """Open the connections' pool. A second call does nothing."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=self.rule.timeout_s)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def stop(self) -> None:
        """Drop messages in flight and close the pool. A second call does nothing."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults in force, in the order they are tried; the first that matches is used."""
        return tuple(self._faults)

    def set_faults(self, *faults: Fault) -> None:
        """Replace all faults. Raises ValueError for an unknown action."""
        for fault in faults:
            if fault.action not in ACTIONS:
                raise ValueError(f"Action is one of {', '.join(ACTIONS)}")
        self._faults, self._used = list(faults), [0] * len(faults)

    def next_event_ms(self) -> int:
        """The time of an event, Unix ms; no two events get the same."""
        self._last_event_ms = max(self._wall_ms(), self._last_event_ms + 1)
        return self._last_event_ms

    def send(
        self, app: App, event_group: int, event_type: int, info: Mapping[str, Any], *, room: str = "", forged: bool = False
    ) -> Message:
        """Send one message, in order with the others of `room`; returns it immediately. Without an address it is lost."""
        message = Message(
            app=app, event_group=event_group, event_type=event_type, info=info, room=room, born_s=time.monotonic(), forged=forged
        )
        self.messages.append(message)
        del self.messages[:-KEPT]
        before, self._last[room] = self._last.get(room), message
        task = asyncio.create_task(self._carry(message, before), name=f"simulator.callback.{event_type}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return message

    async def settled(self) -> None:
        """Wait until every message sent so far is delivered, lost or dropped."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _carry(self, message: Message, before: Message | None) -> None:
        try:
            if before is not None:
                await before.passed.wait()
            await self._deliver(message, self._fault_for(message))
        finally:
            self._pass(message)

    async def _deliver(self, message: Message, fault: Fault | None) -> None:
        action = fault.action if fault else ""
        if not message.app.callback_url or self._session is None:
            message.outcome = LOST
        elif action == DROP:
            message.outcome = DROPPED
        else:
            message.forged = message.forged or action == FORGE
            if action == DELAY and fault is not None:
                message.passed.set()
                await asyncio.sleep(fault.delay_s)
            if action == SWAP and message.room not in self._held:
                await self._after_the_next(message)
            await self._insist(message)
            if action == DOUBLE:
                await self._attempt(message)

    async def _after_the_next(self, message: Message) -> None:
        """Wait until another message of the room has passed, or a minute if none comes."""
        self._held[message.room] = message
        message.passed.set()
        try:
            async with asyncio.timeout(self.rule.give_up_after_s):
                await message.released.wait()
        except TimeoutError:
            self._held.pop(message.room, None)
            log.info("callback.held_alone", event_type=message.event_type)

    def _pass(self, message: Message) -> None:
        """Release the room's queue after this message's first attempt; a message that waited comes first."""
        if message.first_tried:
            return
        message.first_tried = True
        held = self._held.pop(message.room, None)
        if held is None:
            message.passed.set()
        else:
            held.follower = message
            held.released.set()
        if message.follower is not None:
            message.follower.passed.set()

    async def _insist(self, message: Message) -> None:
        while True:
            delivered = await self._attempt(message)
            self._pass(message)
            if delivered:
                message.outcome = DELIVERED
                return
            pause_s = self.rule.pause_s if len(message.attempts) > 1 else 0.0
            if time.monotonic() + pause_s - message.born_s > self.rule.give_up_after_s:
                message.outcome = LOST
                log.warning("callback.lost", event_type=message.event_type, attempts=len(message.attempts))
                return
            await asyncio.sleep(pause_s)

    async def _attempt(self, message: Message) -> bool:
        if self._session is None:
            return False
        at_ms = self._wall_ms()
        body = encode(message.event_group, message.event_type, at_ms, message.info)
        headers = {"Content-Type": "application/json", "SdkAppId": str(message.app.sdk_app_id)}
        key = message.app.callback_key + (FORGED if message.forged else "")
        if key:
            headers["Sign"] = sign(key, body)
        status, error = 0, ""
        try:
            async with self._session.post(message.app.callback_url, data=body, headers=headers, allow_redirects=False) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        message.attempts.append(Attempt(body=body, at_ms=at_ms, status=status, error=error))
        log.info("callback.sent", event_type=message.event_type, room=message.room, status=status, error=error)
        return status == 200

    def _fault_for(self, message: Message) -> Fault | None:
        for index, fault in enumerate(self._faults):
            matches = fault.event_type in (0, message.event_type)
            matches = matches and fault.user_id in ("", message.info.get("UserId", ""))
            if matches and (not fault.times or self._used[index] < fault.times):
                self._used[index] += 1
                return fault
        return None
