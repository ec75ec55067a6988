"""The time in which a speaker was known to publish, from callbacks and pulls to the result."""

from __future__ import annotations

from typing import Any

import pytest

from events import codec
from machine import model
from tests import decider_harness

SECOND = model.SECOND


async def _result(
    harness: decider_harness.Harness, owner: str, *live: tuple[int, int], pulls: str = "", refused: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Finish a recording whose file has media at these times (Unix ms), and whose pulls ended for this reason in between or
    afterwards; returns its entry in the result."""
    span = {"StartMs": live[0][0], "EndMs": live[-1][1], "Live": [list(each) for each in live]}
    output: dict[str, Any] = decider_harness.OUTPUT | span | {"DurationMs": sum(b - a for a, b in live), "ErrorMs": 100}
    output["Anchors"] = [[0, live[0][0]]]
    if pulls:
        from_ms, to_ms = refused or (live[-1][1], harness.clock())
        output["Pulls"] = [{"FromMs": from_ms, "ToMs": to_ms, "Reason": pulls}]
    epoch = await harness.take(owner)
    await harness.outcome("ffmpeg-exit", owner, epoch, Job="transcode", Reason="ok", Output=output)
    await harness.upload(owner)
    (body,) = await harness.reading.results(owner[:26])
    (entry,) = body["Files"]
    return dict(entry)


async def test_pulls_refused_to_the_end_make_a_partial_file(harness: decider_harness.Harness) -> None:
    """Media for 13 s of 93 s, then refusals: `Partial`, a gap at the end, and the cause."""
    task_id = await harness.start()
    await harness.publish()
    owner, began_ms = f"{task_id}/al/1", harness.clock()
    await harness.capture(owner, media_ms=13 * SECOND, reason="eof", FirstPacketMs=began_ms, LastPacketMs=began_ms + 13 * SECOND)
    harness.clock.advance(93 * SECOND)
    await harness.wait(0)
    await harness.say("stop", TaskId=task_id)
    entry = await _result(harness, owner, (began_ms, began_ms + 13 * SECOND), pulls="refused")
    assert (entry["Code"], entry["Status"], entry["Message"]) == ("Partial", 1, "录制成功")
    assert (entry["Missing"], entry["Gaps"]) == (80, [{"At": 13, "Duration": 80}])
    assert entry["Detail"].startswith(f"The server refused the pulls from {codec.iso(began_ms + 13 * SECOND)}")
    assert (entry["PublishedTime"], entry["LeftTime"]) == (codec.iso(began_ms), "")
    assert (entry["Anchors"], entry["ErrorMs"]) == ([{"At": 0, "Time": codec.iso(began_ms)}], 100)


async def test_pulls_refused_at_first_make_a_partial_file(harness: decider_harness.Harness) -> None:
    """Refusals for 37 s of 93 s, then media: `Partial`, a gap at the beginning, and the cause."""
    task_id = await harness.start()
    await harness.publish()
    owner, began_ms = f"{task_id}/al/1", harness.clock()
    await harness.capture(owner, media_ms=0, reason="refused")
    harness.clock.advance(37 * SECOND)
    await harness.wait(0)
    first_ms, last_ms = began_ms + 37 * SECOND, began_ms + 93 * SECOND
    epoch = await harness.take(owner)
    await harness.outcome("capture-started", owner, epoch, FirstPacketMs=first_ms)
    harness.clock.advance(56 * SECOND)
    await harness.say("stop", TaskId=task_id)
    media: dict[str, Any] = {"MediaMs": 56 * SECOND, "SizeBytes": 9, "FirstPacketMs": first_ms, "LastPacketMs": last_ms}
    await harness.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", **media)
    entry = await _result(harness, owner, (first_ms, last_ms), pulls="refused", refused=(began_ms, first_ms))
    assert (entry["Code"], entry["Missing"], entry["Gaps"]) == ("Partial", 37, [{"At": 0, "Duration": 37}])
    told = f"The server refused the pulls from {codec.iso(began_ms)} to {codec.iso(first_ms)}."
    assert (entry["Detail"], entry["Duration"]) == (told, 56)


@pytest.mark.parametrize("ended", ["user-left", "room-destroyed"])
async def test_a_speaker_who_left_misses_nothing_afterwards(harness: decider_harness.Harness, ended: str) -> None:
    """The callback's time ends the published time, however late it arrives."""
    task_id = await harness.start()
    await harness.publish()
    owner, began_ms = f"{task_id}/al/1", harness.clock()
    await harness.capture(owner, reason="eof", FirstPacketMs=began_ms, LastPacketMs=began_ms + 5 * SECOND)
    harness.clock.advance(9 * SECOND)
    await harness.trtc(ended, ago_ms=4 * SECOND)
    await harness.wait(40 * SECOND)
    if ended == "user-left":
        await harness.capture(owner, media_ms=0, reason="refused")
        await harness.say("stop", TaskId=task_id)
    entry = await _result(harness, owner, (began_ms, began_ms + 5 * SECOND))
    assert (entry["Code"], entry["Missing"], entry["Gaps"]) == ("Success", 0, [])
    assert (entry["PublishedTime"], entry["LeftTime"]) == (codec.iso(began_ms), codec.iso(began_ms + 5 * SECOND))


async def test_a_start_misses_nothing_that_was_before_it(harness: decider_harness.Harness) -> None:
    """A speaker who was there first: PublishedTime is the callback's, and time counts from the start."""
    await harness.publish("al")
    published_ms = harness.clock()
    harness.clock.advance(60 * SECOND)
    task_id, started_ms = await harness.start(), harness.clock()
    owner = f"{task_id}/al/1"
    await harness.capture(owner, reason="eof", FirstPacketMs=started_ms + SECOND, LastPacketMs=started_ms + 6 * SECOND)
    harness.clock.advance(6 * SECOND)
    await harness.say("stop", TaskId=task_id)
    entry = await _result(harness, owner, (started_ms + SECOND, started_ms + 6 * SECOND))
    assert (entry["Code"], entry["Missing"], entry["Gaps"]) == ("Success", 1, [{"At": 0, "Duration": 1}])
    assert entry["PublishedTime"] == codec.iso(published_ms)


async def test_a_muted_speaker_misses_nothing(harness: decider_harness.Harness) -> None:
    """In mode 00 the time with audio off is not published, whether or not video is on."""
    task_id = await harness.start(Mode="00")
    await harness.publish()
    owner, began_ms = f"{task_id}/al/1", harness.clock()
    await harness.publish(Kind="video")
    await harness.capture(owner, reason="eof", FirstPacketMs=began_ms, LastPacketMs=began_ms + 5 * SECOND)
    harness.clock.advance(5 * SECOND)
    await harness.trtc("user-unpublished", Kind="audio")
    harness.clock.advance(30 * SECOND)
    await harness.trtc("user-unpublished", Kind="video")
    await harness.publish()
    harness.clock.advance(5 * SECOND)
    await harness.say("stop", TaskId=task_id)
    entry = await _result(harness, owner, (began_ms, began_ms + 5 * SECOND), (began_ms + 35 * SECOND, began_ms + 40 * SECOND))
    assert (entry["Code"], entry["Missing"], entry["Detail"]) == ("Success", 0, "")


async def test_without_callbacks_a_fault_is_missing_time(harness: decider_harness.Harness) -> None:
    """A subscribed speaker without callbacks: what a lost worker missed counts, what followed the end of the stream does not."""
    task_id = await harness.start(SubscribeUserIds=["al"])
    owner, began_ms = f"{task_id}/al/1", harness.clock()
    epoch = await harness.take(owner)
    lost = {"Owner": owner, "Epoch": epoch, "Node": "n1", "MediaMs": 20 * SECOND, "LastPacketMs": began_ms + 20 * SECOND}
    await harness.say("worker-lost", **lost, SizeBytes=1)
    harness.clock.advance(60 * SECOND)
    first_ms = began_ms + 50 * SECOND
    await harness.capture(owner, media_ms=10 * SECOND, reason="eof", FirstPacketMs=first_ms, LastPacketMs=first_ms + 10 * SECOND)
    harness.clock.advance(60 * SECOND)
    await harness.say("stop", TaskId=task_id)
    live = ((began_ms, began_ms + 20 * SECOND), (first_ms, first_ms + 10 * SECOND))
    entry = await _result(harness, owner, *live)
    assert (entry["Code"], entry["Missing"], entry["PublishedTime"], entry["LeftTime"]) == ("Partial", 30, "", "")
