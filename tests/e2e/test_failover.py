"""PostgreSQL comes back some transactions older under live rooms: an asynchronous replica is promoted, or a backup is restored.

Rule: FAILOVER_SESSIONS sets the number of rooms of two speakers, for a longer run.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests import backends, postgres, tcp_proxy, waiting
from tests.chaos import fault_figures
from tests.e2e import cluster, test_cluster
from tests.e2e.conftest import APP, World, live_for

pytestmark = pytest.mark.parametrize("engine", [backends.DISTRIBUTED])

SESSIONS = int(os.environ.get("FAILOVER_SESSIONS", "3"))


@dataclass(slots=True)
class Databases:
    """A primary, the copy that replaces it, and the two ways between them and to the nodes."""

    primary: postgres.Server
    to_nodes: tcp_proxy.Proxy
    to_copy: tcp_proxy.Proxy
    copy: postgres.Server | None = None

    async def copied(self, how: str) -> None:
        """Make the copy. What the primary writes from now on is lost."""

        def make() -> None:
            follows = self.to_copy.port if how == "replica" else 0
            self.copy = postgres.Server(copy_of=self.primary, follows_port=follows)
            if how == "replica":
                self.copy.start()

        await cluster.keep(make)
        self.to_copy.blackhole()

    async def fail_over(self, how: str) -> None:
        """Kill the primary, and let the nodes find the copy in its place."""
        assert self.copy is not None
        await cluster.keep(lambda: self.primary.stop(signal.SIGKILL))
        await cluster.keep(self.copy.promote if how == "replica" else self.copy.start)
        self.to_nodes.cut()
        self.to_nodes.target_port = self.copy.port
        self.to_nodes.restore()


@pytest.fixture
async def databases() -> AsyncIterator[Databases]:
    """A server of its own."""
    primary = postgres.Server()
    await cluster.keep(primary.start)
    made = Databases(primary, tcp_proxy.Proxy(target_port=primary.port), tcp_proxy.Proxy(target_port=primary.port))
    await made.to_nodes.start()
    await made.to_copy.start()
    yield made
    await made.to_nodes.stop()
    await made.to_copy.stop()
    for server in (made.primary, made.copy):
        if server is not None:
            await cluster.keep(server.remove)


@pytest.fixture
async def many(world: World, databases: Databases) -> AsyncIterator[cluster.Cluster]:
    """A cluster that reaches the primary by the proxy."""
    url = databases.primary.create().replace(f":{databases.primary.port}/", f":{databases.to_nodes.port}/")
    # One worker must take all captures while the other one restarts.
    made = cluster.Cluster(world, shared=True, database=url, settings={"MAX_CPU": "0"})
    await made.start(**test_cluster.NODES)
    yield made
    await made.stop()


async def captured(many: cluster.Cluster) -> int:
    """How many captures workers hold."""
    return len(await many.ask("SELECT owner FROM jobs WHERE state = 'leased' AND kind = 'capture'"))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["replica", "backup"])
async def test_lost_transactions_lose_no_session(world: World, many: cluster.Cluster, databases: Databases, how: str) -> None:
    """All transactions of some seconds are lost, in which a speaker left and came back and one worker handed its captures to the
    other. Each session ends with one result, and gaps tell what is missing."""
    load = test_cluster.Load(world, SESSIONS)
    await load.begin()
    expected = SESSIONS * len(test_cluster.SPEAKERS)
    await live_for(2)
    await databases.copied(how)
    alice = world.simulator.create_room(APP, load.names[0]).speakers["alice"]
    await alice.leave()
    assert await many.nodes["worker1"].stop() == 0
    await world.simulator.create_room(APP, load.names[0]).join("alice")
    await test_cluster.all_held_by(many, "worker2", expected)
    await live_for(2)
    await databases.fail_over(how)
    await many.add("worker1", "worker")

    async def all_captured() -> bool:
        return await captured(many) == expected

    await waiting.until(all_captured, 3 * cluster.LEASE_S + 30, "all speakers to be captured again", every_s=0.5)
    await live_for(3)
    await load.end()
    results = await load.results()
    files = [entry for result in results for entry in result["Files"]]
    assert [result["Revision"] for result in results] == [1] * SESSIONS
    assert [entry["Status"] for entry in files] == [1] * expected, files
    gaps = [gap["Duration"] for entry in files for gap in entry["Gaps"]]
    assert gaps
    fault_figures.note(f"gaps after a database that is some seconds older ({how})", f"{len(gaps)}, at most {max(gaps):.1f} s")
    for entry in files:
        wall_s = test_cluster.unix_s(entry["EndTime"]) - test_cluster.unix_s(entry["StartTime"])
        told_s = sum(gap["Duration"] for gap in entry["Gaps"])
        assert wall_s - entry["Duration"] - told_s <= waiting.limit_s(test_cluster.SLACK_S), entry
