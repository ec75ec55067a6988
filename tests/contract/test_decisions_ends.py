"""The end of sessions: deadlines, results and their revisions, deliveries."""

from __future__ import annotations

import json

from machine import job_key, model
from tests import decider_harness


# --- the session's deadlines ------------------------------------------------------------------------------------------
async def test_nobody_published(harness: decider_harness.Harness) -> None:
    """JOIN_TIMEOUT ends a session in which nobody ever published, at 300 s and not before."""
    task_id = await harness.start()
    await harness.wait(299_999)
    assert (await harness.session(task_id)).state == "Open"
    await harness.wait(1)
    assert (await harness.session(task_id)).end_reason == "NobodyPublished"


async def test_an_idle_session_ends_unless_a_speaker_is_present(harness: decider_harness.Harness) -> None:
    """IDLE_TIMEOUT after the last media of any speaker ends a session, unless callbacks report a speaker present."""
    task_id = await harness.start()
    await harness.publish()
    await harness.capture(f"{task_id}/al/1", reason="eof")
    await harness.wait(1_000_000)
    assert (await harness.session(task_id)).state == "Open"
    await harness.trtc("user-left")
    await harness.wait(400_000)
    current = await harness.session(task_id)
    assert (current.state, current.end_reason) == ("Closing", "Idle")


async def test_a_day_is_the_longest(harness: decider_harness.Harness) -> None:
    """MAX_DURATION ends even a session with speakers present, at 24 h and not before."""
    task_id = await harness.start()
    await harness.publish()
    await harness.take(f"{task_id}/al/1")
    await harness.jump(24 * model.HOUR - 1)
    assert (await harness.session(task_id)).state == "Open"
    await harness.jump(1)
    assert (await harness.session(task_id)).end_reason == "MaxDuration"


async def test_downtime_counts_for_nothing(harness: decider_harness.Harness) -> None:
    """After an hour of downtime, a session that waits for its first speaker waits for the rest of its time."""
    task_id = await harness.start()
    await harness.wait(200_000)
    await harness.store.nodes.heartbeat("n1")
    harness.clock.advance(model.HOUR)
    assert await harness.store.nodes.heartbeat("n1", over_ms=0) == model.HOUR
    await harness.wait(99_000)
    assert (await harness.session(task_id)).state == "Open"
    await harness.wait(2_000)
    assert (await harness.session(task_id)).end_reason == "NobodyPublished"


# --- results ----------------------------------------------------------------------------------------------------------


async def _until_result(harness: decider_harness.Harness, owner: str) -> None:
    while not await harness.reading.results(owner[:26]):
        if (await harness.recording(owner)).job == model.Job(kind="upload", state="queued"):
            await harness.upload(owner, good=False, retry=True)
        await harness.wait(30_000)


async def test_a_pending_upload_is_reported_and_revised(harness: decider_harness.Harness) -> None:
    """RESULT_WAIT after closing, the result goes out with UploadPending. When the upload ends, Revision 2 reports it, and the
    undelivered delivery of Revision 1 is cancelled."""
    owner = await harness.pending_upload(Callback="https://example.com/done")
    await _until_result(harness, owner)
    current = await harness.session(owner[:26])
    assert current.state == "Finished"
    assert current.finished_ms == (current.closing_ms or 0) + 15 * model.MINUTE
    (first,) = await harness.reading.results(owner[:26])
    assert [(f["Code"], f["Message"], f["Status"], f["RecordFile"]) for f in first["Files"]] == [
        ("UploadPending", "写cos失败", 0, "")
    ]
    while (await harness.recording(owner)).job != model.Job(kind="upload", state="queued"):
        await harness.wait(60_000)
    await harness.upload(owner)
    _, second = await harness.reading.results(owner[:26])
    assert (second["Revision"], second["Files"][0]["Code"]) == (2, "Success")
    assert [c.state for c in await harness.deliveries(owner[:26])] == ["cancelled", "pending"]
    ids = [m.id for m in await harness.messages("result") if m.type == "session-finished"]
    assert len(set(ids)) == 2


async def test_the_result_waits_for_a_transcode(harness: decider_harness.Harness) -> None:
    """RESULT_WAIT finishes only a session that waits for uploads; a running transcode is waited for."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.capture(owner, reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.wait(20 * model.MINUTE)
    assert (await harness.session(task_id)).state == "Closing"
    await harness.recorded(owner)
    assert (await harness.session(task_id)).state == "Finished"


async def test_an_upload_is_tried_for_three_days(harness: decider_harness.Harness) -> None:
    """After UPLOAD_RETRY_FOR the recording has failed: FailedCosWrite, as a new revision; lost workers alone never fail it."""
    owner = await harness.pending_upload()
    for _ in range(2_000):
        if (await harness.recording(owner)).final:
            break
        if (await harness.recording(owner)).job == model.Job(kind="upload", state="queued"):
            epoch = await harness.take(owner)
            await harness.say("worker-lost", Owner=owner, Epoch=epoch, Node="n1")
            if not (await harness.recording(owner)).final:
                await harness.upload(owner, good=False, retry=True)
        await harness.wait(2 * model.HOUR)
    final = await harness.recording(owner)
    assert (final.state, final.code) == ("Failed", "FailedCosWrite")
    assert final.ended_ms is not None
    assert final.ended_ms - final.stage_started_ms >= 72 * model.HOUR
    assert [b["Files"][0]["Code"] for b in await harness.reading.results(owner[:26])] == ["UploadPending", "FailedCosWrite"]


async def test_each_failure_has_its_event_and_message(harness: decider_harness.Harness) -> None:
    """A failure in each stage gives that stage's event, code and message, in the recording's result and in the session's."""
    task_id = await harness.start()
    for speaker in ("al", "bo", "cy", "di"):
        await harness.publish(speaker)
    await harness.capture(f"{task_id}/al/1", media_ms=0, reason="refused-for-good", Detail="UserSig expired")
    await harness.capture(f"{task_id}/bo/1", media_ms=0, reason="disk-full", Detail="the spool is full")
    await harness.capture(f"{task_id}/cy/1", reason="eof")
    await harness.capture(f"{task_id}/di/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.transcode(f"{task_id}/cy/1", good=False)
    await harness.transcode(f"{task_id}/di/1")
    await harness.upload(f"{task_id}/di/1", good=False)
    (body,) = await harness.reading.results(task_id)
    said = [(f["UserId"], f["Code"], f["Message"], f["Status"], f["Detail"]) for f in body["Files"]]
    assert said == [
        ("al", "FailedRecording", "录制失败", 0, "UserSig expired"),
        (
            "bo",
            "FailedRecording",
            "录制失败",
            0,
            "No audio or video of 'bo' arrived before the recording ended. the spool is full",
        ),
        ("cy", "FailedTranscode", "转码失败", 0, "bad frame"),
        ("di", "FailedCosWrite", "写cos失败", 0, "AccessDenied"),
    ]
    events = [(m.type, m.data["Speaker"], m.data["Attempt"]) for m in await harness.messages("result") if "Speaker" in m.data]
    assert events == [
        ("failed-recording", "al", 1),
        ("failed-recording", "bo", 1),
        ("failed-transcode", "cy", 1),
        ("failed-cos-write", "di", 1),
    ]


async def test_media_of_a_superseded_capture_is_still_media(harness: decider_harness.Harness) -> None:
    """A recording that ends in Joining while a superseded capture left media behind is transcoded, not failed."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    epoch = await harness.take(owner)
    await harness.say("replay", TaskId=task_id)
    await harness.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", MediaMs=2_000)
    await harness.say("stop", TaskId=task_id)
    assert await harness.states(task_id) == {"al/1": "Transcoding"}


async def test_media_known_only_from_the_segment_is_still_media(harness: decider_harness.Harness) -> None:
    """If the worker died before it could report media, its notes of the segment count."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    epoch = await harness.take(owner)
    await harness.store.segments.update(job_key.parse(owner), epoch, {"media_ms": 2_000})
    await harness.say("stop", TaskId=task_id)
    await harness.say("worker-lost", Owner=owner, Epoch=epoch, Node="n1")
    assert await harness.states(task_id) == {"al/1": "Transcoding"}


async def test_a_late_outcome_takes_nothing_from_a_segment(harness: decider_harness.Harness) -> None:
    """A stale worker-lost without media does not discard the media of a closed segment."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.capture(owner, reason="eof", LastPacketMs=harness.clock())
    await harness.say("worker-lost", Owner=owner, Epoch=1, Node="n1", MediaMs=0)
    (segment,) = await harness.store.segments.of_recording(job_key.parse(owner))
    assert (segment.media_ms, segment.last_packet_ms) == (5_000, harness.clock())


# --- deliveries -------------------------------------------------------------------------------------------------------
async def test_a_result_is_posted_and_tried_on_the_schedule(harness: decider_harness.Harness) -> None:
    """The delivery is sent with the result; failures are retried after 5 s, 5 min … 24 h; after ten tries it has failed."""
    task_id = await harness.start(Callback="https://example.com/done")
    await harness.say("stop", TaskId=task_id)
    pauses_ms = []
    for _ in range(10):
        (callback,) = await harness.deliveries(task_id)
        assert json.loads(callback.body) == (await harness.reading.results(task_id))[0]
        failed = {"TaskId": task_id, "Revision": 1, "Epoch": callback.epoch, "Reason": "status", "Detail": "500", "Retry": True}
        await harness.say("callback-failed", **failed)
        if next_ms := await harness.next_ms():
            pauses_ms.append(next_ms - harness.clock())
            await harness.wait(pauses_ms[-1])
    hours = [2, 5, 10, 14, 20, 24]
    assert pauses_ms == [5_000, 300_000, 1_800_000, *(h * model.HOUR for h in hours)]
    (callback,) = await harness.deliveries(task_id)
    assert (callback.state, callback.detail) == ("failed", "500")


async def test_no_callback_without_a_url(harness: decider_harness.Harness) -> None:
    """A start without Callback posts nothing."""
    task_id = await harness.start()
    await harness.say("stop", TaskId=task_id)
    assert await harness.deliveries(task_id) == []
    assert [m.type for m in await harness.messages("command")] == []
