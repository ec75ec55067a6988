"""Exchanges and queues on RabbitMQ, declared once, as data. Imports `machine` and, as the whole room may, `aio_pika`.

    publishers ──► exchange recorder (topic) ──┬─ event.#                            ──► recorder.machines
                                               ├─ command.start-capture              ──► recorder.work.capture
                                               ├─ command.start-transcode|-upload …  ──► recorder.work.finish
                                               ├─ command.*.<node>                   ──► recorder.node.<node>
                                               ├─ result.#                           ──► whoever subscribes
                                               └─ a key that nobody binds            ──► recorder.parked

Rule: nothing that is published here vanishes. What no queue takes goes to `recorder.parked` by the alternate exchange, what is
delivered too often by dead-lettering, what cannot be handled by the consumer. Results alone may go unheard: `recorder.unheard`
takes them and keeps nothing. Every queue is a durable quorum queue (`declare_queue` defaults to neither).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aio_pika import abc
from pamqp.common import FieldTable

from machine import errors

# Deliveries without an acknowledgement: we gave it back, or the consumer's process or connection died. RabbitMQ 3 has no limit of
# its own, 4 has 20. Well above what our own count (attempts.TRIES_BEFORE_PARKED) allows: what gets there never reached a handler.
DELIVERY_LIMIT = 100
# recorder.parked is looked at by taking messages and giving them back: that must never count against them.
NO_LIMIT = 2_000_000_000
# A node that stays away longer than this finds no commands; the database, not the queue, is where its jobs are remembered.
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
    """All names and arguments. `prefix` keeps several recorders (or tests) on one broker apart."""

    prefix: str = "recorder"
    delivery_limit: int = DELIVERY_LIMIT

    @property
    def exchange(self) -> str:
        """The topic exchange that everything passes."""
        return self.prefix

    @property
    def parked(self) -> str:
        """The fanout exchange and the queue of what could not be handled."""
        return f"{self.prefix}.parked"

    @property
    def machines(self) -> Queue:
        """Events, for any node of the role machine. `#` and not `*`: a key that is no event is parked with a reason."""
        return Queue(name=f"{self.prefix}.machines", bindings=("event.#",), arguments=self._kept())

    @property
    def capture(self) -> Queue:
        """New captures, for any worker that has room."""
        return Queue(name=f"{self.prefix}.work.capture", bindings=("command.start-capture",), arguments=self._kept())

    @property
    def finish(self) -> Queue:
        """Transcodes, uploads and callbacks that any worker may do."""
        bindings = tuple(f"command.{type_}" for type_ in FINISHING)
        return Queue(name=f"{self.prefix}.work.finish", bindings=bindings, arguments=self._kept())

    @property
    def unheard(self) -> Queue:
        """Results that nobody subscribes to: not to be taken for unroutable. A time to live of 0 keeps none of them."""
        arguments: Arguments = {"x-queue-type": "classic", "x-message-ttl": 0}
        return Queue(name=f"{self.prefix}.unheard", bindings=("result.#",), arguments=arguments)

    def node(self, node: str) -> Queue:
        """What is for one node. A stop that names none goes to all of them: only the one that holds the capture does anything."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", node):
            raise errors.InvalidParameter("A node's id is 1 to 64 of the characters A-Z a-z 0-9 _ -.", field="node")
        bindings = (f"command.*.{node}", "command.stop-capture")
        return Queue(name=f"{self.prefix}.node.{node}", bindings=bindings, arguments=self._kept() | {"x-expires": NODE_AWAY_MS})

    def queues(self) -> tuple[Queue, ...]:
        """The queues that are there whichever nodes are."""
        return self.machines, self.capture, self.finish, self.unheard

    def owns(self, queue: str) -> bool:
        """Whether a queue of this name is one of ours that are worked on."""
        return queue in {each.name for each in self.queues()} or queue.startswith(f"{self.prefix}.node.")

    def _kept(self) -> dict[str, str | int]:
        # At-least-once needs all three of strategy, overflow and exchange; else RabbitMQ silently makes it at-most-once.
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": self.delivery_limit,
            "x-dead-letter-exchange": self.parked,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }


async def declare(channel: abc.AbstractChannel, topology: Topology) -> None:
    """Declare all that does not belong to one node; harmless to repeat. `recorder.parked` comes first: the rest leads there."""
    parked = await channel.declare_exchange(topology.parked, "fanout", durable=True)
    last = await channel.declare_queue(
        topology.parked, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
    )
    await last.bind(parked)
    alternate: FieldTable = {"alternate-exchange": topology.parked}
    await channel.declare_exchange(topology.exchange, "topic", durable=True, arguments=alternate)
    for queue in topology.queues():
        await declare_queue(channel, topology, queue)


async def declare_queue(channel: abc.AbstractChannel, topology: Topology, queue: Queue) -> None:
    """Declare one queue with its bindings; harmless to repeat."""
    made = await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
    for key in queue.bindings:
        await made.bind(topology.exchange, key)
