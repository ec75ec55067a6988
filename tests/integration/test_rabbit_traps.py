"""What RabbitMQ and its client do to the unwary, one test each, on a broker of our own."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest

from bus import attempts, broker_connection, dead_letter_envelope, publisher
from bus import rabbit as rabbit_bus
from bus import topology as topologies
from events import codec
from machine import errors
from store import store as stores
from tests import buses, engines, postgres, rabbit, waiting

TASK = buses.TASK
BARE = json.dumps({"TaskId": TASK}).encode()


@pytest.fixture
def database(tmp_path: Any) -> engines.Database:
    """A database of either engine would do: the broker is what is looked at."""
    return engines.fresh("sqlite", tmp_path)


class RealClock(engines.Clock):
    """Time as it passes: a claim on the outbox that was left behind is over some time."""

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000


@pytest.fixture
def clock() -> engines.Clock:
    return RealClock()


@pytest.fixture
def prefix() -> str:
    return rabbit.shared().prefix()


@pytest.fixture
def hands() -> buses.Hands:
    return buses.Hands()


@pytest.fixture
async def bus(store: stores.Store, clock: engines.Clock, prefix: str, hands: buses.Hands) -> AsyncIterator[rabbit_bus.RabbitBus]:
    """A connected node of all roles."""
    made = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, drain_s=0.2)
    async with running(made):
        yield made


@asynccontextmanager
async def running(*made: rabbit_bus.RabbitBus) -> AsyncIterator[None]:
    """These nodes started and connected; stopped at the end."""
    for each in made:
        await each.start()
    try:
        await waiting.until(lambda: not any(each.problems() for each in made), timeout_s=30, what="all nodes to be connected")
        yield
    finally:
        for each in made:
            await each.stop()


def stop(id_: str) -> codec.Event:
    return codec.make("stop", id=id_, time_ms=engines.START_MS, data={"TaskId": TASK})


async def send_many(store: stores.Store, ids: list[str]) -> None:
    async with store.transaction() as tx:
        for id_ in ids:
            await tx.send("event", stop(id_), TASK)


async def emptied(store: stores.Store) -> None:
    """Wait until the broker has all that was written."""

    async def empty() -> bool:
        return not await store.outbox.unsent()

    await waiting.until(empty, timeout_s=30, what="all to be published")


async def connected_anew(bus: rabbit_bus.RabbitBus, old: broker_connection.BrokerSession | None) -> None:
    await waiting.until(lambda: bus.connection.current not in (None, old), timeout_s=30, what="another session")


# --- topology ---------------------------------------------------------------------------------------------------------------
async def test_every_queue_is_a_durable_quorum_queue_with_at_least_once_dead_lettering(
    bus: rabbit_bus.RabbitBus, prefix: str
) -> None:
    """The broker itself says that each queue that holds work is durable, a quorum queue, and dead-letters at least once."""
    found = {q["name"].removeprefix(f"{prefix}."): q for q in await asyncio.to_thread(rabbit.shared().queues, f"{prefix}.")}
    working = {"machines", "work.capture", "work.finish", "node.n1"}
    assert set(found) == working | {"parked", "unheard"}
    assert all(queue["durable"] for queue in found.values())
    for name in working:
        arguments = {name: value for name, _, value in found[name]["arguments"]}
        assert found[name]["type"] in ("quorum", "rabbit_quorum_queue")
        assert arguments["x-dead-letter-strategy"] == "at-least-once"
        assert arguments["x-overflow"] == "reject-publish"
        assert arguments["x-dead-letter-exchange"] == f"{prefix}.parked"
        assert arguments["x-delivery-limit"] == topologies.DELIVERY_LIMIT


async def test_a_message_delivered_too_often_is_dead_lettered_and_not_dropped(prefix: str) -> None:
    """At the delivery limit a message moves to the parked queue, by the broker's own hand."""
    topology = topologies.Topology(prefix, delivery_limit=2)
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await topologies.declare(channel, topology)
        await buses.say(prefix, "event.stop", b"deadly")
        queue = await channel.get_queue(topology.machines.name, ensure=False)
        for _ in range(3):
            message = await waiting.until(lambda: queue.get(fail=False), what="the message")
            await message.nack(requeue=True)
        parked = (await buses.taken(topology.parked, 1))[0]
    assert parked.body == b"deadly"
    assert parked.routing_key == "event.stop"
    assert parked.headers["x-death"][0]["reason"] == "delivery_limit"


async def test_messages_outlive_the_brokers_restart(prefix: str) -> None:
    """What was confirmed is there after the broker went down and came up again."""
    topology = topologies.Topology(prefix)
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await topologies.declare(channel, topology)
        await topologies.declare_queue(channel, topology, topology.node("n9"))
        for key in ("event.stop", "command.start-capture", "command.start-upload", "command.stop-capture.n9", "nobody.binds"):
            exchange = await channel.get_exchange(prefix, ensure=False)
            kept = aio_pika.Message(key.encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await exchange.publish(kept, key)
    await rabbit.shared().restart_beside()
    names = [q.name for q in (topology.machines, topology.capture, topology.finish, topology.node("n9"))]
    for name in [*names, topology.parked]:
        assert len(await buses.taken(name, 1)) == 1


# --- publishing ---------------------------------------------------------------------------------------------------------------
async def test_a_message_that_no_queue_takes_is_an_error(bus: rabbit_bus.RabbitBus, prefix: str) -> None:
    """Where even the alternate exchange leads nowhere, publishing raises instead of losing the message."""
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await channel.queue_delete(f"{prefix}.parked")
    with pytest.raises(broker_connection.Unroutable):
        await publisher.publish(bus.connection, publisher.Outgoing(key="nobody.binds", body=b"x"))
    await publisher.publish(bus.connection, publisher.Outgoing(key="nobody.binds", body=b"x", mandatory=False))


async def test_a_key_that_nobody_binds_is_parked_and_a_result_nobody_hears_is_not(
    bus: rabbit_bus.RabbitBus, prefix: str, store: stores.Store
) -> None:
    """A publisher's typing error ends up where an operator finds it; a result without subscribers ends quietly."""
    data = {"TaskId": TASK, "Repeated": False, "Warnings": []}
    await store.outbox.send("result", codec.make("session-accepted", id="r1", time_ms=0, data=data))
    await emptied(store)
    await buses.say(prefix, "evnet.start", b"{}")
    parked = await buses.taken(f"{prefix}.parked", 1)
    assert [m.routing_key for m in parked] == ["evnet.start"]


async def test_a_command_for_a_node_that_was_never_here_waits_for_it(
    bus: rabbit_bus.RabbitBus, prefix: str, store: stores.Store, clock: engines.Clock
) -> None:
    """The queue of an absent node is made by whoever has something for it."""
    async with store.transaction() as tx:
        await tx.send("command", codec.make("start-upload", id="late", time_ms=0, data=buses.JOB), TASK, "n7")
    await emptied(store)
    hands = buses.Hands()
    late = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, name="n7", roles=["worker"])
    async with running(late):
        await waiting.until(lambda: hands.commands == ["late"], what="the command that waited")


async def test_publishing_is_bounded_while_the_broker_hangs(
    bus: rabbit_bus.RabbitBus, store: stores.Store, hands: buses.Hands
) -> None:
    """A broker that keeps the connection and answers nothing does not hold a publisher; what waits goes out when it is back."""
    rabbit.shared().freeze()
    try:
        with pytest.raises(errors.Unavailable):
            async with waiting.at_most(5):
                await publisher.publish(bus.connection, publisher.Outgoing(key="event.stop", body=b"x"), timeout_s=0.5)
        await store.outbox.send("event", stop("patient"))
    finally:
        rabbit.shared().thaw()
    await waiting.until(lambda: "patient" in hands.events, timeout_s=40, what="the event that waited")


async def test_publishing_is_bounded_while_there_is_no_connection(
    store: stores.Store, clock: engines.Clock, prefix: str, hands: buses.Hands
) -> None:
    """Waiting for a connection counts: a publisher that finds none is told so in its time, not when there is one again."""
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
    """A connection holds its channels weakly: those that publish, consume and listen are held by the session, and still work
    after all garbage was collected."""
    heard: list[str] = []
    bus.listeners.append(lambda event: heard.append(event.id))
    session = bus.connection.current
    gc.collect()
    result = codec.make(
        "session-accepted",
        id="first.accepted",
        time_ms=engines.START_MS,
        data={"TaskId": TASK, "Repeated": False, "Warnings": []},
    )
    await publisher.publish(bus.connection, publisher.outgoing("result", "session-accepted", "", codec.encode(result)))
    await buses.say(prefix, "event.stop", BARE, message_id="handled")
    await waiting.until(lambda: (heard, hands.events) == (["first.accepted"], ["handled"]), what="the result and the event")
    assert bus.connection.current is session


# --- consuming ------------------------------------------------------------------------------------------------------------------
async def test_a_consumer_cancelled_by_the_broker_is_rebuilt(bus: rabbit_bus.RabbitBus, prefix: str, hands: buses.Hands) -> None:
    """A queue that is deleted takes its consumer along without a closed channel; both are made again."""
    old = bus.connection.current
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await channel.queue_delete(f"{prefix}.machines")
    await connected_anew(bus, old)
    await buses.say(prefix, "event.stop", BARE, message_id="heard")
    await waiting.until(lambda: hands.events == ["heard"], what="the event")


@pytest.mark.parametrize("how", ["no consumer", "forgotten", "starving"])
async def test_a_deaf_consumer_is_found_and_rebuilt(
    how: str, bus: rabbit_bus.RabbitBus, prefix: str, hands: buses.Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that the broker, or the library, has lost without a word is found by the watchdog."""
    monkeypatch.setattr(bus._watchdog, "_every_s", 0.2)
    await bus._watchdog.task.stop()
    old = bus.connection.current
    deaf = next(each for each in bus._consumers if each.queue.name == f"{prefix}.machines")
    callback = deaf._underlay.consumers[deaf._tag]

    async def keep(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        kept.append(message)

    kept: list[aio_pika.abc.AbstractIncomingMessage] = []
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        if how == "forgotten":
            del deaf._underlay.consumers[deaf._tag]
        else:
            await deaf._underlay.basic_cancel(deaf._tag)
            deaf._underlay.consumers[deaf._tag] = callback
        if how == "starving":
            # Another consumer, so that there is one, which takes a single message and keeps it.
            await channel.set_qos(prefetch_count=1)
            await (await channel.get_queue(deaf.queue.name, ensure=False)).consume(keep)
            await buses.say(prefix, "event.stop", BARE, message_id="kept")
            await buses.say(prefix, "event.stop", BARE, message_id="waits")
        bus._watchdog.task.start()
        await connected_anew(bus, old)
    await buses.say(prefix, "event.stop", BARE, message_id="heard")
    await waiting.until(lambda: "heard" in hands.events, what="the event")
    if how == "starving":
        await waiting.until(lambda: {"kept", "waits"} <= set(hands.events), what="what waited")


async def test_a_channel_that_closes_does_not_cancel_its_handlers(store: stores.Store, clock: engines.Clock, prefix: str) -> None:
    """A handler goes on to its end when the connection breaks under it; its message is delivered again and nothing is lost."""
    begun, go = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def slow(command: codec.Event) -> None:
        begun.set()
        await go.wait()
        ended.append(command.id)

    bus = buses.node(store, clock, prefix, on_event=slow, on_command=slow)
    async with running(bus):
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
    """Handlers that are cancelled by a stop leave their messages with the broker, unrejected."""
    begun: list[str] = []

    async def stuck(event: codec.Event) -> None:
        begun.append(event.id)
        await asyncio.Event().wait()

    ids = [f"e{number}" for number in range(20)]
    first = buses.node(store, clock, prefix, on_event=stuck, on_command=stuck, drain_s=0.1)
    async with running(first):
        await send_many(store, ids)
        await waiting.until(lambda: len(begun) == len(ids), what="all handlers to begin")
    hands = buses.Hands()
    second = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, name="n2")
    async with running(second):
        await waiting.until(lambda: set(hands.events) == set(ids), what="all events again")


async def test_a_broker_that_restarts_under_load_costs_nothing(
    bus: rabbit_bus.RabbitBus, store: stores.Store, hands: buses.Hands
) -> None:
    """As many events as were written are decided, however the broker goes down in the middle of them: in order, or by a crash."""

    async def goes_down(how: signal.Signals) -> None:
        old, wanted = bus.connection.current, len(hands.events) + 100
        ids = [f"{how.name}-{number}" for number in range(1_500)]
        await send_many(store, ids[:1_000])
        await waiting.until(lambda: len(hands.events) > wanted, what="the flow to begin")
        going = asyncio.create_task(rabbit.shared().restart_beside(how))
        await send_many(store, ids[1_000:])
        await going
        await connected_anew(bus, old)
        await waiting.until(lambda: set(ids) <= set(hands.events), timeout_s=60, what="every event")
        await emptied(store)

    # In order first: RabbitMQ 3.10.8 forgets who leads a quorum queue that is declared in the second before a crash.
    await goes_down(signal.SIGTERM)
    await goes_down(signal.SIGKILL)


async def test_a_database_that_restarts_under_load_costs_nothing(
    clock: engines.Clock, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is away no side of the bus ends, and nothing is parked for it; every event is decided afterwards."""
    monkeypatch.setattr(attempts, "MAX_ATTEMPTS", 2)
    server = postgres.Server()
    server.start()
    try:
        store = engines.Database(engine="postgresql", url=server.create()).open(clock)
        await store.start()
        decided: set[str] = set()

        async def decide(event: codec.Event) -> None:
            async with store.transaction() as tx:
                await tx.claim(event.id)
            decided.add(event.id)

        bus = buses.node(store, clock, prefix, on_event=decide, on_command=decide)
        async with running(bus):
            ids = [f"e{number}" for number in range(200)]
            await send_many(store, ids)
            server.stop()
            for number in range(100):
                await buses.say(prefix, "event.stop", BARE, message_id=f"late{number}")
            server.start()
            wanted = set(ids) | {f"late{number}" for number in range(100)}
            await waiting.until(lambda: decided == wanted, timeout_s=60, what="every event")
            assert [side.failed.done() for side in bus.tasks if side.failed] == [False] * 3
            await emptied(store)
        await store.stop()
    finally:
        server.remove()


# --- what cannot be handled --------------------------------------------------------------------------------------------------
REFUSED = [
    ("event.stop", b"not json", {}, "not JSON"),
    ("event.stop", b"\xff\xfe", {}, "not JSON"),
    ("event.stop", b"[]", {"message_id": "list"}, "object"),
    ("event.unknown", BARE, {"message_id": "unknown"}, "unknown message type"),
    ("event", BARE, {"message_id": "short"}, "routing key"),
    ("event.start", BARE, {"message_id": "schema"}, "SdkAppId"),
    ("event.start-upload", json.dumps(buses.JOB).encode(), {"message_id": "command"}, "is no event"),
    ("event.replay", codec.encode(stop("other")), {"message_id": "other"}, "does not belong"),
    ("command.start-capture", BARE, {"message_id": "bare-command"}, "specversion"),
    ("event.start", b"x" * 20_000_000, {"message_id": "large"}, "20000000 bytes"),
]


async def test_what_cannot_be_handled_is_parked_with_its_reason_while_traffic_goes_on(
    bus: rabbit_bus.RabbitBus, prefix: str, hands: buses.Hands
) -> None:
    """Invalid, unknown, misplaced and too large messages are parked whole, with reason and origin; the others are decided."""
    for number, (key, body, properties, _) in enumerate(REFUSED):
        await buses.say(prefix, key, body, headers={"mine": number}, **properties)
        await buses.say(prefix, "event.stop", BARE, message_id=f"good{number}", content_type="application/json")
    await waiting.until(lambda: len(hands.events) == len(REFUSED), timeout_s=20, what="the good ones")
    parked = {m.headers["mine"]: m for m in await buses.taken(f"{prefix}.parked", len(REFUSED))}
    for number, (key, body, properties, reason) in enumerate(REFUSED):
        assert reason in str(parked[number].headers["x-reason"])
        assert parked[number].headers["x-routing-key"] == key
        assert dead_letter_envelope.decrypt(parked[number].body, parked[number].headers, engines.keyring()).body == body
        assert parked[number].message_id == properties.get("message_id", parked[number].message_id)
    assert set(hands.events) == {f"good{number}" for number in range(len(REFUSED))}


async def test_properties_that_the_broker_acts_on_do_not_stop_a_message_from_being_parked(
    bus: rabbit_bus.RabbitBus, prefix: str
) -> None:
    """A sender's user id, an expiration, copies and headers near the frame's limit are no reason to lose or loop a message."""
    properties: dict[str, Any] = {"user_id": "recorder", "expiration": 3_600, "message_id": "odd", "priority": 3}
    headers = {"big": "x" * 100_000, "CC": ["event.also"], "when": None}
    await buses.say(prefix, "event.unknown", b"{}", headers=headers, **properties)
    parked = (await buses.taken(f"{prefix}.parked", 1))[0]
    assert parked.headers["x-reason"] == "invalid: type: unknown message type 'unknown'"
    assert (parked.message_id, parked.user_id, parked.expiration) == ("odd", None, None)


async def test_a_message_that_fails_for_ever_is_parked_in_the_end(
    bus: rabbit_bus.RabbitBus, prefix: str, hands: buses.Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tries are counted, whatever its error; the messages beside it go on."""
    monkeypatch.setattr(attempts, "BACKOFF_S", (0.01,))
    hands.failures["poison"] = [RuntimeError("a fault of ours")] * 1_000
    await buses.say(prefix, "event.stop", BARE, message_id="poison")
    await buses.say(prefix, "event.stop", BARE, message_id="good")
    parked = (await buses.taken(f"{prefix}.parked", 1))[0]
    assert "a fault of ours" in str(parked.headers["x-reason"])
    assert hands.events.count("poison") == attempts.MAX_ATTEMPTS
    assert "good" in hands.events


# --- roles and captures -------------------------------------------------------------------------------------------------------
async def test_each_role_takes_its_own(store: stores.Store, clock: engines.Clock, prefix: str) -> None:
    """A machine decides and does not work, a worker works and does not decide; an api relays."""
    made = {role: buses.Hands() for role in ("api", "machine", "worker")}
    nodes = [
        buses.node(store, clock, prefix, on_event=h.on_event, on_command=h.on_command, name=role, roles=[role])
        for role, h in made.items()
    ]
    async with running(*nodes):
        await store.outbox.send("event", stop("e1"))
        await store.outbox.send("command", codec.make("start-upload", id="c1", time_ms=0, data=buses.JOB))
        await waiting.until(lambda: made["machine"].events and made["worker"].commands, what="event and command")
    assert made == {
        "api": buses.Hands(),
        "machine": buses.Hands(events=["e1"]),
        "worker": buses.Hands(commands=["c1"]),
    }


async def test_a_full_worker_leaves_captures_to_others_and_goes_on_finishing(
    store: stores.Store, clock: engines.Clock, prefix: str
) -> None:
    """While paused, also over a reconnection, no new capture comes, and uploads do; resumed, captures come again."""
    full, free = buses.Hands(), buses.Hands()
    first = buses.node(store, clock, prefix, on_event=full.on_event, on_command=full.on_command, name="n1", roles=["worker"])
    second = buses.node(store, clock, prefix, on_event=free.on_event, on_command=free.on_command, name="n2", roles=["worker"])

    async def captures(*ids: str) -> None:
        for id_ in ids:
            await store.outbox.send("command", codec.make("start-capture", id=id_, time_ms=0, data=buses.JOB))

    async with running(first):
        await first.pause_captures()
        await first.pause_captures()
        old = first.connection.current
        assert old is not None
        old.end("broken by the test")
        await connected_anew(first, old)
        await captures("c1", "c2", "c3")
        await store.outbox.send("command", codec.make("start-upload", id="u1", time_ms=0, data=buses.JOB))
        await waiting.until(lambda: full.commands == ["u1"], what="the upload alone")
        async with running(second):
            await waiting.until(lambda: sorted(free.commands) == ["c1", "c2", "c3"], what="the other worker to take them")
        await captures("c4")
        await first.resume_captures()
        await waiting.until(lambda: full.commands == ["u1", "c4"], what="the capture that waited")


async def test_a_leaving_node_hands_over_and_still_sends(store: stores.Store, clock: engines.Clock, prefix: str) -> None:
    """After `stop_consuming` a node takes nothing, whatever is resumed, and what it writes still goes out."""
    leaving, staying = buses.Hands(), buses.Hands()
    first = buses.node(store, clock, prefix, on_event=leaving.on_event, on_command=leaving.on_command, name="n1")
    second = buses.node(store, clock, prefix, on_event=staying.on_event, on_command=staying.on_command, name="n2")
    async with running(first):
        await first.stop_consuming()
        await first.resume_captures()
        await send_many(store, ["e1"])
        await emptied(store)
        async with running(second):
            await waiting.until(lambda: staying.events == ["e1"], what="the other node to decide it")
    assert leaving == buses.Hands()


async def test_a_bus_starts_before_its_broker(store: stores.Store, clock: engines.Clock, prefix: str, hands: buses.Hands) -> None:
    """Without a broker a node starts, says so, and keeps what it has to say; wrong credentials are named without the password."""
    nowhere = buses.node(
        store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, url="amqp://recorder:wrongpass@127.0.0.1:1/"
    )
    await nowhere.start()
    await waiting.until(lambda: "not made yet" not in nowhere.connection.problem, what="the first try to fail")
    refused = rabbit.shared().url.replace("recorder:recorder", "recorder:wrongpass")
    wrong = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, url=refused)
    await wrong.start()
    await waiting.until(lambda: "ACCESS_REFUSED" in wrong.connection.problem, what="the refusal")
    assert "wrongpass" not in nowhere.connection.problem + wrong.connection.problem
    # What anybody hears who asks /readyz.
    assert nowhere.problems() == wrong.problems() == ["RabbitMQ is not connected; this node's log says why (bus.disconnected)."]
    await nowhere.stop()
    await wrong.stop()
