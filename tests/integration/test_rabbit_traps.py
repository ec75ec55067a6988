"""Traps of RabbitMQ and its client, one test each, on the tests' own broker."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator

import aio_pika
import pytest

from bus import attempts, broker_connection, publisher
from bus import rabbit as rabbit_bus
from bus import topology as topologies
from events import codec
from machine import errors
from store import store as stores
from tests import buses, engines, postgres, rabbit, transactions, waiting
from tests.integration import rabbit_nodes
from tests.integration.rabbit_nodes import clock, database, prefix

__all__ = ["clock", "database", "prefix"]


@pytest.fixture
def hands() -> buses.Hands:
    return buses.Hands()


@pytest.fixture
async def bus(store: stores.Store, clock: engines.Clock, prefix: str, hands: buses.Hands) -> AsyncIterator[rabbit_bus.RabbitBus]:
    """A connected node of all roles."""
    made = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, drain_s=0.2)
    async with rabbit_nodes.running(made):
        yield made


# --- topology ---------------------------------------------------------------------------------------------------------------
async def test_every_queue_is_a_durable_quorum_queue_with_at_least_once_dead_lettering(
    bus: rabbit_bus.RabbitBus, prefix: str
) -> None:
    """The broker reports each queue of work as durable, a quorum queue, and with at-least-once dead-lettering."""
    found = {q["name"].removeprefix(f"{prefix}."): q for q in await asyncio.to_thread(rabbit.shared().queues, f"{prefix}.")}
    working = {"requests", "machines", "work.capture", "work.finish", "work.upload", "work.delivery"}
    working |= {"node.n1", "node.n1.transcode", "node.n1.upload"}
    retries = {f"{of}retry.{ms}" for ms in topologies.RETRY_MS for of in ("", "requests.")}
    assert set(found) == working | retries | {"parked", "unheard"}
    assert all(queue["durable"] for queue in found.values())
    for name in working | retries:
        arguments = {name: value for name, _, value in found[name]["arguments"]}
        assert found[name]["type"] in ("quorum", "rabbit_quorum_queue")
        assert arguments["x-dead-letter-strategy"] == "at-least-once"
        assert arguments["x-overflow"] == "reject-publish"
        assert arguments["x-dead-letter-exchange"] == f"{prefix}.{'retried' if name in retries else 'parked'}"
        assert arguments["x-delivery-limit"] == topologies.DELIVERY_LIMIT


async def test_a_message_delivered_too_often_is_dead_lettered_and_not_dropped(prefix: str) -> None:
    """At the delivery limit the broker itself moves a message to the dead-letter queue."""
    topology = topologies.Topology(prefix, delivery_limit=2)
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await topologies.declare(channel, topology)
        await buses.say(prefix, "event.stop", b"deadly")
        queue = await channel.get_queue(topology.requests.name, ensure=False)
        for _ in range(3):
            message = await waiting.until(lambda: queue.get(fail=False), what="the message")
            await message.nack(requeue=True)
        parked = (await buses.taken(topology.parked, 1))[0]
    assert parked.body == b"deadly"
    assert parked.routing_key == "event.stop"
    assert parked.headers["x-death"][0]["reason"] == "delivery_limit"


async def test_messages_outlive_the_brokers_restart(prefix: str) -> None:
    """Confirmed messages survive a restart of the broker."""
    topology = topologies.Topology(prefix)
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await topologies.declare(channel, topology)
        await topologies.declare_queues(channel, topology, topology.node("n9"))
        for key in ("event.stop", "command.start-capture", "command.start-upload", "command.stop-capture.n9", "nobody.binds"):
            exchange = await channel.get_exchange(prefix, ensure=False)
            taken = aio_pika.Message(key.encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await exchange.publish(taken, key)
    await rabbit.shared().restart_beside()
    capture, _, upload, _ = topology.work
    for name in [*(q.name for q in (topology.requests, capture, upload, topology.node("n9")[0])), topology.parked]:
        assert len(await buses.taken(name, 1)) == 1


# --- publishing ---------------------------------------------------------------------------------------------------------------
async def test_a_message_that_no_queue_takes_is_an_error(bus: rabbit_bus.RabbitBus, prefix: str) -> None:
    """If even the alternate exchange leads nowhere, publishing raises and the message is not lost."""
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await channel.queue_delete(f"{prefix}.parked")
    with pytest.raises(broker_connection.Unroutable):
        await publisher.publish(bus.connection, publisher.Outgoing(key="nobody.binds", body=b"x"))
    await publisher.publish(bus.connection, publisher.Outgoing(key="nobody.binds", body=b"x", mandatory=False))


async def test_an_unbound_key_is_parked_and_a_result_without_subscribers_is_not(
    bus: rabbit_bus.RabbitBus, prefix: str, store: stores.Store
) -> None:
    """A message with a mistyped key is parked for the operator, and a result without subscribers is dropped silently."""
    data = {"TaskId": rabbit_nodes.TASK, "Repeated": False, "Warnings": []}
    await store.outbox.send("result", codec.make("session-accepted", id="r1", time_ms=0, data=data))
    await rabbit_nodes.emptied(store)
    await buses.say(prefix, "evnet.start", b"{}")
    parked = await buses.taken(f"{prefix}.parked", 1)
    assert [m.routing_key for m in parked] == ["evnet.start"]


async def test_a_command_for_an_unknown_node_waits_for_it(
    bus: rabbit_bus.RabbitBus, prefix: str, store: stores.Store, clock: engines.Clock
) -> None:
    """The publisher of a message declares the queue of an absent node."""
    async with transactions.opened(store) as tx:
        tx.send("command", codec.make("start-upload", id="late", time_ms=0, data=buses.JOB), rabbit_nodes.TASK, "n7")
    await rabbit_nodes.emptied(store)
    hands = buses.Hands()
    late = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, name="n7", roles=["worker"])
    async with rabbit_nodes.running(late):
        await waiting.until(lambda: hands.commands == ["late"], what="the command that waited")


async def test_publishing_is_bounded_while_the_broker_hangs(
    bus: rabbit_bus.RabbitBus, store: stores.Store, hands: buses.Hands
) -> None:
    """A broker that keeps the connection but does not respond blocks no publisher beyond its limit, and waiting messages go out
    later."""
    rabbit.shared().freeze()
    try:
        with pytest.raises(errors.Unavailable):
            async with waiting.at_most(5):
                await publisher.publish(bus.connection, publisher.Outgoing(key="event.stop", body=b"x"), timeout_s=0.5)
        await store.outbox.send("event", rabbit_nodes.stop("patient"))
    finally:
        rabbit.shared().thaw()
    await waiting.until(lambda: "patient" in hands.events, timeout_s=40, what="the event that waited")


async def test_publishing_is_bounded_while_there_is_no_connection(
    store: stores.Store, clock: engines.Clock, prefix: str, hands: buses.Hands
) -> None:
    """A publisher without a connection gets an error within its time limit, even before there is a connection again."""
    nowhere = buses.node(
        store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, url="amqp://recorder:recorder@127.0.0.1:1/"
    )
    await nowhere.start()
    try:
        assert nowhere.connection.current is None
        with pytest.raises(errors.Unavailable):
            async with waiting.at_most(5):
                await publisher.publish(nowhere.connection, publisher.Outgoing(key="event.stop", body=b"x"), timeout_s=0.2)
    finally:
        await nowhere.stop()


async def test_channels_outlive_the_collection_of_garbage(bus: rabbit_bus.RabbitBus, prefix: str, hands: buses.Hands) -> None:
    """The session keeps references to its channels, so publishing, consuming and returning still work after a garbage collection,
    although the connection holds channels weakly."""
    heard: list[str] = []
    bus.listeners.append(lambda event: heard.append(event.id))
    session = bus.connection.current
    gc.collect()
    result = codec.make(
        "session-accepted",
        id="first.accepted",
        time_ms=engines.START_MS,
        data={"TaskId": rabbit_nodes.TASK, "Repeated": False, "Warnings": []},
    )
    await publisher.publish(bus.connection, publisher.outgoing("result", "session-accepted", "", codec.encode(result)))
    await buses.say(prefix, "event.stop", rabbit_nodes.BARE, message_id="handled")
    await waiting.until(lambda: (heard, hands.events) == (["first.accepted"], ["handled"]), what="the result and the event")
    assert bus.connection.current is session


# --- consuming ------------------------------------------------------------------------------------------------------------------
async def test_a_consumer_cancelled_by_the_broker_is_rebuilt(bus: rabbit_bus.RabbitBus, prefix: str, hands: buses.Hands) -> None:
    """A deleted queue cancels its consumer without closing the channel, and both are rebuilt."""
    old = bus.connection.current
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await channel.queue_delete(f"{prefix}.requests")
    await rabbit_nodes.connected_anew(bus, old)
    await buses.say(prefix, "event.stop", rabbit_nodes.BARE, message_id="heard")
    await waiting.until(lambda: hands.events == ["heard"], what="the event")


@pytest.mark.parametrize("how", ["no consumer", "forgotten", "starving"])
async def test_a_lost_consumer_is_found_and_rebuilt(
    how: str, bus: rabbit_bus.RabbitBus, prefix: str, hands: buses.Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog finds a consumer that the broker or the library lost without an error."""
    monkeypatch.setattr(bus._watchdog, "_every_s", 0.2)
    await bus._watchdog.task.stop()
    old = bus.connection.current
    lost = next(each for each in bus._consumers if each.queue.name == f"{prefix}.requests")
    callback = lost._underlay.consumers[lost._tag]

    async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        taken.append(message)

    taken: list[aio_pika.abc.AbstractIncomingMessage] = []
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        if how == "forgotten":
            del lost._underlay.consumers[lost._tag]
        else:
            await lost._underlay.basic_cancel(lost._tag)
            lost._underlay.consumers[lost._tag] = callback
        if how == "starving":
            # Another consumer takes a single message and keeps it, so that the queue has a consumer.
            await channel.set_qos(prefetch_count=1)
            await (await channel.get_queue(lost.queue.name, ensure=False)).consume(take)
            await buses.say(prefix, "event.stop", rabbit_nodes.BARE, message_id="taken")
            await buses.say(prefix, "event.stop", rabbit_nodes.BARE, message_id="waits")
        bus._watchdog.task.start()
        await rabbit_nodes.connected_anew(bus, old)
    await buses.say(prefix, "event.stop", rabbit_nodes.BARE, message_id="heard")
    await waiting.until(lambda: "heard" in hands.events, what="the event")
    if how == "starving":
        await waiting.until(lambda: {"taken", "waits"} <= set(hands.events), what="what waited")


async def test_a_channel_that_closes_does_not_cancel_its_handlers(store: stores.Store, clock: engines.Clock, prefix: str) -> None:
    """A handler runs to its end when its connection breaks, and its message is redelivered."""
    begun, go = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def slow(command: codec.Event) -> None:
        begun.set()
        await go.wait()
        ended.append(command.id)

    bus = buses.node(store, clock, prefix, on_event=slow, on_command=slow)
    async with rabbit_nodes.running(bus):
        await store.outbox.send("command", codec.make("start-capture", id="c1", time_ms=0, data=buses.JOB))
        async with waiting.at_most(10):
            await begun.wait()
        begun.clear()
        old = bus.connection.current
        assert old is not None
        old.end("broken by the test")
        async with waiting.at_most(20):
            await begun.wait()
        go.set()
        await waiting.until(lambda: ended == ["c1", "c1"], what="both handlers to end")


async def test_a_node_that_stops_loses_nothing(store: stores.Store, clock: engines.Clock, prefix: str) -> None:
    """A stop cancels handlers and leaves their messages with the broker, unrejected."""
    begun: list[str] = []

    async def stuck(event: codec.Event) -> None:
        begun.append(event.id)
        await asyncio.Event().wait()

    ids = [f"e{number}" for number in range(20)]
    first = buses.node(store, clock, prefix, on_event=stuck, on_command=stuck, drain_s=0.1)
    async with rabbit_nodes.running(first):
        await rabbit_nodes.send_many(store, ids)
        await waiting.until(lambda: len(begun) == len(ids), what="all handlers to begin")
    hands = buses.Hands()
    second = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, name="n2")
    async with rabbit_nodes.running(second):
        await waiting.until(lambda: set(hands.events) == set(ids), what="all events again")


async def test_a_broker_that_restarts_under_load_costs_nothing(
    bus: rabbit_bus.RabbitBus, store: stores.Store, hands: buses.Hands
) -> None:
    """Every written event is decided although the broker shuts down or crashes in between."""

    async def goes_down(how: signal.Signals) -> None:
        old, wanted = bus.connection.current, len(hands.events) + 100
        ids = [f"{how.name}-{number}" for number in range(1_500)]
        await rabbit_nodes.send_many(store, ids[:1_000])
        await waiting.until(lambda: len(hands.events) > wanted, what="the flow to begin")
        going = asyncio.create_task(rabbit.shared().restart_beside(how))
        await rabbit_nodes.send_many(store, ids[1_000:])
        await going
        await rabbit_nodes.connected_anew(bus, old)
        await waiting.until(lambda: set(ids) <= set(hands.events), timeout_s=60, what="every event")
        await rabbit_nodes.emptied(store)

    # The shutdown first: RabbitMQ 3.10.8 forgets the leader of a quorum queue that is declared in the second before a crash.
    await goes_down(signal.SIGTERM)
    await goes_down(signal.SIGKILL)


async def test_a_database_that_restarts_under_load_costs_nothing(
    clock: engines.Clock, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is unavailable the bus keeps running and parks nothing, and every event is decided afterwards."""
    monkeypatch.setattr(attempts, "MAX_ATTEMPTS", 2)
    server = postgres.Server()
    server.start()
    try:
        store = engines.Database(engine="postgresql", url=server.create()).open(clock)
        await store.start()
        decided: set[str] = set()

        async def decide(event: codec.Event) -> None:
            await transactions.claim(store, event.id)
            decided.add(event.id)

        bus = buses.node(store, clock, prefix, on_event=decide, on_command=decide)
        async with rabbit_nodes.running(bus):
            ids = [f"e{number}" for number in range(200)]
            await rabbit_nodes.send_many(store, ids)
            server.stop()
            for number in range(100):
                await buses.say(prefix, "event.stop", rabbit_nodes.BARE, message_id=f"late{number}")
            server.start()
            wanted = set(ids) | {f"late{number}" for number in range(100)}
            await waiting.until(lambda: decided == wanted, timeout_s=60, what="every event")
            assert [side.failed.done() for side in bus.tasks if side.failed] == [False] * 3
            await rabbit_nodes.emptied(store)
        await store.stop()
    finally:
        server.remove()
