"""RabbitMQ's time limits and silence: a message that stays unacknowledged too long, a connection and a queue that fall silent.

RabbitMQ 4.3 cancels the consumer instead of closing its channel: for that see
test_rabbit_traps.py::test_a_consumer_cancelled_by_the_broker_is_rebuilt.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest

from bus import broker_connection, publisher
from bus import topology as topologies
from events import codec
from store import store as stores
from tests import buses, engines, rabbit, tcp_proxy, transactions, waiting
from tests.integration import rabbit_nodes

HELD_MS = 1_000
BARE = json.dumps({"TaskId": buses.TASK}).encode()


@pytest.fixture
def database(tmp_path: Any) -> engines.Database:
    """The engine of the database does not matter: the broker is under test."""
    return engines.fresh("sqlite", tmp_path)


@pytest.fixture
async def cable() -> AsyncIterator[tcp_proxy.Proxy]:
    """The connection to the broker."""
    proxy = tcp_proxy.Proxy(target_port=rabbit.shared().port)
    await proxy.start()
    yield proxy
    await proxy.stop()


async def test_a_message_unacknowledged_for_too_long_costs_a_channel_and_no_message(
    store: stores.Store, clock: engines.Clock
) -> None:
    """When the broker closes the channel of a handler that hangs, the session is rebuilt, its messages are redelivered, and
    others go on."""
    prefix, go = rabbit.shared().prefix(), asyncio.Event()
    begun: list[str] = []
    ended: list[str] = []

    async def handler(event: codec.Event) -> None:
        begun.append(event.id)
        if event.id == "slow":
            await go.wait()
        ended.append(event.id)

    async with rabbit.shared().impatient(HELD_MS):
        bus = buses.node(store, clock, prefix, on_event=handler, on_command=handler, drain_s=0.2)
        await bus.start()
        await waiting.until(lambda: not bus.problems(), timeout_s=20, what="the bus to flow")
        # Only the broker may end the session here.
        await bus._watchdog.task.stop()
        first = bus.connection.current
        assert first is not None
        await buses.say(prefix, "event.stop", BARE, message_id="slow")
        async with waiting.at_most(20):
            assert "PRECONDITION_FAILED" in await asyncio.shield(first.ended)
        await waiting.until(lambda: begun.count("slow") == 2, timeout_s=20, what="the same message again")
        await buses.say(prefix, "event.stop", BARE, message_id="other")
        await waiting.until(lambda: "other" in ended, timeout_s=20, what="another message")
        go.set()
        await waiting.until(lambda: ended.count("slow") >= 2, what="the slow handlers to end")
        await bus.stop()
    assert await _left(bus.topology.requests.name) == 0


async def test_missing_heartbeats_of_a_silent_broker_end_the_connection(
    store: stores.Store, clock: engines.Clock, cable: tcp_proxy.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that falls silent without an error is dropped within a few heartbeats, without watchdog or publishing, and
    messages written meanwhile go out once the broker is reachable again."""
    monkeypatch.setattr(broker_connection, "HEARTBEAT_S", 1)
    prefix, hands = rabbit.shared().prefix(), buses.Hands()
    url = rabbit.shared().url.replace(f":{rabbit.shared().port}/", f":{cable.port}/")
    bus = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, url=url)
    await bus.start()
    await waiting.until(lambda: not bus.problems(), timeout_s=20, what="the bus to flow")
    await bus._watchdog.task.stop()
    old = bus.connection.current
    assert old is not None
    cable.blackhole()
    async with waiting.at_most(10):
        await asyncio.shield(old.ended)
    ids = {f"e{number}" for number in range(20)}
    async with transactions.opened(store) as tx:
        for id_ in sorted(ids):
            tx.send("event", codec.make("stop", id=id_, time_ms=0, data={"TaskId": buses.TASK}), buses.TASK)
    assert bus.problems()
    cable.restore()
    await waiting.until(lambda: set(hands.events) == ids, timeout_s=30, what="every event")
    await bus.stop()


async def test_a_queue_that_confirms_nothing_delays_no_other_message(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a subscriber's queue has no leader, events are published and handled one after the other, and its result is published
    once it has one."""
    # Longer than the events may take: the relay must not wait for this.
    monkeypatch.setitem(publisher.publish.__kwdefaults__ or {}, "timeout_s", waiting.limit_s(60))
    broker, hands = rabbit.shared(), buses.Hands()
    prefix = broker.prefix()
    silent = f"{prefix}.subscriber"
    bus = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, drain_s=0.2)
    async with rabbit_nodes.running(bus), await aio_pika.connect(broker.url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(silent, durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(prefix, topologies.RESULTS)
        await asyncio.to_thread(broker.suspend, silent)
        try:
            data = {"TaskId": buses.TASK, "Repeated": False, "Warnings": []}
            await store.outbox.send("result", codec.make("session-accepted", id="r1", time_ms=0, data=data))
            for id_ in ("e1", "e2", "e3"):
                await store.outbox.send("event", codec.make("stop", id=id_, time_ms=0, data={"TaskId": buses.TASK}))
                await waiting.until(lambda id_=id_: id_ in hands.events, 15, f"the event {id_}")  # type: ignore[misc]
        finally:
            await asyncio.to_thread(broker.resume, silent)
        await rabbit_nodes.emptied(store)
        assert (await buses.taken(silent, 1))[0].message_id == "r1"
        await channel.queue_delete(silent)


async def _left(queue: str) -> int:
    """How many messages wait in a queue."""
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        found = await channel.declare_queue(queue, passive=True)
        return int(found.declaration_result.message_count or 0)
