"""A full disk or a stale mount under one of many workers' spools, on the distributed engine: another worker goes on."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import backends, service_process, spool_faults, waiting
from tests.e2e import cluster, scenes
from tests.e2e.conftest import World, live_for
from tests.e2e.test_cluster import all_held_by

pytestmark = pytest.mark.parametrize("engine", [backends.DISTRIBUTED])

PROGRAM = "from tests import spool_faults; spool_faults.main()"


@pytest.fixture
async def many(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[cluster.Cluster]:
    """A cluster whose spools may fail; it has no worker yet."""
    monkeypatch.setattr(service_process.ServiceProcess, "program", PROGRAM)
    made = cluster.Cluster(world, shared=False, settings={"CAPTURE": "native"})
    await made.start(api="api,machine")
    yield made
    await made.stop()


def _faults(many: cluster.Cluster, name: str) -> spool_faults.SpoolFaults:
    """The faults of a worker's spool."""
    return spool_faults.SpoolFaults(many.nodes[name].folder / "spool")


def _told(many: cluster.Cluster, name: str, event: str) -> list[dict[str, Any]]:
    """The lines with this event in the log of a node."""
    lines = Path(many.nodes[name].log).read_text().splitlines()
    return [found for line in lines if event in line and (found := json.loads(line))["event"] == event]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE])
async def test_another_worker_goes_on(world: World, many: cluster.Cluster, number: int) -> None:
    """The spool of the worker that captures a live room fails: the other one captures on. The spool of the one that has most
    of the media fails when it makes the file: the other one makes it. The file has both parts of the room."""
    await many.add("worker1", "worker")
    scene = scenes.Scene(world, f"spool{number}")
    await scene.start()
    await scene.join("alice")
    await scene.recordings("Recording")
    await many.add("worker2", "worker")
    await live_for(2)
    _faults(many, "worker1").fail(number, *spool_faults.WRITES)
    await all_held_by(many, "worker2", 1)
    await scene.recordings("Recording")
    ended = [line["reason"] for line in _told(many, "worker1", "capture.ended")]
    assert ended[0] == ("disk-full" if number == errno.ENOSPC else "spool-lost")
    await waiting.until(lambda: _most_media(many, "worker2"), 60, "worker2 to have most of the media", every_s=0.5)
    # Now worker1 has space, and worker2, which has most of the media, can finish no file.
    _faults(many, "worker1").heal()
    _faults(many, "worker2").fail(number, "replace")
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    assert entry["Duration"] > 3
    assert scenes.gaps(entry)
    assert {line["reason"] for line in _told(many, "worker2", "transcode.failed")} == {ended[0]}
    assert not _told(many, "worker2", "transcode.done")
    assert _told(many, "worker1", "transcode.done")


async def _most_media(many: cluster.Cluster, name: str) -> bool:
    """Whether the node has most of the media by far, in time and so in bytes."""
    rows = await many.ask("SELECT node, sum(media_ms) AS media_ms FROM segments GROUP BY node")
    media_ms = {row["node"]: int(row["media_ms"]) for row in rows}
    own_ms = media_ms.pop(many.node_id(name), 0)
    return bool(own_ms > 1.5 * sum(media_ms.values()))
