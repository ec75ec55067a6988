"""Topology on RabbitMQ: exchanges, queues and bindings, declared as data.

    publishers ──► exchange recorder (topic) ──┬─ event.#                   ──► exchange recorder.events (direct)
                                               ├─ command.start-capture     ──► recorder.work.capture
                                               ├─ command.start-transcode   ──► recorder.work.finish
                                               ├─ command.start-upload      ──► recorder.work.upload
                                               ├─ command.send-callback     ──► recorder.work.delivery
                                               ├─ command.<type>.<node>     ──► recorder.node.<node>, and .transcode, .upload
                                               ├─ result.#                  ──► subscribers
                                               └─ a key without a binding   ──► recorder.parked

    a retry ──► recorder.retry.<ms> ──(expires)──► exchange recorder.retried (headers) ──► the queue that it came from
                (of a request: recorder.requests.retry.<ms>)

    recorder.events ──┬─ events of workers, time and TRTC                   ──► recorder.machines
                      └─ all others: user requests, unknown keys            ──► recorder.requests

Rules:
- No published message is lost. A message without a queue goes to `recorder.parked` by the alternate exchange, one that is
  delivered too often by dead-lettering, one that cannot be handled by its consumer. Only a result may go unread:
  `recorder.unheard` takes it and keeps nothing. Every queue is a durable quorum queue (`declare_queue` defaults to neither).
- User requests never wait behind events of the recorder, nor the reverse. A worker pauses each kind of command alone.
- A binding moves from one queue to another by adding the new one before removing the old one. In between a message is in both
  queues, and its second handling is a repeat. Queues of earlier versions keep their names and are still consumed.
- Only a node that consumes the new queue removes the old binding: beside nodes of an earlier version nothing waits for the first
  new node of a role.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aio_pika import abc
from pamqp.common import FieldTable

from bus import message_types
from events import codec
from machine import errors

# Deliveries without an acknowledgement: requeued, or the consumer's process or connection died. RabbitMQ 3 has no default limit,
# 4 has 20. Well above attempts.MAX_ATTEMPTS: a message that reaches this limit never reached a handler.
DELIVERY_LIMIT = 100
# Reading recorder.parked takes messages and returns them, which must never count against them.
NO_LIMIT = 2_000_000_000
# Limits of the queues that publishers can fill. Beyond them the broker refuses messages, so none is dropped unseen.
PARKED_MESSAGES, PARKED_BYTES = 10_000, 256 * 1024 * 1024
WAITING_BYTES = 256 * 1024 * 1024
# The longest pause in each queue of retries. Longer than the backoff that it is for, which varies.
RETRY_MS = (1_500, 6_000, 36_000)
# The header that names the queue to return to. The exchange ignores headers that begin with x-.
RETRY_QUEUE = "recorder-queue"
# The queue of a node that is away for longer is deleted with its commands. The database keeps the node's jobs.
NODE_AWAY_MS = 7 * 24 * 3600 * 1000

# All events, and all results, in the exchange `recorder`.
EVENTS, RESULTS = "event.#", "result.#"
Arguments = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable queue and the routing keys that lead to it from `exchange`. `command_type` is the only type of command in it, ""
    for several. `own`: its commands are for one node. `retired` are the keys of earlier versions, which led to it from the
    exchange `recorder`."""

    name: str
    exchange: str
    bindings: tuple[str, ...]
    arguments: Arguments
    command_type: str = ""
    own: bool = False
    retired: tuple[str, ...] = ()


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
    def events(self) -> str:
        """The direct exchange of all events. What it does not know goes on to `requests`, by its alternate exchange."""
        return f"{self.prefix}.events"

    @property
    def requests(self) -> Queue:
        """Requests of users, and events of unknown keys, which their consumer parks with a reason. It is bound to the fanout
        exchange of the same name."""
        name, arguments = f"{self.prefix}.requests", self._durable() | {"x-max-length-bytes": WAITING_BYTES}
        return Queue(name=name, exchange=name, bindings=("",), arguments=arguments)

    @property
    def machines(self) -> Queue:
        """Events of workers, time and TRTC. Earlier versions received all events here."""
        known = (type_ for type_ in (*codec.types("in"), *codec.types("inside")) if type_ not in message_types.REQUESTS)
        return Queue(
            name=f"{self.prefix}.machines",
            exchange=self.events,
            bindings=tuple(f"event.{type_}" for type_ in known),
            arguments=self._durable(),
            retired=(EVENTS,),
        )

    @property
    def work(self) -> tuple[Queue, ...]:
        """Commands for any worker, one queue per kind. Earlier versions received all but captures in `work.finish`."""
        return (
            self._work("capture", "start-capture"),
            self._work("finish", "start-transcode", retired=("start-upload", "send-callback")),
            self._work("upload", "start-upload"),
            self._work("delivery", "send-callback"),
        )

    @property
    def unheard(self) -> Queue:
        """Results without a subscriber, so that they count as routable. A time to live of 0 deletes them."""
        arguments: Arguments = {"x-queue-type": "classic", "x-message-ttl": 0}
        return Queue(name=f"{self.prefix}.unheard", exchange=self.exchange, bindings=(RESULTS,), arguments=arguments)

    @property
    def retried(self) -> str:
        """The headers exchange that returns messages to their queues after a retry's pause."""
        return f"{self.prefix}.retried"

    @property
    def retries(self) -> tuple[Queue, ...]:
        """Messages that wait for a retry, each queue behind a fanout exchange of its name."""
        return *self.retries_of(self.machines), *self.retries_of(self.requests)

    def retries_of(self, queue: Queue) -> tuple[Queue, ...]:
        """The queues in which messages of `queue` wait for a retry, one for each of RETRY_MS. Requests of users have their own:
        they may be many, and a full queue refuses messages. The name has the time to live, because the arguments of a queue
        cannot change."""
        common = self._durable() | {"x-dead-letter-exchange": self.retried, "x-max-length-bytes": WAITING_BYTES}
        of = self.requests.name if queue.name == self.requests.name else self.prefix
        names = {f"{of}.retry.{ms}": ms for ms in RETRY_MS}
        return tuple(
            Queue(name=name, exchange=name, bindings=("",), arguments=common | {"x-message-ttl": ms})
            for name, ms in names.items()
        )

    def node(self, node: str) -> tuple[Queue, ...]:
        """Commands for one node: work on the files of its spool, and the rest. A stop that names no node goes to all of them, and
        only the node that runs the capture acts. Earlier versions received all of them in the first queue."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", node):
            raise errors.InvalidParameter("A node's id is 1 to 64 of the characters A-Z a-z 0-9 _ -.", field="node")
        own = {"start-transcode": "transcode", "start-upload": "upload"}
        rest = tuple(f"command.{type_}.{node}" for type_ in codec.types("command") if type_ not in own)
        name, arguments = f"{self.prefix}.node.{node}", self._durable() | {"x-expires": NODE_AWAY_MS}
        return (
            Queue(
                name=name,
                exchange=self.exchange,
                bindings=(*rest, "command.stop-capture"),
                arguments=arguments,
                retired=(f"command.*.{node}",),
            ),
            *(
                Queue(
                    name=f"{name}.{kind}",
                    exchange=self.exchange,
                    bindings=(f"command.{type_}.{node}",),
                    arguments=arguments,
                    command_type=type_,
                    own=True,
                )
                for type_, kind in own.items()
            ),
        )

    def queues(self) -> tuple[Queue, ...]:
        """The queues that do not belong to a node."""
        return self.requests, self.machines, *self.work, self.unheard

    def owns(self, queue: str) -> bool:
        """Whether a queue of this name is this recorder's own."""
        names = {each.name for each in (*self.queues(), *self.retries)}
        return queue in names or queue.startswith(f"{self.prefix}.node.")

    def _work(self, kind: str, type_: str, retired: tuple[str, ...] = ()) -> Queue:
        return Queue(
            name=f"{self.prefix}.work.{kind}",
            exchange=self.exchange,
            bindings=(f"command.{type_}",),
            arguments=self._durable(),
            command_type=type_,
            retired=tuple(f"command.{former}" for former in retired),
        )

    def _durable(self) -> dict[str, str | int]:
        # At-least-once needs strategy, overflow and exchange. Without one of them RabbitMQ silently dead-letters at most once.
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": self.delivery_limit,
            "x-dead-letter-exchange": self.parked,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }


async def declare_parked(channel: abc.AbstractChannel, topology: Topology, *, limited: bool = True) -> None:
    """Declare the dead letter queue. Idempotent. Earlier versions declared it without a limit, and arguments of a queue cannot
    change: `limited` then fails with PRECONDITION_FAILED."""
    arguments: FieldTable = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
    if limited:
        arguments |= {"x-max-length": PARKED_MESSAGES, "x-max-length-bytes": PARKED_BYTES, "x-overflow": "reject-publish"}
    parked = await channel.declare_exchange(topology.parked, "fanout", durable=True)
    dead_letters = await channel.declare_queue(topology.parked, durable=True, arguments=arguments)
    await dead_letters.bind(parked)


async def declare(channel: abc.AbstractChannel, topology: Topology, *, parked_limited: bool = True) -> None:
    """Declare everything that does not belong to one node. Idempotent. `recorder.parked` comes first: the others refer to it."""
    await declare_parked(channel, topology, limited=parked_limited)
    alternate: FieldTable = {"alternate-exchange": topology.parked}
    # A retry of a queue that is gone is parked. Without this it would stay at the head of the queue of retries and hold it up.
    await channel.declare_exchange(topology.retried, "headers", durable=True, arguments=alternate)
    for level in topology.retries:
        await channel.declare_exchange(level.exchange, "fanout", durable=True)
        queue = await channel.declare_queue(level.name, durable=True, arguments=dict(level.arguments))
        await queue.bind(level.exchange)
    published = await channel.declare_exchange(topology.exchange, "topic", durable=True, arguments=alternate)
    await channel.declare_exchange(topology.requests.exchange, "fanout", durable=True)
    others: FieldTable = {"alternate-exchange": topology.requests.exchange}
    events = await channel.declare_exchange(topology.events, "direct", durable=True, arguments=others)
    await declare_queues(channel, topology, topology.queues())
    await events.bind(published, EVENTS)


async def declare_queues(channel: abc.AbstractChannel, topology: Topology, queues: Sequence[Queue]) -> None:
    """Declare queues with their bindings. Idempotent."""
    declared = [await channel.declare_queue(each.name, durable=True, arguments=dict(each.arguments)) for each in queues]
    for queue, made in zip(queues, declared, strict=True):
        for key in queue.bindings:
            await made.bind(queue.exchange, key)
        await made.bind(topology.retried, arguments={"x-match": "all", RETRY_QUEUE: queue.name})


async def retire(channel: abc.AbstractChannel, topology: Topology, queues: Sequence[Queue]) -> None:
    """Remove the bindings of earlier versions to queues that this node consumes. Idempotent."""
    for each in queues:
        queue = await channel.get_queue(each.name, ensure=False)
        for key in each.retired:
            await queue.unbind(topology.exchange, key)
