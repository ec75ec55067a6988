"""A RabbitMQ cluster of three nodes under live rooms: a leader is lost, two of three are lost, queues are purged.

The nodes of the recorder reach it by a proxy, as by a load balancer.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import aio_pika
import pytest

from tests import backends, rabbit, tcp_proxy, waiting
from tests.chaos import fault_figures
from tests.e2e import cluster, test_cluster
from tests.e2e.conftest import World, live_for

pytestmark = pytest.mark.parametrize("engine", [backends.DISTRIBUTED])

SESSIONS = 4
# A lost command is issued again after a minute, a lost outcome is given up after some leases.
AGAIN_S = 60.0 + 6 * cluster.LEASE_S


@dataclass(slots=True)
class Brokers:
    """The three nodes, and the way to the one that clients use."""

    nodes: list[rabbit.Broker]
    way: tcp_proxy.Proxy

    async def lead_to(self, node: rabbit.Broker) -> None:
        """Clients connect to this node from now on."""
        self.way.cut()
        self.way.target_port = node.port
        self.way.restore()

    def leaders(self, prefix: str) -> set[str]:
        """The names of the nodes that lead the queues of one recorder, as a living node tells."""
        listed = self.nodes[1].queues(prefix)
        return {queue["leader"].split("@")[0] for queue in listed if queue["type"] == "quorum"}

    async def waiting_in(self, *queues: str) -> int:
        """How many messages are in these queues."""
        async with await aio_pika.connect(self.nodes[0].url) as connection, connection.channel() as channel:
            found = [await channel.declare_queue(name, passive=True) for name in queues]
        return sum(queue.declaration_result.message_count or 0 for queue in found)

    async def purge(self, *queues: str) -> None:
        """Delete all that waits in these queues."""
        async with await aio_pika.connect(self.nodes[0].url) as connection, connection.channel() as channel:
            for name in queues:
                await (await channel.get_queue(name, ensure=False)).purge()


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[rabbit.Broker]]:
    """One cluster for all tests: it takes longer to start than they take."""
    made: list[rabbit.Broker] = cluster.KEEPER.submit(rabbit.cluster).result()
    yield made
    for node in reversed(made):
        cluster.KEEPER.submit(node.remove).result()


@pytest.fixture
async def brokers(nodes: list[rabbit.Broker]) -> AsyncIterator[Brokers]:
    """The cluster, whole, and a way to it."""
    way = tcp_proxy.Proxy(target_port=nodes[0].port)
    await way.start()
    yield Brokers(nodes, way)
    await way.stop()
    for node in nodes:
        await cluster.keep(node.start)


@contextlib.asynccontextmanager
async def recorder(world: World, brokers: Brokers, **settings: str) -> AsyncIterator[cluster.Cluster]:
    """A recorder on that cluster."""
    url = brokers.nodes[0].url.replace(f":{brokers.nodes[0].port}/", f":{brokers.way.port}/")
    settings |= {"AMQP_URL": url, "MAX_CPU": "0"}
    made = cluster.Cluster(world, shared=True, broker=brokers.nodes[0], settings=settings)
    await made.start(**test_cluster.NODES)
    try:
        yield made
    finally:
        await made.stop()


@pytest.mark.timeout(400)
async def test_a_leader_and_then_two_of_three_are_lost(world: World, brokers: Brokers) -> None:
    """The node that leads all queues is killed while rooms are live. Later two of three are away while the rooms end: nothing is
    confirmed until they are back, and then every result arrives once. No capture ends."""
    async with recorder(world, brokers, LEASE=test_cluster.LONG_LEASE) as many:
        first, second, third = brokers.nodes
        load = test_cluster.Load(world, SESSIONS)
        await load.begin()
        assert brokers.leaders(many.prefix) == {first.name}
        await cluster.keep(lambda: first.stop(signal.SIGKILL))
        await brokers.lead_to(second)
        await waiting.until(lambda: first.name not in brokers.leaders(many.prefix), 30, "another leader", every_s=0.5)
        await live_for(2)
        await cluster.keep(first.start)
        for node in (first, third):
            await cluster.keep(functools.partial(node.stop, signal.SIGKILL))
        await load.end()
        await live_for(5)
        assert not any(world.results(name) for name in load.names)
        for node in (first, third):
            await cluster.keep(node.start)
        results = await load.results()
        test_cluster.check_results(world, load, results)
        await test_cluster.check_uninterrupted(many, results)


@pytest.mark.timeout(400)
async def test_purged_queues_lose_no_result(world: World, brokers: Brokers) -> None:
    """While the only `machine` is away, captures end. Their outcomes and all else that waits in the queues is purged: the work is
    issued again, and each session ends with one result."""
    async with recorder(world, brokers) as many:
        load = test_cluster.Load(world, SESSIONS)
        await load.begin()
        await many.nodes["machine"].kill()
        await load.end()
        names = [queue["name"] for queue in brokers.nodes[0].queues(many.prefix)]

        async def have_ended() -> bool:
            return await brokers.waiting_in(*names) >= SESSIONS

        await waiting.until(have_ended, 60, "outcomes in the queues", every_s=0.5)
        await brokers.purge(*names)
        await many.add("machine", "machine")
        results = await load.results(AGAIN_S + test_cluster.FINISHED_WITHIN_S)
        test_cluster.check_results(world, load, results)
        fault_figures.note("results after purged queues", f"{len(results)} of {SESSIONS}")
