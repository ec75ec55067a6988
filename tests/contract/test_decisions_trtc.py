"""TRTC's callbacks: late, repeated, out of order and of other sessions; speakers who join and leave."""

from __future__ import annotations

import pytest

from machine import capture_progress, job_key, model
from tests import decider_harness


# --- callbacks --------------------------------------------------------------------------------------------------------
async def test_modes_and_kinds(harness: decider_harness.Harness) -> None:
    """Only kinds that the Mode records open a recording."""
    opened = {}
    for mode in ("00", "01", "02"):
        for kind in ("audio", "video"):
            room = {"StrRoomId": mode + kind}
            task_id = await harness.start(RoomId=None, Mode=mode, **room)
            await harness.trtc("user-publishing", "al", Kind=kind, **room)
            opened[mode, kind] = bool(await harness.states(task_id))
    assert opened == {
        ("00", "audio"): True,
        ("00", "video"): False,
        ("01", "audio"): False,
        ("01", "video"): True,
        ("02", "audio"): True,
        ("02", "video"): True,
    }


async def test_subscribing_and_unsubscribing(harness: decider_harness.Harness) -> None:
    """Only subscribed speakers are recorded, or all but the unsubscribed, and never the recording user."""
    only = await harness.start(SubscribeUserIds=["al"])
    but = await harness.start(UserId="rec2", UnSubscribeUserIds=["al"])
    for user in ("al", "bo", "rec", "rec2"):
        await harness.publish(user)
    assert set(await harness.states(only)) == {"al/1"}
    assert set(await harness.states(but)) == {"bo/1", "rec/1"}, "another session's recording user is a speaker like any other"


async def test_a_second_track_and_a_repeat_open_nothing_new(harness: decider_harness.Harness) -> None:
    """While a recording captures, user-publishing of the same speaker belongs to it."""
    task_id = await harness.start()
    await harness.publish()
    await harness.trtc("user-publishing", "al", Kind="video")
    await harness.publish()
    assert await harness.commands(f"{task_id}/al/1") == [("start-capture", 1)]
    assert await harness.states(task_id) == {"al/1": "Joining"}


async def test_callbacks_out_of_order_are_ignored(harness: decider_harness.Harness) -> None:
    """A speaker's event that is older than the last applied one changes nothing."""
    task_id = await harness.start()
    await harness.publish()
    await harness.take(f"{task_id}/al/1")
    await harness.trtc("user-left", "al", ago_ms=1_000)
    assert (await harness.recording(f"{task_id}/al/1")).present is True
    await harness.trtc("user-left", "al")
    await harness.publish("al", ago_ms=1)
    assert (await harness.recording(f"{task_id}/al/1")).present is False
    assert "older than the last event" in await harness.notes(task_id)


async def test_a_room_event_older_than_the_session_is_ignored(harness: decider_harness.Harness) -> None:
    """Rooms are reused: a room-destroyed from before the opening closes nothing, and drops no newer presence."""
    await harness.publish(ago_ms=1_000)
    task_id = await harness.start()
    await harness.trtc("room-destroyed", ago_ms=5_000)
    assert (await harness.session(task_id)).state == "Open"
    await harness.trtc("user-left", "al", ago_ms=3_000)
    assert (await harness.recording(f"{task_id}/al/1")).present is True
    await harness.trtc("room-destroyed")
    assert (await harness.session(task_id)).end_reason == "RoomDestroyed"
    assert await harness.states(await harness.start()) == {}, "nobody is in a room that is gone"


async def test_a_room_s_events_reach_its_sessions_only(harness: decider_harness.Harness) -> None:
    """An event reaches both recording users in a room, and no other room, kind or application."""
    here = [await harness.start(), await harness.start(UserId="rec2")]
    others = [await harness.start(RoomId=89), await harness.start(RoomId=None, StrRoomId="88"), await harness.start(SdkAppId=7)]
    await harness.trtc("room-destroyed")
    assert [(await harness.session(t)).state for t in here] == ["Finished", "Finished"]
    assert [(await harness.session(t)).state for t in others] == ["Open"] * 3


async def test_a_dismissal_of_digits_means_the_open_string_room_first(harness: decider_harness.Harness) -> None:
    """102 with digits only means the string room if a session is Open there, else the integer room."""
    integer = await harness.start()
    string = await harness.start(RoomId=None, StrRoomId="88")
    await harness.trtc("room-destroyed", RoomId=88, StrRoomId="88")
    assert [(await harness.session(t)).state for t in (integer, string)] == ["Open", "Finished"]
    harness.clock.advance(1)
    await harness.trtc("room-destroyed", RoomId=88, StrRoomId="88")
    assert (await harness.session(integer)).state == "Finished"


@pytest.mark.parametrize("reason", [0, 1, 2, 3, 4, 5, 6])
async def test_reasons_of_the_recording_user_s_leaving(harness: decider_harness.Harness, reason: int) -> None:
    """Reasons 3, 4 and 5 close the session; all others are our own joins and leaves, and only noted."""
    task_id = await harness.start()
    harness.clock.advance(60_000)
    await harness.trtc("user-left", "rec", Reason=reason)
    current = await harness.session(task_id)
    if reason in (3, 4, 5):
        assert (current.state, current.end_reason) == ("Finished", "UserRemoved")
    else:
        assert current.state == "Open"
        assert f"reason {reason}" in await harness.notes(task_id)


@pytest.mark.parametrize(
    ("pulls_ms", "event_ms", "closes"),
    [
        ((0,), 4_999, False),
        ((0,), 5_000, True),
        ((0, 10_000), 1_000, False),
        ((0, 10_000), 7_000, True),
        ((10_000,), 9_000, True),
        ((), 20_000, True),
    ],
)
async def test_an_eviction_by_our_own_pull_is_no_removal(
    harness: decider_harness.Harness, pulls_ms: tuple[int, ...], event_ms: int, closes: bool
) -> None:
    """It is no removal if another pull was opened in the 5 s before it, however late the callback arrives."""
    task_id = await harness.start(SubscribeUserIds=["al"])
    opened_ms = harness.clock()
    for epoch, pull_ms in enumerate(pulls_ms, 1):
        harness.clock.now_ms = opened_ms + pull_ms
        await harness.store.segments.register(job_key.RecordingKey(task_id, "al", 1), epoch, "n1")
    harness.clock.now_ms = opened_ms + 30_000
    await harness.trtc("user-left", "rec", ago_ms=30_000 - event_ms, Reason=3)
    assert ((await harness.session(task_id)).state != "Open") is closes


async def test_user_removed_closes_its_session_only(harness: decider_harness.Harness) -> None:
    """user-removed of the recording user closes the session; of any other user it does nothing."""
    task_id, other = await harness.start(), await harness.start(UserId="rec2")
    harness.clock.advance(60_000)
    await harness.trtc("user-removed", "al")
    await harness.trtc("user-removed", "rec")
    assert (await harness.session(task_id)).end_reason == "UserRemoved"
    assert (await harness.session(other)).state == "Open"


async def test_what_is_only_noted_moves_nothing(harness: decider_harness.Harness) -> None:
    """A disabled track or an entering anchor adds a line to the timeline. Without a track nothing is published; nothing else
    changes."""
    task_id = await harness.start()
    await harness.publish()
    before = await harness.recording(f"{task_id}/al/1")
    await harness.trtc("user-unpublished", "al", Kind="audio")
    await harness.trtc("user-entered", "bo", Role=20)
    after = await harness.recording(f"{task_id}/al/1")
    assert after.published.known() == []
    assert model.changed(after, version=before.version, published=before.published) == before
    assert "noted" in await harness.notes(task_id)


async def test_an_entry_is_noted_where_the_speaker_was_believed_to_publish(harness: decider_harness.Harness) -> None:
    """A lesson's end that was never reported: the next session believes the speaker to be there until she enters."""
    await harness.publish()
    harness.clock.advance(3_600_000)
    task_id = await harness.start()
    opened_ms = harness.clock()
    harness.clock.advance(600_000)
    await harness.trtc("user-entered", "al", Role=20)
    await harness.publish()
    harness.clock.advance(60_000)
    await harness.say("stop", TaskId=task_id)
    told = (await harness.recording(f"{task_id}/al/1")).published
    assert told.known([(opened_ms + 600_500, opened_ms + 660_000)]) == [(opened_ms + 600_000, opened_ms + 660_000)]


async def test_events_that_do_not_concern_anybody_are_harmless(harness: decider_harness.Harness) -> None:
    """Callbacks about rooms without a session, outcomes about unknown jobs, deadlines that are spent: nothing happens."""
    await harness.publish(RoomId=5)
    await harness.trtc("user-left", RoomId=5)
    await harness.trtc("room-destroyed", RoomId=6)
    gone = f"01{'9' * 24}/al/1"
    await harness.outcome("capture-started", gone, 1)
    await harness.outcome("ffmpeg-exit", gone, 1, Job="transcode", Reason="ok", Output=decider_harness.OUTPUT)
    await harness.outcome("upload-finished", gone, 1, SizeBytes=1, Crc64="1", Url="x")
    await harness.outcome("upload-failed", gone, 1, Reason="x", Retry=True)
    for owner in (gone, gone[:26], f"{gone[:26]}#1"):
        await harness.say("deadline-passed", Owner=owner, Kind="idle", Serial="s")
        await harness.say("worker-lost", Owner=owner, Epoch=1, Node="n")
    await harness.say("callback-finished", TaskId=gone[:26], Revision=1, Epoch=1)
    await harness.say("callback-failed", TaskId=gone[:26], Revision=1, Epoch=1, Reason="x", Retry=True)
    assert await harness.messages() == []


# --- speakers who come and go -----------------------------------------------------------------------------------------
async def test_a_speaker_who_comes_back_within_linger_has_one_recording(harness: decider_harness.Harness) -> None:
    """Leaving ends no recording; coming back within LINGER pulls at once, as the next segment of the same."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.take(owner)
    await harness.trtc("user-left")
    await harness.outcome("ffmpeg-exit", owner, 1, Job="capture", Reason="eof", MediaMs=3_000)
    await harness.wait(29_000)
    assert await harness.commands(owner) == [("start-capture", 1)], "no pull after user-left"
    await harness.publish()
    assert len(await harness.commands(owner)) == 2
    await harness.wait(60_000)
    assert await harness.states(task_id) == {"al/1": "Recording"}


async def test_a_speaker_who_comes_back_after_linger_has_two(harness: decider_harness.Harness) -> None:
    """At the end of LINGER one last pull; nothing there: Transcoding; a later coming is the next recording."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.take(owner)
    await harness.trtc("user-left")
    await harness.outcome("ffmpeg-exit", owner, 1, Job="capture", Reason="eof", MediaMs=3_000)
    await harness.wait(30_000)
    await harness.capture(owner, media_ms=0, reason="refused")
    assert await harness.states(task_id) == {"al/1": "Transcoding"}
    await harness.publish()
    assert await harness.states(task_id) == {"al/1": "Transcoding", "al/2": "Joining"}


async def test_a_silent_recording_ends_unless_callbacks_say_the_speaker_is_there(harness: decider_harness.Harness) -> None:
    """IDLE_TIMEOUT without media ends a recording nobody vouches for; a present (muted) speaker's goes on."""
    task_id = await harness.start(SubscribeUserIds=["al", "bo"])
    await harness.publish("bo")
    for speaker in ("al", "bo"):
        owner = f"{task_id}/{speaker}/1"
        epoch = await harness.take(owner)
        await harness.outcome("capture-started", owner, epoch, FirstPacketMs=harness.clock())
    await harness.wait(301_000)
    assert (await harness.recording(f"{task_id}/al/1")).stop_requested
    assert not (await harness.recording(f"{task_id}/bo/1")).stop_requested
    assert (await harness.session(task_id)).state == "Open"


async def test_media_keeps_a_recording_and_its_session(harness: decider_harness.Harness) -> None:
    """Renewals with media, and short runs between two renewals, postpone the idle deadlines of recording and session."""
    task_id = await harness.start(SubscribeUserIds=["al"])
    owner = f"{task_id}/al/1"
    for _ in range(8):
        await harness.capture(owner, media_ms=2_000, reason="eof", LastPacketMs=harness.clock())
        await harness.wait(100_000)
    assert (await harness.session(task_id)).state == "Open"
    await harness.take(owner)
    for _ in range(8):
        await harness.wait(100_000)
        job = job_key.parse_recording(owner), (await harness.recording(owner)).epoch
        assert await harness.store.leases.renew_all([job], "n1", decider_harness.LEASE_MS) == set()
        await harness.store.segments.note_progress({job: capture_progress.CaptureProgress(last_packet_ms=harness.clock())})
    assert (await harness.session(task_id)).state == "Open"
    await harness.wait(301_000)
    assert (await harness.session(task_id)).end_reason == "Idle"


async def test_a_subscribed_speaker_is_tried_as_long_as_the_session_is_open(harness: decider_harness.Harness) -> None:
    """Without any callback a subscribed speaker is pulled from the start, and again after a recording that ended in silence."""
    task_id = await harness.start(SubscribeUserIds=["al", "bo"])
    await harness.capture(f"{task_id}/al/1", reason="eof")
    await harness.take(f"{task_id}/bo/1")
    for _ in range(4):
        await harness.wait(100_000)
        job = job_key.RecordingKey(task_id, "bo", 1), 1
        assert await harness.store.leases.renew_all([job], "n1", decider_harness.LEASE_MS) == set()
        await harness.store.segments.note_progress({job: capture_progress.CaptureProgress(last_packet_ms=harness.clock())})
    assert await harness.states(task_id) == {"al/1": "Transcoding", "al/2": "Joining", "bo/1": "Joining"}


async def test_a_subscribed_speaker_who_never_came_leaves_no_entry(harness: decider_harness.Harness) -> None:
    """A subscribed speaker who was never seen is not reported, whatever happened to the pulls."""
    task_id = await harness.start(SubscribeUserIds=["al", "bo"])
    await harness.capture(f"{task_id}/bo/1", media_ms=0, reason="refused-for-good", Detail="UserSig expired")
    await harness.capture(f"{task_id}/al/1", media_ms=0, reason="refused")
    await harness.wait(300_000)
    (body,) = await harness.reading.results(task_id)
    assert (body["Files"], body["EndReason"]) == ([], "NobodyPublished")
    assert [m.type for m in await harness.messages("result")] == ["session-accepted", "session-finished"]
