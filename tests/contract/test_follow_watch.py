"""Followers and live uploads end with this node's part in the recording: when another node has it, or when it is over."""

from __future__ import annotations

import pytest

from machine import job_key, model
from tests.work_doubles import Node, node
from worker import follow_watch

__all__ = ["node"]
LEASE_MS = 30_000


@pytest.fixture
async def watched(node: Node) -> tuple[Node, follow_watch.FollowWatch, job_key.RecordingKey]:
    """A node that captures and follows a recording, and its watch."""
    await node.open()
    key = (await node.recording()).key
    node.work.following.add(key)
    return node, follow_watch.FollowWatch(node.store, node.work, node="node-1", jobs=node.worker.leases.jobs), key


Watched = tuple[Node, follow_watch.FollowWatch, job_key.RecordingKey]


async def lost(node: Node) -> model.Recording:
    """The recording, whose capture this node has lost: its next one is queued for any node."""
    value = await node.recording()
    await node.say("worker-lost", Owner=str(value.key), Epoch=value.epoch, Node="node-1")
    for job in list(node.worker.leases.jobs.values()):
        node.worker.leases.release(job)
    return await node.recording()


async def test_a_recording_that_another_node_has_is_dropped(watched: Watched) -> None:
    """While the capture runs here, and while the next one may come here, it stays followed. Once another node has it, it is
    not."""
    node, watch, key = watched
    await watch.look()
    value = await lost(node)
    await watch.look()
    assert node.work.unfollowed == []
    assert await node.store.leases.take(key, value.epoch, "node-2", LEASE_MS)
    await watch.look()
    assert (node.work.unfollowed, node.work.followed()) == ([(key, None)], [])


async def test_a_file_that_is_written_needs_no_space_any_more(watched: Watched) -> None:
    """A capture needs a reserve, and its file as much space as its segments have; not while that file is being written."""
    node, _, key = watched
    node.work.captures[-1].media(5_000, node.clock)
    assert node.worker.expected_bytes(100) == 100
    node.work.following.discard(key)
    assert node.worker.expected_bytes(100) == 5_100


async def test_what_another_node_may_complete_is_named(watched: Watched) -> None:
    """The saved state of the upload goes along, whose parts must stay."""
    node, watch, key = watched
    value = await lost(node)
    assert await node.store.leases.take(key, value.epoch, "node-2", LEASE_MS)
    assert await node.store.uploads.save(key, value.epoch, "node-2", {"upload_id": "u"})
    await watch.look()
    assert node.work.unfollowed == [(key, {"upload_id": "u"})]


async def test_a_recording_that_is_over_is_dropped(watched: Watched) -> None:
    """It failed without media, so no transcode of this node ends its follower; one that the database does not know has none."""
    node, watch, key = watched
    await lost(node)
    await node.say("stop", TaskId=node.task_id)
    assert (await node.recording()).final
    unknown = job_key.RecordingKey("01" + "9" * 24, "al", 1)
    node.work.following.add(unknown)
    await watch.look()
    assert {each for each, _ in node.work.unfollowed} == {key, unknown}


async def test_a_job_that_comes_meanwhile_keeps_it(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of the recording that begins while the watch asks the database is the follower's next one."""
    node, watch, key = watched
    value = await lost(node)
    assert await node.store.leases.take(key, value.epoch, "node-2", LEASE_MS)
    read = node.store.uploads.state

    async def state(recording: job_key.RecordingKey) -> dict[str, object] | None:
        watch._jobs = {(key, value.epoch + 2): None}
        return await read(recording)

    monkeypatch.setattr(node.store.uploads, "state", state)
    await watch.look()
    assert node.work.unfollowed == []
