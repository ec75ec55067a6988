"""The age of presence: how long a speaker counts as being in a room, and that nobody is dropped in silence; on a real store."""

from __future__ import annotations

from events import requests
from machine import model
from tests import decider_harness

POLICY = model.Policy()
LONGEST_MS = POLICY.max_duration_ms + 24 * model.HOUR


async def test_a_speaker_outlives_the_longest_session(harness: decider_harness.Harness) -> None:
    """Whoever publishes before a session of MAX_DURATION is recorded by the session after it, although TRTC has nothing new to
    report of a speaker who goes on."""
    await harness.publish()
    harness.clock.advance(POLICY.max_duration_ms + model.HOUR)
    task_id = await harness.start()
    assert await harness.states(task_id) == {"al/1": "Joining"}
    assert (await harness.session(task_id)).warnings == ()


async def test_an_expired_speaker_is_named_in_a_warning(harness: decider_harness.Harness) -> None:
    """A speaker of whom nothing was heard for longer is not recorded, and the start says so; a subscribed one is tried."""
    for user in ("al", "bo"):
        await harness.publish(user)
    await harness.publish("cam", Kind="video")
    await harness.trtc("user-left", "bo")
    harness.clock.advance(LONGEST_MS + model.HOUR)
    await harness.publish("dee")
    first = await harness.say("start", **decider_harness.START)
    assert await harness.states(first["TaskId"]) == {"dee/1": "Joining"}
    (warning,) = first["Warnings"]
    assert "'al'" in warning
    assert "49 h" in warning
    assert "SubscribeUserIds" in warning
    assert not any(name in warning for name in ("'bo'", "'cam'", "'dee'"))
    second = await harness.say("start", **(decider_harness.START | {"UserId": "rec2", "SubscribeUserIds": ["al"]}))
    assert await harness.states(second["TaskId"]) == {"al/1": "Joining"}
    assert second["Warnings"] == []


async def test_media_keeps_a_speaker_present(harness: decider_harness.Harness) -> None:
    """Each recording with media renews the age, at its beginning and at its end. A speaker who left meanwhile stays away."""
    await harness.publish()
    for _ in range(3):
        harness.clock.advance(LONGEST_MS - model.HOUR)
        task_id = await harness.start()
        assert await harness.states(task_id) == {"al/1": "Joining"}
        epoch = await harness.take(f"{task_id}/al/1")
        await harness.outcome("capture-started", f"{task_id}/al/1", epoch, FirstPacketMs=harness.clock())
        await harness.say("stop", TaskId=task_id)
        said = {"Job": "capture", "Reason": "stopped", "MediaMs": 5_000, "SizeBytes": 9}
        await harness.outcome("ffmpeg-exit", f"{task_id}/al/1", epoch, **said)
    await harness.trtc("user-left")
    assert await harness.states(await harness.start()) == {}


async def test_expired_presence_is_deleted_later(harness: decider_harness.Harness) -> None:
    """Rows stay long enough after their expiry for the warning, and not for ever."""
    await harness.publish()
    room = requests.Room(sdk_app_id=decider_harness.APP, room_id=decider_harness.START["RoomId"])
    for kept_ms, left in ((LONGEST_MS + model.HOUR, 1), (LONGEST_MS, 0)):
        harness.clock.advance(kept_ms)
        now_ms = harness.clock()
        await harness.store.retention.delete_sessions(now_ms, now_ms - 2 * POLICY.presence_kept_ms)
        assert len(await harness.store.decisions.read(lambda snapshot: snapshot.publishers(room))) == left
