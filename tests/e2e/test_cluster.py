"""The distributed engine with many nodes, on RabbitMQ and PostgreSQL: nodes are killed, and nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests import footing, waiting
from tests.e2e import cluster
from tests.e2e.conftest import APP, World, live_for
from tests.e2e.test_road import posted

pytestmark = pytest.mark.parametrize("engine", [footing.DISTRIBUTED])

SESSIONS = 20
SPEAKERS = ("alice", "bob")
NODES = {"api": "api", "machine": "machine", "worker1": "worker", "worker2": "worker"}
MADE = list[cluster.Cluster]


@pytest.fixture
async def clusters(world: World) -> AsyncIterator[Callable[..., Awaitable[cluster.Cluster]]]:
    """Starts clusters; stops them in the end."""
    made: MADE = []

    async def start(*, shared: bool, nodes: dict[str, str] | None = None, **settings: str) -> cluster.Cluster:
        made.append(cluster.Cluster(world, shared=shared, settings=settings))
        await made[-1].start(**(nodes or NODES))
        return made[-1]

    yield start
    for each in made:
        await each.stop()


class Load:
    """Some sessions with two speakers each."""

    def __init__(self, world: World, count: int = SESSIONS) -> None:
        self.world = world
        self.names = [f"class-{number}" for number in range(count)]
        self.tasks: dict[str, str] = {}

    async def begin(self) -> None:
        """Start the sessions, let the speakers in, and wait until all are recorded."""
        for name in self.names:
            started = await self.world.service.post("/sessions", self.world.request(name, Mode="02"))
            self.tasks[name] = started["TaskId"]
        for name in self.names:
            room = self.world.simulator.create_room(APP, name)
            for speaker in SPEAKERS:
                await room.join(speaker)

        async def all_recording() -> bool:
            states = [s for task in self.tasks.values() for s in await self.world.service.states(task)]
            return states == ["Recording"] * len(self.names) * len(SPEAKERS)

        await waiting.until(all_recording, 60, "all to be recorded", every_s=0.5)

    async def end(self) -> None:
        """Dismiss the rooms."""
        for name in self.names:
            await self.world.simulator.create_room(APP, name).dismiss()

    async def results(self, timeout_s: float = 60) -> list[Any]:
        """Wait for the result of every session; returns them."""
        await waiting.until(lambda: all(self.world.results(n) for n in self.names), timeout_s, "all results", every_s=0.2)
        return [self.world.results(name)[-1] for name in self.names]


def check_results(world: World, load: Load, results: list[Any]) -> list[Any]:
    """40 files of Status 1, 20 results of Revision 1, none doubled; returns the files."""
    files = [entry for result in results for entry in result["Files"]]
    assert [f["Code"] for f in files] == ["Success"] * len(load.names) * len(SPEAKERS), [f for f in files if not f["Status"]]
    assert [r["Revision"] for r in results] == [1] * len(load.names)
    bodies: dict[str, set[bytes]] = {}
    for posts in posted(world).values():
        for webhook_id, body in posts:
            bodies.setdefault(webhook_id, set()).add(body)
    assert len(bodies) == len(load.names)
    assert all(len(seen) == 1 for seen in bodies.values())
    for entry in files:
        path = world.object_path(entry["RecordFile"])
        assert path.stat().st_size == entry["Size"]
    return files


@pytest.mark.timeout(240)
@pytest.mark.parametrize("shared", [True, False], ids=["shared-spool", "spool-per-node"])
async def test_a_worker_is_killed(world: World, clusters: Callable[..., Awaitable[cluster.Cluster]], shared: bool) -> None:
    """20 rooms with two speakers, one of two workers killed with -9 in the middle: 40 recordings Done, 20 results, none doubled,
    the killed captures' gaps reported. With a spool per node the killed one starts again, and its segments are fetched."""
    many = await clusters(shared=shared, NODE_RETURN="60s")
    load = Load(world)
    await load.begin()
    victim = many.nodes["worker1"]
    held = await many.ask("SELECT owner FROM jobs WHERE state = 'leased' AND kind = 'capture' AND node <> ''")
    assert len(held) == SESSIONS * len(SPEAKERS)
    await victim.kill()

    async def taken_over() -> bool:
        rows = await many.ask("SELECT node, count(*) AS n FROM jobs WHERE state = 'leased' AND kind = 'capture' GROUP BY node")
        return [row["n"] for row in rows] == [SESSIONS * len(SPEAKERS)]

    await waiting.until(taken_over, 40, "the other worker to take over", every_s=0.5)
    await live_for(3)
    if not shared:
        await many.add("worker1", "worker")
    await load.end()
    files = check_results(world, load, await load.results())
    gaps = [entry for entry in files if entry["Gaps"]]
    assert 0 < len(gaps) <= SESSIONS * len(SPEAKERS)
    assert all(0 < g["Duration"] < 40 for entry in gaps for g in entry["Gaps"])


@pytest.mark.timeout(180)
async def test_a_node_that_never_returns(world: World, clusters: Callable[..., Awaitable[cluster.Cluster]]) -> None:
    """Its segments are waited for until NODE_RETURN, then the rest is delivered with the loss as a gap; once it is back, a
    replay from the segments brings a Revision that has them."""
    many = await clusters(shared=False, NODE_RETURN="8s")
    load = Load(world, 4)
    await load.begin()
    await live_for(4)
    await many.nodes["worker1"].kill()
    taken = "SELECT count(*) AS jobs, count(DISTINCT node) AS nodes FROM jobs WHERE state = 'leased' AND kind = 'capture'"

    async def taken_over() -> bool:
        (row,) = await many.ask(taken)
        return (row["jobs"], row["nodes"]) == (8, 1)

    await waiting.until(taken_over, 40, "the other worker to take over", every_s=0.5)
    await live_for(4)
    await load.end()
    results = await load.results(90)
    files = [entry for result in results for entry in result["Files"]]
    assert [f["Code"] for f in files] == ["Success"] * 8, [f["Detail"] for f in files]
    short = [(result, entry) for result in results for entry in result["Files"] if entry["Gaps"]]
    assert short
    await many.add("worker1", "worker")
    result, entry = short[0]
    again = {
        "Speaker": entry["UserId"],
        "From": "transcoding",
        "CosConfig": {"SecretId": "AKIDexample", "SecretKey": "secret-key-example"},
    }
    await world.service.post(f"/sessions/{result['TaskId']}/replay", again)
    name = next(n for n, task in load.tasks.items() if task == result["TaskId"])
    await waiting.until(lambda: len(world.results(name)) > 1, 40, "the revision", every_s=0.2)
    revised = world.results(name)[-1]
    assert revised["Revision"] == 2
    (better,) = [f for f in revised["Files"] if f["UserId"] == entry["UserId"]]
    assert better["Code"] == "Success"
    assert better["Duration"] > entry["Duration"] + 2


@pytest.mark.timeout(180)
@pytest.mark.parametrize("what", ["broker", "database"])
async def test_a_server_is_restarted(world: World, clusters: Callable[..., Awaitable[cluster.Cluster]], what: str) -> None:
    """RabbitMQ or PostgreSQL is restarted under load: no capture ends for it, and every result comes once."""
    many = await clusters(shared=True)
    load = Load(world, 6)
    await load.begin()
    server = many.broker if what == "broker" else cluster.postgres.shared()
    if what == "broker":
        await cluster.keep(server.restart)
    else:
        await cluster.keep(server.stop)
        await cluster.keep(server.start)
    await live_for(2)
    await load.end()
    files = check_results(world, load, await load.results(90))
    assert not [entry for entry in files if entry["Gaps"]]


@pytest.mark.timeout(120)
async def test_a_drained_worker_hands_over(world: World, clusters: Callable[..., Awaitable[cluster.Cluster]]) -> None:
    """SIGTERM: its captures go on elsewhere after a short gap, and it ends in time with exit code 0."""
    many = await clusters(shared=True)
    load = Load(world, 4)
    await load.begin()
    assert await many.nodes["worker1"].stop() == 0

    async def handed_over() -> bool:
        rows = await many.ask("SELECT node FROM jobs WHERE state = 'leased' AND kind = 'capture'")
        return len(rows) == 8 and len({row["node"] for row in rows}) == 1

    await waiting.until(handed_over, 20, "the captures to go on elsewhere", every_s=0.2)
    await live_for(2)
    await load.end()
    files = check_results(world, load, await load.results())
    gaps = [g["Duration"] for entry in files for g in entry["Gaps"]]
    assert gaps
    assert max(gaps) < 6
