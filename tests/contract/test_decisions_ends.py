"""The end of sessions: deadlines, results and their revisions, deliveries."""

from __future__ import annotations

import json

from machine import job_key, model
from tests import decider_harness as desks


# --- the session's deadlines ------------------------------------------------------------------------------------------
async def test_nobody_published(desk: desks.Desk) -> None:
    """JOIN_TIMEOUT ends a session in which nobody ever published, at 300 s and not before."""
    task_id = await desk.start()
    await desk.wait(299_999)
    assert (await desk.session(task_id)).state == "Open"
    await desk.wait(1)
    assert (await desk.session(task_id)).end_reason == "NobodyPublished"


async def test_an_idle_session_ends_unless_a_speaker_is_present(desk: desks.Desk) -> None:
    """IDLE_TIMEOUT after the last media of any speaker ends a session, unless callbacks report a speaker present."""
    task_id = await desk.start()
    await desk.publish()
    await desk.capture(f"{task_id}/al/1", reason="eof")
    await desk.wait(1_000_000)
    assert (await desk.session(task_id)).state == "Open"
    await desk.trtc("user-left")
    await desk.wait(400_000)
    current = await desk.session(task_id)
    assert (current.state, current.end_reason) == ("Closing", "Idle")


async def test_a_day_is_the_longest(desk: desks.Desk) -> None:
    """MAX_DURATION ends even a session with speakers present, at 24 h and not before."""
    task_id = await desk.start()
    await desk.publish()
    await desk.take(f"{task_id}/al/1")
    await desk.jump(24 * model.HOUR - 1)
    assert (await desk.session(task_id)).state == "Open"
    await desk.jump(1)
    assert (await desk.session(task_id)).end_reason == "MaxDuration"


async def test_downtime_counts_for_nothing(desk: desks.Desk) -> None:
    """After an hour of downtime, a session that waits for its first speaker waits for the rest of its time."""
    task_id = await desk.start()
    await desk.wait(200_000)
    await desk.store.nodes.heartbeat("n1")
    desk.clock.advance(model.HOUR)
    assert await desk.store.nodes.heartbeat("n1", over_ms=0) == model.HOUR
    await desk.wait(99_000)
    assert (await desk.session(task_id)).state == "Open"
    await desk.wait(2_000)
    assert (await desk.session(task_id)).end_reason == "NobodyPublished"


# --- results ----------------------------------------------------------------------------------------------------------


async def _until_result(desk: desks.Desk, owner: str) -> None:
    while not await desk.reading.results(owner[:26]):
        if (await desk.recording(owner)).job == model.Job(kind="upload", state="queued"):
            await desk.upload(owner, good=False, retry=True)
        await desk.wait(30_000)


async def test_a_pending_upload_is_reported_and_revised(desk: desks.Desk) -> None:
    """RESULT_WAIT after closing, the result goes out with UploadPending. When the upload ends, Revision 2 reports it, and the
    undelivered delivery of Revision 1 is cancelled."""
    owner = await desk.pending_upload(Callback="https://example.com/done")
    await _until_result(desk, owner)
    current = await desk.session(owner[:26])
    assert current.state == "Finished"
    assert current.finished_ms == (current.closing_ms or 0) + 15 * model.MINUTE
    (first,) = await desk.reading.results(owner[:26])
    assert [(f["Code"], f["Message"], f["Status"], f["RecordFile"]) for f in first["Files"]] == [
        ("UploadPending", "写cos失败", 0, "")
    ]
    while (await desk.recording(owner)).job != model.Job(kind="upload", state="queued"):
        await desk.wait(60_000)
    await desk.upload(owner)
    _, second = await desk.reading.results(owner[:26])
    assert (second["Revision"], second["Files"][0]["Code"]) == (2, "Success")
    assert [c.state for c in await desk.deliveries(owner[:26])] == ["cancelled", "pending"]
    ids = [m.id for m in await desk.messages("result") if m.type == "session-finished"]
    assert len(set(ids)) == 2


async def test_the_result_waits_for_a_transcode(desk: desks.Desk) -> None:
    """RESULT_WAIT finishes only a session that waits for uploads; a running transcode is waited for."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    await desk.capture(owner, reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.wait(20 * model.MINUTE)
    assert (await desk.session(task_id)).state == "Closing"
    await desk.recorded(owner)
    assert (await desk.session(task_id)).state == "Finished"


async def test_an_upload_is_tried_for_three_days(desk: desks.Desk) -> None:
    """After UPLOAD_RETRY_FOR the recording has failed: FailedCosWrite, as a new revision; lost workers alone never fail it."""
    owner = await desk.pending_upload()
    for _ in range(2_000):
        if (await desk.recording(owner)).final:
            break
        if (await desk.recording(owner)).job == model.Job(kind="upload", state="queued"):
            epoch = await desk.take(owner)
            await desk.say("worker-lost", Owner=owner, Epoch=epoch, Node="n1")
            if not (await desk.recording(owner)).final:
                await desk.upload(owner, good=False, retry=True)
        await desk.wait(2 * model.HOUR)
    final = await desk.recording(owner)
    assert (final.state, final.code) == ("Failed", "FailedCosWrite")
    assert final.ended_ms is not None
    assert final.ended_ms - final.stage_started_ms >= 72 * model.HOUR
    assert [b["Files"][0]["Code"] for b in await desk.reading.results(owner[:26])] == ["UploadPending", "FailedCosWrite"]


async def test_each_failure_has_its_event_and_message(desk: desks.Desk) -> None:
    """A failure in each stage gives that stage's event, code and message, in the recording's result and in the session's."""
    task_id = await desk.start()
    for speaker in ("al", "bo", "cy", "di"):
        await desk.publish(speaker)
    await desk.capture(f"{task_id}/al/1", media_ms=0, reason="refused-for-good", Detail="UserSig expired")
    await desk.capture(f"{task_id}/bo/1", reason="disk-full", Detail="the spool is full")
    await desk.capture(f"{task_id}/cy/1", reason="eof")
    await desk.capture(f"{task_id}/di/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.transcode(f"{task_id}/cy/1", good=False)
    await desk.transcode(f"{task_id}/di/1")
    await desk.upload(f"{task_id}/di/1", good=False)
    (body,) = await desk.reading.results(task_id)
    said = [(f["UserId"], f["Code"], f["Message"], f["Status"], f["Detail"]) for f in body["Files"]]
    assert said == [
        ("al", "FailedRecording", "录制失败", 0, "UserSig expired"),
        ("bo", "FailedRecording", "录制失败", 0, "the spool is full"),
        ("cy", "FailedTranscode", "转码失败", 0, "bad frame"),
        ("di", "FailedCosWrite", "写cos失败", 0, "AccessDenied"),
    ]
    events = [(m.type, m.data["Speaker"], m.data["Attempt"]) for m in await desk.messages("result") if "Speaker" in m.data]
    assert events == [
        ("failed-recording", "al", 1),
        ("failed-recording", "bo", 1),
        ("failed-transcode", "cy", 1),
        ("failed-cos-write", "di", 1),
    ]


async def test_media_of_a_superseded_capture_is_still_media(desk: desks.Desk) -> None:
    """A recording that ends in Joining while a superseded capture left media behind is transcoded, not failed."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    epoch = await desk.take(owner)
    await desk.say("replay", TaskId=task_id)
    await desk.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", MediaMs=2_000)
    await desk.say("stop", TaskId=task_id)
    assert await desk.states(task_id) == {"al/1": "Transcoding"}


async def test_media_known_only_from_the_segment_is_still_media(desk: desks.Desk) -> None:
    """If the worker died before it could report media, its notes of the segment count."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    epoch = await desk.take(owner)
    await desk.store.segments.update(job_key.parse(owner), epoch, {"media_ms": 2_000})
    await desk.say("stop", TaskId=task_id)
    await desk.say("worker-lost", Owner=owner, Epoch=epoch, Node="n1")
    assert await desk.states(task_id) == {"al/1": "Transcoding"}


async def test_a_late_outcome_takes_nothing_from_a_segment(desk: desks.Desk) -> None:
    """A stale worker-lost without media does not discard the media of a closed segment."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    await desk.capture(owner, reason="eof", LastPacketMs=desk.clock())
    await desk.say("worker-lost", Owner=owner, Epoch=1, Node="n1", MediaMs=0)
    (segment,) = await desk.store.segments.of_recording(job_key.parse(owner))
    assert (segment.media_ms, segment.last_packet_ms) == (5_000, desk.clock())


# --- deliveries -------------------------------------------------------------------------------------------------------
async def test_a_result_is_posted_and_tried_on_the_schedule(desk: desks.Desk) -> None:
    """The delivery is sent with the result; failures are retried after 5 s, 5 min … 24 h; after ten tries it has failed."""
    task_id = await desk.start(Callback="https://example.com/done")
    await desk.say("stop", TaskId=task_id)
    pauses_ms = []
    for _ in range(10):
        (callback,) = await desk.deliveries(task_id)
        assert json.loads(callback.body) == (await desk.reading.results(task_id))[0]
        failed = {"TaskId": task_id, "Revision": 1, "Epoch": callback.epoch, "Reason": "status", "Detail": "500", "Retry": True}
        await desk.say("callback-failed", **failed)
        if next_ms := await desk.next_ms():
            pauses_ms.append(next_ms - desk.clock())
            await desk.wait(pauses_ms[-1])
    hours = [2, 5, 10, 14, 20, 24]
    assert pauses_ms == [5_000, 300_000, 1_800_000, *(h * model.HOUR for h in hours)]
    (callback,) = await desk.deliveries(task_id)
    assert (callback.state, callback.detail) == ("failed", "500")


async def test_no_callback_without_a_url(desk: desks.Desk) -> None:
    """A start without Callback posts nothing."""
    task_id = await desk.start()
    await desk.say("stop", TaskId=task_id)
    assert await desk.deliveries(task_id) == []
    assert [m.type for m in await desk.messages("command")] == []
