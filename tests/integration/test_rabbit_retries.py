"""Retries on RabbitMQ: a message that waits for one holds no slot, and comes back to its own queue, as it was published."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aio_pika
import pytest
import structlog

from bus import attempts, consumer, dead_letter_envelope, delivery_policy, retries
from bus import rabbit as rabbit_bus
from bus import topology as topologies
from events import codec
from machine import errors
from store import store as stores
from tests import buses, engines, rabbit, waiting
from tests.integration import rabbit_nodes
from tests.integration.rabbit_nodes import clock, database, prefix

__all__ = ["clock", "database", "prefix"]

MORE_THAN_SLOTS = 2 * max(rabbit_bus.REQUESTS_PREFETCH, rabbit_bus.MACHINES_PREFETCH, rabbit_bus.NODE_PREFETCH)


@pytest.fixture
async def cluster(
    request: pytest.FixtureRequest, store: stores.Store, clock: engines.Clock, prefix: str
) -> AsyncIterator[buses.FailingHandler]:
    """A node of all roles, whose handler fails as the test's parameter says."""
    handler = buses.FailingHandler(request.param)
    node = buses.node(store, clock, prefix, on_event=handler, on_command=handler, drain_s=0.2)
    async with rabbit_nodes.running(node):
        yield handler


def message(type_: str, id_: str) -> bytes:
    job = {"TaskId": buses.TASK, "Revision": 1, "Epoch": 1} if type_ == "send-callback" else buses.JOB
    data = {
        "stop": {"TaskId": buses.TASK},
        "room-destroyed": {"SdkAppId": 1400000001, "RoomId": 7, "EventMs": 5},
        "deadline-passed": {"Owner": buses.TASK, "Kind": "idle", "Serial": "1"},
    }
    return codec.encode(codec.make(type_, id=id_, time_ms=0, data=data.get(type_, job)))


async def say(prefix: str, type_: str, ids: list[str]) -> None:
    """Publish messages of one type."""
    kind = "command" if type_ in codec.types("command") else "event"
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(prefix, ensure=False)
        for id_ in ids:
            await exchange.publish(aio_pika.Message(message(type_, id_), message_id=id_), f"{kind}.{type_}")


@pytest.mark.parametrize(
    "cluster", [errors.Unavailable(), RuntimeError("an internal failure"), errors.WorkerFull(), errors.Conflict()], indirect=True
)
async def test_failing_messages_hold_no_slot(cluster: buses.FailingHandler, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More messages than slots fail, each for a reason that a retry may cure, and wait for an hour. Messages behind them in the
    same queue are handled, of every kind."""
    monkeypatch.setattr(attempts, "BACKOFF_S", (30.0,))
    monkeypatch.setattr(delivery_policy, "FULL_BACKOFF_S", 30.0)
    types = ("stop", "room-destroyed", "start-upload", "stop-capture")
    for type_ in types:
        await say(prefix, type_, [f"bad-{type_}-{number}" for number in range(MORE_THAN_SLOTS)])
        await say(prefix, type_, [f"good-{type_}"])
    await waiting.until(lambda: len(cluster.done) == len(types), timeout_s=30, what="a message behind the failing ones")
    assert sorted(cluster.done) == sorted(f"good-{type_}" for type_ in types)
    await waiting.until(lambda: len(set(cluster.begun)) == len(types) * (MORE_THAN_SLOTS + 1), what="each failure")


@pytest.mark.parametrize("cluster", [None], indirect=True)
@pytest.mark.parametrize(("hanging", "others"), [("stop", ("room-destroyed", "deadline-passed")), ("room-destroyed", ("stop",))])
async def test_requests_and_events_do_not_wait_for_each_other(
    cluster: buses.FailingHandler, prefix: str, hanging: str, others: tuple[str, ...]
) -> None:
    """While handlers of user requests hang, in any number, events of workers, time and TRTC are handled, and the reverse."""
    await say(prefix, hanging, [f"bad-{number}" for number in range(MORE_THAN_SLOTS)])
    for type_ in others:
        await say(prefix, type_, [f"good-{type_}"])
    await waiting.until(lambda: set(cluster.done) == {f"good-{type_}" for type_ in others}, what="the other events")


async def test_a_flood_of_failing_requests_fills_no_queue_of_events(
    store: stores.Store, clock: engines.Clock, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing requests of users fill their queue of retries, and the broker refuses more. Failing events of the recorder still
    wait for their retries on the broker, and hold no slot."""
    monkeypatch.setattr(topologies, "WAITING_BYTES", 4_000)
    monkeypatch.setattr(attempts, "BACKOFF_S", (1.0,))
    handler = buses.FailingHandler(errors.Unavailable())
    node = buses.node(store, clock, prefix, on_event=handler, on_command=handler, drain_s=0.2)
    with structlog.testing.capture_logs() as logs:
        async with rabbit_nodes.running(node):
            await say(prefix, "stop", [f"bad-{number}" for number in range(60)])
            await waiting.until(lambda: any(line["event"] == "bus.held" for line in logs), what="the refusal of a retry")
            monkeypatch.setattr(attempts, "BACKOFF_S", (0.2,))
            await say(prefix, "room-destroyed", ["bad-room"])
            await waiting.until(lambda: handler.begun.count("bad-room") >= 3, what="two retries of an event")
    assert {line["key"] for line in logs if line["event"] == "bus.held"} == {"event.stop"}


async def test_a_retry_returns_to_its_own_node(
    store: stores.Store, clock: engines.Clock, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command to all nodes fails on one of them: only that node receives it again."""
    monkeypatch.setattr(attempts, "BACKOFF_S", (0.01,))
    made = {name: buses.FailingHandler(None) for name in ("n1", "n2")}
    failures = [errors.Unavailable()] * 3

    async def failing(event: codec.Event) -> None:
        await made["n1"](event)
        if failures:
            raise failures.pop()

    nodes = [
        buses.node(store, clock, prefix, on_event=made[name], on_command=do, name=name, roles=["worker"])
        for name, do in (("n1", failing), ("n2", made["n2"]))
    ]
    async with rabbit_nodes.running(*nodes):
        await say(prefix, "stop-capture", ["all"])
        await waiting.until(lambda: len(made["n1"].done) == 4, what="the last retry")
        await waiting.until(lambda: made["n2"].done, what="the other node")
    assert made["n2"].done == ["all"]


async def test_a_retried_message_is_parked_as_it_was_published(
    store: stores.Store, clock: engines.Clock, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its last attempt a message is parked with its own key, properties and headers, also if it named a queue to return to
    itself. Nothing of the retries is left in it."""
    monkeypatch.setattr(attempts, "BACKOFF_S", (0.01,))
    monkeypatch.setattr(attempts, "MAX_ATTEMPTS", 4)
    handler = buses.FailingHandler(RuntimeError("an internal failure"))
    node = buses.node(store, clock, prefix, on_event=handler, on_command=handler)
    bare = json.dumps({"TaskId": buses.TASK}).encode()
    headers = {"mine": 1, topologies.RETRY_QUEUE: node.topology.work[0].name}
    async with rabbit_nodes.running(node):
        await buses.say(
            prefix, "event.stop", bare, message_id="bad", headers=headers, reply_to="me", content_type="application/json"
        )
        (parked,) = await buses.taken(node.topology.parked, 1)
    assert handler.begun == ["bad"] * 4
    original = dead_letter_envelope.decrypt(parked.body, parked.headers, engines.keyring())
    assert (original.key, original.body, original.headers) == ("event.stop", bare, {"mine": 1})
    assert dict(original.properties) == {"message_id": "bad", "reply_to": "me", "content_type": "application/json"}


async def test_a_retry_without_a_queue_is_parked_and_holds_no_other_up(prefix: str) -> None:
    """A retry whose queue is gone, like that of a node that left, is parked, and the retries behind it return."""
    topology = topologies.Topology(prefix)
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await topologies.declare(channel, topology)
        for number, queue in enumerate([topology.node("gone")[0], topology.requests] * 40):
            headers = {topologies.RETRY_QUEUE: queue.name}
            made = aio_pika.Message(b"{}", headers=headers, expiration=0.01, message_id=str(number), delivery_mode=2)
            await (await channel.get_exchange(topology.retries[0].name)).publish(made, "event.stop")
        returned = await buses.taken(topology.requests.name, 40)
        parked = await buses.taken(topology.parked, 40)
    assert [retries.returned(each, topology) for each in (returned[0], parked[0])] == [True, True]
    assert {each.routing_key for each in (*returned, *parked)} == {"event.stop"}


async def test_a_retry_beside_an_older_node_is_held_for_a_moment(
    store: stores.Store, clock: engines.Clock, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a node of 0.1.0 lives, a failing message is held in its slot for HOLD_S and requeued, however long its backoff is."""
    monkeypatch.setattr(attempts, "BACKOFF_S", (3_600.0,))
    monkeypatch.setattr(consumer, "HOLD_S", 0.1)
    store.nodes.older_alive = True
    handler = buses.FailingHandler(errors.Unavailable())
    node = buses.node(store, clock, prefix, on_event=handler, on_command=handler, drain_s=0.2)
    async with rabbit_nodes.running(node):
        await say(prefix, "stop", ["bad"])
        await waiting.until(lambda: len(handler.begun) >= 4, what="three retries")
        assert set(handler.begun) == {"bad"}
