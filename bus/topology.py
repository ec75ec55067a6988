"""Topology on RabbitMQ: exchanges, queues and bindings, declared as data.

    publishers ──► exchange recorder (topic) ──┬─ event.#                            ──► recorder.machines
                                               ├─ command.start-capture              ──► recorder.work.capture
                                               ├─ command.start-transcode|-upload …  ──► recorder.work.finish
                                               ├─ command.*.<node>                   ──► recorder.node.<node>
                                               ├─ result.#                           ──► subscribers
                                               └─ a key without a binding            ──► recorder.parked

Rule: no published message is lost. A message without a queue goes to `recorder.parked` by the alternate exchange, one that is
delivered too often by dead-lettering, one that cannot be handled by its consumer. Only a result may go unread: `recorder.unheard`
takes it and keeps nothing. Every queue is a durable quorum queue (`declare_queue` defaults to neither).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aio_pika import abc
from pamqp.common import FieldTable

from machine import errors

# Deliveries without an acknowledgement: requeued, or the consumer's process or connection died. RabbitMQ 3 has no default limit,
# 4 has 20. Well above attempts.MAX_ATTEMPTS: a message that reaches this limit never reached a handler.
DELIVERY_LIMIT = 100
# Reading recorder.parked takes messages and returns them, which must never count against them.
NO_LIMIT = 2_000_000_000
# The queue of a node that is away for longer is deleted with its commands. The database keeps the node's jobs.
NODE_AWAY_MS = 7 * 24 * 3600 * 1000

FINISHING = ("start-transcode", "start-upload", "send-callback")
Arguments = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable queue and the routing keys of the exchange `recorder` that lead to it."""

    name: str
    bindings: tuple[str, ...]
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Topology:
    """Names and arguments. `prefix` separates several recorders (or tests) on one broker."""

    prefix: str = "recorder"
    delivery_limit: int = DELIVERY_LIMIT

    @property
    def exchange(self) -> str:
        """The topic exchange of all messages."""
        return self.prefix

    @property
    def parked(self) -> str:
        """The fanout exchange, and the queue, of dead letters."""
        return f"{self.prefix}.parked"

    @property
    def machines(self) -> Queue:
        """Events, for any node of the role machine. `#` and not `*`, so that a key of no event is parked with a reason."""
        return Queue(name=f"{self.prefix}.machines", bindings=("event.#",), arguments=self._durable())

    @property
    def capture(self) -> Queue:
        """New captures, for any worker with spare capacity."""
        return Queue(name=f"{self.prefix}.work.capture", bindings=("command.start-capture",), arguments=self._durable())

    @property
    def finish(self) -> Queue:
        """Transcodes, uploads and deliveries of results, for any worker."""
        bindings = tuple(f"command.{type_}" for type_ in FINISHING)
        return Queue(name=f"{self.prefix}.work.finish", bindings=bindings, arguments=self._durable())

    @property
    def unheard(self) -> Queue:
        """Results without a subscriber, so that they count as routable. A time to live of 0 deletes them."""
        arguments: Arguments = {"x-queue-type": "classic", "x-message-ttl": 0}
        return Queue(name=f"{self.prefix}.unheard", bindings=("result.#",), arguments=arguments)

    def node(self, node: str) -> Queue:
        """Commands for one node. A stop that names no node goes to all of them; only the node that runs the capture acts."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", node):
            raise errors.InvalidParameter("A node's id is 1 to 64 of the characters A-Z a-z 0-9 _ -.", field="node")
        bindings = (f"command.*.{node}", "command.stop-capture")
        return Queue(
            name=f"{self.prefix}.node.{node}", bindings=bindings, arguments=self._durable() | {"x-expires": NODE_AWAY_MS}
        )

    def queues(self) -> tuple[Queue, ...]:
        """The queues that do not belong to a node."""
        return self.machines, self.capture, self.finish, self.unheard

    def owns(self, queue: str) -> bool:
        """Whether this recorder consumes a queue of this name."""
        return queue in {each.name for each in self.queues()} or queue.startswith(f"{self.prefix}.node.")

    def _durable(self) -> dict[str, str | int]:
        # At-least-once needs strategy, overflow and exchange. Without one of them RabbitMQ silently dead-letters at most once.
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": self.delivery_limit,
            "x-dead-letter-exchange": self.parked,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }


async def declare(channel: abc.AbstractChannel, topology: Topology) -> None:
    """Declare everything that does not belong to one node. Idempotent. `recorder.parked` comes first: the others refer to it."""
    parked = await channel.declare_exchange(topology.parked, "fanout", durable=True)
    dead_letters = await channel.declare_queue(
        topology.parked, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
    )
    await dead_letters.bind(parked)
    alternate: FieldTable = {"alternate-exchange": topology.parked}
    await channel.declare_exchange(topology.exchange, "topic", durable=True, arguments=alternate)
    for queue in topology.queues():
        await declare_queue(channel, topology, queue)


async def declare_queue(channel: abc.AbstractChannel, topology: Topology, queue: Queue) -> None:
    """Declare one queue with its bindings. Idempotent."""
    made = await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
    for key in queue.bindings:
        await made.bind(topology.exchange, key)
