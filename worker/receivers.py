"""Turns of deliveries: slots that receivers share fairly, and a circuit breaker for each receiver.

Rules:
- A receiver is the host of callback URLs. It has only a share of the slots, and receivers with waiting deliveries take turns: the
  line of a slow receiver is its own.
- A receiver that did not answer several times in a row has an open circuit for a growing pause. Its deliveries then fail without
  a connection, one after the other, and their own backoff follows. After the pause one delivery tries again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from machine import supervised_task

log = structlog.get_logger()

# A receiver has one of so many slots at most.
SHARE = 8
OPENS_AFTER = 5
OPEN_S = 5.0
MAX_OPEN_S = 60.0
# A delivery that an open circuit fails holds its turn this long: thousands of them must not become a burst of events.
FAILS_EVERY_S = 0.1
# Receivers without deliveries whose failures are remembered.
MAX_REMEMBERED = 1_000


@dataclass(slots=True, eq=False)
class Turn:
    """A delivery's turn. `waited`: others were before it. `open`: the circuit is open; fail without a connection. `answered`: set
    by the delivery, whether the receiver did; None says nothing about the receiver."""

    waited: bool
    open: bool
    answered: bool | None = None


@dataclass(slots=True, eq=False)
class _Receiver:
    running: int = 0
    line: deque[asyncio.Future[None]] = field(default_factory=deque)
    failures: int = 0
    openings: int = 0
    open_until_s: float = 0.0

    def drop_cancelled(self) -> None:
        """Drop the cancelled places at the head of the line: nobody waits there."""
        while self.line and self.line[0].done():
            self.line.popleft()


class Receivers:
    """The turns of one worker's deliveries: `slots` at a time."""

    def __init__(self, slots: int, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._free = slots
        self._most = max(1, slots // SHARE)
        self._clock_s = clock_s
        self._receivers: dict[str, _Receiver] = {}
        self._failing: OrderedDict[str, _Receiver] = OrderedDict()
        # Receivers that have a line and may take a slot, in the order of their turns.
        self._ready: OrderedDict[str, _Receiver] = OrderedDict()

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[Turn]:
        """Wait for the turn of a delivery to this receiver."""
        waited = await self._enter(name)
        receiver = self._receivers[name]
        turn = Turn(waited=waited, open=self._clock_s() < receiver.open_until_s)
        try:
            if turn.open:
                await asyncio.sleep(supervised_task.jittered_s(FAILS_EVERY_S))
            yield turn
        finally:
            self._note(name, receiver, turn)
            self._leave(name, receiver)

    async def _enter(self, name: str) -> bool:
        """Take a slot; returns whether others were before."""
        if name not in self._receivers:
            self._receivers[name] = self._failing.pop(name) if name in self._failing else _Receiver()
        receiver = self._receivers[name]
        place = asyncio.get_running_loop().create_future()
        receiver.line.append(place)
        self._offer(name, receiver)
        self._call()
        waited = not place.done()
        try:
            await place
        except asyncio.CancelledError:
            # A cancelled place stays in the line until its turn. One that was granted before gives its slot back.
            if place.cancelled():
                self._call()
                self._forget(name, receiver)
            else:
                self._leave(name, receiver)
            raise
        return waited

    def _leave(self, name: str, receiver: _Receiver) -> None:
        self._free += 1
        receiver.running -= 1
        self._offer(name, receiver)
        self._call()
        self._forget(name, receiver)

    def _offer(self, name: str, receiver: _Receiver) -> None:
        """Put a receiver that has a line and may take a slot at the end of the turns."""
        # A receiver that does not answer tries with one delivery at a time.
        most = 1 if receiver.failures >= OPENS_AFTER else self._most
        receiver.drop_cancelled()
        if receiver.line and receiver.running < most and name not in self._ready:
            self._ready[name] = receiver

    def _call(self) -> None:
        """Give the free slots to the receivers in turn."""
        while self._free and self._ready:
            name, receiver = self._ready.popitem(last=False)
            receiver.drop_cancelled()
            if not receiver.line:
                continue
            receiver.line.popleft().set_result(None)
            receiver.running += 1
            self._free -= 1
            self._offer(name, receiver)

    def _note(self, name: str, receiver: _Receiver, turn: Turn) -> None:
        if turn.answered is None:
            return
        if turn.answered:
            if receiver.openings:
                log.info("receiver.circuit_closed", receiver=name)
            receiver.failures, receiver.openings, receiver.open_until_s = 0, 0, 0.0
            return
        receiver.failures += 1
        if receiver.failures >= OPENS_AFTER and self._clock_s() >= receiver.open_until_s:
            pause_s = supervised_task.jittered_s(min(MAX_OPEN_S, OPEN_S * 2 ** min(receiver.openings, 10)))
            receiver.openings += 1
            receiver.open_until_s = self._clock_s() + pause_s
            log.warning("receiver.circuit_open", receiver=name, failures=receiver.failures, pause_s=round(pause_s, 1))

    def _forget(self, name: str, receiver: _Receiver) -> None:
        """Drop a receiver without deliveries. Failures are remembered, of so many receivers only."""
        receiver.drop_cancelled()
        if receiver.running or receiver.line or self._receivers.get(name) is not receiver:
            return
        self._ready.pop(name, None)
        self._receivers.pop(name)
        if receiver.failures:
            self._failing[name] = receiver
        while len(self._failing) > MAX_REMEMBERED:
            self._failing.popitem(last=False)
