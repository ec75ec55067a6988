"""The in-process bus of a single node. The outbox is its durable queue.

Rules:
- A message is marked sent only after its handler returned: for an event after the commit, for a command once the worker holds the
  lease. A crash before that delivers it again, and every handler is idempotent. Retry, backoff and dead letters follow
  `delivery_policy`.
- Messages of one session are delivered in the order of writing, sessions side by side (`lanes`).
- A message that waits for a retry says so in its row. It hides no other one, however many wait.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

import structlog

from bus import attempts, database_probe, delivery_policy, lanes, message_reader, message_types
from events import codec
from events import errors as event_errors
from machine import attention, due_work, errors, failpoints, ports, supervised_task

log = structlog.get_logger()

# Each commit of this process wakes the bus. Other processes write rarely: `recorder parked requeue`.
POLL_S = 1.0
BATCH = 100
ROUND_BACKOFF_S = 1.0
LAST_ROUND_S = 3.0
# So many commands are retried at once when a slot becomes free, each of another session.
RESUMED = 4
CHANNELS = {
    **dict.fromkeys((*codec.types("in"), *codec.types("inside")), "event"),
    **dict.fromkeys(codec.types("command"), "command"),
    **dict.fromkeys(codec.types("out"), "result"),
}


class LocalBus:
    """Relays the outbox to handlers. A message that waits for a retry does not hold up the rest."""

    def __init__(
        self,
        store: ports.Store,
        *,
        clock: Callable[[], int],
        on_event: delivery_policy.Handler,
        on_command: delivery_policy.Handler,
        on_invalid: message_reader.Refuse | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        tracker, probe = attempts.AttemptTracker(store.attempts), database_probe.DatabaseProbe(store.connections.ping)
        refuse = message_reader.refusing(on_invalid, by_message_id=False, clock=clock)
        handlers = {"event": on_event, "command": on_command, "result": self._publish}
        self._policies = {
            channel: delivery_policy.DeliveryPolicy(self._read, handler, tracker=tracker, probe=probe, refuse=refuse)
            for channel, handler in handlers.items()
        }
        # Messages up to this one may have been delivered before this start.
        self._redelivered_until = 0
        self._lanes = lanes.Lanes(self._deliver)
        # What became of messages, until the database has it: sent, parked for a reason, or to be retried after ms.
        self._sent: list[int] = []
        self._parked: dict[int, str] = {}
        self._retries: dict[int, int] = {}
        # When retries are due (monotonic), and those that are. The database knows too, but by a clock that can be set back.
        self._due_s: list[tuple[float, int]] = []
        self._ripe: set[int] = set()
        # Those that are not due yet; the one that has waited longest first.
        self._backing_off: dict[int, due_work.OutboxMessage] = {}
        # Written since this start, and only ever refused for want of a slot: nothing was begun that could have ended the process.
        self._unbegun: set[int] = set()
        self._paused: set[str] = set()
        self.relay = supervised_task.SupervisedTask("bus.relay", self._run)
        self.tasks = [self.relay]
        self.listeners: list[Callable[[codec.Event], None]] = []
        self._problem = ""
        self._database_failed = ""

    async def start(self) -> None:
        """Begin to relay. What waited for a retry before is due, because the time since is unknown."""
        self._redelivered_until = await self._store.outbox.newest_seq()
        await self._store.outbox.release_all()
        self.relay.start()

    async def stop(self) -> None:
        """End the relay; a message in progress is delivered again at the next start."""
        await self.relay.stop()
        await self._lanes.stop()
        try:
            async with asyncio.timeout(LAST_ROUND_S):
                await self._mark()
        except Exception as error:  # noqa: BLE001 - not swallowed: logged, and the messages are delivered again
            log.warning("bus.not_marked", messages=len(self._sent), reason=type(error).__name__)
        self._sent, self._parked, self._retries = [], {}, {}

    def problems(self) -> list[str]:
        """Why no messages are delivered now: the outbox cannot be read or marked. [] when they are."""
        return [self._problem] if self._problem else []

    def warnings(self) -> list[str]:
        """Nothing: dead letters of this bus are rows, and take the space of the messages that they were."""
        return []

    def findings(self) -> list[attention.Attention]:
        """Nothing: the database knows about its rows."""
        return []

    async def pause(self, command_type: str, but_own: bool = False) -> None:
        """Deliver no new commands of a type of `message_types.PAUSABLE`: this worker has no slot for them. Idempotent. `but_own`:
        those that only this node can do go on, which are all."""
        if but_own:
            await self.resume(command_type)
        else:
            self._paused.add(message_types.pausable(command_type))

    async def resume(self, command_type: str) -> None:
        """Deliver commands of this type again: one of each session first, of those that found no slot. Idempotent."""
        self._paused.discard(message_types.pausable(command_type))
        waiting: dict[str, int] = {}
        for seq, message in self._backing_off.items():
            if message.type == command_type:
                waiting.setdefault(message.task_id, seq)
        for seq in list(waiting.values())[:RESUMED]:
            self._retry(seq)
        self._store.changed.set()

    async def stop_consuming(self) -> None:
        """Do nothing: there is no other node that could take the messages."""

    async def _run(self) -> None:
        while True:
            try:
                took = await self._round()
                if self._database_failed:
                    reason, self._database_failed = self._database_failed, ""
                    raise errors.Unavailable(reason)
                self._problem = ""
            except Exception as error:
                # Most likely the database cannot be written: its disk is full, or another process locks its file. Ending the
                # process would end every capture and help with neither. A bug shows in the log at each round.
                log.exception("bus.round_failed")
                reason = error.message if isinstance(error, errors.RecorderError) else f"{type(error).__name__}."
                self._problem = f"The outbox cannot be delivered: {reason}"
                await asyncio.sleep(supervised_task.jittered_s(ROUND_BACKOFF_S))
                continue
            if not took:
                await supervised_task.pause(self._store.changed, self._idle_s())

    def _idle_s(self) -> float:
        """How long nothing is due, as far as this process knows."""
        poll_s = supervised_task.jittered_s(POLL_S)
        return min(poll_s, max(self._due_s[0][0] - time.monotonic(), 0.0)) if self._due_s else poll_s

    async def _round(self) -> bool:
        """Mark the delivered messages and take the due ones; returns whether any was. Raises the errors of the store."""
        await self._mark()
        while self._due_s and self._due_s[0][0] <= time.monotonic():
            self._retry(heapq.heappop(self._due_s)[1])
        failpoints.hit("outbox.claim.before")
        found = await self._store.outbox.due(
            BATCH,
            ripe=self._ripe,
            except_seqs=self._lanes.taken,
            except_types=self._paused | self._lanes.full_types,
            except_tasks=self._lanes.full_lanes,
        )
        if found:
            failpoints.hit("outbox.claim.after")
        # A type can be paused while its messages are read.
        taken = {message.seq for message in found if message.type not in self._paused and self._lanes.put(message)}
        self._ripe -= taken
        for seq in taken:
            self._backing_off.pop(seq, None)
        return bool(taken)

    def _retry(self, seq: int) -> None:
        if self._backing_off.pop(seq, None) is not None and len(self._ripe) < BATCH:
            self._ripe.add(seq)

    async def _mark(self) -> None:
        """Write what became of messages. Raises the errors of the store; the rest is written in the next round."""
        if not (self._sent or self._parked or self._retries):
            return
        failpoints.hit("outbox.mark.before")
        outbox = self._store.outbox
        if sent := tuple(self._sent):
            await outbox.mark_all_sent(sent)
            del self._sent[: len(sent)]
            self._lanes.forget(set(sent))
        for seq, reason in tuple(self._parked.items()):
            await outbox.mark_sent(seq, reason)
            del self._parked[seq]
            self._lanes.forget({seq})
        if retries := dict(self._retries):
            await outbox.postpone(retries)
            for seq in retries:
                del self._retries[seq]
            self._lanes.forget(set(retries))
        failpoints.hit("outbox.mark.after")

    async def _deliver(self, message: due_work.OutboxMessage) -> None:
        """Deliver one message and note what became of it."""
        id_ = f"outbox-{message.seq}"
        incoming = delivery_policy.Incoming(
            key=f"{message.channel}.{message.type}",
            body=message.body,
            message_id=id_,
            attempt_key=id_,
            redelivered=message.seq <= self._redelivered_until or (message.retried and message.seq not in self._unbegun),
        )
        # `_read` rejects a message of an unknown channel.
        policy = self._policies.get(message.channel, self._policies["event"])
        disposition = await policy.handle(incoming)
        if not disposition.full:
            self._unbegun.discard(message.seq)
        elif not incoming.redelivered:
            self._unbegun.add(message.seq)
        if disposition.database_failed:
            self._database_failed = disposition.reason
            self._lanes.forget({message.seq})
        elif disposition.kind == "requeue":
            pause_s = supervised_task.jittered_s(disposition.backoff_s)
            self._retries[message.seq] = round(pause_s * 1000)
            heapq.heappush(self._due_s, (time.monotonic() + pause_s, message.seq))
            self._backing_off[message.seq] = message
        elif disposition.kind == "park":
            log.error("bus.parked", seq=message.seq, channel=message.channel, reason=disposition.reason)
            self._parked[message.seq] = disposition.reason
        else:
            self._sent.append(message.seq)
        self._store.changed.set()

    def _read(self, message: delivery_policy.Incoming) -> codec.Event:
        event = codec.decode(message.body, now_ms=self._clock())
        channel = message.key.partition(".")[0]
        if CHANNELS[event.type] != channel:
            raise event_errors.InvalidEvent("type", f"{event.type!r} is no {channel}")
        return event

    async def _publish(self, event: codec.Event) -> None:
        for listener in self.listeners:
            listener(event)
