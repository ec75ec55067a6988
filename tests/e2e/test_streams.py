"""Streams as real rooms have them, over HTTP-FLV: speakers join, leave, mute and jump; servers refuse, end and fall silent."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from typing import Any

import pytest

from simulator import callbacks, live, speakers
from tencent import usersig
from tests import content, waiting
from tests.e2e import scenes
from tests.e2e.conftest import APP, CALLBACK_KEY, FFMPEG, World, by_captures, live_for
from tests.e2e.scenes import Scene
from tests.e2e.test_rooms_and_modes import check_audit

STRICT_APP = 1400000002
"""An application whose UserSigs the simulator checks."""
SIG_KEY = "the-key-of-user-signatures"


async def late_and_on_one_track(scene: Scene) -> None:
    """Late speakers, and speakers with one track only, each have a file of the existing tracks, whatever the stream declares."""
    await scene.start()
    sound = await scene.join("sound", video=False)
    sound.declare(live.BOTH)
    await live_for(2)
    await scene.join("picture", audio=False)
    await live_for(2)
    await scene.join("both")
    await scene.recordings("Recording", "Recording", "Recording")
    await live_for(4)
    await scene.room.dismiss()
    files = await scene.files("RoomDestroyed")
    found = {speaker: await scene.inspect(entry) for speaker, (entry,) in files.items()}
    tracks = {speaker: (inside.has_audio, inside.has_video) for speaker, inside in found.items()}
    assert tracks == {"sound": (True, False), "picture": (False, True), "both": (True, True)}
    assert found["sound"].duration_s - 3 > found["both"].duration_s - 1.5
    content.check_spacing(found["sound"].beeps_s)
    content.check_spacing(found["picture"].flashes_s)
    scenes.check_together(found["both"], files["both"][0])


async def muted_for_long(scene: Scene) -> None:
    """A speaker with both tracks muted beyond a stall and IDLE_TIMEOUT keeps the recording, with the silence as a gap."""
    await scene.start()
    alice = await scene.join("alice")
    await scene.recordings("Recording")
    await live_for(3)
    await alice.mute_audio()
    await alice.mute_video()
    muted = time.monotonic()
    await scene.noted("Nothing arrived", 12)
    # A stall takes at least ten seconds; with these it is longer than IDLE_TIMEOUT on every machine.
    await live_for(max(2, scenes.IDLE_S - 8))
    await alice.unmute_audio()
    await alice.unmute_video()
    muted_s = time.monotonic() - muted
    await waiting.until(lambda: alice.viewers, 5, "the next pull")
    away_s = time.monotonic() - muted
    await live_for(4)
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    (gap,) = scenes.gaps(entry)
    assert muted_s - 0.5 <= gap["Duration"] <= away_s + 1.5 * waiting.patience()
    assert 6 <= entry["Duration"] <= sent_s(alice) - muted_s + 1
    scenes.check_together(scenes.after(await scene.inspect(entry), gap["At"]), entry)


async def muted_sound(scene: Scene, capture: str) -> None:
    """In mode 00, 7 s of muted sound with the camera on stay in the file as silence, in one capture. An ffmpeg cuts them and
    reports a gap."""
    await scene.start("00")
    alice = await scene.join("alice")
    await scene.recordings("Recording")
    began_ms = alice.stream.last_ms
    await live_for(2)
    await alice.mute_audio()
    muted = time.monotonic()
    await live_for(7)
    await alice.unmute_audio()
    muted_s = time.monotonic() - muted
    await live_for(3)
    live_s = (alice.stream.last_ms - began_ms) / 1000
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    found, cut_s = await scene.inspect(entry), 0.0
    if capture == FFMPEG:
        (gap,) = scenes.gaps(entry)
        cut_s, at_s = gap["Duration"], gap["At"]
        assert cut_s == pytest.approx(muted_s, abs=0.5)
    else:
        assert scenes.gaps(entry) == []
        silent_s, at_s = max((later - beep, beep) for beep, later in itertools.pairwise(found.beeps_s))
        assert silent_s == pytest.approx(muted_s, abs=1.5)
    assert live_s - cut_s - 0.5 <= entry["Duration"] <= sent_s(alice) - cut_s + 1
    content.check_spacing(scenes.after(found, at_s).beeps_s)


async def back_in_another_size(scene: Scene) -> None:
    """A speaker who is back within LINGER with a larger picture has one file, whose frames all have one size and decode."""
    await scene.start()
    alice = await scene.join("alice")
    await scene.recordings("Recording")
    await live_for(3)
    await alice.leave()
    await live_for(1)
    again = await scene.join("alice", size="640x360")
    await waiting.until(lambda: again.viewers, 5, "the next pull")
    await live_for(4)
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    (gap,) = scenes.gaps(entry)
    found = await scene.inspect(entry)
    assert found.sizes == ((640, 360),)
    content.check_spacing(found.beeps_s[:3])
    scenes.check_together(scenes.after(found, gap["At"]), entry)


async def jumping(scene: Scene, capture: str) -> None:
    """Timestamps that jump 20 s ahead, then 10 s back, lose nothing, and the file has nothing that was not live. They end an
    ffmpeg; the native capture goes on."""
    await scene.start()
    alice = await scene.join("alice")
    await scene.recordings("Recording")
    began_ms = alice.stream.last_ms
    for jump_ms in (20_000, -10_000):
        await live_for(4)
        alice.jump(jump_ms)
    if capture == FFMPEG:
        await scene.noted("timestamps jumped")
        await waiting.until(lambda: alice.viewers, 5, "the next pull")
    await live_for(4)
    live_s = (alice.stream.last_ms - began_ms) / 1000
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    missing_s = sum(gap["Duration"] for gap in scenes.gaps(entry))
    assert missing_s <= (6 * waiting.patience() if capture == FFMPEG else 0), entry
    assert live_s - missing_s - 0.5 <= entry["Duration"] <= sent_s(alice) + 0.5
    scenes.check_together(await scene.inspect(entry), entry)


async def silent_server(scene: Scene) -> None:
    """A server that sends nothing and responds to nobody is noticed within 12 s, and the other speaker is not affected."""
    await scene.start()
    alice, _ = await scene.join("alice"), await scene.join("bob")
    await scene.recordings("Recording", "Recording")
    await live_for(2)
    alice.stall(answer=False)
    silent = time.monotonic()
    await scene.noted("Nothing arrived", 12)
    await waiting.until(lambda: alice.viewers, 5, "the next pull, that nobody answers")
    alice.resume()
    silent_s = time.monotonic() - silent
    await live_for(6)
    await scene.room.dismiss()
    files = await scene.files("RoomDestroyed")
    (entry,), (whole,) = files["alice"], files["bob"]
    (gap,) = scenes.gaps(entry)
    assert silent_s - 1 <= gap["Duration"] <= silent_s + 4 * waiting.patience()
    assert scenes.gaps(whole) == []
    scenes.check_together(scenes.after(await scene.inspect(entry), gap["At"]), entry)


async def ending_server(scene: Scene) -> None:
    """A stream that the server ends, properly or by a reset, while the speaker goes on, continues in a next segment after a short
    gap."""
    await scene.start()
    alice = await scene.join("alice")
    await scene.recordings("Recording")
    away_s = []
    for abrupt in (False, True):
        await live_for(3)
        ended = time.monotonic()
        assert alice.close_viewers(abrupt=abrupt) == 1
        await waiting.until(lambda: not alice.viewers, 2, "the end of the pull")
        await waiting.until(lambda: alice.viewers, 5, "the next pull")
        away_s.append(time.monotonic() - ended)
    await live_for(3)
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    assert [gap["Duration"] for gap in scenes.gaps(entry)] == pytest.approx(away_s, abs=1.5 * waiting.patience())
    scenes.check_together(await scene.inspect(entry), entry)


async def expired(scene: Scene) -> None:
    """An expired UserSig gives a warning at the start and then 录制失败 with the reason in Detail."""
    answer = await scene.start(UserSig=await expired_sig())
    assert any("UserSig has expired" in warning for warning in answer["Warnings"])
    await scene.join("alice")
    await scene.recordings("Failed")
    await scene.room.dismiss()
    # Idle on a machine so busy that the refusal takes longer than IDLE_TIMEOUT.
    (entry,) = (await scene.result("RoomDestroyed", "Idle"))["Files"]
    assert (entry["Status"], entry["Message"], entry["Code"]) == (0, "录制失败", "FailedRecording")
    assert "UserSig may have expired" in entry["Detail"]
    assert "403" in entry["Detail"]


async def renewed_before_media(scene: Scene) -> None:
    """A recording that retries before its first media continues with the fresh UserSig of a repeated start."""
    valid_s = math.ceil(5 * waiting.patience())
    await scene.start(UserSig=sig(valid_s))
    old_ends = time.monotonic() + valid_s + 1
    alice = await scene.join("alice", audio=False, video=False)
    alice.refuse(503, "busy")
    await alice.unmute_audio()
    await alice.unmute_video()
    await scene.noted("503")
    await renew(scene)
    await live_for(max(0.1, old_ends - time.monotonic()))
    alice.accept()
    await scene.recordings("Recording")
    await live_for(2)
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    assert scenes.gaps(entry) == []


async def renewed_while_recording(scene: Scene) -> None:
    """When a UserSig expires while media arrives, the next pull is refused, the recording goes on, and a fresh UserSig repairs
    it."""
    valid_s = math.ceil(6 * waiting.patience())
    await scene.start(UserSig=sig(valid_s))
    old_ends = time.monotonic() + valid_s + 1
    alice = await scene.join("alice")
    await scene.recordings("Recording")
    recorded = time.monotonic()
    await live_for(max(1.0, old_ends - recorded))
    live_s = time.monotonic() - recorded
    alice.close_viewers()
    await scene.noted("403")
    await renew(scene)
    await waiting.until(lambda: alice.viewers, 10, "a pull that is let in")
    await live_for(3)
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    assert len(scenes.gaps(entry)) == 1
    assert entry["Duration"] >= live_s + 3 - waiting.patience()


def sent_s(speaker: speakers.Speaker) -> float:
    """The time from a speaker's first packet to the last: the recording begins in it, later on a busier machine."""
    return speaker.stream.last_ms / 1000


async def renew(scene: Scene) -> None:
    """Start again with a fresh UserSig: the same session."""
    task_id = scene.task_id
    answer = await scene.start(UserSig=sig(600))
    assert (answer["TaskId"], answer["Repeated"]) == (task_id, True)


def sig(expire_s: int) -> str:
    """A valid UserSig of the recording user."""
    return usersig.mint(STRICT_APP, SIG_KEY, "recorder", expire_s)


async def expired_sig() -> str:
    """A valid UserSig that has expired."""
    made = sig(1)
    await live_for(2)
    return made


@by_captures
async def test_untidy_rooms(world: World, capture: str) -> None:
    """Ten rooms of one service with difficult speakers, servers and signatures all give the right files, and no file is lost."""
    await scenes.encode(world, "640x360")
    keys = json.dumps({str(app): CALLBACK_KEY for app in (APP, STRICT_APP)})
    service = await world.serve(CAPTURE=capture, TRTC_CALLBACK_KEYS=keys, **scenes.SHORT)
    address = f"{service.url}/trtc/callbacks"
    world.simulator.configure_app(STRICT_APP, callback_url=address, callback_key=CALLBACK_KEY, user_sig_key=SIG_KEY)
    failing = Scene(world, 8008, app=STRICT_APP)
    await asyncio.gather(
        late_and_on_one_track(Scene(world, 8001)),
        muted_for_long(Scene(world, 8002)),
        muted_sound(Scene(world, 8003), capture),
        back_in_another_size(Scene(world, 8004)),
        jumping(Scene(world, 8005), capture),
        silent_server(Scene(world, 8006)),
        ending_server(Scene(world, 8007)),
        expired(failing),
        renewed_before_media(Scene(world, 8009, app=STRICT_APP)),
        renewed_while_recording(Scene(world, 8010, app=STRICT_APP)),
    )
    check_audit(world, failed=failing.task_id)


async def test_a_pull_user_per_speaker(world: World) -> None:
    """With the application's key and no UserSig, each speaker is pulled under a user of its own, which TRTC admits only once. The
    session's user is one of them, so that its removal from the room closes the session."""
    world.simulator.pulls.one_per_user = True
    await world.serve(PULL_USER="per-speaker", TRTC_KEYS=json.dumps({str(APP): SIG_KEY}), **scenes.SHORT)
    world.simulator.configure_app(APP, user_sig_key=SIG_KEY)
    scene = Scene(world, 8101)
    await scene.start(UserSig="")
    pulled = [await scene.join(name) for name in ("alice", "bob")]
    await scene.recordings("Recording", "Recording")
    await live_for(4)
    users = {viewer.user_id for speaker in pulled for viewer in speaker.stream.viewers}
    assert len(users) == 2
    assert "recorder" in users
    await live_for(2)  # a removal within 5 s of a pull may be an eviction
    await scene.room.remove("recorder")
    for entries in (await scene.files("UserRemoved")).values():
        assert [(scenes.gaps(entry), entry["Detail"]) for entry in entries] == [([], "")]
    check_audit(world)


async def test_pulls_that_evict_one_another(world: World) -> None:
    """Where TRTC admits the single pull user only once, Detail names the cause and the remedy, and the session goes on."""
    world.simulator.pulls.one_per_user = True
    await world.serve(**scenes.SHORT)
    scene = Scene(world, 8201)
    await scene.start("00")
    for name in ("alice", "bob"):
        await scene.join(name)

    async def named() -> bool:
        recordings = (await world.service.session(scene.task_id))["Recordings"]
        return ["PULL_USER=per-speaker" in r["Detail"] for r in recordings] == [True, True]

    await waiting.until(named, 25, "both recordings to name it", every_s=0.2)
    scene.room.announce(callbacks.LEFT, "recorder", Role=speakers.AUDIENCE, Reason=speakers.REMOVED)
    await scene.noted("mutual eviction")
    await scene.room.dismiss()
    for entries in (await scene.files("RoomDestroyed")).values():
        (entry,) = entries
        assert "PULL_USER=per-speaker" in entry["Detail"]
        assert len(scenes.gaps(entry)) >= 2
    check_audit(world)


async def test_subscribed_without_any_callback(world: World) -> None:
    """Without any callback, subscribed speakers are found, and the session ends as Idle when they are gone."""
    await world.serve(**scenes.SHORT)
    world.simulator.configure_app(APP, callback_url="")
    scene = Scene(world, "silent room")
    alice = await scene.join("alice")
    answer = await scene.start("00", SubscribeUserIds=["alice", "bob", "ghost"])
    assert answer["Warnings"] == []
    bob = await scene.join("bob")
    await scene.join("stranger")

    async def both() -> bool:
        found: list[Any] = (await world.service.session(scene.task_id))["Recordings"]
        return [r["State"] for r in found if r["Speaker"] != "ghost"] == ["Recording", "Recording"]

    await waiting.until(both, 15, "alice and bob to be recorded", every_s=0.2)
    await live_for(4)
    await alice.leave()
    await live_for(2)
    await bob.leave()
    files = await scene.files("Idle")
    assert sorted(files) == ["alice", "bob"]
    for (entry,) in files.values():
        content.check_spacing((await scene.inspect(entry)).beeps_s)
    check_audit(world)
