"""A full disk or a lost spool is a fault of one node: captures go on elsewhere or later, transcodes wait for space."""

from __future__ import annotations

import pytest

from machine import model
from tests import decider_harness

FAULTS = ("disk-full", "spool-lost")


async def _transcoding(harness: decider_harness.Harness) -> str:
    """A closed session with one recording whose transcode is queued. Returns the recording's id."""
    task_id = await harness.start()
    await harness.publish()
    await harness.capture(f"{task_id}/al/1")
    await harness.say("stop", TaskId=task_id)
    assert await harness.states(task_id) == {"al/1": "Transcoding"}
    return f"{task_id}/al/1"


async def _fail(harness: decider_harness.Harness, owner: str, reason: str, node: str = "n1") -> None:
    said = {"Reason": reason, "Detail": f"it was {reason}", "Retry": True}
    await harness.outcome("ffmpeg-exit", owner, await harness.take(owner, node), Job="transcode", **said)


@pytest.mark.parametrize("reason", FAULTS)
@pytest.mark.parametrize("media_ms", [0, 7_000])
async def test_another_node_takes_the_capture(harness: decider_harness.Harness, reason: str, media_ms: int) -> None:
    """Whatever the failing node had captured, the next one records on, and the result is a success."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    for _ in range(3):
        await harness.capture(owner, media_ms=media_ms, reason=reason, Detail=f"it was {reason}")
        waiting = await harness.recording(owner)
        assert (waiting.state, waiting.capture) == ("Recording" if media_ms else "Joining", "waiting")
        await harness.wait(10 * model.SECOND)
        assert (await harness.recording(owner)).capture == "queued"
    epoch = await harness.take(owner, "n2")
    await harness.outcome("capture-started", owner, epoch, FirstPacketMs=harness.clock())
    await harness.say("stop", TaskId=task_id)
    await harness.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", MediaMs=4_000, SizeBytes=9)
    await harness.recorded(owner)
    (body,) = await harness.reading.results(task_id)
    assert [f["Code"] for f in body["Files"]] == ["Success"]


@pytest.mark.parametrize("reason", FAULTS)
async def test_only_a_recording_without_media_fails(harness: decider_harness.Harness, reason: str) -> None:
    """The session closes while both captures wait for a better disk: one has media and becomes a file, the other fails with the
    reason."""
    task_id = await harness.start()
    for speaker, media_ms in (("al", 4_000), ("bo", 0)):
        await harness.publish(speaker)
        await harness.capture(f"{task_id}/{speaker}/1", media_ms=media_ms, reason=reason, Detail=f"it was {reason}")
    await harness.trtc("room-destroyed")
    assert await harness.states(task_id) == {"al/1": "Transcoding", "bo/1": "Failed"}
    await harness.recorded(f"{task_id}/al/1")
    (body,) = await harness.reading.results(task_id)
    assert [(f["UserId"], f["Code"]) for f in body["Files"]] == [("al", "Success"), ("bo", "FailedRecording")]
    assert f"it was {reason}" in body["Files"][1]["Detail"]


@pytest.mark.parametrize("reason", FAULTS)
async def test_a_last_pull_that_the_disk_ended_is_repeated(harness: decider_harness.Harness, reason: str) -> None:
    """A fault of the disk does not tell whether the speaker came back, so the next pull does."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.capture(owner, reason="eof")
    await harness.trtc("user-left")
    await harness.wait(30 * model.SECOND)
    await harness.capture(owner, media_ms=0, reason=reason)
    assert (await harness.recording(owner)).capture == "waiting"
    await harness.wait(10 * model.SECOND)
    await harness.capture(owner, media_ms=0, reason="refused")
    assert await harness.states(task_id) == {"al/1": "Transcoding"}


@pytest.mark.parametrize("hours", [0, 70])
async def test_a_transcode_waits_for_space(harness: decider_harness.Harness, hours: int) -> None:
    """As an upload waits for COS. Any node may take it, tries become rare, and none counts as a failure of the transcode, in the
    first hour or, after hours in which no node tried, in the last one."""
    owner = await _transcoding(harness)
    await _fail(harness, owner, "disk-full")
    tries = 1
    await harness.jump(hours * model.HOUR)
    began_ms = harness.clock()
    while harness.clock() < began_ms + model.HOUR:
        if (await harness.recording(owner)).job == model.Job(kind="transcode", state="queued"):
            tries += 1
            await _fail(harness, owner, "disk-full", f"n{tries % 3}")
        held = await harness.recording(owner)
        assert (held.state, held.failures, held.detail) == ("Transcoding", 0, "it was disk-full")
        await harness.wait(5 * model.MINUTE)
    assert 3 <= tries <= 13
    await harness.recorded(owner)
    assert (await harness.recording(owner)).code == "Success"


@pytest.mark.parametrize(("reason", "limit_ms"), [("disk-full", 72 * model.HOUR), ("spool-lost", 30 * model.MINUTE)])
async def test_the_wait_for_a_spool_ends(harness: decider_harness.Harness, reason: str, limit_ms: int) -> None:
    """For space after UPLOAD_RETRY_FOR, for a lost spool after NODE_RETURN; a replay then finds the segments."""
    owner = await _transcoding(harness)
    await harness.jump(limit_ms - model.MINUTE)
    await _fail(harness, owner, reason)
    await harness.wait(10 * model.MINUTE)
    for _ in range(4):
        if not (await harness.recording(owner)).final:
            await _fail(harness, owner, reason)
            await harness.wait(model.MINUTE)
    failed = await harness.recording(owner)
    assert (failed.state, failed.code, failed.detail) == ("Failed", "FailedTranscode", f"it was {reason}")
    await harness.say("replay", TaskId=owner[:26])
    await harness.recorded(owner)
    assert (await harness.recording(owner)).code == "Success"
