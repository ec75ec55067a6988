"""A node's jobs under leases, with a real store and machine, and work that the test controls."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from events import codec
from machine import capture_progress, errors, failpoints, job_key, model
from machine.reasons import Reason
from store import store as stores
from tests import engines, waiting
from tests.work_doubles import COS, POLICY, ROOM, Node, node
from worker import command_handlers, janitor, outcomes, worker

__all__ = ["node"]


async def test_the_whole_road(node: Node) -> None:
    """Capture, stop, transcode, upload: each job under its own lease, Done at the end and nothing held."""
    capture = await node.open()
    capture.media(5_000, node.clock)
    await node.relayed("capture-started")
    assert (await node.recording()).state == "Recording"
    await node.say("stop", TaskId=node.task_id)
    await node.relayed("session-finished")
    assert capture.stopped
    assert (await node.recording()).state == "Done"
    assert await node.store.leases.of_node("node-1") == []
    assert await node.store.uploads.state((await node.recording()).key) is None


@pytest.mark.parametrize("reason", ["disk-full", "spool-lost"])
async def test_a_worker_remembers_a_fault_of_its_spool(node: Node, reason: str) -> None:
    """After a capture or a transcode that its disk ended, it takes no such job for a moment, and then tries again."""
    node.work.spool_problem = "It does not answer."
    capture = await node.open()
    assert node.worker.spool_fault.reason() == ""
    capture.media(5_000, node.clock)
    capture.end(reason)
    await node.relayed("ffmpeg-exit")
    assert node.worker.spool_fault.reason()
    assert (await node.recording()).capture == "waiting"
    node.worker.spool_fault._until_s = 0.0
    node.work.failure = errors.TranscodeFailed("the disk", reason=Reason(reason), retry=True)
    await node.say("stop", TaskId=node.task_id)
    await node.relayed("ffmpeg-exit")
    assert "the disk" in node.worker.spool_fault.reason()
    assert (await node.recording()).state == "Transcoding"


@pytest.mark.parametrize(
    ("failure", "problem", "pauses"),
    [
        (errors.TranscodeFailed("the disk", reason=Reason.DISK_FULL, retry=True), "It is full.", True),
        (errors.TranscodeFailed("the disk", reason=Reason.DISK_FULL, retry=True), "", False),
        (errors.TranscodeFailed("the network", reason=Reason.ERROR, retry=True), "It is full.", False),
        (OSError(errno.EIO, "Input/output error"), "It cannot be read.", True),
        (OSError(errno.EIO, "Input/output error"), "", False),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "It cannot be read.", False),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "It cannot be read.", False),
    ],
)
async def test_a_worker_pauses_only_if_its_spool_fails_a_probe(
    node: Node, failure: Exception, problem: str, pauses: bool
) -> None:
    """An error of storage is followed by a probe, and its result decides. An error that no disk causes is none of the spool. In
    each case the job has its outcome and is tried again."""
    capture = await node.open()
    capture.media(5_000, node.clock)
    node.work.failure, node.work.spool_problem = failure, problem
    await node.say("stop", TaskId=node.task_id)

    async def tried() -> bool:
        """One relay may deliver the outcomes of both jobs."""
        await node.relay()
        job = (await node.recording()).job
        return node.work.transcodes == 1 and job is not None and job.state == "waiting"

    await waiting.until(tried, what="the outcome of the transcode")
    reason = node.worker.spool_fault.reason()
    assert (bool(reason), problem in reason) == (pauses, pauses or not problem)
    assert (await node.recording()).state == "Transcoding"


async def test_a_stop_before_the_spawn_spawns_nothing(node: Node) -> None:
    """A capture whose stop overtook its start ends as stopped without media, and ffmpeg never runs."""
    node.task_id = (await node.say("start", **ROOM, UserId="rec", UserSig="s", CosConfig=COS))["TaskId"]
    await node.say("user-publishing", **ROOM, UserId="al", EventMs=node.clock(), Kind="audio")
    await node.say("stop", TaskId=node.task_id)
    await node.relay()
    assert (await node.recording()).state == "Failed"
    assert not any(c.started for c in node.work.captures)


async def test_a_stop_that_comes_before_the_worker_knows_of_its_lease(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another node decides a stop just after the lease was taken, before this node knows of the lease, no capture starts that
    nothing would end."""
    take_lease = node.store.leases.take

    async def overtaken(*args: Any) -> bool:
        taken = await take_lease(*args)
        await node.say("stop", TaskId=node.task_id)
        for message in await node.store.outbox.unsent():
            if message.type == "stop-capture":
                await command_handlers.handle(node.worker, codec.decode(message.body, now_ms=node.clock()))
        return taken

    monkeypatch.setattr(node.store.leases, "take", overtaken)
    node.task_id = (await node.say("start", **ROOM, UserId="rec", UserSig="s", CosConfig=COS))["TaskId"]
    await node.say("user-publishing", **ROOM, UserId="al", EventMs=node.clock(), Kind="audio")
    start = next(m for m in await node.store.outbox.unsent() if m.type == "start-capture")
    await command_handlers.handle(node.worker, codec.decode(start.body, now_ms=node.clock()))
    await node.store.outbox.mark_sent(start.seq)
    monkeypatch.undo()
    said = await waiting.until(lambda: _said(node, "ffmpeg-exit"), what="the end of the capture")
    assert said.data["Reason"] == "stopped"
    assert not any(c.started for c in node.work.captures)


async def _said(node: Node, type_: str) -> codec.Event | None:
    found = [m.body for m in await node.store.outbox.unsent() if m.type == type_]
    return codec.decode(found[0], now_ms=node.clock()) if found else None


async def test_a_refused_lease_ends_the_work_without_a_word(node: Node) -> None:
    """When the epoch has moved on, the capture is killed and publishes no outcome."""
    capture = await node.open()
    capture.media(5_000, node.clock)
    await node.relayed("capture-started")
    value = await node.recording()
    await node.say("worker-lost", Owner=str(value.key), Epoch=value.epoch, Node="node-1")
    await waiting.until(lambda: capture.killed, 5, "the superseded capture to be killed")
    types = await node.relay()
    assert "ffmpeg-exit" not in types
    assert (await node.recording()).epoch == value.epoch + 1


async def test_an_unanswered_renewal_is_no_refusal(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database does not answer, the capture continues."""
    capture = await node.open()
    asked = asyncio.Event()

    async def unanswered(*_: Any, **__: Any) -> bool:
        asked.set()
        raise OSError("the database is restarting")

    monkeypatch.setattr(node.store.leases, "renew_all", unanswered)
    async with waiting.at_most(5):
        await asked.wait()
    assert not capture.killed
    assert node.worker.progress() == {(await node.recording()).key: 0}


async def test_a_short_idle_timeout_is_judged_by_fresh_words(store: stores.Store, clock: engines.Clock) -> None:
    """With any lease, the time of the last media is reported well within IDLE_TIMEOUT: a speaker who has just left is not idle
    yet."""
    node = Node(store, clock, model.Policy(lease_ms=30_000, idle_timeout_ms=1_500))
    await node.worker.start()
    try:
        capture = await node.open()
        capture.media(1_000, clock)
        await node.relayed("capture-started")
        clock.advance(1_400)
        capture.media(2_400, clock)

        async def told() -> bool:
            return (await node.recording()).idle_from_ms == clock()

        await waiting.until(told, 3, "the renewal, long before the 5 s of a lease as long as this")
        await node.say("user-left", **ROOM, UserId="al", EventMs=clock())
        clock.advance(200)
        (idle,) = [d for d in await store.deadlines.due() if d.kind == "idle" and isinstance(d.owner, job_key.RecordingKey)]
        await node.say("deadline-passed", Owner=str(idle.owner), Kind="idle", Serial=idle.serial)
        assert not (await node.recording()).stop_requested
    finally:
        await node.worker.stop()


async def test_a_new_life_voids_the_leases_of_the_old_one(node: Node) -> None:
    """After a crash the node scans its captures' segments on disk, and the next segment follows immediately."""
    capture = await node.open()
    before = await node.recording()
    await node.worker.stop()
    assert capture.killed
    node.work.scanned = capture_progress.CaptureProgress(media_ms=7_000, size_bytes=70, last_packet_ms=node.clock())
    node.worker = node.new_worker()
    await node.worker.start()
    assert "start-capture" in await node.relay()
    after = await node.recording()
    assert (after.state, after.media_ms, after.epoch) == ("Recording", 7_000, before.epoch + 1)


async def test_what_is_on_disk_is_known_though_the_lease_ran_out_first(node: Node) -> None:
    """The sweeper, which sees no disk, finds the lease expired a moment before the node is back: the node's scan counts."""
    await node.open()
    owner = (await node.recording()).key
    await node.worker.stop()
    node.work.scanned = capture_progress.CaptureProgress(media_ms=1_700, size_bytes=70, last_packet_ms=node.clock())
    node.worker = node.new_worker()
    await node.worker.start()
    lost = {"Owner": str(owner), "Epoch": 1, "Node": "node-1"}
    said = codec.make("worker-lost", id=f"lost.{owner}.1", time_ms=node.clock(), data=lost)
    await node.decider.decide_from_bus(said)
    assert (await node.recording()).epoch == 2
    await node.relay()
    assert (1, 1_700) in [(s.epoch, s.media_ms) for s in await node.store.segments.of_recording(owner)]
    assert (await node.recording()).epoch == 2


@pytest.mark.parametrize("away", [False, True], ids=["there", "away"])
async def test_what_nobody_told_of_is_asked_for_and_not_waited_for(node: Node, away: bool) -> None:
    """A worker died before its first report, and another continues: the transcode asks the first node for its segment. A node
    that does not answer delays nothing, for no media is known to be lost."""
    await node.open()
    owner = (await node.recording()).key
    await node.worker.stop()
    await node.say("worker-lost", Owner=str(owner), Epoch=1, Node="node-1")
    node.worker = worker.Worker(node.store, node.work, node="node-2", policy=node.policy, clock=node.clock, shared_spool=False)
    await node.worker.start()
    await node.store.nodes.heartbeat("node-2", "http://node-2")
    if not away:
        await node.store.nodes.heartbeat("node-1", "http://node-1")
    await node.relay()
    capture = await waiting.until(lambda: next((c for c in node.work.captures[1:] if c.started), None), what="another capture")
    capture.media(5_000, node.clock)
    await node.relayed("capture-started")
    await node.say("stop", TaskId=node.task_id)
    await node.relayed("session-finished")
    assert (await node.recording()).state == "Done"
    assert node.work.fetched == ([] if away else [(1, "http://node-1")])
    assert node.work.joined == [[1, 2]]


async def test_a_segment_that_cannot_be_read_holds_no_start_up(node: Node) -> None:
    """With a failing disk under one segment the node still starts, uses its notes of it, and the recording continues."""
    capture = await node.open()
    capture.media(6_000, node.clock)
    owner = (await node.recording()).key
    await node.store.segments.update(owner, 1, {"media_ms": 6_000, "size_bytes": 60, "last_packet_ms": node.clock()})
    await node.worker.stop()
    node.work.unreadable = True
    node.worker = node.new_worker()
    await node.worker.start()
    assert "start-capture" in await node.relay()
    assert (await node.recording()).state == "Recording"
    assert (await node.store.segments.of_recording(owner))[0].media_ms == 6_000


async def test_a_failed_step_is_told_with_its_reason(node: Node) -> None:
    """A fatal failure fails the recording with the work's own detail."""
    capture = await node.open()
    capture.media(5_000, node.clock)
    node.work.failure = errors.TranscodeFailed("The segments cannot be read.", reason="no-media", retry=False)
    await node.say("stop", TaskId=node.task_id)
    await node.relayed("session-finished")
    value = await node.recording()
    assert (value.state, value.code, value.detail) == ("Failed", "FailedTranscode", "The segments cannot be read.")


async def test_a_fault_of_ours_is_tried_again(node: Node) -> None:
    """Work that raises an unexpected error counts as a retryable failure; nothing hangs until the lease expires."""
    capture = await node.open()
    capture.media(5_000, node.clock)
    node.work.failure = RuntimeError("an internal failure")
    await node.say("stop", TaskId=node.task_id)
    await node.relayed("ffmpeg-exit")

    async def waits() -> bool:
        await node.relay()
        job = (await node.recording()).job
        return job is not None and job.kind == "transcode" and job.state == "waiting"

    await waiting.until(waits, what="the transcode to wait for its next try")
    assert "an internal failure" in (await node.recording()).detail


async def test_the_janitor_removes_only_what_was_given_up(node: Node, store: stores.Store) -> None:
    """Files are deleted after Done; those of a failed recording after KEEP_FAILED."""
    capture = await node.open()
    capture.media(5_000, node.clock)
    node.work.failure = errors.TranscodeFailed("no", reason="no-media", retry=False)
    await node.say("stop", TaskId=node.task_id)
    await node.relayed("session-finished")
    value = await node.recording()
    assert await store.spool_files.removable(node.clock() - POLICY.keep_failed_ms) == []
    node.clock.advance(POLICY.keep_failed_ms + 1)
    cleaner = janitor.Janitor(store, node.work, policy=POLICY, clock=node.clock)
    await cleaner.start()
    await waiting.until(lambda: node.work.removed == [value.key], what="the files to go")
    await cleaner.stop()
    assert not await store.spool_files.give_up(value.key, failed_before_ms=node.clock())


async def test_files_that_could_not_be_deleted_are_deleted_later(
    node: Node, store: stores.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Undeletable files stay listed until they are gone, and are retried without a restart."""
    monkeypatch.setattr(janitor, "EVERY_S", 0.05)
    capture = await node.open()
    capture.media(5_000, node.clock)
    await node.say("stop", TaskId=node.task_id)
    await node.relayed("session-finished")
    node.work.stuck = 2
    cleaner = janitor.Janitor(store, node.work, policy=POLICY, clock=node.clock)
    await cleaner.start()
    await waiting.until(lambda: node.work.removed, what="the files to go")
    await cleaner.stop()
    assert node.work.stuck == 0


async def test_what_an_upload_reached_is_kept_until_its_end_is_said(node: Node) -> None:
    """A crash just before an upload's outcome does not upload again: its state is still there."""

    def crash(point: str) -> None:
        if point == "upload.done.before":
            raise SystemError(point)

    capture = await node.open()
    capture.media(5_000, node.clock)
    await node.say("stop", TaskId=node.task_id)
    failpoints.install(crash)
    try:
        await node.relayed("upload-failed")
    finally:
        failpoints.install(None)
    assert await node.store.uploads.state((await node.recording()).key) == {"reached": 1}


async def test_a_job_that_ended_without_a_word_is_not_held_for_ever(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """If publishing an outcome fails, the lease is not renewed any more, so that the job becomes `worker-lost`."""
    capture = await node.open()
    monkeypatch.setattr(outcomes.OutcomePublisher, "ended", None)
    capture.end("eof")
    held = [((await node.recording()).key, 1)]
    assert await node.store.leases.renew_all(held, "node-1", 10_000) == set()
    await waiting.until(lambda: node.worker.running("capture") == 0, what="the job to be let go")
