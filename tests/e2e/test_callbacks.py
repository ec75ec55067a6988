"""TRTC's callbacks as they really come: late, doubled, out of order, lost, forged, or about another session of the room."""

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
"""What happens to the callbacks about users of these names."""


async def recorded(scene: Scene, user_id: str, *, live_s: float = 3) -> None:
    """Whatever became of these callbacks, the speaker's recording is one file, without a gap."""
    await scene.start()
    speaker = await scene.join(user_id)
    await scene.recordings("Recording")
    await live_for(live_s)
    assert speaker.viewers == 1
    await scene.room.dismiss()
    ((entry,),) = (await scene.files("RoomDestroyed")).values()
    assert entry["Gaps"] == []
    scenes.check_together(await scene.inspect(entry), entry)


async def crossed(scene: Scene) -> None:
    """The callback of leaving comes after that of coming back: it is older than what was applied, so nobody is taken for gone."""
    await scene.start("00")
    speaker = await scene.join("crossed")
    await scene.recordings("Recording")
    await live_for(2)
    await speaker.leave()
    await live_for(0.5)
    speaker = await scene.join("crossed")
    await scene.noted("older than the last event of this speaker", 10)
    await live_for(scenes.IDLE_S)
    assert speaker.viewers == 1
    await scene.room.dismiss()
    ((entry,),) = (await scene.files("RoomDestroyed")).values()
    assert len(entry["Gaps"]) == 1


async def never_told_of_leaving(scene: Scene) -> None:
    """The callback of leaving is lost: the speaker counts as there, is tried for again, and found when they come back."""
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
    assert len(entry["Gaps"]) == 1
    assert entry["Gaps"][0]["Duration"] >= away_s - 0.5


async def never_told_of_the_end(scene: Scene) -> None:
    """The room's end is not told: when its only speaker is gone for LINGER and IDLE_TIMEOUT, it ends as Idle."""
    await scene.start("00")
    speaker = await scene.join("alice")
    await scene.recordings("Recording")
    await live_for(2)
    await speaker.leave()
    ((entry,),) = (await scene.files("Idle")).values()
    assert entry["Gaps"] == []


async def two_sessions(world: World, name: int | str) -> None:
    """Two recording users in one room: the removal of one closes its session alone; the end of the room closes the other."""
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
    assert alice.viewers == 1
    await stays.room.dismiss()
    ((second,),) = (await stays.files("RoomDestroyed")).values()
    assert second["Gaps"] == []
    assert second["EndTime"] > first["EndTime"]
    assert min(first["Duration"], second["Duration"]) >= 5.5


async def used_again(world: World, name: int | str) -> None:
    """The end of an earlier room of this id comes when the next session is open already: it is older, and closes nothing."""
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
    """A 102 whose room id is digits in quotes: the string room's where a session is open there, else the integer room's."""
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
    """A speaker who becomes audience has left; all other kinds of callback that may come change nothing."""
    await scene.start("00")
    speaker = await scene.join("alice")
    await scene.recordings("Recording")
    for event_type in (101, 105, 205, 206, 999):
        scene.room.announce(event_type, "alice", Role=speakers.ANCHOR)
    await live_for(2)
    assert speaker.viewers == 1
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
    """Callbacks that are not signed, signed with another key, of another body or application: 401, and nothing happens."""
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
    assert speaker.viewers == 1
    await scene.room.dismiss()
    await scene.files("RoomDestroyed")


async def post(world: World, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    """POST a callback by hand; returns the status and the answer."""
    url, kind = f"{world.service.url}/trtc/callbacks", {"Content-Type": "application/json"}
    async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=kind | headers) as answer:
        return answer.status, await answer.json()


async def test_untidy_callbacks(world: World) -> None:
    """Whatever happens to callbacks on their way, sessions and recordings end as they should, in a dozen rooms of one service."""
    await scenes.encode(world)
    await world.serve(**scenes.SHORT)
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
    check_audit(world)


async def test_a_restart_between_two_of_a_kind(world: World) -> None:
    """The same callback before and after a restart of the service counts once: its id is kept with what it did."""
    await scenes.encode(world)
    await world.serve(**scenes.SHORT)
    scene = Scene(world, 9101)
    await scene.start("00")
    speaker = await scene.join("alice")
    await scene.recordings("Recording")
    (entered,) = [m for m in messages(scene) if m.event_type == callbacks.AUDIO_ON]
    await world.service.kill()
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
    assert len(entry["Gaps"]) == 1
    assert entry["Duration"] == pytest.approx(4, abs=3)
    check_audit(world)
