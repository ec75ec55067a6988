"""The limit of the dead letter queue (RabbitMQ): the broker refuses what exceeds it, nothing is lost, and operators see it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aio_pika
import aiohttp
import pytest
from aiormq import exceptions

from assembly import node as nodes
from bus import consumer, dead_letter_level, dead_letters
from bus import topology as topologies
from config import settings
from store import store as stores
from tests import buses, engines, rabbit, waiting
from tests.integration import rabbit_nodes
from tests.integration.rabbit_nodes import clock, database

__all__ = ["clock", "database"]

LIMIT = 5
LIMIT_BYTES = 5_000
# Few messages of this size fill the queue, also in the encrypted form of a dead letter.
LARGE = b"{" + b" " * 1_000 + b"}"


@pytest.fixture
def topology() -> topologies.Topology:
    return topologies.Topology(rabbit.shared().prefix())


@pytest.fixture(params=["messages", "bytes"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue of few messages, or of few bytes, and quick retries of the messages that it refused."""
    if request.param == "messages":
        monkeypatch.setattr(topologies, "PARKED_MESSAGES", LIMIT)
        monkeypatch.setattr(dead_letter_level, "WARN_FROM", LIMIT - 1)
    else:
        monkeypatch.setattr(topologies, "PARKED_BYTES", LIMIT_BYTES)
    monkeypatch.setattr(consumer, "PARKED_FULL_BACKOFF_S", 1.0)


@pytest.mark.usefixtures("small")
async def test_a_full_queue_loses_nothing_and_stops_nothing(
    store: stores.Store, clock: engines.Clock, topology: topologies.Topology
) -> None:
    """More invalid messages than the queue holds, and more than the consumer has slots: valid ones behind them are handled, the
    readiness warns, and as space is made each refused message becomes a dead letter."""
    hands = buses.Hands()
    node = buses.node(store, clock, topology.prefix, on_event=hands.on_event, on_command=hands.on_command)
    node._watchdog._every_s = 0.2
    wrong = [f"wrong-{number}" for number in range(60)]
    async with rabbit_nodes.running(node):
        assert node.warnings() == []
        async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
            exchange = await channel.get_exchange(topology.exchange, ensure=False)
            for id_ in wrong:
                await exchange.publish(aio_pika.Message(LARGE, message_id=id_), "event.unknown")
            await exchange.publish(aio_pika.Message(rabbit_nodes.BARE, message_id="good"), "event.stop")
        await waiting.until(lambda: hands.events == ["good"], timeout_s=20, what="the valid message")
        (warning,) = await waiting.until(node.warnings, timeout_s=20, what="the warning")
        assert "is full" in warning
        parked: list[str] = []
        while len(parked) < len(wrong):
            parked += [str(m.message_id) for m in await buses.taken(topology.parked, 1)]
    # A copy that was refused in part may become two dead letters, but none is missing.
    assert set(parked) == set(wrong)


@pytest.mark.usefixtures("small")
async def test_a_bypass_is_not_admitted_by_a_full_queue(
    store: stores.Store, clock: engines.Clock, topology: topologies.Topology
) -> None:
    """A message that bypassed the broker's permissions stays refused while the queue is full, and is not retried."""
    hands = buses.Hands()
    node = buses.node(store, clock, topology.prefix, on_event=hands.on_event, on_command=hands.on_command)
    async with rabbit_nodes.running(node):
        accepted = await _fill(topology)
        await buses.say(topology.exchange, "event.stop", rabbit_nodes.BARE, message_id="bypass", headers={"x-death": []})
        await waiting.until(lambda: node.connection.dead_letters.refused, timeout_s=20, what="the refusal")
        await buses.taken(topology.parked, accepted)
        (parked,) = await buses.taken(topology.parked, 1)
    assert parked.headers["x-detour"]
    assert hands.events == []


async def _fill(topology: topologies.Topology) -> int:
    """Fill the queue; returns how many messages it took."""
    for number in range(10 * LIMIT):
        try:
            await buses.say(topology.parked, "x", LARGE, message_id=str(number))
        except exceptions.DeliveryError:
            return number
    raise AssertionError("the queue has no limit")


async def test_the_level_is_read_without_a_change(topology: topologies.Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor's reading declares no queue, counts the messages, and tells a queue without a limit, with the command that adds
    one; the reading of a node does the same."""
    monkeypatch.setattr(dead_letter_level, "WARN_FROM", 2)
    level = await dead_letters.level(rabbit.shared().url, topology.prefix)
    assert (level.count, level.warnings(refused=False)) == (0, [])
    assert await asyncio.to_thread(rabbit.shared().queues, f"{topology.prefix}.") == []
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await topologies.declare_parked(channel, topology, limited=False)
        for number in range(3):
            await buses.say(topology.parked, "x", b"{}", message_id=str(number))
        level = await waiting.until(lambda: _holding(topology.prefix, 3), what="the messages")
        nearly, unlimited = level.warnings(refused=False)
        assert "holds 3 messages" in nearly
        assert f"rabbitmqctl set_policy --apply-to queues {topology.parked} " in unlimited


async def _holding(prefix: str, count: int) -> dead_letter_level.DeadLetterLevel | None:
    level = await dead_letters.level(rabbit.shared().url, prefix)
    return level if level.count == count else None


async def test_a_node_takes_an_existing_queue_without_a_limit(
    store: stores.Store, clock: engines.Clock, topology: topologies.Topology
) -> None:
    """A node starts beside a queue that an earlier version declared, parks into it, and says that it has no limit."""
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await topologies.declare_parked(channel, topology, limited=False)
    hands = buses.Hands()
    node = buses.node(store, clock, topology.prefix, on_event=hands.on_event, on_command=hands.on_command)
    async with rabbit_nodes.running(node):
        (warning,) = node.warnings()
        assert "no limit of its own" in warning
        await buses.say(topology.exchange, "event.unknown", b"{}", message_id="wrong")
        assert [m.message_id for m in await buses.taken(topology.parked, 1)] == ["wrong"]


async def test_readyz_names_a_full_queue(topology: topologies.Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of the distributed engine stays ready beside a full queue, and its readiness warns of the queue by name until
    somebody has made space."""
    monkeypatch.setattr(topologies, "PARKED_MESSAGES", LIMIT)
    monkeypatch.setattr(dead_letter_level, "WARN_FROM", LIMIT - 1)
    environment = {"HOME": str(tmp_path), "SPOOL_DIR": str(tmp_path / "spool"), "PORT": "0", "MIN_FREE": "1MiB", "ROLES": "api"}
    environment |= {"DATABASE_URL": engines.fresh("postgresql", tmp_path).url, "SECRET_KEYS": engines.SECRET_KEYS}
    environment |= {
        "AMQP_URL": rabbit.shared().url,
        "AMQP_PREFIX": topology.prefix,
        "CLUSTER_TOKEN": "a-token-that-is-long-enough",
    }
    node = nodes.Node(settings.load(environment), environment)
    await node.start()
    try:
        await waiting.until(lambda: _warns(node, topology, ""), timeout_s=30, what="a ready node")
        accepted = await _fill(topology)
        await waiting.until(lambda: _warns(node, topology, f"{topology.parked} is full"), timeout_s=30, what="the warning")
        await buses.taken(topology.parked, accepted)
        await waiting.until(lambda: _warns(node, topology, ""), timeout_s=30, what="the end of the warning")
    finally:
        await node.stop()


async def _warns(node: nodes.Node, topology: topologies.Topology, start: str) -> bool:
    """Whether /readyz answers 200 with one warning about the queue, which begins so; "": with none."""
    async with aiohttp.ClientSession() as http, http.get(f"{node.url}/readyz") as answer:
        found = [each for each in answer.headers.getall("Recorder-Warning", []) if topology.parked in each]
        return answer.status == 200 and len(found) == bool(start) and all(each.startswith(start) for each in found)
