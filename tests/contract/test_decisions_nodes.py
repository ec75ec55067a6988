"""The node that is asked first: on a spool that several nodes share the one that captured last, which may follow the
recording."""

from __future__ import annotations

import pytest

from machine import model
from store import store as stores
from tests import decider_harness, engines

LEASE_MS = model.Policy().lease_ms


async def _captured(harness: decider_harness.Harness, *nodes: str) -> str:
    """A recording in Recording without a capture: each of the nodes has captured once."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    for node in nodes:
        epoch = await harness.take(owner, node)
        # The longest run is the first node's.
        media_ms = 9_000 if node == nodes[0] else 1_000
        await harness.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="new-track", MediaMs=media_ms, SizeBytes=1)
    return owner


async def _asked(harness: decider_harness.Harness, type_: str) -> str:
    """The node that the last command of this type names; "" if it names none."""
    return [m.node for m in await harness.store.outbox.unsent(1_000) if m.type == type_][-1]


async def _stopped(harness: decider_harness.Harness, owner: str) -> None:
    await harness.say("stop", TaskId=owner.partition("/")[0])
    assert (await harness.recording(owner)).state == "Transcoding"


async def test_who_captured_last_is_asked_first(store: stores.Store, clock: engines.Clock) -> None:
    """Of two live nodes the one of the last segment gets the commands for transcode and upload; the jobs are for any node. A
    capture, and whatever follows a failure, names no node."""
    harness = decider_harness.connect(store, clock, several=True)
    await store.nodes.heartbeat("n1")
    await store.nodes.heartbeat("n2")
    owner = await _captured(harness, "n1", "n2")
    assert await _asked(harness, "start-capture") == ""
    await _stopped(harness, owner)
    assert await _asked(harness, "start-transcode") == "n2"
    job = (await harness.recording(owner)).job
    assert job is not None
    assert job.node == ""
    await harness.transcode(owner)
    assert await _asked(harness, "start-upload") == "n2"
    await harness.upload(owner, good=False, retry=True)
    await harness.wait(model.MINUTE)
    assert await _asked(harness, "start-upload") == ""


@pytest.mark.parametrize(
    ("several", "shared", "silent_ms", "asked"),
    [(True, True, 0, "n1"), (True, True, LEASE_MS + 1, ""), (False, True, 0, ""), (True, False, LEASE_MS + 1, "n1")],
)
async def test_nobody_waits_for_a_node_that_is_away(
    store: stores.Store, clock: engines.Clock, several: bool, shared: bool, silent_ms: int, asked: str
) -> None:
    """A node without a heartbeat for a lease is not asked on a shared spool. Elsewhere only its files decide; a single node is
    never named."""
    harness = decider_harness.connect(store, clock, several=several, shared_spool=shared)
    await store.nodes.heartbeat("n1")
    owner = await _captured(harness, "n1")
    clock.advance(silent_ms)
    await _stopped(harness, owner)
    assert await _asked(harness, "start-transcode") == asked
