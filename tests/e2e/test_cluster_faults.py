"""Faults of the distributed engine's bus: a broken network, poison messages, starts by other applications, a full worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import pytest
from aio_pika import abc

from bus import dead_letters
from tests import backends, buses, engines, rabbit, tcp_proxy, waiting
from tests.e2e import cluster, scenes, test_cluster
from tests.e2e.conftest import APP, World, live_for

pytestmark = pytest.mark.parametrize("engine", [backends.DISTRIBUTED])

SESSIONS = test_cluster.FEW
ALONE = {"one": "api,machine,worker"}
HUGE_BYTES = 20 * 1024 * 1024
Clusters = Callable[..., Awaitable[cluster.Cluster]]


@pytest.fixture
async def clusters(world: World) -> AsyncIterator[Clusters]:
    """Starts clusters that share a spool; stops them in the end."""
    made: list[cluster.Cluster] = []

    async def start(nodes: dict[str, str], **settings: str) -> cluster.Cluster:
        made.append(cluster.Cluster(world, shared=True, settings=settings))
        await made[-1].start(**nodes)
        return made[-1]

    yield start
    for each in made:
        await each.stop()


@pytest.fixture
async def cable() -> AsyncIterator[tcp_proxy.Proxy]:
    """The nodes' connection to the broker."""
    proxy = tcp_proxy.Proxy(target_port=rabbit.shared().port)
    await proxy.start()
    yield proxy
    await proxy.stop()


@dataclass(slots=True)
class Heard:
    """The results that a subscriber received, each message once: by message id, (routing key, correlation id, body). `ids` are
    those of all deliveries, in order."""

    messages: dict[str, tuple[str, str, Any]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    bodies: set[bytes] = field(default_factory=set)

    def of(self, type_: str) -> list[tuple[str, Any]]:
        """(correlation id, data) of the results of one type."""
        return [(about, body["data"]) for key, about, body in self.messages.values() if key == f"result.{type_}"]

    async def answer(self, type_: str, about: str) -> Any:
        """The data of the result of this type about an event, once it arrives."""
        return await waiting.until(lambda: [d for id_, d in self.of(type_) if id_ == about], 20, f"{type_} about {about}")


@asynccontextmanager
async def listening(prefix: str) -> AsyncIterator[Heard]:
    """Subscribe to `result.#`, as another application would."""
    heard = Heard()

    async def note(message: abc.AbstractIncomingMessage) -> None:
        body = json.loads(message.body)
        heard.messages[str(message.message_id)] = (str(message.routing_key), message.correlation_id or "", body)
        heard.bodies.add(message.body)
        heard.ids.append(str(message.message_id))

    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(prefix, "result.#")
        await queue.consume(note, no_ack=True)
        yield heard


@pytest.mark.timeout(300)
async def test_the_network_to_the_broker_breaks(world: World, clusters: Clusters, cable: tcp_proxy.Proxy) -> None:
    """Cutting every node's connection to the broker while rooms are live, and silencing and cutting it while they end, ends no
    capture; every result is delivered once over HTTP and over the bus."""
    url = rabbit.shared().url.replace(f":{rabbit.shared().port}/", f":{cable.port}/")
    many = await clusters(test_cluster.NODES, AMQP_URL=url, LEASE=test_cluster.LONG_LEASE)
    load = test_cluster.Load(world, SESSIONS)
    recordings = SESSIONS * len(test_cluster.SPEAKERS)
    async with listening(many.prefix) as heard:
        await load.begin()
        before = cable.taken
        cable.cut()
        await live_for(2)
        cable.restore()
        await waiting.until(lambda: cable.taken >= before + len(test_cluster.NODES), 30, "the nodes to be connected again")
        cable.blackhole()
        await load.end()
        await live_for(2)
        cable.cut()
        cable.restore()
        results = await load.results()
        test_cluster.check_results(world, load, results)
        await waiting.until(lambda: len(heard.of("session-finished")) >= SESSIONS, 20, "the results to be heard")
        await waiting.until(lambda: len(heard.of("recording-done")) >= recordings, 20, "every recording's result to be heard")
    await test_cluster.check_uninterrupted(many, results)
    assert (len(heard.of("session-finished")), len(heard.of("recording-done"))) == (SESSIONS, recordings)
    assert len(heard.bodies) == len(heard.messages), "a message id with two bodies"


@pytest.mark.timeout(120)
async def test_a_message_that_cannot_be_handled_is_parked(world: World, clusters: Clusters) -> None:
    """A message that is no JSON, of unknown type, against its schema or of 20 MB is parked whole with its reason, if it is no
    request that can be answered. A room that is recorded meanwhile ends as usual."""
    many = await clusters(ALONE)
    load = test_cluster.Load(world, 1)
    await load.begin()
    huge = json.dumps({"TaskId": "x" * HUGE_BYTES}).encode()
    sent = {
        "not-json": ("event.user-left", b"bye"),
        "unknown-type": ("event.dance", b"{}"),
        "broken-schema": ("event.user-left", b'{"SdkAppId":"many","UserSig":"PLANTED"}'),
        "huge": ("event.user-left", huge),
    }
    for id_, (key, body) in sent.items():
        await buses.say(many.prefix, key, body, message_id=id_, content_type="application/json")
    await load.end()
    test_cluster.check_results(world, load, await load.results())
    queue = dead_letters.DeadLetterQueue(many.broker.url, keyring=engines.keyring(), prefix=many.prefix)

    async def all_parked() -> dict[str, dead_letters.DeadLetter]:
        found, count = await queue.list()
        return {p.message_id: p for p in found} if count == len(sent) else {}

    found = await waiting.until(all_parked, 20, "all four to be parked", every_s=0.5)
    assert {id_: (p.key, p.size_bytes) for id_, p in found.items()} == {i: (k, len(b)) for i, (k, b) in sent.items()}
    for id_, reason in (("not-json", "JSON"), ("unknown-type", "dance"), ("broken-schema", "UserId"), ("huge", "bytes")):
        assert reason in found[id_].reason
    assert "PLANTED" not in (await queue.show(found["broken-schema"].id)).body


@pytest.mark.timeout(120)
async def test_a_start_by_another_application(world: World, clusters: Clusters) -> None:
    """A bare JSON start on the bus is accepted with the event's id as correlation id and ends in a session-finished; a repeat
    under the same id gets the same answer, one under another id the same session, and an invalid one is refused."""
    many = await clusters(ALONE)
    wanted = world.request("bus-room", Mode="00")

    async def publish(id_: str, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        await buses.say(many.prefix, "event.start", raw, message_id=id_, content_type="application/json")

    async with listening(many.prefix) as heard:
        await publish("first", wanted)
        (accepted,) = await heard.answer("session-accepted", "first")
        task_id = accepted["TaskId"]
        await publish("first", wanted)
        await waiting.until(lambda: heard.ids.count("first.accepted") == 2, 20, "the same answer again")
        await publish("second", wanted)
        assert [(a["TaskId"], a["Repeated"]) for a in await heard.answer("session-accepted", "second")] == [(task_id, True)]
        await publish("third", {k: v for k, v in wanted.items() if k != "UserSig"})
        (refused,) = await heard.answer("session-refused", "third")
        assert refused["Code"] == "InvalidParameter"
        assert "UserSig" in refused["Message"]
        room = world.simulator.create_room(APP, "bus-room")
        await room.join("alice")

        async def recorded() -> bool:
            return await world.service.states(task_id) == ["Recording"]

        await waiting.until(recorded, 20, "alice to be recorded", every_s=0.2)
        await live_for(2)
        await room.dismiss()
        await waiting.until(lambda: heard.of("session-finished"), 40, "the result")
    ((_, result),) = heard.of("session-finished")
    assert (result["TaskId"], [f["Code"] for f in result["Files"]]) == (task_id, ["Success"])
    assert sorted(about for about, _ in heard.of("session-accepted")) == ["first", "second"]
    assert len(heard.bodies) == len(heard.messages)
    assert [row["task_id"] for row in await many.ask("SELECT task_id FROM sessions")] == [task_id]


@pytest.mark.timeout(120)
async def test_no_message_stays_unacknowledged_while_ffmpeg_runs(world: World, clusters: Clusters) -> None:
    """A capture of several seconds runs to its end on one connection, although the broker disconnects a consumer that leaves a
    message unacknowledged for a second."""
    async with rabbit.shared().impatient(1_000):
        many = await clusters(ALONE)
        room = world.simulator.create_room(APP, "patient")
        await room.join("alice")
        answer = await world.service.post("/sessions", world.request("patient", Mode="00"))

        async def recorded() -> bool:
            return await world.service.states(answer["TaskId"]) == ["Recording"]

        await waiting.until(recorded, 20, "alice to be recorded", every_s=0.2)
        await live_for(4)
        await room.dismiss()
        await world.service.finished(answer["TaskId"])
        log = many.nodes["one"].log.read_text()
    ((file,),) = (result["Files"] for result in world.results("patient"))
    assert (file["Code"], scenes.gaps(file)) == ("Success", [])
    assert file["Duration"] >= 3
    assert log.count('"bus.connected"') == 1


async def _checked(check: Callable[[], Awaitable[object]], task: asyncio.Task[None]) -> bool:
    await check()
    return task.done()


@pytest.mark.timeout(120)
async def test_a_full_worker_leaves_captures_to_others(world: World, clusters: Clusters) -> None:
    """A worker with MAX_CAPTURES=2 never takes more than two captures, another takes the other six, and all end well."""
    many = await clusters({"api": "api,machine"})
    await asyncio.gather(many.add("worker1", "worker", MAX_CAPTURES="2"), many.add("worker2", "worker"))
    small = many.node_id("worker1")
    seen = set[int]()

    async def leased() -> dict[bool, int]:
        rows = await many.ask("SELECT node, count(*) AS n FROM jobs WHERE state = 'leased' AND kind = 'capture' GROUP BY node")
        found = {row["node"] == small: int(row["n"]) for row in rows}
        seen.add(found.get(True, 0))
        return found

    load = test_cluster.Load(world, 4)
    beginning = asyncio.create_task(load.begin())
    await waiting.until(lambda: _checked(leased, beginning), 60, "the load to have begun", every_s=0.05)
    await beginning
    assert await leased() == {True: 2, False: 6}
    assert max(seen) == 2
    await load.end()
    test_cluster.check_results(world, load, await load.results())
