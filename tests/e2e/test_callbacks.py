"""TRTC's callbacks as they arrive in practice: late, doubled, disordered, lost, forged, or about another session of the room."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from simulator import callbacks, speakers
from tests import waiting
from tests.e2e import scenes
from tests.e2e.conftest import APP, CALLBACK_KEY, World, live_for
from tests.e2e.scenes import Scene
from tests.e2e.test_rooms_and_modes import check_audit

FAULTS = (
    callbacks.Fault(action=callbacks.DELAY, user_id="late", delay_s=2.0, times=0),
    callbacks.Fault(action=callbacks.DOUBLE, user_id="twice", times=0),
    callbacks.Fault(action=callbacks.DELAY, event_type=callbacks.LEFT, user_id="crossed", delay_s=2.5),
    callbacks.Fault(action=callbacks.DROP, user_id="unheard", event_type=callbacks.LEFT, times=0),
    callbacks.Fault(action=callbacks.DROP, user_id="half", event_type=callbacks.AUDIO_ON, times=0),
    callbacks.Fault(action=callbacks.SWAP, user_id="swapped", event_type=callbacks.AUDIO_ON),
)
"""The fates of the callbacks about users with these names."""


async def pulled(speaker: speakers.Speaker) -> None:
    """One capture pulls the speaker. On a busy machine a pull may have just ended, and its successor waits for its backoff."""
    await waiting.until(lambda: speaker.viewers == 1, 15, "the one pull of the speaker")


async def recorded(scene: Scene, user_id: str, *, live_s: float = 3) -> None:
    """The speaker's recording is one file without a gap, whatever happens to the callbacks."""
    await scene.start()
    speaker = await scene.join(user_id)
    await scene.recordings("Recording")
    await live_for(live_s)
    await pulled(speaker)
    await scene.room.dismiss()
    ((entry,),) = (await scene.files("RoomDestroyed")).values()
    assert scenes.gaps(entry) == []
    scenes.check_together(await scene.inspect(entry), entry)


async def crossed(scene: Scene) -> None:
    """A callback of leaving that arrives after that of returning is older than the applied one, so the speaker stays present."""
    await scene.start("00")
    speaker = await scene.join("crossed")
    await scene.recordings("Recording")
    await live_for(2)
    await speaker.leave()
    await live_for(0.5)
    speaker = await scene.join("crossed")
    await scene.noted("older than the last event of this speaker", 10)
    await live_for(scenes.IDLE_S)
    await pulled(speaker)
    await scene.room.dismiss()
    ((entry,),) = (await scene.files("RoomDestroyed")).values()
    assert len(scenes.gaps(entry)) == 1


async def never_told_of_leaving(scene: Scene) -> None:
    """A lost callback of leaving leaves the speaker present: the recorder retries the pull and succeeds when the speaker comes
    back."""
    await scene.start("00")
    speaker = await scene.join("unheard")
    await scene.recordings("Recording")
    await live_for(2)
    await speaker.leave()
    away_s = scenes.IDLE_S + 2
    await live_for(away_s)
    speaker = await scene.join("unheard")
    await waiting.until(lambda: speaker.viewers, 10, "the next pull")
    await live_for(2)
    await scene.room.dismiss()
    ((entry,),) = (await scene.files("RoomDestroyed")).values()
    assert len(scenes.gaps(entry)) == 1
    assert scenes.gaps(entry)[0]["Duration"] >= away_s - 0.5


async def never_told_of_the_end(scene: Scene) -> None:
    """A session without a callback of the room's end ends as Idle, when its only speaker is gone for LINGER and IDLE_TIMEOUT."""
    await scene.start("00")
    speaker = await scene.join("alice")
    await scene.recordings("Recording")
    await live_for(2)
    await speaker.leave()
    ((entry,),) = (await scene.files("Idle")).values()
    assert scenes.gaps(entry) == []


async def two_sessions(world: World, name: int | str) -> None:
    """With two recording users in a room, the removal of one closes its own session, and the end of the room closes the other."""
    removed, stays = Scene(world, name), Scene(world, name)
    await removed.start("00", UserId="recorder-2")
    await stays.start("00")
    assert removed.task_id != stays.task_id
    alice = await stays.join("alice")
    await stays.recordings("Recording")
    await removed.recordings("Recording")
    await live_for(6)
    await stays.room.remove("recorder-2")
    ((first,),) = (await removed.files("UserRemoved")).values()
    await live_for(1)
    await pulled(alice)
    await stays.room.dismiss()
    ((second,),) = (await stays.files("RoomDestroyed")).values()
    assert scenes.gaps(second) == []
    assert second["EndTime"] > first["EndTime"]
    assert min(first["Duration"], second["Duration"]) >= 5.5


async def used_again(world: World, name: int | str) -> None:
    """The late end of an earlier room with the same id is older than the open session, and closes nothing."""
    scene = Scene(world, name)
    await scene.start("00")
    await scene.join("alice")
    await scene.recordings("Recording")
    before_ms = world.simulator.callbacks.next_event_ms()
    await scene.world.service.post(f"/sessions/{scene.task_id}/stop", {})
    await scene.files("Stopped")
    await scene.start("00")
    await scene.recordings("Recording")
    scene.room.announce(callbacks.DISMISSED, RoomId=name, EventMsTs=before_ms, EventTs=before_ms // 1000)
    await scene.noted("older than the session's opening")
    await live_for(2)
    await scene.room.dismiss()
    assert list(await scene.files("RoomDestroyed")) == ["alice"]


async def digits_only(world: World, number: int) -> None:
    """A 102 whose room id is digits in quotes ends the string room if a session is open there, else the integer room."""
    integer, string = Scene(world, number), Scene(world, str(number))
    integer.room.dismissal_as_text = True
    for scene in (integer, string):
        await scene.start("00")
        await scene.join("alice")
        await scene.recordings("Recording")
    await live_for(1)
    integer.room.announce(callbacks.DISMISSED, RoomId=str(number))
    await string.files("RoomDestroyed")
    assert (await world.service.session(integer.task_id))["State"] == "Open"
    await integer.room.dismiss()
    await integer.files("RoomDestroyed")


async def became_audience(scene: Scene) -> None:
    """A speaker who becomes audience has left; the other kinds of callback change nothing."""
    await scene.start("00")
    speaker = await scene.join("alice")
    await scene.recordings("Recording")
    for event_type in (101, 105, 205, 206, 999):
        scene.room.announce(event_type, "alice", Role=speakers.ANCHOR)
    await live_for(2)
    await pulled(speaker)
    speaker.close_viewers()
    scene.room.announce(callbacks.ROLE_CHANGED, "alice", Role=speakers.AUDIENCE)
    await speaker.mute_audio()
    await speaker.mute_video()
    assert list(await scene.files("Idle")) == ["alice"]
    about_others = [message for message in messages(scene) if message.event_type in (101, 205, 206, 999)]
    assert {message.outcome for message in about_others} == {callbacks.DELIVERED}


def messages(scene: Scene) -> list[callbacks.Message]:
    """The callbacks about a room."""
    return [message for message in scene.world.simulator.callbacks.messages if message.room == scene.room.handle]


async def forged(scene: Scene) -> None:
    """A callback without a signature, or with one of another key, body or application, gets 401 and changes nothing."""
    await scene.start("00")
    speaker = await scene.join("alice")
    await scene.recordings("Recording")
    event_ms = scene.world.simulator.callbacks.next_event_ms()
    info = {"RoomId": scene.name, "EventTs": event_ms // 1000, "EventMsTs": event_ms}
    body = callbacks.encode(callbacks.ROOM, callbacks.DISMISSED, event_ms, info)
    genuine = callbacks.sign(CALLBACK_KEY, body)
    before = await scene.notes()
    for headers, sent in (
        ({"SdkAppId": str(APP)}, body),
        ({"SdkAppId": str(APP), "Sign": ""}, body),
        ({"SdkAppId": str(APP), "Sign": callbacks.sign("another key", body)}, body),
        ({"SdkAppId": str(APP), "Sign": genuine}, body.replace(b"\t", b" ")),
        ({"SdkAppId": str(APP + 9), "Sign": genuine}, body),
        ({"Sign": genuine}, body),
    ):
        status, answer = await post(scene.world, sent, headers)
        assert (status, answer["Code"]) == (401, "Unauthorized")
    await live_for(2)
    assert [note for note in await scene.notes() if "room-destroyed" in note] == []
    assert (await scene.notes())[: len(before)] == before
    await pulled(speaker)
    await scene.room.dismiss()
    await scene.files("RoomDestroyed")


async def post(world: World, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    """POST a callback; returns the status and the response."""
    url, kind = f"{world.service.url}/trtc/callbacks", {"Content-Type": "application/json"}
    async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=kind | headers) as answer:
        return answer.status, await answer.json()


async def test_untidy_callbacks(world: World) -> None:
    """Sessions and recordings in a dozen rooms of one service end correctly, whatever happens to callbacks on their way."""
    await scenes.encode(world)
    await world.serve(**scenes.SHORT, TRTC_CALLBACK_FORWARD=f"{APP}={world.simulator.receiver_url('application')}")
    world.simulator.callbacks.set_faults(*FAULTS)
    await asyncio.gather(
        recorded(Scene(world, 9001), "late", live_s=4),
        recorded(Scene(world, 9002), "twice"),
        recorded(Scene(world, "9003"), "half"),
        recorded(Scene(world, 9004), "swapped"),
        crossed(Scene(world, 9005)),
        never_told_of_leaving(Scene(world, 9006)),
        never_told_of_the_end(Scene(world, 9012)),
        two_sessions(world, "9007"),
        used_again(world, 9008),
        digits_only(world, 9009),
        became_audience(Scene(world, 9010)),
        forged(Scene(world, 9011)),
    )
    await forwarded(world)
    check_audit(world)


async def forwarded(world: World) -> None:
    """Every callback that the service took reaches the application's own receiver, with its body and its signature."""
    taken = {m.attempts[-1].body for m in world.simulator.callbacks.messages if m.outcome == callbacks.DELIVERED}

    def signed() -> set[bytes]:
        got = world.simulator.receiver.received["application"]
        return {each.body for each in got if each.headers["Sign"] == callbacks.sign(CALLBACK_KEY, each.body)}

    await waiting.until(lambda: taken and taken <= signed(), 20, "every callback is forwarded")
    del world.simulator.receiver.received["application"]  # the audit counts results


async def test_a_restart_between_two_of_a_kind(world: World) -> None:
    """The same callback before and after a restart of the service counts once, because its id is stored with its effect."""
    await scenes.encode(world)
    await world.serve(**scenes.SHORT)
    scene = Scene(world, 9101)
    await scene.start("00")
    speaker = await scene.join("alice")
    await scene.recordings("Recording")
    (entered,) = [m for m in messages(scene) if m.event_type == callbacks.AUDIO_ON]
    await world.service.kill()
    await live_for(1)  # a pause of 0.3 s is no gap yet
    await world.service.start()
    await waiting.until(lambda: speaker.viewers, 15, "the next pull")
    body = entered.attempts[0].body
    status, _ = await post(world, body, {"SdkAppId": str(APP), "Sign": callbacks.sign(CALLBACK_KEY, body)})
    assert status == 200
    published = [note for note in await scene.notes() if note.startswith("user-publishing")]
    await live_for(2)
    assert [note for note in await scene.notes() if note.startswith("user-publishing")] == published
    await scene.room.dismiss()
    ((entry,),) = (await scene.files("RoomDestroyed")).values()
    assert len(scenes.gaps(entry)) == 1
    assert entry["Duration"] == pytest.approx(4, abs=3)
    check_audit(world)
