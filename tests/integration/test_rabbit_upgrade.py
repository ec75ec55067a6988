"""A RabbitMQ that an earlier version declared: its messages are handled, its bindings move, and nothing is lost on the way."""

from __future__ import annotations

import itertools
import json

import aio_pika
import pytest

from bus import topology as topologies
from events import codec
from machine import errors
from store import nodes
from store import store as stores
from tests import buses, engines, rabbit, waiting
from tests.integration import rabbit_nodes
from tests.integration.rabbit_nodes import clock, database

__all__ = ["clock", "database"]


async def declare_as_before(channel: aio_pika.abc.AbstractChannel, prefix: str) -> None:
    """Declare what an earlier version declared: one queue of events, one of all finishing work, one per node."""
    parked = await channel.declare_exchange(f"{prefix}.parked", "fanout", durable=True)
    held = {"x-queue-type": "quorum", "x-delivery-limit": topologies.NO_LIMIT}
    await (await channel.declare_queue(f"{prefix}.parked", durable=True, arguments=held)).bind(parked)
    await channel.declare_exchange(prefix, "topic", durable=True, arguments={"alternate-exchange": f"{prefix}.parked"})
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": topologies.DELIVERY_LIMIT,
        "x-dead-letter-exchange": f"{prefix}.parked",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    former = {
        "machines": (("event.#",), {}),
        "work.capture": (("command.start-capture",), {}),
        "work.finish": (("command.start-transcode", "command.start-upload", "command.send-callback"), {}),
        "node.n1": (("command.*.n1", "command.stop-capture"), {"x-expires": topologies.NODE_AWAY_MS}),
    }
    for name, (keys, more) in former.items():
        queue = await channel.declare_queue(f"{prefix}.{name}", durable=True, arguments=arguments | more)
        for key in keys:
            await queue.bind(prefix, key)


def command(type_: str, id_: str) -> bytes:
    data = {"TaskId": buses.TASK, "Revision": 1, "Epoch": 1} if type_ == "send-callback" else buses.JOB
    return codec.encode(codec.make(type_, id=id_, time_ms=0, data=data))


async def say_all(prefix: str, when: str) -> tuple[set[str], set[str]]:
    """Publish one message of each kind; returns the ids of the events and of the commands."""
    events, commands = set(), set()
    for type_ in ("stop", "room-destroyed"):
        await buses.say(prefix, f"event.{type_}", _event(type_, f"{when}-{type_}"), message_id=f"{when}-{type_}")
        events.add(f"{when}-{type_}")
    for type_ in codec.types("command"):
        for node in ("", ".n1") if type_ != "send-callback" else ("",):
            id_ = f"{when}-{type_}{node}"
            await buses.say(prefix, f"command.{type_}{node}", command(type_, id_), message_id=id_)
            commands.add(id_)
    return events, commands


def _event(type_: str, id_: str) -> bytes:
    room = {"SdkAppId": 1400000001, "RoomId": 7, "EventMs": 5}
    return codec.encode(
        codec.make(type_, id=id_, time_ms=0, data=room if type_ == "room-destroyed" else json.loads(rabbit_nodes.BARE))
    )


async def test_an_upgrade_moves_the_bindings_and_loses_nothing(store: stores.Store, clock: engines.Clock) -> None:
    """Messages that wait in queues of an earlier version are handled, also after their kind has another queue; later ones arrive
    once, in their own queue; and an earlier node that connects again in between loses nothing either."""
    prefix, hands = rabbit.shared().prefix(), buses.Hands()
    node = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, drain_s=0.2)
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await declare_as_before(channel, prefix)
        before = await say_all(prefix, "before")
        async with rabbit_nodes.running(node):
            await waiting.until(lambda: (set(hands.events), set(hands.commands)) == before, timeout_s=20, what="what waited")
            hands.events.clear()
            hands.commands.clear()
            after = await say_all(prefix, "after")
            await waiting.until(lambda: (set(hands.events), set(hands.commands)) == after, timeout_s=20, what="the rest")
            assert (len(hands.events), len(hands.commands)) == tuple(map(len, after))
            # An earlier node beside: both versions then have each message.
            await declare_as_before(channel, prefix)
            beside = await say_all(prefix, "beside")
            await waiting.until(
                lambda: beside[0] <= set(hands.events) and beside[1] <= set(hands.commands), timeout_s=20, what="all beside"
            )
        await _arrives_once(node.topology)


async def test_bindings_of_an_earlier_node_do_not_stay(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier node declares its bindings again, also those of the queues of other nodes. A little later each message arrives
    once again."""
    prefix, hands = rabbit.shared().prefix(), buses.Hands()
    node = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, drain_s=0.2)
    monkeypatch.setattr(node._watchdog, "_every_s", 0.1)
    rounds = itertools.count()
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await declare_as_before(channel, prefix)

        async def once() -> bool:
            hands.events.clear()
            hands.commands.clear()
            sent = await say_all(prefix, f"round-{next(rounds)}")
            await waiting.until(lambda: (set(hands.events), set(hands.commands)) == sent, timeout_s=20, what="all messages")
            return (len(hands.events), len(hands.commands)) == tuple(map(len, sent))

        async with rabbit_nodes.running(node):
            await declare_as_before(channel, prefix)
            await waiting.until(once, timeout_s=20, what="each message to arrive once")


async def test_nothing_waits_for_a_new_node_of_another_role(store: stores.Store, clock: engines.Clock) -> None:
    """A new node of the role api takes no message from earlier nodes of other roles: each waits in a queue that they consume. The
    first new machine moves the events, and the first new worker moves the commands, and no other."""
    prefix, hands = rabbit.shared().prefix(), buses.Hands()
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await declare_as_before(channel, prefix)

        async def left(when: str) -> tuple[set[str], set[str]]:
            """What arrives in the queues of earlier nodes: events and commands."""
            await say_all(prefix, when)
            found: list[set[str]] = []
            for names in (("machines",), ("work.capture", "work.finish", "node.n1")):
                ids = set()
                for name in names:
                    queue = await channel.get_queue(f"{prefix}.{name}", ensure=False)
                    while (message := await queue.get(fail=False)) is not None:
                        ids.add(str(message.message_id))
                        await message.ack()
                found.append(ids)
            return found[0], found[1]

        sent = await left("before")
        for role, expected in (("api", sent), ("machine", ({"room-destroyed"}, sent[1]))):
            node = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, name=role, roles=[role])
            async with rabbit_nodes.running(node):
                await node.stop_consuming()
                events, commands = await left(role)
            assert {id_.partition("-")[2] for id_ in events} == {id_.removeprefix("before-") for id_ in expected[0]}
            assert {id_.partition("-")[2] for id_ in commands} == {id_.partition("-")[2] for id_ in sent[1]}


async def test_beside_earlier_nodes_a_retry_is_requeued(store: stores.Store, clock: engines.Clock) -> None:
    """An earlier node parks a message that comes from a queue of retries, so a failed one goes back as it was published. Without
    such nodes it waits in a queue of retries."""
    prefix, fails = rabbit.shared().prefix(), buses.FailingHandler(errors.Conflict())
    node = buses.node(store, clock, prefix, on_event=fails, on_command=fails, roles=["machine"], drain_s=0.2)
    assert isinstance(store.nodes, nodes.Nodes)
    async with rabbit_nodes.running(node):
        for older_alive in (True, False):
            store.nodes.older_alive = older_alive
            id_ = f"bad-{older_alive}"
            await buses.say(prefix, "event.room-destroyed", _event("room-destroyed", id_), message_id=id_)
            await waiting.until(lambda id_=id_: fails.begun.count(id_) > 1, timeout_s=20, what="a second attempt")
            await node.stop_consuming()
            (message,) = await buses.taken(f"{prefix}.machines", 1)
            assert (message.message_id, "x-death" in message.headers) == (id_, not older_alive)
            assert (message.exchange == prefix) is older_alive
            await node.start()


async def _arrives_once(topology: topologies.Topology) -> None:
    """After the next declaration each message is in one queue."""
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await topologies.declare(channel, topology, parked_limited=False)
        await topologies.declare_queues(channel, topology, topology.node("n1"))
        await topologies.retire(channel, topology, (*topology.queues(), *topology.node("n1")))
        queues = [q for q in (*topology.queues(), *topology.node("n1")) if q != topology.unheard]
        for each in queues:
            await (await channel.get_queue(each.name, ensure=False)).purge()
        events, commands = await say_all(topology.prefix, "alone")
        found: list[str] = []
        for each in queues:
            queue = await channel.get_queue(each.name, ensure=False)
            while (message := await queue.get(fail=False)) is not None:
                found.append(str(message.message_id))
                await message.ack()
        assert sorted(found) == sorted(events | commands)
