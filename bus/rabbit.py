"""The bus between nodes: outbox → RabbitMQ → handlers of any node. Imports `machine` and `events`.

Rule: starts without a broker and outlives its absence; what waits in the outbox then waits longer. Every loop is a Background in
`sides`: one that ends by itself ends the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import structlog

from bus import attempts, delivery_policy, hearing, relay, watchdog
from bus import broker_connection as links
from bus import consumer as consumers
from bus import database_probe as presences
from bus import topology as topologies
from events import codec
from machine import encryption, errors, supervised_task

log = structlog.get_logger()

ROLES = ("api", "machine", "worker")
MACHINES_PREFETCH = 64
# Few: what a full worker has taken and not begun, no other worker can take.
CAPTURE_PREFETCH = 2
FINISH_PREFETCH = 8
NODE_PREFETCH = 32
DRAIN_S = 5.0


class RabbitBus:
    """One node's end of the bus. A node of any role relays its own outbox; `machine` takes events, `worker` commands."""

    def __init__(
        self,
        store: presences.Store,
        *,
        url: str,
        node: str,
        roles: Collection[str],
        clock: Callable[[], int],
        on_event: delivery_policy.Handler,
        on_command: delivery_policy.Handler,
        keyring: encryption.Keyring,
        prefix: str = "recorder",
        drain_s: float = DRAIN_S,
    ) -> None:
        unknown = set(roles) - set(ROLES)
        if unknown:
            raise errors.InvalidParameter(f"Roles are {', '.join(ROLES)}.", field="roles")
        self.topology = topologies.Topology(prefix)
        self._drain_s = drain_s
        self._roles = frozenset(roles)
        self._node = node
        self._own = self.topology.node(node)
        presence, tries = presences.Presence(store), attempts.Tries(store.attempts)
        self.link = links.Link(url, self.topology, name=f"recorder {node}", on_session=self._begin)
        events = delivery_policy.Judge("event", on_event, tries=tries, presence=presence, clock=clock)
        commands = delivery_policy.Judge("command", on_command, tries=tries, presence=presence, clock=clock)
        self._captures = consumers.Consumer(
            self.link, self.topology.capture, commands, keyring=keyring, prefetch=CAPTURE_PREFETCH
        )
        self._consumers: list[consumers.Consumer] = []
        if "machine" in self._roles:
            self._consumers += [
                consumers.Consumer(self.link, self.topology.machines, events, keyring=keyring, prefetch=MACHINES_PREFETCH)
            ]
        if "worker" in self._roles:
            self._consumers += [
                consumers.Consumer(self.link, self._own, commands, keyring=keyring, prefetch=NODE_PREFETCH),
                consumers.Consumer(self.link, self.topology.finish, commands, keyring=keyring, prefetch=FINISH_PREFETCH),
                self._captures,
            ]
        self._relay = relay.Relay(store, self.link, presence=presence)
        self._watchdog = watchdog.Watchdog(self.link, self._consumers)
        self._consuming = True
        self._captures_wanted = True
        self.listeners: list[Callable[[codec.Event], None]] = []
        self.sides: list[supervised_task.SupervisedTask] = [self.link.life, self._relay.loop, self._watchdog.loop]

    async def start(self) -> None:
        """Begin to connect, relay and consume; returns at once, and harmless to repeat."""
        self._consuming = True
        await self._apply()
        for side in self.sides:
            side.start()

    async def stop(self) -> None:
        """Take nothing more, let the handlers under way end for a few seconds, close; harmless to repeat. What is unfinished then
        is delivered again, to any node."""
        await self._watchdog.loop.stop()
        await self._relay.stop()
        await self.stop_consuming()
        await self.link.life.stop()
        # What was on its way to us while we said that we want no more.
        await asyncio.gather(*(each.drain(0) for each in self._consumers))

    async def stop_consuming(self) -> None:
        """Take nothing new until the next start, and let what is in hand end for a few seconds; the relay goes on. Harmless to
        repeat."""
        self._consuming = False
        await self._apply()
        await asyncio.gather(*(each.drain(self._drain_s) for each in self._consumers))

    def problems(self) -> list[str]:
        """That messages do not flow now; [] when they do. Why not is for the log: anybody may ask a probe."""
        if self.link.problem:
            return ["RabbitMQ is not connected; this node's log says why (bus.disconnected)."]
        if any(not each.open_now for each in self._consumers):
            return ["RabbitMQ is connected, and a queue does not answer; this node's log says which (bus.queue_silent)."]
        return []

    async def pause_captures(self) -> None:
        """Take no new capture: this worker is full. Harmless to repeat; holds over reconnections."""
        self._captures_wanted = False
        await self._apply()

    async def resume_captures(self) -> None:
        """Take new captures again; harmless to repeat."""
        self._captures_wanted = True
        await self._apply()

    async def _apply(self) -> None:
        for each in self._consumers:
            wanted = self._consuming and (self._captures_wanted or each is not self._captures)
            if each.wanted == wanted:
                continue
            log.info("bus.consuming", queue=each.queue.name, wanted=wanted)
            try:
                await each.want(wanted)
            except errors.Unavailable as error:
                # A channel that does not answer ends its session; the next one begins as it is wanted.
                log.info("bus.not_told", queue=each.queue.name, reason=error.message)

    async def _begin(self, session: links.Session) -> None:
        if "worker" in self._roles:
            await session.declare_node(self._node)
        # At once, and each for itself: a queue that is silent now is tried again by the watchdog.
        opened = await asyncio.gather(*(each.open(session) for each in self._consumers), return_exceptions=True)
        for each, error in zip(self._consumers, opened, strict=True):
            if isinstance(error, errors.Unavailable):
                log.error("bus.queue_silent", queue=each.queue.name, reason=error.message)
            elif error is not None:
                raise error
        if "api" in self._roles:
            await hearing.listen(session, self._heard)

    def _heard(self, event: codec.Event) -> None:
        for listener in self.listeners:
            listener(event)
