"""Delivered files: a replay neither withdraws one from the result nor puts other content under its object key."""

from __future__ import annotations

from typing import Any

from tests import decider_harness

SAME = {"DurationMs": 5_000, "SizeBytes": 11, "Crc64": "2", "StartMs": 1, "EndMs": 2, "Gaps": []}
OTHER = SAME | {"DurationMs": 7_000, "SizeBytes": 15, "Crc64": "77"}


async def _delivered(harness: decider_harness.Harness, *, stopped: bool = True) -> str:
    """A session with one recording that is Done. Returns the recording's id."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.capture(owner, reason="eof")
    if stopped:
        await harness.say("stop", TaskId=task_id)
    else:
        await harness.trtc("user-left")
        await harness.wait(31_000)
        await harness.capture(owner, media_ms=0, reason="refused")
    await harness.transcode(owner)
    await _upload(harness, owner, "2")
    return owner


async def _upload(harness: decider_harness.Harness, owner: str, crc64: str) -> None:
    """The upload ends under the key that the recording has now."""
    number = (await harness.recording(owner)).object_number
    address = f"https://cos/{owner[:26]}/al_{number}.mp4"
    size = {"2": 11, "77": 15, "5": 17}[crc64]
    await harness.outcome("upload-finished", owner, await harness.take(owner), SizeBytes=size, Crc64=crc64, Url=address)


async def _transcode(harness: decider_harness.Harness, owner: str, output: dict[str, Any]) -> None:
    await harness.outcome("ffmpeg-exit", owner, await harness.take(owner), Job="transcode", Reason="ok", Output=output)


async def _files(harness: decider_harness.Harness, owner: str) -> list[list[dict[str, Any]]]:
    """`Files` of each revision."""
    return [body["Files"] for body in await harness.reading.results(owner[:26])]


async def test_another_file_is_another_object_and_another_entry(harness: decider_harness.Harness) -> None:
    """A Done recording that is transcoded again, with other bytes: the delivered entry stays as it was, beside a new one."""
    owner = await _delivered(harness)
    await harness.say("replay", TaskId=owner[:26], Speaker="al", From="transcoding")
    await _transcode(harness, owner, OTHER)
    await _upload(harness, owner, "77")
    first, (kept, added) = await _files(harness, owner)
    assert [kept] == first
    assert (added["RecordFile"], added["Status"], added["Crc64"]) == (f"https://cos/{owner[:26]}/al_2.mp4", 1, "77")
    await harness.say("replay", TaskId=owner[:26], Speaker="al", From="transcoding")
    await _transcode(harness, owner, OTHER | {"Crc64": "77", "SizeBytes": 16})
    assert (await harness.recording(owner)).object_number == 3


async def test_the_same_bytes_keep_their_object(harness: decider_harness.Harness) -> None:
    """A Done recording that is transcoded again, with the same bytes, or uploaded again: one object, one entry."""
    owner = await _delivered(harness)
    await harness.say("replay", TaskId=owner[:26], Speaker="al", From="transcoding")
    await _transcode(harness, owner, SAME)
    assert (await harness.recording(owner)).object_number == 1
    await _upload(harness, owner, "2")
    await harness.say("replay", TaskId=owner[:26], Speaker="al", From="uploading")
    assert (await harness.recording(owner)).object_number == 1
    await _upload(harness, owner, "2")
    assert [[f["RecordFile"] for f in files] for files in await _files(harness, owner)] == [
        [f"https://cos/{owner[:26]}/al_1.mp4"]
    ] * 3


async def test_a_replay_that_fails_withdraws_nothing(harness: decider_harness.Harness) -> None:
    """A Done recording whose replay fails, at the transcode or at the upload: each revision has the delivered entry."""
    owner = await _delivered(harness)
    await harness.say("replay", TaskId=owner[:26], Speaker="al", From="transcoding")
    await harness.transcode(owner, good=False)
    await harness.say("replay", TaskId=owner[:26], Speaker="al", From="transcoding")
    await _transcode(harness, owner, OTHER)
    await harness.upload(owner, good=False)
    first, *later = await _files(harness, owner)
    assert first[0]["Status"] == 1
    assert later == [first, first]
    await harness.say("replay", TaskId=owner[:26])
    await _upload(harness, owner, "77")
    assert [f["RecordFile"][-8:] for f in (await _files(harness, owner))[-1]] == ["al_1.mp4", "al_2.mp4"]


async def test_a_result_during_a_replay_has_the_delivered_file(harness: decider_harness.Harness) -> None:
    """A session that closes while a delivered recording is replayed, and whose upload then hangs, reports the delivered file."""
    owner = await _delivered(harness, stopped=False)
    await harness.say("replay", TaskId=owner[:26], Speaker="al", From="uploading")
    await harness.say("stop", TaskId=owner[:26])
    for _ in range(12):
        await harness.upload(owner, good=False, retry=True)
        await harness.wait(15 * 60_000)
        if (await harness.session(owner[:26])).state == "Finished":
            break
    assert [[(f["Code"], f["RecordFile"][-8:]) for f in files] for files in await _files(harness, owner)] == [
        [("Success", "al_1.mp4")]
    ]


async def test_the_next_recording_has_neither_the_number_nor_the_object(harness: decider_harness.Harness) -> None:
    """A speaker comes back after an earlier recording was given a second object: the numbers of both stay its own."""
    owner = await _delivered(harness, stopped=False)
    await harness.say("replay", TaskId=owner[:26], Speaker="al", From="transcoding")
    assert (await harness.recording(owner)).object_number == 2
    await harness.publish()
    assert await harness.states(owner[:26]) == {"al/1": "Transcoding", "al/3": "Joining"}


async def test_a_number_that_was_delivered_is_never_free_again(harness: decider_harness.Harness) -> None:
    """Replays that give other bytes, the first ones again, and then third ones: three objects, three entries."""
    owner = await _delivered(harness)
    for crc64, output in (("77", OTHER), ("2", SAME), ("5", OTHER | {"Crc64": "5", "SizeBytes": 17})):
        await harness.say("replay", TaskId=owner[:26], Speaker="al", From="transcoding")
        await _transcode(harness, owner, output)
        await _upload(harness, owner, crc64)
    files = (await _files(harness, owner))[-1]
    assert sorted((f["RecordFile"][-8:], f["Crc64"]) for f in files) == [("al_1.mp4", "2"), ("al_2.mp4", "77"), ("al_3.mp4", "5")]
