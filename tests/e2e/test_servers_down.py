"""The servers of the distributed engine fail under live rooms: RabbitMQ crashes and is cut off, PostgreSQL stops during open
transactions, or answers and refuses writes. No capture ends, and nothing is lost or doubled.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests import backends, engines, postgres, rabbit, refusing_database, subscriber, tcp_proxy, waiting
from tests.chaos import fault_figures
from tests.e2e import cluster
from tests.e2e.conftest import World, live_for
from tests.e2e.scenes import Scene, gaps

pytestmark = pytest.mark.parametrize("engine", [backends.DISTRIBUTED])

# Ten leases.
CUT_S = 60.0
# More than two leases.
REFUSED_S = 14.0
NODES = {"one": "api,machine,worker", "two": "machine,worker"}
SPEAKERS = ("alice", "bob")
LIMIT_S = 40 + 2 * CUT_S


@pytest.fixture
async def cable() -> AsyncIterator[tcp_proxy.Proxy]:
    """The nodes' connection to the broker."""
    proxy = tcp_proxy.Proxy(target_port=rabbit.shared().port)
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def many(world: World, cable: tcp_proxy.Proxy) -> AsyncIterator[cluster.Cluster]:
    """Two nodes that share a spool and reach the broker through the proxy."""
    broker = rabbit.shared()
    settings = {"AMQP_URL": broker.url.replace(f":{broker.port}/", f":{cable.port}/"), "LINGER": "3s"}
    made = cluster.Cluster(world, shared=True, settings=settings)
    await made.start(**NODES)
    yield made
    await made.stop()


@pytest.fixture
async def heard(world: World, many: cluster.Cluster) -> AsyncIterator[subscriber.Subscriber]:
    """An application that subscribes to the results through a proxy of its own."""
    made = subscriber.Subscriber(many.broker.url, many.prefix, world.folder / "heard.jsonl")
    await made.start()
    yield made
    await made.stop()


async def _live(world: World, *names: str) -> list[Scene]:
    """Rooms with two speakers each, all of them recorded."""
    scenes = [Scene(world, name) for name in names]
    for scene in scenes:
        await scene.start("02")
        await asyncio.gather(*(scene.join(speaker) for speaker in SPEAKERS))
    await asyncio.gather(*(scene.recordings("Recording", "Recording", timeout_s=LIMIT_S) for scene in scenes))
    return scenes


async def _end(world: World, many: cluster.Cluster, scenes: list[Scene], heard: subscriber.Subscriber) -> None:
    """Dismiss the rooms that are still live; every file is complete, nothing is lost or doubled, and the subscriber got
    everything."""
    for scene in scenes:
        await scene.room.dismiss()

    async def files(scene: Scene) -> None:
        await world.service.finished(scene.task_id, LIMIT_S)
        found = await scene.files("RoomDestroyed")
        assert [gaps(entry) for entries in found.values() for entry in entries] == [[], []], (scene.name, found)

    await asyncio.gather(*(files(scene) for scene in scenes))
    expected = [(scene, speaker) for scene in scenes for speaker in SPEAKERS]
    figures = await fault_figures.audited(world, many.database, expected, heard)
    fault_figures.note("heard by a subscriber", f"{figures.heard} results, {figures.repeated_deliveries} of them again")


@pytest.mark.timeout(400)
async def test_the_broker_crashes_and_is_cut_off(
    world: World, many: cluster.Cluster, cable: tcp_proxy.Proxy, heard: subscriber.Subscriber
) -> None:
    """When RabbitMQ is killed with -9 while rooms are live and one ends, then cut off while another ends, captures go on, and
    every message is published and received once the broker is back."""
    scenes = await _live(world, "crash-a", "crash-b", "crash-c")
    await cluster.keep(many.broker.kill)
    await scenes[0].room.dismiss()
    await live_for(1.5)
    await cluster.keep(many.broker.start)
    await world.service.finished(scenes[0].task_id, LIMIT_S)
    cable.cut()
    cut_s = time.monotonic()
    await scenes[1].room.dismiss()
    await live_for(CUT_S)
    cable.restore()
    back_s = time.monotonic()
    await world.service.finished(scenes[1].task_id, LIMIT_S)
    fault_figures.note(
        "broker cut off",
        f"{back_s - cut_s:.0f} s; the room that ended meanwhile finished {time.monotonic() - back_s:.1f} s after",
    )
    await _end(world, many, scenes, heard)
    assert heard.came_back, "the subscriber lost its connection with the broker"


@pytest.mark.timeout(180)
async def test_the_database_goes_down_in_mid_transaction(
    world: World, many: cluster.Cluster, heard: subscriber.Subscriber
) -> None:
    """When PostgreSQL stops during open deciding transactions, none of them takes effect, all are decided again, and captures go
    on."""
    scenes = await _live(world, "down-a", "down-b", "down-c")
    async with _locked(many.database):
        await asyncio.gather(*(scene.room.dismiss() for scene in scenes[:2]))
        await waiting.until(lambda: _held_up(many), 20, "transactions to be open", every_s=0.2)
        # SIGQUIT is PostgreSQL's immediate shutdown: open transactions are lost, as in a crash.
        await cluster.keep(lambda: postgres.shared().stop(signal.SIGQUIT))
    await live_for(1.5)
    await cluster.keep(postgres.shared().start)
    await _end(world, many, scenes, heard)


@pytest.mark.timeout(180)
async def test_the_database_refuses_writes(world: World, many: cluster.Cluster, heard: subscriber.Subscriber) -> None:
    """When PostgreSQL is read-only for longer than a lease, as after a failover, no node ends and captures go on: a start and
    /readyz get 503 with the reason. When new connections lead to a server that accepts writes, nothing is lost."""
    scenes = await _live(world, "refused-a", "refused-b")
    refusing = refusing_database.RefusingDatabase(engines.Database(engine="postgresql", url=many.database), None)
    await refusing.begin()
    await scenes[0].room.dismiss()

    async def answered(method: str, path: str, body: Any = None) -> tuple[int, str]:
        async with aiohttp.ClientSession() as http, http.request(method, world.service.url + path, json=body) as answer:
            return answer.status, (await answer.json()).get("Message", "")

    async def away() -> bool:
        status, message = await answered("GET", "/readyz")
        return status == 503 and refusing.reason in message

    await waiting.until(away, 20, "/readyz to name the reason", every_s=0.2)
    status, message = await answered("POST", "/sessions", world.request("refused-c"))
    assert (status, refusing.reason in message) == (503, True), message
    await live_for(REFUSED_S)
    await refusing.end()
    await _end(world, many, scenes, heard)


@contextlib.asynccontextmanager
async def _locked(database: str) -> AsyncIterator[None]:
    """Lock the recordings until the end of this block or of the server."""
    holder = await asyncpg.connect(database.replace("+asyncpg", ""))
    try:
        await holder.execute("BEGIN; LOCK TABLE recordings IN ACCESS EXCLUSIVE MODE")
        yield
    finally:
        holder.terminate()


async def _held_up(many: cluster.Cluster) -> bool:
    """Whether open transactions wait for a lock. Each call uses a connection of its own, because within one transaction
    PostgreSQL repeats its first answer about pg_stat_activity."""
    waits = "wait_event_type = 'Lock' AND xact_start IS NOT NULL"
    found = await many.ask(f"SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND {waits}")
    return len(found) >= 2
