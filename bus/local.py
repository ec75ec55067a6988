"""The bus inside the process: its durable queue is the outbox. Imports `machine` and `events`.

Rule: a message is marked sent only after its handler is done (an event: after the commit; a command: after its worker holds
the lease). A crash before that hands it out again; every handler is harmless to repeat. What can never be handled is parked
with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import structlog

from events import codec
from events import errors as event_errors
from machine import background, errors, faults, ports

log = structlog.get_logger()

POLL_S = 0.5
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)
TRIES_BEFORE_PARKED = 50

Handler = Callable[[codec.Event], Awaitable[None]]


class LocalBus:
    """Relays the outbox to handlers, in the order it was written; what fails for now waits without holding up the rest."""

    def __init__(self, store: ports.Store, *, clock: Callable[[], int], on_event: Handler, on_command: Handler) -> None:
        self._store = store
        self._clock = clock
        self._handlers = {"event": on_event, "command": on_command, "result": self._published}
        self._tries: dict[int, tuple[int, float]] = {}
        self.relay = background.Background("bus.relay", self._run)
        self.sides = [self.relay]
        self.listeners: list[Callable[[codec.Event], None]] = []

    async def start(self) -> None:
        """Begin to relay."""
        self.relay.start()

    async def stop(self) -> None:
        """End the relay; what is under way is handed out again at the next start."""
        await self.relay.stop()

    def problems(self) -> list[str]:
        """There is nothing between outbox and handlers that could be away."""
        return []

    async def stop_consuming(self) -> None:
        """Nothing to give back: there is no other node."""

    async def _run(self) -> None:
        while True:
            if not await self._round():
                await background.pause(self._store.changed, POLL_S)

    async def _round(self) -> bool:
        """Hand out what is due; whether anything was."""
        due = [m for m in await self._store.unsent() if self._tries.get(m.seq, (0, 0.0))[1] <= time.monotonic()]
        for message in due:
            await self._hand_out(message)
        return bool(due)

    async def _hand_out(self, message: ports.Message) -> None:
        faults.faultpoint("outbox.claim.after")
        try:
            event = codec.decode(message.body, now_ms=self._clock())
            await self._handlers[message.channel](event)
        except event_errors.InvalidEvent as error:
            await self._park(message, str(error))
        except errors.RecorderError as error:
            await self._failed(message, error, park=not error.retry)
        except Exception as error:
            log.exception("bus.handler_raised", seq=message.seq, channel=message.channel)
            await self._failed(message, error, park=False)
        else:
            faults.faultpoint("outbox.mark.before")
            self._tries.pop(message.seq, None)
            await self._store.mark_sent(message.seq)
            faults.faultpoint("outbox.mark.after")

    async def _failed(self, message: ports.Message, error: Exception, *, park: bool) -> None:
        tries = self._tries.get(message.seq, (0, 0.0))[0] + 1
        reason = f"{type(error).__name__}: {error}"
        if park or tries >= TRIES_BEFORE_PARKED:
            await self._park(message, reason)
            return
        self._tries[message.seq] = (tries, time.monotonic() + RETRY_S[min(tries, len(RETRY_S)) - 1])
        log.warning("bus.retry", seq=message.seq, channel=message.channel, tries=tries, reason=reason)

    async def _park(self, message: ports.Message, reason: str) -> None:
        self._tries.pop(message.seq, None)
        log.error("bus.parked", seq=message.seq, channel=message.channel, reason=reason)
        await self._store.mark_sent(message.seq, parked=reason)

    async def _published(self, event: codec.Event) -> None:
        for listener in self.listeners:
            listener(event)
