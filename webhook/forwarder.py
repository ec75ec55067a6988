"""Forwarder of TRTC's callbacks to an application's own receiver: TRTC knows one address for each application.

Rules: a callback goes on as it came, raw body and signature. It waits in memory, in a bounded queue for each application, and
gives way to callbacks that the recorder takes at that moment. One that is too old, refused, or without space is dropped, counted
and logged. A receiver must expect repeats, as from TRTC itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp
import structlog

from machine import errors, metrics, supervised_task
from webhook import sender

log = structlog.get_logger()

MAX_WAITING = 10_000
MAX_WAITING_BYTES = 16 * 2**20
KEEP_S = 600.0
TIMEOUT_S = 5.0  # as long as TRTC itself waits for an answer
AT_ONCE = 8
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
# Posts that begin together give way so often at most, or a steady stream of callbacks would stop them.
GIVE_WAY_S, GIVES_WAY = 0.005, 20
STOP_S = 2.0
LOG_EVERY_S = 10.0
# Of the answers from 400 to 499, those after which a repeat may succeed.
_FOR_NOW = (408, 425, 429)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    body: bytes
    sign: str
    since_s: float


@dataclass(slots=True, kw_only=True)
class _Receiver:
    sdk_app_id: int
    url: str = field(repr=False)
    line: deque[_Waiting] = field(default_factory=deque)
    batch: list[_Waiting] = field(default_factory=list)
    size_bytes: int = 0  # of the line
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    failures: int = 0
    unlogged: int = 0
    next_log_s: float = 0.0


class CallbackForwarder:
    """Forwards the callbacks of one node. `receivers`: SdkAppId → URL. `busy`: whether the recorder takes callbacks now.

    `forwarded` and `dropped` count callbacks since the start. Raises errors.InvalidParameter for a URL that the address guard
    refuses."""

    def __init__(
        self,
        webhooks: sender.WebhookSender,
        receivers: Mapping[int, str],
        *,
        busy: Callable[[], bool] = lambda: False,
        most: int = MAX_WAITING,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.forwarded = 0
        self.dropped = 0
        self._webhooks, self._busy, self._most, self._clock_s = webhooks, busy, most, clock_s
        self._receivers = {app: _Receiver(sdk_app_id=app, url=url) for app, url in receivers.items()}
        for app, url in receivers.items():
            self._receivers[app].idle.set()
            try:
                webhooks.check(url)
            except errors.InvalidParameter as error:
                detail = f"TRTC_CALLBACK_FORWARD, application {app}: {error.message.removeprefix('Callback').lstrip(': ')}"
                raise errors.InvalidParameter(detail, field="TRTC_CALLBACK_FORWARD") from error
        self.tasks = [
            supervised_task.SupervisedTask(f"forward-{app}", functools.partial(self._run, receiver))
            for app, receiver in self._receivers.items()
        ]

    @property
    def waiting(self) -> int:
        """How many callbacks wait or are being posted."""
        return sum(len(receiver.line) + len(receiver.batch) for receiver in self._receivers.values())

    async def start(self) -> None:
        """Start forwarding."""
        for task in self.tasks:
            task.start()

    async def idle(self) -> None:
        """Wait until no callback waits."""
        await asyncio.gather(*(receiver.idle.wait() for receiver in self._receivers.values()))

    async def stop(self) -> None:
        """Forward for `STOP_S` more at most, then drop the rest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await asyncio.gather(*(receiver.idle.wait() for receiver in self._receivers.values() if not receiver.failures))
        for task in self.tasks:
            await task.stop()
        for receiver in self._receivers.values():
            if left := len(receiver.line) + len(receiver.batch):
                self._drop(receiver, left, "the service stops")
                receiver.line.clear()
                receiver.batch.clear()
            self._log(receiver, "the service stops", at_once=True)

    def take(self, sdk_app_id: int, body: bytes, sign: str) -> None:
        """Queue one verified callback of an application; none is awaited."""
        receiver = self._receivers.get(sdk_app_id)
        if receiver is None:
            return
        receiver.idle.clear()
        receiver.line.append(_Waiting(body=body, sign=sign, since_s=self._clock_s()))
        receiver.size_bytes += len(body)
        while len(receiver.line) > self._most or receiver.size_bytes > MAX_WAITING_BYTES:
            # The newest tells most of who is in a room.
            receiver.size_bytes -= len(receiver.line.popleft().body)
            self._drop(receiver, 1, "too many wait")
        receiver.arrived.set()

    async def _run(self, receiver: _Receiver) -> None:
        async with self._webhooks.kept(receiver.url, AT_ONCE) as kept:
            while True:
                await receiver.arrived.wait()
                self._drop_old(receiver)
                if await self._forward(receiver, kept):
                    pause_s = BACKOFF_S[min(receiver.failures, len(BACKOFF_S)) - 1]
                    await asyncio.sleep(supervised_task.jittered_s(pause_s))
                elif not receiver.line:
                    receiver.arrived.clear()
                    receiver.idle.set()

    async def _forward(self, receiver: _Receiver, kept: aiohttp.ClientSession) -> bool:
        """Post some callbacks; returns whether some of them are to be posted again."""
        # A receiver that does not answer is tried with one callback.
        at_once = min(len(receiver.line), 1 if receiver.failures else AT_ONCE)
        receiver.batch = [receiver.line.popleft() for _ in range(at_once)]
        receiver.size_bytes -= sum(len(each.body) for each in receiver.batch)
        posts, left = [], GIVES_WAY
        async with asyncio.TaskGroup() as group:
            for each in receiver.batch:
                while left and self._busy():
                    left -= 1
                    await asyncio.sleep(GIVE_WAY_S)
                posts.append(group.create_task(self._post(receiver, each, kept)))
                # One in each turn of the event loop: what TRTC asks meanwhile waits for one, not for all.
                await asyncio.sleep(0)
        again = [each for each, post in zip(receiver.batch, posts, strict=True) if not post.result()]
        receiver.line.extendleft(reversed(again))
        receiver.size_bytes += sum(len(each.body) for each in again)
        receiver.batch = []
        return bool(again)

    def _drop_old(self, receiver: _Receiver) -> None:
        while receiver.line and self._clock_s() - receiver.line[0].since_s > KEEP_S:
            receiver.size_bytes -= len(receiver.line.popleft().body)
            self._drop(receiver, 1, f"the receiver did not take it for {KEEP_S:g} s")

    async def _post(self, receiver: _Receiver, waiting: _Waiting, kept: aiohttp.ClientSession) -> bool:
        """Post one callback; False if it is to be posted again."""
        headers = {"Content-Type": "application/json", "User-Agent": "recorder"}
        headers |= {"SdkAppId": str(receiver.sdk_app_id), "Sign": waiting.sign}
        try:
            status = await self._webhooks.post(receiver.url, waiting.body, headers, kept)
            failure = "" if 200 <= status < 300 else f"it answered {status}"
            for_good = 300 <= status < 500 and status not in _FOR_NOW
        except errors.DeliveryFailed as error:
            failure, for_good = error.detail, not error.retry
        if not failure:
            if receiver.failures:
                log.info("trtc.forward_resumed", sdk_app_id=receiver.sdk_app_id, waiting=len(receiver.line))
                self._log(receiver, "before the receiver answered again", at_once=True)
            receiver.failures = 0
            self.forwarded += 1
            metrics.CALLBACKS_FORWARDED.labels("accepted").inc()
            return True
        if for_good:
            self._drop(receiver, 1, failure)
            return True
        if not receiver.failures:
            log.warning("trtc.forward_failed", sdk_app_id=receiver.sdk_app_id, reason=failure)
        receiver.failures += 1
        return False

    def _drop(self, receiver: _Receiver, callbacks: int, reason: str) -> None:
        self.dropped += callbacks
        metrics.CALLBACKS_FORWARDED.labels("dropped").inc(callbacks)
        receiver.unlogged += callbacks
        self._log(receiver, reason)

    def _log(self, receiver: _Receiver, reason: str, *, at_once: bool = False) -> None:
        """Log the callbacks dropped since the last line, every `LOG_EVERY_S` at most."""
        now_s = self._clock_s()
        if receiver.unlogged and (at_once or now_s >= receiver.next_log_s):
            log.warning("trtc.forward_dropped", sdk_app_id=receiver.sdk_app_id, callbacks=receiver.unlogged, reason=reason)
            receiver.unlogged, receiver.next_log_s = 0, now_s + LOG_EVERY_S
