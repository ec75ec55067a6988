"""The bus between nodes: outbox, RabbitMQ, handlers of any node.

Rule: the bus starts without a broker and survives its absence; messages then wait in the outbox. Every loop is a SupervisedTask
in `tasks`, and a loop that ends unexpectedly ends the process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

import structlog
from aio_pika import abc

from bus import attempts, broker_connection, database_probe, delivery_policy, message_reader, message_types, relay, watchdog
from bus import consumer as consumers
from bus import topology as topologies
from events import codec
from events import errors as event_errors
from machine import attention, encryption, errors, ports, supervised_task

log = structlog.get_logger()

ROLES = ("api", "machine", "worker")
REQUESTS_PREFETCH = 128
# Many, so that what waits is in memory, where each session has its share of a batch: on the broker it waits in line.
MACHINES_PREFETCH = 128
# Few, because no other worker can take a job that a full worker has received and not begun.
SCARCE = ("start-capture", "start-transcode")
SCARCE_PREFETCH = 2
WORK_PREFETCH = 8
NODE_PREFETCH = 32
DRAIN_S = 5.0


class RabbitBus:
    """One node's end of the bus. Every node relays its outbox; the role `machine` consumes events, `worker` commands."""

    def __init__(
        self,
        store: ports.Store,
        *,
        url: str,
        node: str,
        roles: Collection[str],
        clock: Callable[[], int],
        on_event: delivery_policy.Handler,
        on_command: delivery_policy.Handler,
        on_invalid: message_reader.Refuse | None = None,
        keyring: encryption.Keyring,
        prefix: str = "recorder",
        shared_spool: bool = False,
        drain_s: float = DRAIN_S,
    ) -> None:
        """`shared_spool`: any worker can do what was sent to one of them first."""
        unknown = set(roles) - set(ROLES)
        if unknown:
            raise errors.InvalidParameter(f"Roles are {', '.join(ROLES)}.", field="roles")
        self.topology = topologies.Topology(prefix)
        self._clock = clock
        self._keyring = keyring
        self._drain_s = drain_s
        self._shared_spool = shared_spool
        self._roles = frozenset(roles)
        self._node = node
        self._nodes = store.nodes
        probe, tracker = database_probe.DatabaseProbe(store.connections.ping), attempts.AttemptTracker(store.attempts)
        self.connection = broker_connection.BrokerConnection(
            url, self.topology, name=f"recorder {node}", on_session=self._open_session
        )

        def policy(kind: str, handler: delivery_policy.Handler) -> delivery_policy.DeliveryPolicy:
            reader = message_reader.MessageReader(kind, clock=clock)
            refuse = message_reader.refusing(on_invalid, by_message_id=True, clock=clock)
            return delivery_policy.DeliveryPolicy(reader.read, handler, tracker=tracker, probe=probe, refuse=refuse)

        events, commands = policy("event", on_event), policy("command", on_command)
        self._consumers: list[consumers.Consumer] = []
        if "machine" in self._roles:
            self._consumers += [
                self._consumer(self.topology.requests, "event", events, REQUESTS_PREFETCH),
                self._consumer(self.topology.machines, "event", events, MACHINES_PREFETCH),
            ]
        if "worker" in self._roles:
            for queue in self.topology.node(node):
                self._consumers.append(self._consumer(queue, "command", commands, NODE_PREFETCH))
            for queue in self.topology.work:
                prefetch = SCARCE_PREFETCH if queue.command_type in SCARCE else WORK_PREFETCH
                self._consumers.append(self._consumer(queue, "command", commands, prefetch))
        self._relay = relay.Relay(store, self.connection, probe=probe)
        self._watchdog = watchdog.Watchdog(self.connection, self._consumers)
        self._consuming = True
        # The paused types, and whether the node's own queues of them go on.
        self._paused: dict[str, bool] = {}
        self.listeners: list[Callable[[codec.Event], None]] = []
        self.tasks: list[supervised_task.SupervisedTask] = [self.connection.task, self._relay.task, self._watchdog.task]

    def _consumer(
        self, queue: topologies.Queue, kind: str, policy: delivery_policy.DeliveryPolicy, prefetch: int
    ) -> consumers.Consumer:
        return consumers.Consumer(
            self.connection,
            queue,
            kind,
            policy,
            keyring=self._keyring,
            clock=self._clock,
            prefetch=prefetch,
            returns=self._returns(queue),
            beside_older=lambda: self._nodes.older_alive,
        )

    def _returns(self, queue: topologies.Queue) -> topologies.Queue:
        """The queue in which a message of `queue` comes again: of any worker, if this one cannot do what another one can."""
        if not (queue.own and self._shared_spool):
            return queue
        return next(each for each in self.topology.work if each.command_type == queue.command_type)

    async def start(self) -> None:
        """Begin to connect, relay and consume, without waiting for the connection. Idempotent."""
        self._consuming = True
        await self._apply()
        for task in self.tasks:
            task.start()

    async def stop(self) -> None:
        """Stop consuming, drain the handlers for `drain_s`, and disconnect. Idempotent. Unfinished messages are delivered again,
        to any node."""
        await self._watchdog.task.stop()
        await self._relay.stop()
        await self.stop_consuming()
        await self.connection.task.stop()
        # Messages that were on their way while the consumers were cancelled.
        await asyncio.gather(*(each.drain(0) for each in self._consumers))

    async def stop_consuming(self) -> None:
        """Cancel the consumers until the next start and drain the handlers for `drain_s`; the relay goes on. Idempotent."""
        self._consuming = False
        await self._apply()
        await asyncio.gather(*(each.drain(self._drain_s) for each in self._consumers))

    def problems(self) -> list[str]:
        """Why no messages flow now; [] when they do. Causes are in the log only, because anyone may call a health probe."""
        if self.connection.problem:
            return ["RabbitMQ is not connected; this node's log says why (bus.disconnected)."]
        if any(not each.is_open for each in self._consumers):
            return ["RabbitMQ is connected, and a queue does not answer; this node's log says which (bus.queue_silent)."]
        return []

    def warnings(self) -> list[str]:
        """What an operator must do although messages flow: about the dead letter queue."""
        level = self.connection.dead_letters
        return level.warnings(refused=level.refused)

    def findings(self) -> list[attention.Attention]:
        """What needs attention in the broker: dead letters, as counted last."""
        return attention.of_parked(attention.IN_BROKER, self.connection.dead_letters.count or 0)

    async def pause(self, command_type: str, but_own: bool = False) -> None:
        """Stop consuming new commands of a type of `message_types.PAUSABLE`: this worker has no slot for them. Idempotent, and
        holds over reconnections. `but_own`: those in the queues of this node go on. Messages that were delivered before are still
        handled."""
        self._paused[message_types.pausable(command_type)] = but_own
        await self._apply()

    async def resume(self, command_type: str) -> None:
        """Consume new commands of this type again. Idempotent."""
        self._paused.pop(message_types.pausable(command_type), None)
        await self._apply()

    async def _apply(self) -> None:
        for each in self._consumers:
            paused = each.queue.command_type in self._paused
            own = each.queue.own and (self._shared_spool or self._paused.get(each.queue.command_type))
            enabled = self._consuming and (own or not paused)
            if each.enabled == enabled:
                continue
            log.info("bus.consuming", queue=each.queue.name, enabled=enabled)
            try:
                await each.enable(enabled)
            except errors.Unavailable as error:
                # A channel that does not answer ends its session. The next session opens its consumers as `enabled` says.
                log.info("bus.consumer_unanswered", queue=each.queue.name, reason=error.message)

    async def _open_session(self, session: broker_connection.BrokerSession) -> None:
        if "worker" in self._roles:
            await session.declare_node(self._node)
        # Concurrently and independently: the watchdog retries a queue that is silent now.
        opened = await asyncio.gather(*(each.open(session) for each in self._consumers), return_exceptions=True)
        for each, error in zip(self._consumers, opened, strict=True):
            if isinstance(error, errors.Unavailable):
                log.error("bus.queue_silent", queue=each.queue.name, reason=error.message)
            elif error is not None:
                raise error
        if all(each.is_open for each in self._consumers):
            await topologies.retire(session.declaring, self.topology, [each.queue for each in self._consumers])
        if "api" in self._roles:
            await self._subscribe_results(session)

    async def _subscribe_results(self, session: broker_connection.BrokerSession) -> None:
        """Notify the listeners of every node's results, so that waiting HTTP requests wake. Only a hint: the queue goes with
        its connection, and a missed result is found in the database."""

        async def receive(message: abc.AbstractIncomingMessage) -> None:
            try:
                event = codec.decode(message.body, now_ms=time.time_ns() // 1_000_000)
            except event_errors.InvalidEvent as error:
                log.info("bus.result_unreadable", key=message.routing_key, reason=str(error))
                return
            for listener in self.listeners:
                listener(event)

        channel = await session.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(session.topology.exchange, topologies.RESULTS)
        await queue.consume(receive, no_ack=True)
