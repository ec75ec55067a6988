"""The in-process bus of a single node. The outbox is its durable queue.

Rule: a message is marked sent only after its handler returned: for an event after the commit, for a command once the worker
holds the lease. A crash before that delivers it again, and every handler is idempotent. Retry, backoff and dead letters follow
`delivery_policy`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from bus import attempts, database_probe, delivery_policy, message_types
from events import codec
from events import errors as event_errors
from machine import due_work, errors, failpoints, ports, supervised_task

log = structlog.get_logger()

POLL_S = 0.5
BATCH = 100
ROUND_BACKOFF_S = 1.0
CHANNELS = {
    **dict.fromkeys((*codec.types("in"), *codec.types("inside")), "event"),
    **dict.fromkeys(codec.types("command"), "command"),
    **dict.fromkeys(codec.types("out"), "result"),
}


class LocalBus:
    """Relays the outbox to handlers in the order of writing. A message that waits for a retry does not hold up the rest."""

    def __init__(
        self,
        store: ports.Store,
        *,
        clock: Callable[[], int],
        on_event: delivery_policy.Handler,
        on_command: delivery_policy.Handler,
    ) -> None:
        self._store = store
        self._clock = clock
        tracker, probe = attempts.AttemptTracker(store.attempts), database_probe.DatabaseProbe(store.connections.ping)
        handlers = {"event": on_event, "command": on_command, "result": self._publish}
        self._policies = {
            channel: delivery_policy.DeliveryPolicy(self._read, handler, tracker=tracker, probe=probe)
            for channel, handler in handlers.items()
        }
        # Messages up to this one may have been delivered before this start.
        self._redelivered_until = 0
        # When a message that failed is due again (monotonic), by its number.
        self._due_s: dict[int, float] = {}
        self._paused: set[str] = set()
        self.relay = supervised_task.SupervisedTask("bus.relay", self._run)
        self.tasks = [self.relay]
        self.listeners: list[Callable[[codec.Event], None]] = []
        self._problem = ""

    async def start(self) -> None:
        """Begin to relay."""
        self._redelivered_until = await self._store.outbox.newest_seq()
        self.relay.start()

    async def stop(self) -> None:
        """End the relay; a message in progress is delivered again at the next start."""
        await self.relay.stop()

    def problems(self) -> list[str]:
        """Why no messages are delivered now: the outbox cannot be read or marked. [] when they are."""
        return [self._problem] if self._problem else []

    async def pause(self, command_type: str) -> None:
        """Deliver no new commands of a type of `message_types.PAUSABLE`: this worker has no slot for them. Idempotent."""
        self._paused.add(message_types.pausable(command_type))

    async def resume(self, command_type: str) -> None:
        """Deliver commands of this type again. Idempotent."""
        self._paused.discard(message_types.pausable(command_type))
        self._store.changed.set()

    async def stop_consuming(self) -> None:
        """Do nothing: there is no other node that could take the messages."""

    async def _run(self) -> None:
        while True:
            try:
                delivered = await self._round()
                self._problem = ""
            except Exception as error:
                # Most likely the database cannot be written: its disk is full, or another process locks its file. Ending the
                # process would end every capture and help with neither. A bug shows in the log at each round.
                log.exception("bus.round_failed")
                self._problem = f"the outbox cannot be handed out: {type(error).__name__}"
                await asyncio.sleep(ROUND_BACKOFF_S)
                continue
            if not delivered:
                await supervised_task.pause(self._store.changed, POLL_S)

    async def _round(self) -> bool:
        """Deliver the messages that are due; returns whether there were any. Raises the errors of the store."""
        failpoints.hit("outbox.claim.before")
        found = await self._store.outbox.due(BATCH, without=self._paused)
        due = [m for m in found if self._due_s.get(m.seq, 0.0) <= time.monotonic()]
        for message in due:
            # A type can be paused while its messages are read, or while others are delivered.
            if message.type not in self._paused:
                await self._deliver(message)
        return bool(due)

    async def _deliver(self, message: due_work.OutboxMessage) -> None:
        """Deliver one message and mark it, or note when it is due again. Raises Unavailable while the database fails."""
        failpoints.hit("outbox.claim.after")
        id_ = f"outbox-{message.seq}"
        incoming = delivery_policy.Incoming(
            key=f"{message.channel}.{message.type}",
            body=message.body,
            message_id=id_,
            attempt_key=id_,
            redelivered=message.seq <= self._redelivered_until or message.seq in self._due_s,
        )
        # `_read` rejects a message of an unknown channel.
        policy = self._policies.get(message.channel, self._policies["event"])
        disposition = await policy.handle(incoming)
        if disposition.database_failed:
            raise errors.Unavailable(disposition.reason)
        if disposition.kind == "requeue":
            self._due_s[message.seq] = time.monotonic() + disposition.backoff_s
            return
        if disposition.kind == "park":
            log.error("bus.parked", seq=message.seq, channel=message.channel, reason=disposition.reason)
        failpoints.hit("outbox.mark.before")
        await self._store.outbox.mark_sent(message.seq, disposition.reason)
        self._due_s.pop(message.seq, None)
        failpoints.hit("outbox.mark.after")

    def _read(self, message: delivery_policy.Incoming) -> codec.Event:
        event = codec.decode(message.body, now_ms=self._clock())
        channel = message.key.partition(".")[0]
        if CHANNELS[event.type] != channel:
            raise event_errors.InvalidEvent("type", f"{event.type!r} is no {channel}")
        return event

    async def _publish(self, event: codec.Event) -> None:
        for listener in self.listeners:
            listener(event)
