"""The contract of every store: segments, uploads, nodes, and the janitor's two steps."""

from __future__ import annotations

import dataclasses

import pytest

from machine import errors, job_key, model, segments
from store import store as stores
from tests import engines, examples, transactions

pytestmark = pytest.mark.parametrize("database", engines.STORES, indirect=True)


# --- segments and uploads ---------------------------------------------------------------------------------------------
async def test_segments_are_named_by_epoch(store: stores.Store) -> None:
    """A segment is registered before its media, in the order of epochs; a repeated registration is harmless; media counts."""
    await examples.opened(store, examples.recording())
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    for epoch in (4, 1, 4):
        await store.segments.register(owner, epoch, "n")
    async with transactions.opened(store) as tx:
        assert not await tx.read("has_segments", owner)
    await store.segments.update(owner, 4, {"media_ms": 900, "size_bytes": 10, "first_packet_ms": 5})
    async with transactions.opened(store) as tx:
        assert await tx.read("has_segments", owner)
        tx.close_segment(owner, 4, {"media_ms": 1_000, "size_bytes": 12, "last_packet_ms": 1_005, "reason": "eof"})
        tx.close_segment(owner, 9, {"media_ms": 1_000, "reason": "eof"})
    found = await store.segments.of_recording(owner)
    assert [(s.epoch, s.node, s.media_ms, s.first_packet_ms, s.last_packet_ms) for s in found] == [
        (1, "n", 0, None, None),
        (4, "n", 1_000, 5, 1_005),
    ]


async def test_media_belongs_to_one_recording(store: stores.Store) -> None:
    """A recording without media has none, beside recordings before and after it, by id, that have some."""
    await examples.opened(store, *(examples.recording(speaker=name) for name in ("a", "b", "c")))
    before, owner, after = (job_key.RecordingKey(examples.TASK, name, 1) for name in ("a", "b", "c"))
    for each in (before, owner, after):
        await store.segments.register(each, 1, "n")
        await store.segments.update(each, 1, {"media_ms": 0 if each == owner else 900})
    async with transactions.opened(store) as tx:
        assert [await tx.read("has_segments", each) for each in (before, owner, after)] == [True, False, True]


async def test_registering_a_segment_again_loses_nothing(store: stores.Store) -> None:
    """A repeated registration keeps the segment's media."""
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    await store.segments.register(owner, 1, "n")
    await store.segments.update(owner, 1, {"media_ms": 900})
    await store.segments.register(owner, 1, "n")
    assert [s.media_ms for s in await store.segments.of_recording(owner)] == [900]


async def test_a_superseded_run_writes_nothing_down(store: stores.Store) -> None:
    """A worker that wakes after its successor was ordered can neither register a segment nor update its own."""
    await examples.opened(store, examples.recording(speaker="late"))
    owner = job_key.RecordingKey(examples.TASK, "late", 1)
    await store.segments.register(owner, 1, "n")
    await store.segments.update(owner, 1, {"media_ms": 900})
    await examples.moved(store, owner, epoch=2, job=model.Job(kind="capture", state="queued"))
    await store.segments.update(owner, 1, {"media_ms": 9_000})
    await store.segments.register(owner, 0, "n")
    assert [(s.epoch, s.media_ms) for s in await store.segments.of_recording(owner)] == [(1, 900)]
    await store.segments.register(owner, 2, "m")
    await store.segments.update(owner, 2, {"media_ms": 5})
    assert [(s.epoch, s.media_ms) for s in await store.segments.of_recording(owner)] == [(1, 900), (2, 5)]
    async with transactions.opened(store) as tx:
        tx.close_segment(owner, 2, {"media_ms": 7, "reason": "eof"})
    await store.segments.update(owner, 2, {"media_ms": 6})
    assert [s.media_ms for s in await store.segments.of_recording(owner)] == [900, 7], "what is noted late takes nothing away"


async def test_the_state_of_an_upload_is_kept(store: stores.Store) -> None:
    """An upload's state is read back whole, replaced, and dropped; a worker without the lease writes nothing."""
    await examples.opened(store, examples.recording())
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    assert not await store.uploads.save(owner, 1, "n", {"upload_id": "nobody's"})
    assert await store.leases.take(owner, 1, "n", examples.LEASE_MS)
    assert await store.uploads.state(owner) is None
    for body in ({"upload_id": "u", "parts": [[1, 2, "e"]]}, {"upload_id": "v", "parts": []}):
        assert await store.uploads.save(owner, 1, "n", body)
        assert await store.uploads.state(owner) == body
    for epoch, node in ((2, "n"), (1, "m")):
        assert not await store.uploads.save(owner, epoch, node, {"upload_id": "stale"})
    assert await store.uploads.state(owner) == body
    await examples.moved(store, owner, epoch=2, job=model.Job(kind="upload", state="queued"))
    await store.uploads.delete(owner, 1)
    assert await store.uploads.state(owner) == body, "its successor goes on from it"
    await store.uploads.delete(owner, 2)
    assert await store.uploads.state(owner) is None


async def test_where_the_segments_lie(store: stores.Store) -> None:
    """The media of a recording on each node, its own only; the node of the last segment comes last."""
    r, q, nobody = (job_key.RecordingKey(examples.TASK, speaker, 1) for speaker in ("r", "q", "nobody"))
    for owner, epoch, node, media_ms in ((r, 1, "a", 500), (r, 2, "b", 700), (r, 3, "a", 600), (q, 1, "c", 9)):
        await store.segments.register(owner, epoch, node)
        await store.segments.update(owner, epoch, {"media_ms": media_ms})
    async with transactions.opened(store) as tx:
        assert list((await tx.read("segment_nodes", r)).items()) == [("b", 700), ("a", 1_100)]
        assert await tx.read("segment_nodes", nobody) == {}


async def test_signs_of_life_of_nodes(store: stores.Store, clock: engines.Clock) -> None:
    """A node's last heartbeat and its URL, as long as it sends heartbeats."""
    await store.nodes.heartbeat("a", "http://a:8080")
    await store.nodes.heartbeat("b")
    clock.advance(60_000)
    async with transactions.opened(store) as tx:
        assert await tx.read("node_seen_ms", "a") == engines.START_MS
        assert await tx.read("node_seen_ms", "unknown") == 0
    assert await store.nodes.url("a", engines.START_MS) == "http://a:8080"
    assert await store.nodes.url("a", engines.START_MS + 1) == ""
    assert await store.nodes.url("b", 0) == ""
    assert await store.nodes.url("unknown", 0) == ""
    await store.nodes.heartbeat("a", "http://a:9090")
    assert await store.nodes.url("a", clock()) == "http://a:9090"


async def _ended(store: stores.Store) -> None:
    """Recordings that ended at 1,000 ms in every way, with a segment each; and one that did not."""
    done = {"state": "Done", "code": "Success", "ended_ms": 1_000, "job": None}
    failed = {"state": "Failed", "code": "FailedTranscode", "ended_ms": 1_000, "job": None}
    await examples.opened(
        store,
        examples.recording(speaker="done", **done),
        examples.recording(speaker="partial", **done, output=model.Output(duration_ms=1, size_bytes=1, missing=1)),
        examples.recording(speaker="failed", **failed),
        examples.recording(speaker="live"),
    )
    for speaker in ("done", "partial", "failed", "live"):
        await store.segments.register(job_key.RecordingKey(examples.TASK, speaker, 1), 1, "n1")
        await store.segments.update(job_key.RecordingKey(examples.TASK, speaker, 1), 1, {"media_ms": 5})


async def test_what_may_be_removed(store: stores.Store) -> None:
    """Files of a complete Done recording are removable immediately; of a Failed or incomplete one after the given time; of a live
    one never."""
    await _ended(store)
    assert set(await store.spool_files.removable(1_000)) == {job_key.RecordingKey(examples.TASK, "done", 1)}
    assert set(await store.spool_files.removable(1_001)) == {
        job_key.RecordingKey(examples.TASK, s, 1) for s in ("done", "partial", "failed")
    }
    assert await store.spool_files.give_up(job_key.RecordingKey(examples.TASK, "done", 1), 1_001)
    assert not await store.spool_files.give_up(job_key.RecordingKey(examples.TASK, "done", 1), 1_001)
    assert not await store.spool_files.give_up(job_key.RecordingKey(examples.TASK, "live", 1), 1_001)
    assert not await store.spool_files.give_up(job_key.RecordingKey(examples.TASK, "failed", 1), 1_000)
    assert set(await store.spool_files.removable(1_001)) == {
        job_key.RecordingKey(examples.TASK, "partial", 1),
        job_key.RecordingKey(examples.TASK, "failed", 1),
    }


async def test_giving_files_up_makes_a_replay_decide_again(store: stores.Store) -> None:
    """A decision that saw the files must be made again if the janitor released them concurrently."""
    await _ended(store)
    seen = await examples.saved(store, job_key.RecordingKey(examples.TASK, "failed", 1))
    assert await store.spool_files.give_up(seen.key, 1_001)
    with pytest.raises(errors.Conflict):
        async with transactions.opened(store) as tx:
            tx.save_recording(seen, dataclasses.replace(seen, state="Transcoding"))


async def test_files_are_given_up_first_and_forgotten_when_gone(store: stores.Store) -> None:
    """The janitor's steps: released files are listed for their node until that node has deleted them; after an earlier replay
    there is nothing to delete."""
    assert await store.spool_files.of_recording(job_key.RecordingKey(examples.TASK, "failed", 1), "") is None
    await _ended(store)
    owner = job_key.RecordingKey(examples.TASK, "failed", 1)
    await store.segments.register(owner, 2, "n2")
    assert await store.spool_files.given_up("n1") == []
    await store.spool_files.give_up(owner, 1_001)
    assert (
        await store.spool_files.given_up("n1")
        == await store.spool_files.given_up("n2")
        == await store.spool_files.given_up("")
        == [owner]
    )
    assert await store.spool_files.given_up("n3") == []
    assert await store.spool_files.of_recording(owner, "n1") == segments.GivenUpFiles(until_epoch=1, segments=(1,))
    await store.spool_files.forget(owner, "n1", [1])
    assert await store.spool_files.given_up("n1") == []
    assert [s.node for s in await store.segments.of_recording(owner)] == ["n2"]
    await examples.moved(store, owner, epoch=2)
    assert await store.spool_files.of_recording(owner, "") == segments.GivenUpFiles(until_epoch=2, segments=(2,))
    await store.spool_files.forget(owner, "", [2])
    assert await store.spool_files.given_up("n2") == []
    assert await store.segments.of_recording(owner) == []
    assert [s.epoch for s in await store.segments.of_recording(job_key.RecordingKey(examples.TASK, "live", 1))] == [1]


async def test_the_node_of_a_finished_file_is_asked_to_delete_it(store: stores.Store) -> None:
    """A finished file on a node without segments is released and dropped there, too."""
    await _ended(store)
    owner = job_key.RecordingKey(examples.TASK, "failed", 1)
    await examples.moved(store, owner, output_node="n5")
    await store.spool_files.give_up(owner, 1_001)
    assert await store.spool_files.given_up("n5") == [owner]
    assert await store.spool_files.of_recording(owner, "n5") == segments.GivenUpFiles(until_epoch=1, segments=())
    await store.spool_files.forget(owner, "n5", [])
    assert await store.spool_files.given_up("n5") == []
    assert await store.spool_files.given_up("n1") == [owner]


async def test_what_may_lie_on_any_spool(store: stores.Store) -> None:
    """For the given sessions: recordings with released files, up to which epoch, and finished files that count."""
    await _ended(store)
    await examples.moved(
        store, job_key.RecordingKey(examples.TASK, "live", 1), epoch=7, output=model.Output(duration_ms=1, size_bytes=1, epoch=5)
    )
    await store.spool_files.give_up(job_key.RecordingKey(examples.TASK, "failed", 1), 1_001)
    found = [
        (r.recording.speaker, r.epoch, r.given_up, r.output_epoch) for r in await store.spool_files.leftovers([examples.TASK])
    ]
    assert found == [("failed", 1, True, None), ("live", 7, False, 5), ("partial", 1, False, 0)]
    assert await store.spool_files.leftovers([examples.OTHER]) == await store.spool_files.leftovers([]) == []
