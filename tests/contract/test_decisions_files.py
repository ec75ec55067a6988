"""Files that were damaged or lost: a finished file is made again from its segments, and segments that lost media are kept."""

from __future__ import annotations

import pytest

from tests import decider_harness

REMADE_AT_MOST = 3


async def _uploading(harness: decider_harness.Harness) -> str:
    """A recording in Uploading whose session has closed; returns its id."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.capture(owner, reason="eof")
    await harness.say("stop", TaskId=task_id)
    await harness.transcode(owner)
    return owner


async def _upload_fails(harness: decider_harness.Harness, owner: str, reason: str, *, retry: bool = False) -> None:
    await harness.outcome("upload-failed", owner, await harness.take(owner), Reason=reason, Detail="other bytes", Retry=retry)


@pytest.mark.parametrize("reason", ["file-damaged", "file-missing"])
async def test_a_damaged_file_is_made_again(harness: decider_harness.Harness, reason: str) -> None:
    """The transcode starts again from the segments, and its output ends as Done."""
    owner = await _uploading(harness)
    await _upload_fails(harness, owner, reason)
    made_again = await harness.recording(owner)
    assert (made_again.state, made_again.job and made_again.job.kind) == ("Transcoding", "transcode")
    await harness.recorded(owner)
    done = await harness.recording(owner)
    assert (done.state, done.code, done.detail) == ("Done", "Success", "")


async def test_a_disk_that_damages_every_file_ends(harness: decider_harness.Harness) -> None:
    """After three repetitions the recording fails with the reason, and keeps its segments for a replay."""
    owner = await _uploading(harness)
    for _ in range(REMADE_AT_MOST):
        await _upload_fails(harness, owner, "file-damaged")
        await harness.transcode(owner)
    await _upload_fails(harness, owner, "file-damaged")
    failed = await harness.recording(owner)
    assert (failed.state, failed.code, failed.detail) == ("Failed", "FailedCosWrite", "other bytes")
    answer = await harness.say("replay", TaskId=failed.task_id)
    assert [r["To"] for r in answer["Recordings"]] == ["Transcoding"]


async def test_a_file_that_cannot_be_read_now_is_tried_again(harness: decider_harness.Harness) -> None:
    """An unreadable spool damages no file: the upload is retried."""
    owner = await _uploading(harness)
    await _upload_fails(harness, owner, "file-missing", retry=True)
    assert (await harness.recording(owner)).state == "Uploading"


@pytest.mark.parametrize("lost", [{"LostMs": 700, "LostSegments": 1}, {"LostMs": 0, "LostSegments": 2}])
async def test_segments_that_lost_media_make_a_partial_file(harness: decider_harness.Harness, lost: dict[str, int]) -> None:
    """A file from damaged segments is `Partial`, with the cause in its detail. Its files stay for KEEP_FAILED."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.capture(owner, reason="eof")
    await harness.say("stop", TaskId=task_id)
    output = decider_harness.OUTPUT | lost
    await harness.outcome("ffmpeg-exit", owner, await harness.take(owner), Job="transcode", Reason="ok", Output=output)
    await harness.upload(owner)
    done = await harness.recording(owner)
    assert (done.state, done.code) == ("Done", "Partial")
    assert "damaged or deleted" in done.detail
    files, now_ms = harness.store.spool_files, harness.clock()
    assert await files.removable(now_ms) == []
    assert await files.removable(now_ms + 1) == [done.key]
    (body,) = await harness.reading.results(task_id)
    assert [(f["Code"], f["Status"], f["Message"], f["Detail"]) for f in body["Files"]] == [
        ("Partial", 1, "录制成功", done.detail)
    ]


async def test_a_track_that_nothing_reads_makes_a_partial_file(harness: decider_harness.Harness) -> None:
    """The file lacks it, and the detail names its codec."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.capture(owner, reason="eof")
    await harness.say("stop", TaskId=task_id)
    output = decider_harness.OUTPUT | {"Unreadable": ["audio codec 13"]}
    await harness.outcome("ffmpeg-exit", owner, await harness.take(owner), Job="transcode", Reason="ok", Output=output)
    await harness.upload(owner)
    done = await harness.recording(owner)
    assert (done.state, done.code) == ("Done", "Partial")
    assert done.detail == "The file lacks a track that ffmpeg cannot read: audio codec 13."
