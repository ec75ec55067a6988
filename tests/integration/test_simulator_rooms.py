"""The simulator's rooms: streams to viewers, checked down to pictures and samples, and refusals, endings and removals."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import TLSSigAPIv2

from simulator import content, flv, rooms, server, speakers
from tests import waiting
from tests.integration import stream_viewer as streams


@pytest.fixture
async def simulator(tmp_path: Path, loops: Path) -> AsyncIterator[server.Simulator]:
    async with streams.running(tmp_path, loops) as made:
        yield made


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def watch(simulator: server.Simulator, http: aiohttp.ClientSession) -> AsyncIterator[Callable[..., streams.Recording]]:
    tasks: list[asyncio.Task[None]] = []

    def begin(room: int | str, speaker: str, **query: str) -> streams.Recording:
        recording = streams.Recording()
        tasks.append(asyncio.create_task(streams.receive(http, streams.address(simulator, room, speaker, **query), recording)))
        return recording

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_four_seconds_of_content(simulator: server.Simulator, watch: Callable[..., streams.Recording]) -> None:
    """Flashes and beeps are 1 s apart within 40 ms and together within 40 ms; the bar code counts on with the clock."""
    room = simulator.create_room(streams.APP, 8489)
    alice = await room.join("alice", number=5)
    joined_s = time.monotonic()
    recording = watch(8489, "alice")
    await streams.media(recording, 4000)
    lived_s = time.monotonic() - joined_s
    await alice.leave()
    await waiting.until(lambda: recording.ended, what="the end of the stream")
    assert recording.ended == "eof"
    flashes, beeps = streams.seen_flashes(recording.data), streams.heard_beeps(recording.data)
    assert len(flashes) == len(beeps) == 5
    assert flashes[0][1].speaker == 5
    for (flash_s, reading), (next_s, next_reading) in itertools.pairwise(flashes):
        assert next_s - flash_s == pytest.approx(1, abs=0.04)
        assert next_reading.frame == (reading.frame + 15) % content.LOOP_FRAMES
    for (flash_s, _), beep_s in zip(flashes, beeps, strict=True):
        assert beep_s == pytest.approx(flash_s, abs=0.04)
    assert all(late - soon == pytest.approx(1, abs=0.04) for soon, late in itertools.pairwise(beeps))
    assert recording.last_ms / 1000 == pytest.approx(lived_s, abs=0.2)


async def test_late_viewers_see_the_same_stream(simulator: server.Simulator, watch: Callable[..., streams.Recording]) -> None:
    """A later viewer begins at the latest key frame with the live timestamps, and from there gets the same tags."""
    room = simulator.create_room(streams.APP, "a room/..%2F")
    await room.join("alice")
    first = watch("a room/..%2F", "alice")
    await streams.media(first, 1300)
    second = watch("a room/..%2F", "alice")
    await streams.media(second, 2100)
    tags = second.tags()
    assert [tag[0] for tag in tags[:4]] == [flv.SCRIPT, flv.VIDEO, flv.AUDIO, flv.VIDEO]
    assert [tag[2][1] for tag in tags[1:3]] == [flv.SEQUENCE_HEADER] * 2
    assert tags[3][1] > 0
    assert tags[3][1] % 1000 == 0
    assert tags[3][2][0] >> 4 == flv.KEY_FRAME
    wanted = tags[3:]
    others = first.tags()
    at = others.index(wanted[0])
    shared = min(len(wanted), len(others) - at)
    assert others[at : at + shared] == wanted[:shared]


async def test_a_camera_switched_on_later(simulator: server.Simulator, watch: Callable[..., streams.Recording]) -> None:
    """Audio alone is declared as such, a camera switched on starts with its header and a key frame, and muting stops its tags."""
    alice = await simulator.create_room(streams.APP, 1).join("alice", video=False)
    recording = watch(1, "alice")
    await streams.media(recording, 400)
    assert recording.data[4] == 4
    assert not recording.tags(flv.VIDEO)
    await alice.unmute_video()
    await waiting.until(lambda: len(recording.tags(flv.VIDEO)) > 4, what="video")
    video = recording.tags(flv.VIDEO)
    assert video[0][2][1] == flv.SEQUENCE_HEADER
    assert video[1][2][0] >> 4 == flv.KEY_FRAME
    assert video[1][1] % 1000 == 0
    await alice.mute_video()
    stopped = len(recording.tags(flv.VIDEO))
    await streams.media(recording, recording.last_ms + 400)
    assert len(recording.tags(flv.VIDEO)) <= stopped + 2
    later = watch(1, "alice")
    await streams.media(later, recording.last_ms + 300)
    assert later.data[4] == 4


async def test_declared_but_absent(simulator: server.Simulator, watch: Callable[..., streams.Recording]) -> None:
    """A header can declare both tracks while only sound arrives."""
    alice = await simulator.create_room(streams.APP, 1).join("alice", video=False)
    alice.declare("both")
    recording = watch(1, "alice")
    await streams.media(recording, 300)
    assert recording.data[4] == 5
    assert not recording.tags(flv.VIDEO)


async def test_resize_inside_a_stream(simulator: server.Simulator, watch: Callable[..., streams.Recording]) -> None:
    """A turned phone gives a second sequence header in the same stream, at a full second, followed by readable pictures."""
    alice = await simulator.create_room(streams.APP, 1).join("alice")
    recording = watch(1, "alice")
    await streams.media(recording, 200)
    await alice.resize("240x320")

    def headers() -> list[tuple[int, bytes]]:
        return [(at, payload) for _, at, payload in recording.tags(flv.VIDEO) if payload[1] == flv.SEQUENCE_HEADER]

    await waiting.until(lambda: len(headers()) > 1 and recording.last_ms > headers()[1][0] + 400, what="the other size")
    (_, first), (at_ms, second) = headers()
    assert at_ms % 1000 == 0
    assert first != second
    await alice.leave()
    await waiting.until(lambda: recording.ended)
    sizes = [reading.size for _, reading in streams.seen_flashes(recording.data)]
    assert sizes == sorted(sizes)
    assert set(sizes) == {0, 1}


async def test_stall_and_resume(simulator: server.Simulator, watch: Callable[..., streams.Recording]) -> None:
    """A stalled stream stays open and silent, and continues at the clock's time, video from a key frame, when it resumes."""
    alice = await simulator.create_room(streams.APP, 1).join("alice")
    recording = watch(1, "alice")
    await streams.media(recording, 300)
    alice.stall()
    received = len(recording.data)
    fresh = watch(1, "alice")
    with pytest.raises(AssertionError):
        await waiting.until(lambda: len(recording.data) > received + 4096, timeout_s=1.0)
    assert not recording.ended
    assert [tag[0] for tag in fresh.tags()] == [flv.SCRIPT]
    alice.stall(answer=False)
    unanswered = watch(1, "alice")
    await waiting.until(lambda: alice.viewers == 3)
    assert unanswered.status == 0
    stalled_ms = recording.last_ms
    alice.resume()

    def after() -> list[Any]:
        return [tag for tag in recording.tags() if tag[1] > stalled_ms + 500]

    await waiting.until(lambda: sum(tag[0] == flv.VIDEO for tag in after()) > 8, what="video again")
    resumed = after()
    assert resumed[0][1] - stalled_ms > 800
    video = [tag for tag in resumed if tag[0] == flv.VIDEO]
    assert video[0][2][1] == flv.SEQUENCE_HEADER
    assert video[1][2][0] >> 4 == flv.KEY_FRAME
    # aiohttp's client repeats a request that was cut off without a response, and then gets the stream.
    await streams.media(unanswered, recording.last_ms)
    assert unanswered.tags(flv.VIDEO)[0][1] > stalled_ms + 500


async def test_endings(simulator: server.Simulator, watch: Callable[..., streams.Recording]) -> None:
    """A close is a clean end and an abrupt one is not, a viewer may come back, and a jump shows in the timestamps."""
    alice = await simulator.create_room(streams.APP, 1).join("alice")
    proper = watch(1, "alice")
    await streams.media(proper, 200)
    assert alice.close_viewers() == 1
    await waiting.until(lambda: proper.ended == "eof")
    torn = watch(1, "alice")
    await streams.media(torn, 300)
    alice.jump(60_000)
    await streams.media(torn, 60_400)
    alice.close_viewers(abrupt=True)
    await waiting.until(lambda: torn.ended)
    assert torn.ended != "eof"
    await waiting.until(lambda: alice.viewers == 0)


async def test_removing_and_dismissing(simulator: server.Simulator, watch: Callable[..., streams.Recording]) -> None:
    """Removing a pulling user ends only that user's pulls and gives 104 with Reason 3, and dismissing ends all streams."""
    room = simulator.create_room(streams.APP, 1)
    await room.join("alice")
    await room.join("bob")
    kicked, stays = watch(1, "alice"), watch(1, "bob", userid="other")
    await streams.media(kicked, 200)
    await streams.media(stays, 200)
    await room.remove("recorder")
    await waiting.until(lambda: kicked.ended == "eof")
    assert not stays.ended
    await room.dismiss()
    await waiting.until(lambda: stays.ended == "eof")
    await waiting.until(lambda: streams.events(simulator) and streams.events(simulator)[-1]["EventType"] == 102)
    left = streams.events(simulator)[-2]
    assert (left["EventType"], left["EventInfo"]["UserId"], left["EventInfo"]["Reason"]) == (104, "recorder", 3)


async def test_refusals(simulator: server.Simulator, http: aiohttp.ClientSession) -> None:
    """Missing, foreign and expired UserSigs get 403 with a reason, unknown speakers 404, a scripted refusal its own status."""
    alice = await simulator.create_room(streams.APP, 1).join("alice")
    simulator.configure_app(streams.APP, user_sig_key=streams.USER_SIG_KEY)
    signer = TLSSigAPIv2.TLSSigAPIv2(streams.APP, streams.USER_SIG_KEY)
    good, late = signer.gen_sig("recorder", 60), signer.gen_sig("recorder", -1)
    other = TLSSigAPIv2.TLSSigAPIv2(streams.APP, "another key").gen_sig("recorder", 60)

    async def ask(**query: str) -> tuple[int, str]:
        async with http.get(streams.address(simulator, 1, "alice", **query)) as answer:
            return answer.status, "" if answer.status == 200 else (await answer.text()).strip()

    assert await ask(usersig="") == (403, "UserSig missing")
    assert await ask(usersig=other) == (403, "UserSig invalid")
    assert await ask(usersig=good, userid="somebody") == (403, "UserSig invalid")
    assert await ask(usersig=late) == (403, "UserSig expired")
    assert (await ask(usersig=good))[0] == 200
    assert (await ask(usersig=good, speaker="nobody"))[0] == 404
    alice.refuse(503, "package missing")
    assert await ask(usersig=good) == (503, "package missing")
    alice.accept()
    await alice.mute_audio()
    await alice.mute_video()
    assert (await ask(usersig=good))[0] == 404


async def test_pulls_as_users(tmp_path: Path, loops: Path, http: aiohttp.ClientSession) -> None:
    """With `announce_pulls` and `one_pull_per_user` a pull is an audience member, and a second one ends the first."""
    simulator = server.Simulator(folder=tmp_path, content_folder=loops, announce_pulls=True, one_pull_per_user=True)
    await simulator.start()
    simulator.configure_app(streams.APP, callback_url=simulator.receiver_url("trtc"))
    room = simulator.create_room(streams.APP, 1)
    await room.join("alice")
    await room.join("bob")
    async with (
        http.get(streams.address(simulator, 1, "alice")) as first,
        http.get(streams.address(simulator, 1, "bob")),
        waiting.at_most(5),
    ):
        await first.content.read()
    types = [101, 103, 203, 201, 103, 203, 201, 103, 103, 104, 104]
    await waiting.until(lambda: sorted(m["EventType"] for m in streams.events(simulator)) == sorted(types))
    assert (
        streams.events(simulator)[7]["EventInfo"] | {"Role": 21, "UserId": "recorder"}
        == streams.events(simulator)[7]["EventInfo"]
    )
    await simulator.stop()


async def test_control_api(simulator: server.Simulator, http: aiohttp.ClientSession) -> None:
    """A demo can do everything over HTTP, and a mistake gets a response with the wrong field."""
    control = f"{simulator.url}/control"
    async with http.post(f"{control}/rooms", json={"SdkAppId": streams.APP, "StrRoomId": "demo"}) as answer:
        assert answer.status == 201
        room = f"{control}/rooms/{(await answer.json())['Room']}"
    async with http.post(f"{room}/speakers", json={"UserId": "ann/a", "Video": False}) as answer:
        assert (answer.status, (await answer.json())["Audio"]) == (201, True)
    speaker = f"{room}/speakers/ann%2Fa"
    change = {"Video": True, "Size": "640x360", "Stalled": True, "Declares": "both", "Refuse": 503}
    async with http.patch(speaker, json=change) as answer:
        shown = await answer.json()
    assert (shown["Video"], shown["Size"], shown["Stalled"], shown["Refused"]) == (True, "640x360", True, 503)
    async with http.patch(speaker, json={"Sice": "1x1"}) as answer:
        assert answer.status == 400
        assert "Sice" in (await answer.json())["Message"]
    async with http.post(f"{room}/remove", json={"UserId": "recorder"}) as answer:
        assert answer.status == 204
    async with http.put(f"{control}/callbacks/faults", json=[{"Action": "drop", "EventType": 102}]) as answer:
        assert answer.status == 204
    async with http.put(f"{control}/cos/faults", json=[{"Action": "explode"}]) as answer:
        assert answer.status == 400
    async with http.put(f"{control}/cos/faults", json=[{"Action": "status", "Status": 500}]) as answer:
        assert answer.status == 204
    async with http.get(f"{control}/cos") as answer:
        assert await answer.json() == {"Objects": [], "Uploads": [], "Served": []}
    async with http.delete(speaker) as answer:
        assert answer.status == 204
    async with http.delete(room) as answer:
        assert answer.status == 204
    async with http.get(f"{control}/rooms/none") as answer:
        assert answer.status == 404
    await simulator.callbacks.settled()
    async with http.get(f"{control}/callbacks") as answer:
        told_of = [(message["EventType"], message["Outcome"]) for message in await answer.json()]
    assert told_of[-1] == (102, "dropped")
    async with http.get(f"{simulator.url}/receiver/trtc") as answer:
        assert [each["Json"]["EventType"] for each in await answer.json()] == [
            101,
            103,
            203,
            201,
            104,
        ]  # none of the recorder, who was not there


async def test_start_and_stop(tmp_path: Path, loops: Path, http: aiohttp.ClientSession) -> None:
    """Start and stop may be called twice, a stop ends streams and leaves no task, and the same simulator starts again."""
    simulator = server.Simulator(folder=tmp_path, content_folder=loops)
    await simulator.start()
    await simulator.start()
    await simulator.create_room(streams.APP, 1).join("alice")
    async with http.get(streams.address(simulator, 1, "alice")) as answer:
        await answer.content.readany()
        await simulator.stop()
        async with waiting.at_most(5):
            await answer.content.read()
    await simulator.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("simulator")]
    await simulator.start()
    async with http.get(f"{simulator.url}/control") as answer:
        assert (await answer.json())["Rooms"] == []
    await simulator.stop()


async def test_a_room_that_ends_with_its_last_speaker(simulator: server.Simulator) -> None:
    """A room in live mode ends when its last speaker leaves; its 102 can carry the number as text, as TRTC's example does."""
    room = simulator.create_room(streams.APP, 8489)
    room.ends_when_empty = room.dismissal_as_text = True
    alice, bob = await room.join("alice"), await room.join("bob")
    await alice.leave()
    await bob.leave(speakers.TIMED_OUT)
    await streams.until_events(simulator, 101, 103, 203, 201, 103, 203, 201, 104, 104, 102)
    assert streams.events(simulator)[8]["EventInfo"]["Reason"] == 2
    assert streams.events(simulator)[9]["EventInfo"]["RoomId"] == "8489"


async def test_a_second_join_is_refused(simulator: server.Simulator) -> None:
    """A user can be in a room only once, and a room's id must be within TRTC's limits."""
    room = simulator.create_room(streams.APP, 1)
    await room.join("alice")
    with pytest.raises(ValueError, match="already"):
        await room.join("alice")
    for wrong in (0, 2**32, "", "x" * 65):
        with pytest.raises(ValueError, match="room id"):
            simulator.create_room(streams.APP, wrong)
    with pytest.raises(rooms.NotHere):
        simulator.rooms.by_handle("none")
