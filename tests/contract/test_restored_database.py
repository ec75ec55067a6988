"""A database that came back some transactions older: epochs and ids come again, and every recording still ends."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete

from events import codec
from machine import capture_progress, job_key
from store import tables
from tests import decider_harness, engines, restored, waiting
from tests.work_doubles import Node, node
from worker import leases

__all__ = ["node"]


def _outcome(type_: str, key: job_key.RecordingKey, epoch: int, clock: engines.Clock, **data: Any) -> codec.Event:
    body = key.fields() | {"Epoch": epoch, **data}
    return codec.make(type_, id=f"{type_}.{key}.{epoch}", time_ms=clock(), data=body, subject=key.text)


IGNORED = {
    "capture-started": {},
    "ffmpeg-exit": {"Job": "capture", "Reason": "eof", "MediaMs": 0, "SizeBytes": 0},
    "upload-finished": {"SizeBytes": 1, "Crc64": "1", "Url": "https://x"},
    "upload-failed": {"Reason": "network", "Retry": True},
}


@pytest.mark.parametrize("type_", IGNORED)
async def test_the_id_of_an_ignored_outcome_is_free(harness: decider_harness.Harness, type_: str) -> None:
    """An outcome of an epoch that is not there (again) changes nothing, and the same id counts when that epoch comes."""
    task_id = await harness.start()
    await harness.publish()
    key = job_key.RecordingKey(task_id, "al", 1)
    before = await harness.recording(key.text)
    event = _outcome(type_, key, before.epoch + 3, harness.clock, **IGNORED[type_])
    await harness.decider.decide_from_bus(event)
    assert await harness.recording(key.text) == before
    assert await harness.store.decisions.answered(event.inbox_id) is None


async def test_an_outcome_that_counts_is_claimed(harness: decider_harness.Harness) -> None:
    """It is decided once, as ever: its repeat changes nothing."""
    task_id = await harness.start()
    await harness.publish()
    key = job_key.RecordingKey(task_id, "al", 1)
    epoch = await harness.take(key.text)
    event = _outcome("capture-started", key, epoch, harness.clock, FirstPacketMs=harness.clock())
    await harness.decider.decide_from_bus(event)
    moved = await harness.recording(key.text)
    assert moved.state == "Recording"
    assert await harness.store.decisions.answered(event.inbox_id) is not None
    await harness.decider.decide_from_bus(event)
    assert await harness.recording(key.text) == moved


async def _expire(node: Node) -> None:
    """Let the leases that nobody renews end, and tell the machine."""
    node.clock.advance(node.policy.lease_ms + 1)
    for lease in await node.store.deadlines.expired():
        await node.say("worker-lost", Owner=lease.owner.text, Epoch=lease.epoch, Node=lease.node)


async def test_a_restored_database(node: Node, database: engines.Database) -> None:
    """Outcomes of the lost time reach the older database. The epochs come again, and so do the ids: each is decided."""
    first = await node.open()
    first.media(5_000, node.clock)
    await node.relayed("capture-started")
    recording = await node.recording()
    backup = restored.Backup(database)
    first.end("new-track")
    second = await waiting.until(lambda: _next(node, 1), what="the second capture")
    second.media(4_000, node.clock)
    await node.relayed("capture-started")
    second.end("new-track")
    late = await waiting.until(lambda: _said(node, "ffmpeg-exit"), what="its outcome")
    backup.put_back()
    await node.decider.decide_from_bus(late)
    assert (await node.recording()).epoch == recording.epoch
    await waiting.until(lambda: not node.worker.leases.jobs, what="the refusal of the lease of the lost time")
    await _expire(node)
    again = await waiting.until(lambda: _next(node, 2), what="the second epoch, once more")
    again.media(3_000, node.clock)
    await node.relayed("capture-started")
    await node.say("stop", TaskId=node.task_id)
    await node.relayed("session-finished")
    assert (await node.recording()).state == "Done"


async def _next(node: Node, number: int) -> Any:
    """The capture of this number, once it has started."""
    await node.relay()
    return next((c for c in node.work.captures[number:] if c.started), None)


async def _said(node: Node, type_: str) -> codec.Event | None:
    found = [m.body for m in await node.store.outbox.unsent() if m.type == type_]
    return codec.decode(found[0], now_ms=node.clock()) if found else None


async def test_an_outcome_without_effect(node: Node) -> None:
    """The outcome of a capture is lost after it was published. Its lease is given up after some leases, and ends."""
    capture = await node.open()
    capture.media(5_000, node.clock)
    await node.relayed("capture-started")
    (job,) = node.worker.leases.jobs.values()
    capture.end("eof")
    await waiting.until(lambda: _said(node, "ffmpeg-exit"), what="the outcome")
    async with node.store.connections.write() as connection:
        await connection.execute(delete(tables.outbox).where(tables.outbox.c.type == "ffmpeg-exit"))
    await waiting.until(lambda: job.renewals > 2, what="renewals after the end")
    assert node.worker.leases.jobs
    limit_s = 3 * leases.OUTCOME_LEASES * node.policy.lease_ms / 1000
    await waiting.until(lambda: not node.worker.leases.jobs, limit_s + 10, "the lease to be given up")
    before = await node.recording()
    await _expire(node)
    assert (await node.recording()).epoch == before.epoch + 1


async def test_an_outcome_waits_for_a_database(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """While renewals are not answered, nothing can move, and no lease is given up."""
    capture = await node.open()
    capture.end("eof")
    await waiting.until(lambda: _said(node, "ffmpeg-exit"), what="the outcome")
    (job,) = node.worker.leases.jobs.values()
    tries: list[None] = []

    async def away(*_: Any) -> set[Any]:
        tries.append(None)
        raise OSError("the database is away")

    monkeypatch.setattr(node.store.leases, "renew_all", away)
    renewed = job.renewals
    await waiting.until(lambda: len(tries) > 3, what="renewals that nobody answers")
    assert node.worker.leases.jobs
    assert job.renewals <= renewed + 1


async def test_a_segment_of_the_lost_time_counts(node: Node) -> None:
    """No capture overwrites a segment that is on the spool already: its media counts, and the next epoch follows."""
    await node.open()
    value = await node.recording()
    node.work.scanned = capture_progress.CaptureProgress(media_ms=90_000, size_bytes=900, last_packet_ms=node.clock())
    node.work.captures[0].end("error")
    await node.relayed("ffmpeg-exit")
    after = await node.recording()
    assert (after.state, after.media_ms, after.epoch) == ("Recording", 90_000, value.epoch + 1)
