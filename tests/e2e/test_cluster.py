"""Many nodes of the distributed engine, on RabbitMQ and PostgreSQL: nodes are killed, and nothing is lost or doubled."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import aiohttp
import pytest

from tests import backends, waiting
from tests.chaos import fault_figures
from tests.e2e import cluster, scenes
from tests.e2e.conftest import APP, World, live_for
from tests.e2e.test_rooms_and_modes import posted

pytestmark = pytest.mark.parametrize("engine", [backends.DISTRIBUTED])

SESSIONS, FEW = 20, 6
"""The load of a killed worker, and that of the other faults: each session costs two streams and two transcodes."""
SPEAKERS = ("alice", "bob")
NODES = {"api": "api", "machine": "machine", "worker1": "worker", "worker2": "worker"}
MADE = list[cluster.Cluster]
# Promised on the idle reference machine; `waiting.limit_s` scales each limit on another machine.
FINISHED_WITHIN_S = 60.0
TAKEN_OVER_WITHIN_S = 10.0
"""Time after the lease ends: 40 s in total with the default lease of 30 s."""
LOST_TO_A_KILL_S = 1.0
# For tests in which no capture may be lost, however long a busy machine takes to restart a server.
LONG_LEASE = f"{30 * waiting.pace():.0f}s"
# A second between two moments that different processes measure.
SLACK_S = 1.0


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
    """Several sessions with two speakers each."""

    def __init__(self, world: World, count: int = SESSIONS) -> None:
        self.world = world
        self.names = [f"class-{number}" for number in range(count)]
        self.tasks: dict[str, str] = {}
        self.ended_s = 0.0

    async def begin(self) -> None:
        """Start the sessions, let the speakers enter, and wait until all are recorded."""
        for name in self.names:
            started = await self.world.service.post("/sessions", self.world.request(name, Mode="02"))
            self.tasks[name] = started["TaskId"]
        for name in self.names:
            room = self.world.simulator.create_room(APP, name)
            for speaker in SPEAKERS:
                await room.join(speaker, number=scenes.number(speaker))

        async def all_recording() -> bool:
            states = [s for task in self.tasks.values() for s in await self.world.service.states(task)]
            return states == ["Recording"] * len(self.names) * len(SPEAKERS)

        await waiting.until(all_recording, 60, "all to be recorded", every_s=0.5)

    async def end(self) -> None:
        """Dismiss the rooms."""
        for name in self.names:
            await self.world.simulator.create_room(APP, name).dismiss()
        self.ended_s = time.monotonic()

    async def results(self, within_s: float = FINISHED_WITHIN_S) -> list[Any]:
        """Wait for the result of every session and return them. Fails if the last one comes later than `within_s` after the end
        of the last room."""
        await waiting.until(lambda: all(self.world.results(n) for n in self.names), within_s, "all results", every_s=0.2)
        took_s = time.monotonic() - self.ended_s
        fault_figures.note(f"all of {len(self.names)} results after the end of the last room", f"{took_s:.1f} s")
        assert took_s <= waiting.limit_s(within_s)
        return [self.world.results(name)[-1] for name in self.names]


def check_results(world: World, load: Load, results: list[Any]) -> list[Any]:
    """Assert 40 files of Status 1 and 20 results of Revision 1, none doubled; returns the files."""
    files = [entry for result in results for entry in result["Files"]]
    assert [f["Status"] for f in files] == [1] * len(load.names) * len(SPEAKERS), [f for f in files if not f["Status"]]
    assert {f["Code"] for f in files} <= {*scenes.DONE}
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


async def captures_of(many: cluster.Cluster, name: str) -> set[str]:
    """The owners of the captures that a node has leased."""
    node = many.node_id(name)
    leased = await many.ask(f"SELECT owner FROM jobs WHERE state = 'leased' AND kind = 'capture' AND node = '{node}'")
    return {row["owner"] for row in leased}


async def all_held_by(many: cluster.Cluster, name: str, count: int) -> None:
    """Wait until a node has this many captures and no other node has one."""

    async def taken_over() -> bool:
        leased = await many.ask("SELECT node FROM jobs WHERE state = 'leased' AND kind = 'capture'")
        return [row["node"] for row in leased] == [many.node_id(name)] * count

    await waiting.until(taken_over, 45, f"{name} to have every capture", every_s=0.5)


def unix_s(iso: str) -> float:
    """The Unix time of a result's time."""
    return datetime.fromisoformat(iso).timestamp()


def with_gaps(results: list[Any]) -> dict[str, Any]:
    """The files with gaps, by the owner of their work."""
    return {f"{result['TaskId']}/{f['UserId']}/1": f for result in results for f in result["Files"] if scenes.gaps(f)}


def stood_still(many: cluster.Cluster) -> set[str]:
    """The owners whose streams paused long enough to end a segment: on a machine too busy to send them, that is another gap."""
    return many.owners_told("capture.ended", reason="stalled")


def _is_lost(gap: Any) -> bool:
    """Whether a gap is longer than a pull takes to begin."""
    return bool(gap["Duration"] > 4)


def check_gaps(many: cluster.Cluster, results: list[Any], killed: set[str], killed_s: float, lease_s: float) -> None:
    """Each file of a killed capture has one gap, the others have none. The gap begins where its node was killed at `killed_s`
    (Unix), so earlier media is in the file, and ends with the takeover."""
    found, still = with_gaps(results), stood_still(many)
    assert found.keys() - still == killed - still
    assert killed - still
    gaps = {owner: scenes.gaps(found[owner]) for owner in killed - still}
    assert all(len(each) == 1 for each in gaps.values()), gaps
    begins_s = [unix_s(found[owner]["StartTime"]) + each[0]["At"] - killed_s for owner, each in gaps.items()]
    lengths_s = [each[0]["Duration"] for each in gaps.values()]
    fault_figures.note("gaps of killed captures", f"{len(killed)}, {min(lengths_s):.1f} to {max(lengths_s):.1f} s")
    fault_figures.note("they begin after the kill at", f"{min(begins_s):.2f} to {max(begins_s):.2f} s")
    slack_s = waiting.limit_s(SLACK_S)
    assert all(-LOST_TO_A_KILL_S - slack_s <= begin <= slack_s for begin in begins_s), begins_s
    assert max(lengths_s) <= lease_s + waiting.limit_s(TAKEN_OVER_WITHIN_S), lengths_s


async def check_uninterrupted(many: cluster.Cluster, results: list[Any]) -> None:
    """No capture was taken from its worker because of the servers, and no file has a gap."""
    assert not await many.ask("SELECT owner FROM journal WHERE event_type = 'worker-lost'")
    assert with_gaps(results).keys() <= stood_still(many)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shared", [True, False], ids=["shared-spool", "spool-per-node"])
async def test_a_worker_is_killed(world: World, clusters: Callable[..., Awaitable[cluster.Cluster]], shared: bool) -> None:
    """After kill -9 of one of two workers with 20 rooms of two speakers, 40 recordings are Done, 20 results are delivered once,
    and the gaps of the killed captures are reported, with one spool for all (default lease, takeover within 40 s) and with a
    spool per node (short lease, the killed node restarts and its segments are fetched)."""
    lease_s = 30 if shared else cluster.LEASE_S
    many = await clusters(shared=shared, NODE_RETURN=f"{60 * waiting.pace():.0f}s", LEASE=f"{lease_s:.1f}s")
    load = Load(world)
    await load.begin()
    await live_for(2)
    killed = await captures_of(many, "worker1")
    assert len(killed | await captures_of(many, "worker2")) == SESSIONS * len(SPEAKERS)
    assert killed
    killed_s = time.time()
    await many.nodes["worker1"].kill()
    await all_held_by(many, "worker2", SESSIONS * len(SPEAKERS))
    await live_for(3)
    if not shared:
        await many.add("worker1", "worker")
    await load.end()
    results = await load.results()
    check_results(world, load, results)
    check_gaps(many, results, killed, killed_s, lease_s)


@pytest.mark.timeout(300)
async def test_a_node_that_never_returns(world: World, clusters: Callable[..., Awaitable[cluster.Cluster]]) -> None:
    """The recorder waits for an absent node's segments until NODE_RETURN and then delivers the rest with the loss as a gap; a
    replay after the node's return gives a Revision with a second file, which has the segments. The first one stays."""
    many = await clusters(shared=False, NODE_RETURN="8s")
    load = Load(world, FEW)
    await load.begin()
    await live_for(4)
    killed = await captures_of(many, "worker1")
    await many.nodes["worker1"].kill()
    await all_held_by(many, "worker2", FEW * len(SPEAKERS))
    await live_for(4)
    await load.end()
    results = await load.results()
    check_results(world, load, results)
    found = {
        f"{result['TaskId']}/{f['UserId']}/1": f for result in results for f in result["Files"] if any(map(_is_lost, f["Gaps"]))
    }
    assert killed <= found.keys() <= killed | stood_still(many)
    # The media of the absent node is not in the file, and it is reported all the same: as a gap before the first picture.
    assert all(found[owner]["Gaps"][0]["At"] == 0 and _is_lost(found[owner]["Gaps"][0]) for owner in killed), found
    await many.add("worker1", "worker")
    owner = min(killed)
    task_id, entry = owner.split("/")[0], found[owner]
    again = {
        "Speaker": entry["UserId"],
        "From": "transcoding",
        "CosConfig": {"SecretId": "AKIDexample", "SecretKey": "secret-key-example"},
    }
    await world.service.post(f"/sessions/{task_id}/replay", again)
    name = next(n for n, task in load.tasks.items() if task == task_id)
    await waiting.until(lambda: len(world.results(name)) > 1, 40, "the revision", every_s=0.2)
    revised = world.results(name)[-1]
    assert revised["Revision"] == 2
    first, better = [f for f in revised["Files"] if f["UserId"] == entry["UserId"]]
    assert first == entry
    assert better["Code"] in scenes.DONE
    assert better["Duration"] > entry["Duration"] + 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["broker", "database"])
async def test_a_server_is_restarted(world: World, clusters: Callable[..., Awaitable[cluster.Cluster]], what: str) -> None:
    """A restart of RabbitMQ or PostgreSQL under the same load ends no capture, and every result arrives once."""
    many = await clusters(shared=True, LEASE=LONG_LEASE)
    load = Load(world, FEW)
    await load.begin()
    server = many.broker if what == "broker" else cluster.postgres.shared()
    if what == "broker":
        await cluster.keep(server.restart)
    else:
        await cluster.keep(server.stop)
        await cluster.keep(server.start)
    await live_for(2)
    await load.end()
    results = await load.results()
    check_results(world, load, results)
    await check_uninterrupted(many, results)


@pytest.mark.timeout(120)
async def test_a_drained_worker_hands_over(world: World, clusters: Callable[..., Awaitable[cluster.Cluster]]) -> None:
    """A worker that gets SIGTERM hands over its captures with a short gap at most, and ends in time with exit code 0."""
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
    gaps = [g["Duration"] for entry in files for g in scenes.gaps(entry)]
    # A server that begins a pull with the media of the last second leaves none.
    assert max(gaps, default=0.0) < waiting.limit_s(6)


@pytest.mark.timeout(120)
async def test_a_worker_is_drained_by_an_operator(world: World, clusters: Callable[..., Awaitable[cluster.Cluster]]) -> None:
    """A drain hands the captures of a running worker over with a short gap at most. The worker takes none until it is uncordoned,
    also after its restart, and its probe tells so."""
    many = await clusters(shared=True)
    load = Load(world, 2)
    await load.begin()
    name = many.node_id("worker1")
    await world.service.post(f"/nodes/{name}/drain", {})
    await all_held_by(many, "worker2", 4)

    async def drained() -> bool:
        found = {node["Node"]: node for node in (await world.service.get("/nodes"))["Nodes"]}
        return bool(found[name]["State"] == "drained")

    await waiting.until(drained, 20, "the worker to be drained", every_s=0.2)
    assert await many.nodes["worker1"].stop() == 0
    await many.add("worker1", "worker")
    assert many.node_id("worker1") == name
    await world.simulator.create_room(APP, load.names[0]).join("carol")

    async def recorded() -> bool:
        return await world.service.states(load.tasks[load.names[0]]) == ["Recording"] * 3

    await waiting.until(recorded, 30, "the new speaker to be recorded", every_s=0.2)
    assert not await captures_of(many, "worker1")
    async with aiohttp.ClientSession() as http, http.get(many.nodes["worker1"].url + "/readyz") as probed:
        warnings = probed.headers.getall("Recorder-Warning", [])
    assert any(f"recorder nodes uncordon {name}" in warning for warning in warnings), warnings
    answer = await world.service.post(f"/nodes/{name}/uncordon", {})
    assert answer["Cordon"] == ""
    await load.end()
    results = await load.results()
    files = [entry for result in results for entry in result["Files"]]
    assert [entry["Status"] for entry in files] == [1] * 5
    gaps = [gap["Duration"] for entry in files for gap in scenes.gaps(entry)]
    assert max(gaps, default=0.0) < waiting.limit_s(6)
