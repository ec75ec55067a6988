"""The bus inside the process: its durable queue is the outbox. Imports `machine` and `events`.

Rule: a message is marked sent only after its handler is done (an event: after the commit; a command: after its worker holds
the lease). A crash before that hands it out again; every handler is harmless to repeat. What can never be handled is parked
with the reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from bus import attempts
from events import codec
from events import errors as event_errors
from machine import errors, failpoints, ports, supervised_task

log = structlog.get_logger()

POLL_S = 0.5
AGAIN_S = 1.0
TYPES = {
    "event": (*codec.types("in"), *codec.types("inside")),
    "command": codec.types("command"),
    "result": codec.types("out"),
}

Handler = Callable[[codec.Event], Awaitable[None]]


class Store(ports.Store, Protocol):
    """A store whose outbox is the queue (store.store.Store)."""

    @property
    def attempts(self) -> attempts.Counts: ...
    async def newest_seq(self) -> int: ...


class LocalBus:
    """Relays the outbox to handlers, in the order it was written; what fails for now waits without holding up the rest."""

    def __init__(self, store: Store, *, clock: Callable[[], int], on_event: Handler, on_command: Handler) -> None:
        self._store = store
        self._clock = clock
        self._handlers = {"event": on_event, "command": on_command, "result": self._published}
        self._tries = attempts.Tries(store.attempts)
        # Messages up to this one may have been handed out before; those that failed since come again when they are due.
        self._older = 0
        self._due: dict[int, float] = {}
        self.relay = supervised_task.SupervisedTask("bus.relay", self._run)
        self.sides = [self.relay]
        self.listeners: list[Callable[[codec.Event], None]] = []
        self._problem = ""

    async def start(self) -> None:
        """Begin to relay."""
        self._older = await self._store.newest_seq()
        self.relay.start()

    async def stop(self) -> None:
        """End the relay; what is under way is handed out again at the next start."""
        await self.relay.stop()

    def problems(self) -> list[str]:
        """Why messages are not handed out just now: the outbox cannot be read or marked."""
        return [self._problem] if self._problem else []

    async def stop_consuming(self) -> None:
        """Nothing to give back: there is no other node."""

    async def _run(self) -> None:
        while True:
            try:
                handed_out = await self._round()
                self._problem = ""
            except Exception as error:
                # The database cannot be written, most likely: its disk is full, or somebody holds its file. To end the process
                # would end every capture, and help nobody; a fault of ours shows in the log at each round.
                log.exception("bus.round_failed")
                self._problem = f"the outbox cannot be handed out: {type(error).__name__}"
                await asyncio.sleep(AGAIN_S)
                continue
            if not handed_out:
                await supervised_task.pause(self._store.changed, POLL_S)

    async def _round(self) -> bool:
        """Hand out what is due; whether anything was."""
        failpoints.hit("outbox.claim.before")
        due = [m for m in await self._store.unsent() if self._due.get(m.seq, 0.0) <= time.monotonic()]
        for message in due:
            await self._hand_out(message)
        return bool(due)

    async def _hand_out(self, message: ports.Message) -> None:
        failpoints.hit("outbox.claim.after")
        again = message.seq <= self._older or message.seq in self._due
        try:
            async with self._tries.begun(_name(message), again=again) as counted:
                await self._try(message, counted)
        except attempts.TriedTooOften as error:
            await self._park(message, 0, str(error))

    async def _try(self, message: ports.Message, counted: int) -> None:
        try:
            event = codec.decode(message.body, now_ms=self._clock())
            if event.type not in TYPES[message.channel]:
                raise event_errors.InvalidEvent("type", f"{event.type!r} is no {message.channel}")
            await self._handlers[message.channel](event)
        except event_errors.InvalidEvent as error:
            await self._park(message, counted, str(error))
        except errors.RecorderError as error:
            await self._failed(message, counted, error, park=not error.retry)
        except Exception as error:
            log.exception("bus.handler_raised", seq=message.seq, channel=message.channel)
            await self._failed(message, counted, error, park=False)
        else:
            failpoints.hit("outbox.mark.before")
            await self._store.mark_sent(message.seq)
            self._due.pop(message.seq, None)
            await self._tries.over(_name(message), counted)
            failpoints.hit("outbox.mark.after")

    async def _failed(self, message: ports.Message, counted: int, error: Exception, *, park: bool) -> None:
        reason = f"{type(error).__name__}: {error}"
        if park:
            await self._park(message, counted, reason)
            return
        tries = await self._tries.failed(_name(message), counted)
        if tries >= attempts.TRIES_BEFORE_PARKED:
            await self._park(message, tries, f"failed {tries} times, at last with {reason}")
            return
        self._due[message.seq] = time.monotonic() + attempts.pause_s(tries)
        log.warning("bus.retry", seq=message.seq, channel=message.channel, tries=tries, reason=reason)

    async def _park(self, message: ports.Message, counted: int, reason: str) -> None:
        log.error("bus.dead_letters", seq=message.seq, channel=message.channel, reason=reason)
        # The count first: one that is left behind would park the message anew as soon as an operator has it sent again.
        await self._tries.over(_name(message), counted)
        await self._store.mark_sent(message.seq, parked=reason)
        self._due.pop(message.seq, None)

    async def _published(self, event: codec.Event) -> None:
        for listener in self.listeners:
            listener(event)


def _name(message: ports.Message) -> str:
    return f"outbox-{message.seq}"
