"""Rolling upgrade of the distributed engine from release 0.1.0, on RabbitMQ and PostgreSQL, while rooms are live.

Rule: UPGRADE_SESSIONS sets the number of rooms of two speakers, for a longer run.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aio_pika
import pytest

from store import side_by_side
from tests import backends, earlier_release, rabbit, waiting
from tests.chaos import fault_figures
from tests.e2e import cluster, test_cluster
from tests.e2e.conftest import World, live_for
from tests.e2e.test_rooms_and_modes import posted

pytestmark = pytest.mark.parametrize("engine", [backends.DISTRIBUTED])

SESSIONS = int(os.environ.get("UPGRADE_SESSIONS", "3"))
OLD = {"api": "api", "machine": "machine", "worker1": "worker", "worker2": "worker"}
# Promised for a drain, on the idle reference machine.
LONGEST_GAP_S = 6.0


@pytest.fixture
async def many(world: World) -> AsyncIterator[cluster.Cluster]:
    """A cluster of release 0.1.0."""
    made = cluster.Cluster(world, shared=False, settings={"NODE_RETURN": f"{60 * waiting.pace():.0f}s"})
    made.release = earlier_release.v010()
    fault_figures.note("the earlier version", made.release.reason or "0.1.0")
    await made.start(**OLD)
    yield made
    await made.stop()


async def replace(many: cluster.Cluster, name: str) -> None:
    """Stop a node in order, and start today's version in its place."""
    assert await many.nodes[name].stop() == 0
    await many.add(name, OLD[name])


async def parked(many: cluster.Cluster) -> int:
    """The number of dead letters."""
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(f"{many.prefix}.parked", passive=True)
        return queue.declaration_result.message_count or 0


@pytest.mark.timeout(400)
async def test_nodes_are_replaced_one_after_the_other(world: World, many: cluster.Cluster) -> None:
    """Nodes of 0.1.0 are replaced under live rooms; rooms also begin and end while both versions work. Each session ends with one
    result, no message is parked, and no gap is longer than that of a drained worker."""
    live, between = test_cluster.Load(world, SESSIONS), test_cluster.Load(world, 2)
    between.names = [f"between-{number}" for number in range(2)]
    await live.begin()
    many.release = earlier_release.current()
    code, output = await many.migrate()
    assert code == 0, output
    await live_for(1)
    await replace(many, "worker1")
    await between.begin()
    await replace(many, "machine")
    await live_for(2)
    await between.end()
    results = await between.results()
    await replace(many, "worker2")
    code, output = await many.migrate("--contract")
    assert (code, "Nodes of an older version work: " in output) == (1, True), output
    await replace(many, "api")

    async def contracted() -> bool:
        return (await many.migrate("--contract"))[0] == 0

    await waiting.until(contracted, 2 * side_by_side.ALIVE_MS / 1000, "the heartbeats of 0.1.0 to be old", every_s=1)
    await live.end()
    results += await live.results()
    files = [entry for result in results for entry in result["Files"]]
    assert [result["Revision"] for result in results] == [1] * (SESSIONS + 2)
    assert [entry["Status"] for entry in files] == [1] * (SESSIONS + 2) * len(test_cluster.SPEAKERS), files
    assert all(len({body for _, body in posts}) == 1 for posts in posted(world).values())
    gaps = [gap["Duration"] for entry in files for gap in entry["Gaps"]]
    fault_figures.note("gaps of a rolling upgrade", f"{len(gaps)}, at most {max(gaps, default=0):.1f} s")
    assert max(gaps) < waiting.limit_s(LONGEST_GAP_S)
    assert await parked(many) == 0
    assert await many.ask("SELECT task_id FROM sessions WHERE state <> 'Finished' OR live <> 0 OR uploading <> 0") == []
