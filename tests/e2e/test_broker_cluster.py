"""A RabbitMQ cluster of three nodes under live rooms: a leader is lost, two of three are lost, queues are purged.

The nodes of the recorder reach it by a proxy, as by a load balancer.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

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

    def waiting_in(self, prefix: str) -> int:
        """How many messages are in its queues."""
        listed = self.nodes[1].control("list_queues", "name", "messages", "--silent").decode().splitlines()
        return sum(int(line.split()[1]) for line in listed if line.startswith(prefix))


@pytest.fixture
async def brokers() -> AsyncIterator[Brokers]:
    """A cluster of its own."""
    nodes: list[rabbit.Broker] = []
    await cluster.keep(lambda: nodes.extend(rabbit.cluster()))
    way = tcp_proxy.Proxy(target_port=nodes[0].port)
    await way.start()
    yield Brokers(nodes, way)
    await way.stop()
    for node in reversed(nodes):
        await cluster.keep(node.remove)


@pytest.fixture
async def many(world: World, brokers: Brokers) -> AsyncIterator[cluster.Cluster]:
    """A recorder on that cluster."""
    url = brokers.nodes[0].url.replace(f":{brokers.nodes[0].port}/", f":{brokers.way.port}/")
    made = cluster.Cluster(world, shared=True, broker=brokers.nodes[0], settings={"AMQP_URL": url, "MAX_CPU": "0"})
    await made.start(**test_cluster.NODES)
    yield made
    await made.stop()


@pytest.mark.timeout(400)
async def test_a_leader_and_then_two_of_three_are_lost(world: World, many: cluster.Cluster, brokers: Brokers) -> None:
    """The node that leads all queues is killed while rooms are live. Later two of three are away while the rooms end: nothing is
    confirmed until they are back, and then every result arrives once. No capture ends."""
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
async def test_purged_queues_lose_no_result(world: World, many: cluster.Cluster, brokers: Brokers) -> None:
    """While the only `machine` is away, captures end. Their outcomes and all else that waits in the queues is purged: the work is
    issued again, and each session ends with one result."""
    load = test_cluster.Load(world, SESSIONS)
    await load.begin()
    await many.nodes["machine"].kill()
    await load.end()
    await waiting.until(lambda: brokers.waiting_in(many.prefix) >= SESSIONS, 60, "outcomes in the queues", every_s=0.5)
    for queue in brokers.nodes[0].queues(many.prefix):
        brokers.nodes[0].control("purge_queue", queue["name"])
    await many.add("machine", "machine")
    results = await load.results(AGAIN_S + test_cluster.FINISHED_WITHIN_S)
    test_cluster.check_results(world, load, results)
    fault_figures.note("results after purged queues", f"{len(results)} of {SESSIONS}")
