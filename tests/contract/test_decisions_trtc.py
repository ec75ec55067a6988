"""TRTC's callbacks: late, repeated, out of order and of other sessions; speakers who join and leave."""

from __future__ import annotations

import pytest

from machine import job_key
from tests import decider_harness as desks


# --- callbacks --------------------------------------------------------------------------------------------------------
async def test_modes_and_kinds(desk: desks.Desk) -> None:
    """Only kinds that the Mode records open a recording."""
    opened = {}
    for mode in ("00", "01", "02"):
        for kind in ("audio", "video"):
            room = {"StrRoomId": mode + kind}
            task_id = await desk.start(RoomId=None, Mode=mode, **room)
            await desk.trtc("user-publishing", "al", Kind=kind, **room)
            opened[mode, kind] = bool(await desk.states(task_id))
    assert opened == {
        ("00", "audio"): True,
        ("00", "video"): False,
        ("01", "audio"): False,
        ("01", "video"): True,
        ("02", "audio"): True,
        ("02", "video"): True,
    }


async def test_subscribing_and_unsubscribing(desk: desks.Desk) -> None:
    """Only subscribed speakers are recorded, or all but the unsubscribed, and never the recording user."""
    only = await desk.start(SubscribeUserIds=["al"])
    but = await desk.start(UserId="rec2", UnSubscribeUserIds=["al"])
    for user in ("al", "bo", "rec", "rec2"):
        await desk.publish(user)
    assert set(await desk.states(only)) == {"al/1"}
    assert set(await desk.states(but)) == {"bo/1", "rec/1"}, "another session's recording user is a speaker like any other"


async def test_a_second_track_and_a_repeat_open_nothing_new(desk: desks.Desk) -> None:
    """While a recording captures, user-publishing of the same speaker belongs to it."""
    task_id = await desk.start()
    await desk.publish()
    await desk.trtc("user-publishing", "al", Kind="video")
    await desk.publish()
    assert await desk.commands(f"{task_id}/al/1") == [("start-capture", 1)]
    assert await desk.states(task_id) == {"al/1": "Joining"}


async def test_callbacks_out_of_order_are_ignored(desk: desks.Desk) -> None:
    """A speaker's event that is older than the last applied one changes nothing."""
    task_id = await desk.start()
    await desk.publish()
    await desk.take(f"{task_id}/al/1")
    await desk.trtc("user-left", "al", ago_ms=1_000)
    assert (await desk.recording(f"{task_id}/al/1")).present is True
    await desk.trtc("user-left", "al")
    await desk.publish("al", ago_ms=1)
    assert (await desk.recording(f"{task_id}/al/1")).present is False
    assert "older than the last event" in await desk.notes(task_id)


async def test_a_room_event_older_than_the_session_is_ignored(desk: desks.Desk) -> None:
    """Rooms are reused: a room-destroyed from before the opening closes nothing, and drops no newer presence."""
    await desk.publish(ago_ms=1_000)
    task_id = await desk.start()
    await desk.trtc("room-destroyed", ago_ms=5_000)
    assert (await desk.session(task_id)).state == "Open"
    await desk.trtc("user-left", "al", ago_ms=3_000)
    assert (await desk.recording(f"{task_id}/al/1")).present is True
    await desk.trtc("room-destroyed")
    assert (await desk.session(task_id)).end_reason == "RoomDestroyed"
    assert await desk.states(await desk.start()) == {}, "nobody is in a room that is gone"


async def test_a_room_s_events_reach_its_sessions_only(desk: desks.Desk) -> None:
    """An event reaches both recording users in a room, and no other room, kind or application."""
    here = [await desk.start(), await desk.start(UserId="rec2")]
    others = [await desk.start(RoomId=89), await desk.start(RoomId=None, StrRoomId="88"), await desk.start(SdkAppId=7)]
    await desk.trtc("room-destroyed")
    assert [(await desk.session(t)).state for t in here] == ["Finished", "Finished"]
    assert [(await desk.session(t)).state for t in others] == ["Open"] * 3


async def test_a_dismissal_of_digits_means_the_open_string_room_first(desk: desks.Desk) -> None:
    """102 with digits only means the string room if a session is Open there, else the integer room."""
    integer = await desk.start()
    string = await desk.start(RoomId=None, StrRoomId="88")
    await desk.trtc("room-destroyed", RoomId=88, StrRoomId="88")
    assert [(await desk.session(t)).state for t in (integer, string)] == ["Open", "Finished"]
    desk.clock.advance(1)
    await desk.trtc("room-destroyed", RoomId=88, StrRoomId="88")
    assert (await desk.session(integer)).state == "Finished"


@pytest.mark.parametrize("reason", [0, 1, 2, 3, 4, 5, 6])
async def test_reasons_of_the_recording_user_s_leaving(desk: desks.Desk, reason: int) -> None:
    """Reasons 3, 4 and 5 close the session; all others are our own joins and leaves, and only noted."""
    task_id = await desk.start()
    desk.clock.advance(60_000)
    await desk.trtc("user-left", "rec", Reason=reason)
    current = await desk.session(task_id)
    if reason in (3, 4, 5):
        assert (current.state, current.end_reason) == ("Finished", "UserRemoved")
    else:
        assert current.state == "Open"
        assert f"reason {reason}" in await desk.notes(task_id)


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
    desk: desks.Desk, pulls_ms: tuple[int, ...], event_ms: int, closes: bool
) -> None:
    """It is no removal if another pull was opened in the 5 s before it, however late the callback arrives."""
    task_id = await desk.start(SubscribeUserIds=["al"])
    opened_ms = desk.clock()
    for epoch, pull_ms in enumerate(pulls_ms, 1):
        desk.clock.now_ms = opened_ms + pull_ms
        await desk.store.segments.register(job_key.RecordingKey(task_id, "al", 1), epoch, "n1")
    desk.clock.now_ms = opened_ms + 30_000
    await desk.trtc("user-left", "rec", ago_ms=30_000 - event_ms, Reason=3)
    assert ((await desk.session(task_id)).state != "Open") is closes


async def test_user_removed_closes_its_session_only(desk: desks.Desk) -> None:
    """user-removed of the recording user closes the session; of any other user it does nothing."""
    task_id, other = await desk.start(), await desk.start(UserId="rec2")
    desk.clock.advance(60_000)
    await desk.trtc("user-removed", "al")
    await desk.trtc("user-removed", "rec")
    assert (await desk.session(task_id)).end_reason == "UserRemoved"
    assert (await desk.session(other)).state == "Open"


async def test_what_is_only_noted_moves_nothing(desk: desks.Desk) -> None:
    """A disabled track or an entering anchor adds a line to the timeline and nothing else."""
    task_id = await desk.start()
    await desk.publish()
    before = await desk.recording(f"{task_id}/al/1")
    await desk.trtc("user-unpublished", "al", Kind="audio")
    await desk.trtc("user-entered", "bo", Role=20)
    assert await desk.recording(f"{task_id}/al/1") == before
    assert "noted" in await desk.notes(task_id)


async def test_events_that_do_not_concern_anybody_are_harmless(desk: desks.Desk) -> None:
    """Callbacks about rooms without a session, outcomes about unknown jobs, deadlines that are spent: nothing happens."""
    await desk.publish(RoomId=5)
    await desk.trtc("user-left", RoomId=5)
    await desk.trtc("room-destroyed", RoomId=6)
    gone = f"01{'9' * 24}/al/1"
    await desk.outcome("capture-started", gone, 1)
    await desk.outcome("ffmpeg-exit", gone, 1, Job="transcode", Reason="ok", Output=desks.OUTPUT)
    await desk.outcome("upload-finished", gone, 1, SizeBytes=1, Crc64="1", Url="x")
    await desk.outcome("upload-failed", gone, 1, Reason="x", Retry=True)
    for owner in (gone, gone[:26], f"{gone[:26]}#1"):
        await desk.say("deadline-passed", Owner=owner, Kind="idle", Serial="s")
        await desk.say("worker-lost", Owner=owner, Epoch=1, Node="n")
    await desk.say("callback-finished", TaskId=gone[:26], Revision=1, Epoch=1)
    await desk.say("callback-failed", TaskId=gone[:26], Revision=1, Epoch=1, Reason="x", Retry=True)
    assert await desk.messages() == []


# --- speakers who come and go -----------------------------------------------------------------------------------------
async def test_a_speaker_who_comes_back_within_linger_has_one_recording(desk: desks.Desk) -> None:
    """Leaving ends no recording; coming back within LINGER pulls at once, as the next segment of the same."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    await desk.take(owner)
    await desk.trtc("user-left")
    await desk.outcome("ffmpeg-exit", owner, 1, Job="capture", Reason="eof", MediaMs=3_000)
    await desk.wait(29_000)
    assert await desk.commands(owner) == [("start-capture", 1)], "no pull after user-left"
    await desk.publish()
    assert len(await desk.commands(owner)) == 2
    await desk.wait(60_000)
    assert await desk.states(task_id) == {"al/1": "Recording"}


async def test_a_speaker_who_comes_back_after_linger_has_two(desk: desks.Desk) -> None:
    """At the end of LINGER one last pull; nothing there: Transcoding; a later coming is the next recording."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    await desk.take(owner)
    await desk.trtc("user-left")
    await desk.outcome("ffmpeg-exit", owner, 1, Job="capture", Reason="eof", MediaMs=3_000)
    await desk.wait(30_000)
    await desk.capture(owner, media_ms=0, reason="refused")
    assert await desk.states(task_id) == {"al/1": "Transcoding"}
    await desk.publish()
    assert await desk.states(task_id) == {"al/1": "Transcoding", "al/2": "Joining"}


async def test_a_silent_recording_ends_unless_callbacks_say_the_speaker_is_there(desk: desks.Desk) -> None:
    """IDLE_TIMEOUT without media ends a recording nobody vouches for; a present (muted) speaker's goes on."""
    task_id = await desk.start(SubscribeUserIds=["al", "bo"])
    await desk.publish("bo")
    for speaker in ("al", "bo"):
        owner = f"{task_id}/{speaker}/1"
        epoch = await desk.take(owner)
        await desk.outcome("capture-started", owner, epoch, FirstPacketMs=desk.clock())
    await desk.wait(301_000)
    assert (await desk.recording(f"{task_id}/al/1")).stop_requested
    assert not (await desk.recording(f"{task_id}/bo/1")).stop_requested
    assert (await desk.session(task_id)).state == "Open"


async def test_media_keeps_a_recording_and_its_session(desk: desks.Desk) -> None:
    """Renewals with media, and short runs between two renewals, postpone the idle deadlines of recording and session."""
    task_id = await desk.start(SubscribeUserIds=["al"])
    owner = f"{task_id}/al/1"
    for _ in range(8):
        await desk.capture(owner, media_ms=2_000, reason="eof", LastPacketMs=desk.clock())
        await desk.wait(100_000)
    assert (await desk.session(task_id)).state == "Open"
    await desk.take(owner)
    for _ in range(8):
        await desk.wait(100_000)
        epoch = (await desk.recording(owner)).epoch
        assert await desk.store.leases.renew(job_key.parse(owner), epoch, "n1", desks.LEASE_MS, last_packet_ms=desk.clock())
    assert (await desk.session(task_id)).state == "Open"
    await desk.wait(301_000)
    assert (await desk.session(task_id)).end_reason == "Idle"


async def test_a_subscribed_speaker_is_tried_as_long_as_the_session_is_open(desk: desks.Desk) -> None:
    """Without any callback a subscribed speaker is pulled from the start, and again after a recording that ended in silence."""
    task_id = await desk.start(SubscribeUserIds=["al", "bo"])
    await desk.capture(f"{task_id}/al/1", reason="eof")
    await desk.take(f"{task_id}/bo/1")
    for _ in range(4):
        await desk.wait(100_000)
        assert await desk.store.leases.renew(
            job_key.RecordingKey(task_id, "bo", 1), 1, "n1", desks.LEASE_MS, last_packet_ms=desk.clock()
        )
    assert await desk.states(task_id) == {"al/1": "Transcoding", "al/2": "Joining", "bo/1": "Joining"}


async def test_a_subscribed_speaker_who_never_came_leaves_no_entry(desk: desks.Desk) -> None:
    """A subscribed speaker who was never seen is not reported, whatever happened to the pulls."""
    task_id = await desk.start(SubscribeUserIds=["al", "bo"])
    await desk.capture(f"{task_id}/bo/1", media_ms=0, reason="refused-for-good", Detail="UserSig expired")
    await desk.capture(f"{task_id}/al/1", media_ms=0, reason="refused")
    await desk.wait(300_000)
    (body,) = await desk.reading.results(task_id)
    assert (body["Files"], body["EndReason"]) == ([], "NobodyPublished")
    assert [m.type for m in await desk.messages("result")] == ["session-accepted", "session-finished"]
