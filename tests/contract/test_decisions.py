"""What the deciding handlers make of everything that can be said, against a real store and a clock turned by hand."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from typing import Any

import pytest

from events import codec
from events import errors as event_errors
from handlers import applying, deciding
from machine import errors, model
from store import reading
from store import store as stores
from tests import engines

APP = 1400000001
LEASE_MS = 30_000
COS = {
    "Region": "ap-shanghai",
    "Bucket": "b-12345",
    "Path": "p",
    "SecretId": "MARK-id",
    "SecretKey": "MARK-key",
    "Token": "MARK-token",
}
OUTPUT = {"DurationMs": 5_000, "SizeBytes": 9, "Crc64": "1", "StartMs": 1, "EndMs": 2, "Gaps": []}


@dataclass(slots=True)
class Desk:
    """Says things to the deciding handlers and reads what became of them."""

    store: stores.Store
    clock: engines.Clock
    decider: deciding.Decider
    reading: reading.Reading
    new_id: Any = field(default_factory=lambda: engines.ids("e"))

    async def say(self, type_: str, id_: str = "", **data: Any) -> dict[str, Any]:
        """One event, with an id of its own unless it has one."""
        return await self.decider.decide(codec.make(type_, id=id_ or self.new_id(), time_ms=self.clock(), data=data))

    async def start(self, **changes: Any) -> str:
        """A start; its TaskId."""
        data = {"SdkAppId": APP, "RoomId": 88, "UserId": "rec", "UserSig": "MARK-sig", "CosConfig": COS, "Mode": "02"} | changes
        answer = await self.say("start", **{k: v for k, v in data.items() if v is not None})
        return str(answer["TaskId"])

    async def trtc(self, type_: str, user: str = "al", ago_ms: int = 0, **data: Any) -> None:
        """A callback of TRTC about the room 88."""
        room = {} if "StrRoomId" in data or "RoomId" in data else {"RoomId": 88}
        about = {} if type_ == "room-destroyed" else {"UserId": user}
        await self.say(type_, SdkAppId=APP, EventMs=self.clock() - ago_ms, **room, **about, **data)

    async def publish(self, user: str = "al", **data: Any) -> None:
        """A speaker switches audio on."""
        await self.trtc("user-publishing", user, **({"Kind": "audio"} | data))

    async def take(self, owner: str, node: str = "n1") -> int:
        """A worker takes the present job; its epoch."""
        epoch = (await self.recording(owner)).epoch
        assert await self.store.take_lease(owner, epoch, node, LEASE_MS)
        if (await self.recording(owner)).capture == "leased":
            await self.store.register_segment(owner, epoch, node)
        return epoch

    async def outcome(self, type_: str, owner: str, epoch: int, **data: Any) -> None:
        """What a worker says of a recording's job."""
        task_id, speaker, n = model.split_id(owner)
        await self.say(type_, TaskId=task_id, Speaker=speaker, N=n, Epoch=epoch, **data)

    async def capture(self, owner: str, *, media_ms: int = 5_000, reason: str = "stopped", **data: Any) -> None:
        """A capture is taken, brings media, and ends."""
        epoch = await self.take(owner)
        if media_ms:
            await self.outcome("capture-started", owner, epoch, FirstPacketMs=self.clock())
        await self.outcome(
            "ffmpeg-exit", owner, epoch, Job="capture", Reason=reason, MediaMs=media_ms, SizeBytes=media_ms, **data
        )

    async def transcode(self, owner: str, *, good: bool = True) -> None:
        """The transcode is taken and ends."""
        said = {"Reason": "ok", "Output": OUTPUT} if good else {"Reason": "ffmpeg-failed", "Detail": "bad frame", "Retry": False}
        await self.outcome("ffmpeg-exit", owner, await self.take(owner), Job="transcode", **said)

    async def upload(self, owner: str, *, good: bool = True, retry: bool = False) -> None:
        """The upload is taken and ends."""
        epoch = await self.take(owner)
        if good:
            await self.outcome("upload-finished", owner, epoch, SizeBytes=11, Crc64="2", Url=f"https://cos/{owner}")
        else:
            await self.outcome("upload-failed", owner, epoch, Reason="refused", Detail="AccessDenied", Retry=retry)

    async def recorded(self, owner: str) -> None:
        """From the first packet to Done, of a recording whose session is closing."""
        await self.transcode(owner)
        await self.upload(owner)

    async def wait(self, ms: int) -> None:
        """Time passes, in the steps of the deadlines on the way, each of which is said."""
        end_ms = self.clock() + ms
        while True:
            for deadline in await self.store.due_deadlines():
                await self.say("deadline-passed", Owner=deadline.owner, Kind=deadline.kind, Serial=deadline.serial)
            if self.clock() >= end_ms:
                return
            self.clock.now_ms = min(end_ms, await self.next_ms() or end_ms)

    async def jump(self, ms: int) -> None:
        """Time passes at once; what is overdue is said late."""
        self.clock.advance(ms)
        await self.wait(0)

    async def next_ms(self) -> int:
        """When the next deadline is over."""
        from sqlalchemy import text

        async with self.store._engine.connect() as connection:
            query = text("SELECT min(at_ms) FROM deadlines WHERE at_ms > :now")
            return int((await connection.execute(query, {"now": self.clock()})).scalar() or 0)

    async def recording(self, owner: str) -> model.Recording:
        """One recording as it stands."""
        async with self.store.transaction() as tx:
            found = await tx.recording(owner)
        assert found is not None
        return found

    async def callbacks(self, task_id: str) -> list[model.Callback]:
        """The deliveries of a session's results."""
        async with self.store.transaction() as tx:
            return await tx.callbacks(task_id)

    async def states(self, task_id: str) -> dict[str, str]:
        """speaker/n → state of a session's recordings."""
        async with self.store.transaction() as tx:
            return {f"{r.speaker}/{r.n}": r.state for r in await tx.recordings(task_id)}

    async def session(self, task_id: str) -> model.Session:
        """One session as it stands."""
        found = await self.reading.session(task_id)
        assert found is not None
        return found

    async def messages(self, channel: str = "") -> list[codec.Event]:
        """What waits in the outbox, in order."""
        return [codec.decode(m.body, now_ms=0) for m in await self.store.unsent(1_000) if channel in ("", m.channel)]

    async def commands(self, owner: str) -> list[tuple[str, int]]:
        """(type, epoch) of the commands to one recording, in order."""
        return [(m.type, m.data["Epoch"]) for m in await self.messages("command") if m.subject == owner]

    async def notes(self, task_id: str) -> str:
        """All notes of a session's timeline, as one text."""
        return "\n".join(line.note for line in await self.reading.timeline(task_id))


@pytest.fixture
def desk(store: stores.Store, clock: engines.Clock) -> Desk:
    """A desk with the policy of every day."""
    context = applying.Context(policy=model.Policy(), new_id=engines.ids())
    return Desk(store, clock, deciding.Decider(store, context), reading.Reading(store._engine))


# --- start -----------------------------------------------------------------------------------------------------------
async def test_a_start_opens_a_session(desk: Desk) -> None:
    """A start is answered with a TaskId; the session is Open, and session-accepted says so under the event's id."""
    answer = await desk.say("start", "start-1", SdkAppId=APP, RoomId=88, UserId="rec", UserSig="MARK-sig", CosConfig=COS)
    current = await desk.session(answer["TaskId"])
    assert (current.state, current.request.mode, current.request.room.kind) == ("Open", "00", "integer")
    (accepted,) = await desk.messages("result")
    assert (accepted.type, accepted.correlation_id, accepted.data["TaskId"]) == ("session-accepted", "start-1", answer["TaskId"])
    assert answer["Repeated"] is False


async def test_the_same_start_event_again_gets_the_same_answer(desk: Desk) -> None:
    """A redelivered start changes nothing and is answered as at first."""
    data = {"SdkAppId": APP, "RoomId": 88, "UserId": "rec", "UserSig": "s", "CosConfig": COS}
    first = await desk.say("start", "start-1", **data)
    before = await desk.messages()
    assert await desk.say("start", "start-1", **data) == first
    assert await desk.messages() == before


async def test_a_repeated_start_renews_secrets_and_nothing_else(desk: Desk) -> None:
    """A start of an Open key answers the same TaskId, takes the fresh secrets, and ignores the rest, which is journalled."""
    task_id = await desk.start()
    fresh = COS | {"SecretId": "MARK-id2", "SecretKey": "MARK-key2", "Path": "elsewhere"}
    del fresh["Token"]
    answer = await desk.say("start", SdkAppId=APP, RoomId=88, UserId="rec", UserSig="MARK-sig2", CosConfig=fresh, Mode="01")
    assert (answer["TaskId"], answer["Repeated"]) == (task_id, True)
    async with desk.store.transaction() as tx:
        secrets = await tx.secrets(task_id)
    assert secrets.to_json() == {"UserSig": "MARK-sig2", "SecretId": "MARK-id2", "SecretKey": "MARK-key2", "Token": ""}
    current = await desk.session(task_id)
    assert (current.request.mode, current.request.path) == ("02", "p")
    assert "repeated start" in await desk.notes(task_id)


async def test_rooms_of_two_kinds_are_two_keys(desk: Desk) -> None:
    """The integer room and the string room of the same digits are recorded apart; the integer wins if both are given."""
    first = await desk.start()
    second = await desk.start(RoomId=None, StrRoomId="88")
    third = await desk.start(RoomId=88, StrRoomId="88")
    assert first != second
    assert third == first


async def test_a_start_during_closing_opens_a_new_session(desk: Desk) -> None:
    """While the old session still works, a new start gets a new TaskId."""
    first = await desk.start()
    await desk.publish()
    await desk.take(f"{first}/al/1")
    await desk.say("stop", TaskId=first)
    assert (await desk.session(first)).state == "Closing"
    second = await desk.start()
    assert second != first
    assert (await desk.states(second)) == {"al/1": "Joining"}, "who publishes is known"


async def test_a_start_finds_who_is_there(desk: Desk) -> None:
    """Presence is kept from before the start: speakers of the wanted kinds get a recording at once."""
    await desk.publish("al")
    await desk.trtc("user-publishing", "bo", Kind="video")
    await desk.publish("cy")
    await desk.trtc("user-left", "cy")
    await desk.publish("rec")
    task_id = await desk.start(Mode="00")
    assert await desk.states(task_id) == {"al/1": "Joining"}
    assert await desk.commands(f"{task_id}/al/1") == [("start-capture", 1)]


async def test_presence_expires_after_a_day(desk: Desk) -> None:
    """What was heard of a room more than 24 h ago opens nothing."""
    await desk.publish()
    await desk.wait(24 * model.HOUR + 1)
    assert await desk.states(await desk.start()) == {}


async def test_a_start_without_any_way_to_know_speakers_is_warned(desk: Desk) -> None:
    """No callback ever seen and nobody subscribed: accepted, with a warning that says what to configure."""
    data = {"SdkAppId": APP, "RoomId": 88, "UserId": "rec", "UserSig": "s", "CosConfig": COS}
    (warning,) = (await desk.say("start", **data))["Warnings"]
    assert "TRTC_CALLBACK_KEYS" in warning
    assert (await desk.say("start", **(data | {"RoomId": 89}), SubscribeUserIds=["al"]))["Warnings"] == []
    await desk.publish()
    assert (await desk.say("start", **(data | {"RoomId": 90})))["Warnings"] == []


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"UserSig": None}, "UserSig"),
        ({"UserSig": ""}, "UserSig"),
        ({"RoomId": 0}, "RoomId"),
        ({"RoomId": "", "StrRoomId": ""}, "RoomId"),
        ({"RoomId": None, "StrRoomId": "房" * 22}, "StrRoomId"),
        ({"CosConfig": COS | {"Path": "a/../b"}}, "CosConfig.Path"),
        ({"SubscribeUserIds": ["a"], "UnSubscribeUserIds": ["b"]}, "UnSubscribeUserIds"),
    ],
)
async def test_a_refused_start_names_the_field_and_leaves_nothing(desk: Desk, changes: dict[str, Any], where: str) -> None:
    """What no schema can say is refused with the field's name, no secret, and not a row written."""
    with pytest.raises(errors.InvalidParameter) as refused:
        await desk.start(**changes)
    assert refused.value.field == where
    assert "MARK" not in refused.value.message
    assert await desk.reading.sessions() == []
    assert await desk.messages() == []


async def test_a_refusal_of_the_bus_is_answered(desk: Desk) -> None:
    """A start from the bus that is refused is answered with session-refused under the event's id; nothing is raised."""
    data = {"SdkAppId": APP, "RoomId": 0, "UserId": "rec", "UserSig": "MARK", "CosConfig": COS}
    await desk.decider.decide_from_bus(codec.make("start", id="s1", time_ms=desk.clock(), data=data))
    (refused,) = await desk.messages("result")
    assert (refused.type, refused.correlation_id, refused.data["Code"]) == ("session-refused", "s1", "InvalidParameter")
    assert "RoomId" in refused.data["Message"]
    assert "MARK" not in json.dumps(refused.data)


async def test_the_inspection_comes_before_the_decision(desk: Desk) -> None:
    """What is looked at before a start (space, bucket) can refuse it with nothing written, or warn."""

    async def inspect(data: codec.Data) -> tuple[str, ...]:
        if data["RoomId"] == 1:
            raise errors.InsufficientSpace
        return ("the bucket is far away",)

    desk.decider = deciding.Decider(desk.store, applying.Context(policy=model.Policy(), new_id=engines.ids()), inspect)
    with pytest.raises(errors.InsufficientSpace):
        await desk.start(RoomId=1)
    assert await desk.reading.sessions() == []
    assert "the bucket is far away" in (await desk.session(await desk.start())).warnings


# --- stop ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", ["id", "key", "string key"])
async def test_a_stop_closes_by_id_and_by_key(desk: Desk, by: str) -> None:
    """A stop names the TaskId, or what the start named; with nobody there the result goes out at once."""
    room = {"StrRoomId": "r 1"} if by == "string key" else {"RoomId": 88}
    task_id = await desk.start(**({"RoomId": None} | room))
    key = {"TaskId": task_id} if by == "id" else {"SdkAppId": APP, "UserId": "rec", **room}
    assert await desk.say("stop", **key) == {"TaskId": task_id, "State": "Finished"}
    (body,) = await desk.reading.results(task_id)
    assert (body["Files"], body["Revision"], body["EndReason"]) == ([], 1, "Stopped")


async def test_a_stop_of_what_is_not_there(desk: Desk) -> None:
    """An unknown TaskId or key is NotFound; a key without a room is refused by name; a second stop changes nothing."""
    with pytest.raises(errors.NotFound):
        await desk.say("stop", TaskId="01" + "9" * 24)
    with pytest.raises(errors.NotFound):
        await desk.say("stop", SdkAppId=APP, RoomId=88, UserId="rec")
    with pytest.raises(errors.InvalidParameter):
        await desk.say("stop", SdkAppId=APP, UserId="rec")
    task_id = await desk.start()
    await desk.say("stop", TaskId=task_id)
    assert await desk.say("stop", TaskId=task_id) == {"TaskId": task_id, "State": "Finished"}
    assert len(await desk.reading.results(task_id)) == 1


async def test_a_leased_capture_is_asked_and_waited_for(desk: Desk) -> None:
    """A stop asks the worker of a running capture; its ffmpeg-exit moves on, to Done, and then the session finishes."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    epoch = await desk.take(owner)
    await desk.outcome("capture-started", owner, epoch)
    await desk.say("stop", TaskId=task_id)
    assert (await desk.commands(owner))[-1] == ("stop-capture", epoch)
    assert await desk.states(task_id) == {"al/1": "Recording"}
    await desk.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", MediaMs=4_000)
    await desk.recorded(owner)
    assert (await desk.session(task_id)).state == "Finished"
    (body,) = await desk.reading.results(task_id)
    (file,) = body["Files"]
    assert (file["Code"], file["Size"], file["Crc64"], file["RecordFile"]) == ("Success", 11, "2", f"https://cos/{owner}")
    types = [m.type for m in await desk.messages("result")]
    assert types == ["session-accepted", "recording-done", "session-finished"]


# --- what TRTC says --------------------------------------------------------------------------------------------------
async def test_modes_and_kinds(desk: Desk) -> None:
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


async def test_subscribing_and_unsubscribing(desk: Desk) -> None:
    """Only the subscribed, or all but the unsubscribed, and never the recording user."""
    only = await desk.start(SubscribeUserIds=["al"])
    but = await desk.start(UserId="rec2", UnSubscribeUserIds=["al"])
    for user in ("al", "bo", "rec", "rec2"):
        await desk.publish(user)
    assert set(await desk.states(only)) == {"al/1"}
    assert set(await desk.states(but)) == {"bo/1", "rec/1"}, "another session's recording user is a speaker like any other"


async def test_a_second_track_and_a_repeat_open_nothing_new(desk: Desk) -> None:
    """While a recording captures, user-publishing of the same speaker belongs to it."""
    task_id = await desk.start()
    await desk.publish()
    await desk.trtc("user-publishing", "al", Kind="video")
    await desk.publish()
    assert await desk.commands(f"{task_id}/al/1") == [("start-capture", 1)]
    assert await desk.states(task_id) == {"al/1": "Joining"}


async def test_callbacks_out_of_order_are_ignored(desk: Desk) -> None:
    """A speaker's event that is older than the last one applied changes nothing."""
    task_id = await desk.start()
    await desk.publish()
    await desk.take(f"{task_id}/al/1")
    await desk.trtc("user-left", "al", ago_ms=1_000)
    assert (await desk.recording(f"{task_id}/al/1")).present is True
    await desk.trtc("user-left", "al")
    await desk.publish("al", ago_ms=1)
    assert (await desk.recording(f"{task_id}/al/1")).present is False
    assert "older than the last event" in await desk.notes(task_id)


async def test_a_room_event_older_than_the_session_is_ignored(desk: Desk) -> None:
    """Rooms are used again: a late room-destroyed of before the opening closes nothing, and forgets nobody younger."""
    await desk.publish(ago_ms=1_000)
    task_id = await desk.start()
    await desk.trtc("room-destroyed", ago_ms=5_000)
    assert (await desk.session(task_id)).state == "Open"
    await desk.trtc("user-left", "al", ago_ms=3_000)
    assert (await desk.recording(f"{task_id}/al/1")).present is True
    await desk.trtc("room-destroyed")
    assert (await desk.session(task_id)).end_reason == "RoomDestroyed"
    assert await desk.states(await desk.start()) == {}, "nobody is in a room that is gone"


async def test_a_room_s_events_reach_its_sessions_only(desk: Desk) -> None:
    """Two recording users in one room both hear of it; other rooms, kinds and applications do not."""
    here = [await desk.start(), await desk.start(UserId="rec2")]
    others = [await desk.start(RoomId=89), await desk.start(RoomId=None, StrRoomId="88"), await desk.start(SdkAppId=7)]
    await desk.trtc("room-destroyed")
    assert [(await desk.session(t)).state for t in here] == ["Finished", "Finished"]
    assert [(await desk.session(t)).state for t in others] == ["Open"] * 3


async def test_a_dismissal_of_digits_means_the_open_string_room_first(desk: Desk) -> None:
    """102 with digits only: the string room if a session is Open there, else the integer room."""
    integer = await desk.start()
    string = await desk.start(RoomId=None, StrRoomId="88")
    await desk.trtc("room-destroyed", RoomId=88, StrRoomId="88")
    assert [(await desk.session(t)).state for t in (integer, string)] == ["Open", "Finished"]
    desk.clock.advance(1)
    await desk.trtc("room-destroyed", RoomId=88, StrRoomId="88")
    assert (await desk.session(integer)).state == "Finished"


@pytest.mark.parametrize("reason", [0, 1, 2, 3, 4, 5, 6])
async def test_reasons_of_the_recording_user_s_leaving(desk: Desk, reason: int) -> None:
    """Reasons 3, 4 and 5 close the session; all others are our own comings and goings, and noted only."""
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
    desk: Desk, pulls_ms: tuple[int, ...], event_ms: int, closes: bool
) -> None:
    """Not a removal when we opened another pull in the 5 s before it, however late the callback comes."""
    task_id = await desk.start()
    opened_ms = desk.clock()
    for epoch, pull_ms in enumerate(pulls_ms, 1):
        desk.clock.now_ms = opened_ms + pull_ms
        await desk.store.register_segment(f"{task_id}/al/1", epoch, "n1")
    desk.clock.now_ms = opened_ms + 30_000
    await desk.trtc("user-left", "rec", ago_ms=30_000 - event_ms, Reason=3)
    assert ((await desk.session(task_id)).state != "Open") is closes


async def test_user_removed_closes_its_session_only(desk: Desk) -> None:
    """user-removed of the recording user closes the session; of anybody else, nothing."""
    task_id, other = await desk.start(), await desk.start(UserId="rec2")
    desk.clock.advance(60_000)
    await desk.trtc("user-removed", "al")
    await desk.trtc("user-removed", "rec")
    assert (await desk.session(task_id)).end_reason == "UserRemoved"
    assert (await desk.session(other)).state == "Open"


async def test_what_is_only_noted_moves_nothing(desk: Desk) -> None:
    """Tracks switched off and anchors entering leave a line in the timeline and nothing else."""
    task_id = await desk.start()
    await desk.publish()
    before = await desk.recording(f"{task_id}/al/1")
    await desk.trtc("user-unpublished", "al", Kind="audio")
    await desk.trtc("user-entered", "bo", Role=20)
    assert await desk.recording(f"{task_id}/al/1") == before
    assert "noted" in await desk.notes(task_id)


async def test_events_that_do_not_concern_anybody_are_harmless(desk: Desk) -> None:
    """Callbacks about rooms without a session, outcomes about what is not there, deadlines that are spent: nothing happens."""
    await desk.publish(RoomId=5)
    await desk.trtc("user-left", RoomId=5)
    await desk.trtc("room-destroyed", RoomId=6)
    gone = f"01{'9' * 24}/al/1"
    await desk.outcome("capture-started", gone, 1)
    await desk.outcome("ffmpeg-exit", gone, 1, Job="transcode", Reason="ok", Output=OUTPUT)
    await desk.outcome("upload-finished", gone, 1, SizeBytes=1, Crc64="1", Url="x")
    await desk.outcome("upload-failed", gone, 1, Reason="x", Retry=True)
    for owner in (gone, gone[:26], f"{gone[:26]}#1"):
        await desk.say("deadline-passed", Owner=owner, Kind="idle", Serial="s")
        await desk.say("worker-lost", Owner=owner, Epoch=1, Node="n")
    await desk.say("callback-finished", TaskId=gone[:26], Revision=1, Epoch=1)
    await desk.say("callback-failed", TaskId=gone[:26], Revision=1, Epoch=1, Reason="x", Retry=True)
    assert await desk.messages() == []


@pytest.mark.parametrize("owner", ["x", "x/y", "x#y", "a/b/c", "#", "/", "//", ""])
async def test_owners_that_cannot_be_are_harmless(desk: Desk, owner: str) -> None:
    """Nothing raises, whatever a message names as its owner."""
    await desk.say("worker-lost", Owner=owner, Epoch=1, Node="n")
    await desk.say("deadline-passed", Owner=owner, Kind="retry", Serial="s")


# --- speakers who come and go ----------------------------------------------------------------------------------------
async def test_a_speaker_who_comes_back_within_linger_has_one_recording(desk: Desk) -> None:
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


async def test_a_speaker_who_comes_back_after_linger_has_two(desk: Desk) -> None:
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


async def test_a_silent_recording_ends_unless_callbacks_say_the_speaker_is_there(desk: Desk) -> None:
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


async def test_media_keeps_a_recording_and_its_session(desk: Desk) -> None:
    """Renewals that bring media, and short runs between two renewals, move the ends by idleness of both."""
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
        assert await desk.store.renew_lease(owner, epoch, "n1", LEASE_MS, last_packet_ms=desk.clock())
    assert (await desk.session(task_id)).state == "Open"
    await desk.wait(301_000)
    assert (await desk.session(task_id)).end_reason == "Idle"


async def test_a_subscribed_speaker_is_tried_as_long_as_the_session_is_open(desk: Desk) -> None:
    """Without any callback: tried from the start, and again after a recording that ended in silence."""
    task_id = await desk.start(SubscribeUserIds=["al", "bo"])
    await desk.capture(f"{task_id}/al/1", reason="eof")
    await desk.take(f"{task_id}/bo/1")
    for _ in range(4):
        await desk.wait(100_000)
        assert await desk.store.renew_lease(f"{task_id}/bo/1", 1, "n1", LEASE_MS, last_packet_ms=desk.clock())
    assert await desk.states(task_id) == {"al/1": "Transcoding", "al/2": "Joining", "bo/1": "Joining"}


async def test_a_subscribed_speaker_who_never_came_leaves_no_entry(desk: Desk) -> None:
    """Nothing is reported of a subscribed speaker who was never seen, whatever happened to the pulls."""
    task_id = await desk.start(SubscribeUserIds=["al", "bo"])
    await desk.capture(f"{task_id}/bo/1", media_ms=0, reason="refused-for-good", Detail="UserSig expired")
    await desk.capture(f"{task_id}/al/1", media_ms=0, reason="refused")
    await desk.wait(300_000)
    (body,) = await desk.reading.results(task_id)
    assert (body["Files"], body["EndReason"]) == ([], "NobodyPublished")
    assert [m.type for m in await desk.messages("result")] == ["session-accepted", "session-finished"]


# --- the session's deadlines -----------------------------------------------------------------------------------------
async def test_nobody_published(desk: Desk) -> None:
    """JOIN_TIMEOUT ends a session in which nobody ever published, at 300 s and not before."""
    task_id = await desk.start()
    await desk.wait(299_999)
    assert (await desk.session(task_id)).state == "Open"
    await desk.wait(1)
    assert (await desk.session(task_id)).end_reason == "NobodyPublished"


async def test_an_idle_session_ends_unless_a_speaker_is_present(desk: Desk) -> None:
    """IDLE_TIMEOUT after the last media of all, unless callbacks say that a speaker is there."""
    task_id = await desk.start()
    await desk.publish()
    await desk.capture(f"{task_id}/al/1", reason="eof")
    await desk.wait(1_000_000)
    assert (await desk.session(task_id)).state == "Open"
    await desk.trtc("user-left")
    await desk.wait(400_000)
    current = await desk.session(task_id)
    assert (current.state, current.end_reason) == ("Closing", "Idle")


async def test_a_day_is_the_longest(desk: Desk) -> None:
    """MAX_DURATION ends even a session whose speakers are there, at 24 h and not before."""
    task_id = await desk.start()
    await desk.publish()
    await desk.take(f"{task_id}/al/1")
    await desk.jump(24 * model.HOUR - 1)
    assert (await desk.session(task_id)).state == "Open"
    await desk.jump(1)
    assert (await desk.session(task_id)).end_reason == "MaxDuration"


async def test_downtime_counts_for_nothing(desk: Desk) -> None:
    """After an hour away, a session that waited for its first speaker waits on for the rest of its time."""
    task_id = await desk.start()
    await desk.wait(200_000)
    desk.clock.advance(model.HOUR)
    await desk.store.forgive_downtime(model.HOUR)
    await desk.wait(99_000)
    assert (await desk.session(task_id)).state == "Open"
    await desk.wait(2_000)
    assert (await desk.session(task_id)).end_reason == "NobodyPublished"


# --- results ---------------------------------------------------------------------------------------------------------
async def _pending(desk: Desk, **changes: Any) -> str:
    """A session that finished while one upload is still being tried. Returns the recording's id."""
    task_id = await desk.start(**changes)
    await desk.publish()
    owner = f"{task_id}/al/1"
    epoch = await desk.take(owner)
    await desk.outcome("capture-started", owner, epoch)
    await desk.say("stop", TaskId=task_id)
    await desk.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", MediaMs=4_000)
    await desk.transcode(owner)
    for _ in range(20):
        await desk.upload(owner, good=False, retry=True)
        await desk.wait(60_000)
        if (await desk.recording(owner)).job != model.Job(kind="upload", state="queued"):
            break
    return owner


async def _until_result(desk: Desk, owner: str) -> None:
    while not await desk.reading.results(owner[:26]):
        if (await desk.recording(owner)).job == model.Job(kind="upload", state="queued"):
            await desk.upload(owner, good=False, retry=True)
        await desk.wait(30_000)


async def test_a_pending_upload_is_reported_and_revised(desk: Desk) -> None:
    """RESULT_WAIT after closing the result goes out with UploadPending; when the upload ends, Revision 2 says so, and the
    callback of Revision 1 that was not delivered is cancelled."""
    owner = await _pending(desk, Callback="https://example.com/done")
    await _until_result(desk, owner)
    current = await desk.session(owner[:26])
    assert current.state == "Finished"
    assert current.finished_ms == (current.closing_ms or 0) + 15 * model.MINUTE
    (first,) = await desk.reading.results(owner[:26])
    assert [(f["Code"], f["Message"], f["Status"], f["RecordFile"]) for f in first["Files"]] == [
        ("UploadPending", "写cos失败", 0, "")
    ]
    while (await desk.recording(owner)).job != model.Job(kind="upload", state="queued"):
        await desk.wait(60_000)
    await desk.upload(owner)
    _, second = await desk.reading.results(owner[:26])
    assert (second["Revision"], second["Files"][0]["Code"]) == (2, "Success")
    assert [c.state for c in await desk.callbacks(owner[:26])] == ["cancelled", "pending"]
    ids = [m.id for m in await desk.messages("result") if m.type == "session-finished"]
    assert len(set(ids)) == 2


async def test_the_result_waits_for_a_transcode(desk: Desk) -> None:
    """RESULT_WAIT finishes only what waits for uploads; a transcode that still runs is waited for."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    await desk.capture(owner, reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.wait(20 * model.MINUTE)
    assert (await desk.session(task_id)).state == "Closing"
    await desk.recorded(owner)
    assert (await desk.session(task_id)).state == "Finished"


async def test_an_upload_is_tried_for_three_days(desk: Desk) -> None:
    """UPLOAD_RETRY_FOR over, the recording has failed: FailedCosWrite, as a new revision; worker deaths alone never fail it."""
    owner = await _pending(desk)
    for _ in range(2_000):
        if (await desk.recording(owner)).final:
            break
        if (await desk.recording(owner)).job == model.Job(kind="upload", state="queued"):
            epoch = await desk.take(owner)
            await desk.say("worker-lost", Owner=owner, Epoch=epoch, Node="n1")
            if not (await desk.recording(owner)).final:
                await desk.upload(owner, good=False, retry=True)
        await desk.wait(2 * model.HOUR)
    final = await desk.recording(owner)
    assert (final.state, final.code) == ("Failed", "FailedCosWrite")
    assert final.ended_ms is not None
    assert final.ended_ms - final.step_from_ms >= 72 * model.HOUR
    assert [b["Files"][0]["Code"] for b in await desk.reading.results(owner[:26])] == ["UploadPending", "FailedCosWrite"]


async def test_each_failure_has_its_event_and_message(desk: Desk) -> None:
    """Failing in each stage gives that stage's event, code and message, in the recording's result and in the session's."""
    task_id = await desk.start()
    for speaker in ("al", "bo", "cy", "di"):
        await desk.publish(speaker)
    await desk.capture(f"{task_id}/al/1", media_ms=0, reason="refused-for-good", Detail="UserSig expired")
    await desk.capture(f"{task_id}/bo/1", reason="disk-full", Detail="the spool is full")
    await desk.capture(f"{task_id}/cy/1", reason="eof")
    await desk.capture(f"{task_id}/di/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.transcode(f"{task_id}/cy/1", good=False)
    await desk.transcode(f"{task_id}/di/1")
    await desk.upload(f"{task_id}/di/1", good=False)
    (body,) = await desk.reading.results(task_id)
    said = [(f["UserId"], f["Code"], f["Message"], f["Status"], f["Detail"]) for f in body["Files"]]
    assert said == [
        ("al", "FailedRecording", "录制失败", 0, "UserSig expired"),
        ("bo", "FailedRecording", "录制失败", 0, "the spool is full"),
        ("cy", "FailedTranscode", "转码失败", 0, "bad frame"),
        ("di", "FailedCosWrite", "写cos失败", 0, "AccessDenied"),
    ]
    events = [(m.type, m.data["Speaker"], m.data["Attempt"]) for m in await desk.messages("result") if "Speaker" in m.data]
    assert events == [
        ("failed-recording", "al", 1),
        ("failed-recording", "bo", 1),
        ("failed-transcode", "cy", 1),
        ("failed-cos-write", "di", 1),
    ]


async def test_media_of_a_superseded_capture_is_still_media(desk: Desk) -> None:
    """A recording that ends in Joining while a superseded capture left media behind is transcoded, not failed."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    epoch = await desk.take(owner)
    await desk.say("replay", TaskId=task_id)
    await desk.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", MediaMs=2_000)
    await desk.say("stop", TaskId=task_id)
    assert await desk.states(task_id) == {"al/1": "Transcoding"}


async def test_media_known_only_from_the_segment_is_still_media(desk: Desk) -> None:
    """The worker died before it could say that media came; what it noted of its segment counts."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    epoch = await desk.take(owner)
    await desk.store.note_segment(owner, epoch, {"media_ms": 2_000})
    await desk.say("stop", TaskId=task_id)
    await desk.say("worker-lost", Owner=owner, Epoch=epoch, Node="n1")
    assert await desk.states(task_id) == {"al/1": "Transcoding"}


async def test_a_late_outcome_takes_nothing_from_a_segment(desk: Desk) -> None:
    """A stale worker-lost that found nothing does not make the media of a closed segment unknown."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    await desk.capture(owner, reason="eof", LastPacketMs=desk.clock())
    await desk.say("worker-lost", Owner=owner, Epoch=1, Node="n1", MediaMs=0)
    (segment,) = await desk.store.segments(owner)
    assert (segment.media_ms, segment.last_packet_ms) == (5_000, desk.clock())


# --- callbacks of ours -----------------------------------------------------------------------------------------------
async def test_a_result_is_posted_and_tried_on_the_schedule(desk: Desk) -> None:
    """The callback is sent with the result; failures wait 5 s, 5 min … 24 h; after ten tries it has failed."""
    task_id = await desk.start(Callback="https://example.com/done")
    await desk.say("stop", TaskId=task_id)
    pauses_ms = []
    for _ in range(10):
        (callback,) = await desk.callbacks(task_id)
        assert json.loads(callback.body) == (await desk.reading.results(task_id))[0]
        failed = {"TaskId": task_id, "Revision": 1, "Epoch": callback.epoch, "Reason": "status", "Detail": "500", "Retry": True}
        await desk.say("callback-failed", **failed)
        if next_ms := await desk.next_ms():
            pauses_ms.append(next_ms - desk.clock())
            await desk.wait(pauses_ms[-1])
    hours = [2, 5, 10, 14, 20, 24]
    assert pauses_ms == [5_000, 300_000, 1_800_000, *(h * model.HOUR for h in hours)]
    (callback,) = await desk.callbacks(task_id)
    assert (callback.state, callback.detail) == ("failed", "500")


async def test_no_callback_without_a_url(desk: Desk) -> None:
    """A start without Callback posts nothing."""
    task_id = await desk.start()
    await desk.say("stop", TaskId=task_id)
    assert await desk.callbacks(task_id) == []
    assert [m.type for m in await desk.messages("command")] == []


# --- replay ----------------------------------------------------------------------------------------------------------
async def _failed(desk: Desk, stage: str) -> str:
    """A finished session with one recording that failed in `stage`. Returns its id."""
    task_id = await desk.start(Callback="https://example.com/done")
    await desk.publish()
    owner = f"{task_id}/al/1"
    if stage == "joining":
        await desk.capture(owner, media_ms=0, reason="refused-for-good", Detail="UserSig expired")
    else:
        await desk.capture(owner, reason="disk-full" if stage == "recording" else "eof")
    await desk.say("stop", TaskId=task_id)
    if stage in ("transcoding", "uploading"):
        await desk.transcode(owner, good=stage == "uploading")
    if stage == "uploading":
        await desk.upload(owner, good=False)
    assert (await desk.session(task_id)).state == "Finished"
    return owner


@pytest.mark.parametrize(
    ("stage", "from_", "to"),
    [
        ("joining", None, "Joining"),
        ("recording", None, "Transcoding"),
        ("recording", "joining", "Joining"),
        ("transcoding", None, "Transcoding"),
        ("transcoding", "transcoding", "Transcoding"),
        ("uploading", None, "Uploading"),
        ("uploading", "uploading", "Uploading"),
        ("uploading", "transcoding", "Transcoding"),
        ("uploading", "joining", "Joining"),
    ],
)
async def test_a_replay_re_enters_where_the_inputs_exist(desk: Desk, stage: str, from_: str | None, to: str) -> None:
    """The latest state whose inputs exist, or the earlier one asked for; the dry run says the same and writes nothing."""
    owner = await _failed(desk, stage)
    asked = {"TaskId": owner[:26]} | ({"From": from_} if from_ else {})
    before, sent = await desk.recording(owner), await desk.messages()
    dry = await desk.say("replay", DryRun=True, **asked)
    assert dry["Recordings"] == [{"Speaker": "al", "N": 1, "State": "Failed", "To": to, "Attempt": 2}]
    assert await desk.recording(owner) == before
    assert await desk.messages() == sent
    assert await desk.say("replay", **asked) == dry
    after = await desk.recording(owner)
    assert (after.state, after.attempt, after.job is not None and after.job.state) == (to, 2, "queued")
    assert (await desk.session(owner[:26])).state == ("Open" if to == "Joining" else "Finished")


async def test_a_replay_that_succeeds_and_one_that_fails_again(desk: Desk) -> None:
    """Each end of a replay is a new revision, with the new outcome or the new Detail."""
    owner = await _failed(desk, "uploading")
    await desk.say("replay", TaskId=owner[:26])
    await desk.upload(owner, good=False)
    await desk.say("replay", TaskId=owner[:26])
    await desk.upload(owner)
    codes = [(b["Revision"], b["Files"][0]["Code"]) for b in await desk.reading.results(owner[:26])]
    assert codes == [(1, "FailedCosWrite"), (2, "FailedCosWrite"), (3, "Success")]
    attempts = [(m.type, m.data["Attempt"]) for m in await desk.messages("result") if "Attempt" in m.data]
    assert attempts == [("failed-cos-write", 1), ("failed-cos-write", 2), ("recording-done", 3)]
    assert [c.state for c in await desk.callbacks(owner[:26])] == ["cancelled", "cancelled", "pending"]


async def test_a_replay_from_joining_reopens_with_fresh_deadlines(desk: Desk) -> None:
    """The session is Open again, its day and its waits begin anew, and its end is the next revision."""
    owner = await _failed(desk, "joining")
    await desk.wait(model.HOUR)
    await desk.say("replay", TaskId=owner[:26], UserSig="MARK-fresh")
    current = await desk.session(owner[:26])
    assert (current.state, current.opened_ms) == ("Open", desk.clock())
    async with desk.store.transaction() as tx:
        assert (await tx.secrets(owner[:26])).user_sig == "MARK-fresh"
    await desk.capture(owner, reason="eof")
    await desk.wait(500_000)
    assert (await desk.session(owner[:26])).end_reason == "Idle"
    await desk.recorded(owner)
    last = (await desk.reading.results(owner[:26]))[-1]
    assert (last["Revision"], last["Files"][0]["Code"]) == (2, "Success")


async def test_a_replay_from_joining_is_refused_while_the_key_is_open_elsewhere(desk: Desk) -> None:
    """Both the replay and its dry run say so, and nothing changes, secrets included."""
    owner = await _failed(desk, "joining")
    other = await desk.start()
    for dry in (True, False):
        with pytest.raises(errors.Refused, match=other):
            await desk.say("replay", TaskId=owner[:26], DryRun=dry, UserSig="MARK-late")
    async with desk.store.transaction() as tx:
        assert (await tx.secrets(owner[:26])).user_sig == "MARK-sig"
    assert (await desk.recording(owner)).state == "Failed"


async def test_replays_that_are_refused(desk: Desk) -> None:
    """What is Done without an earlier stage named, what has no files for the stage, and what is not there are refused."""
    owner = await _failed(desk, "joining")
    for stage in ("transcoding", "uploading"):
        with pytest.raises(errors.Refused, match="not kept"):
            await desk.say("replay", TaskId=owner[:26], From=stage)
    with pytest.raises(errors.NotFound):
        await desk.say("replay", TaskId=owner[:26], Speaker="nobody")
    with pytest.raises(errors.NotFound):
        await desk.say("replay", TaskId="01" + "9" * 24)
    done = await desk.start(RoomId=99)
    await desk.publish(RoomId=99)
    await desk.capture(f"{done}/al/1", reason="eof")
    await desk.say("stop", TaskId=done)
    await desk.recorded(f"{done}/al/1")
    for which in ({}, {"Speaker": "al", "N": 1}):
        with pytest.raises(errors.Refused, match="Done"):
            await desk.say("replay", TaskId=done, **which)
    assert (await desk.say("replay", TaskId=done, From="transcoding"))["Recordings"][0]["To"] == "Transcoding"


async def test_a_replay_of_a_stuck_recording_issues_its_command_again(desk: Desk) -> None:
    """Unfinished recordings get the present state's command under a new epoch; the old worker's lease is refused."""
    task_id = await desk.start()
    await desk.publish()
    owner = f"{task_id}/al/1"
    expected = []
    for command in ("start-capture", "start-transcode", "start-upload"):
        epoch = await desk.take(owner)
        await desk.say("replay", TaskId=task_id)
        assert not await desk.store.renew_lease(owner, epoch, "n1", LEASE_MS)
        expected += [(command, epoch), (command, epoch + 1)]
        if command == "start-capture":
            await desk.capture(owner, reason="eof")
            await desk.say("stop", TaskId=task_id)
        elif command == "start-transcode":
            await desk.transcode(owner)
    assert await desk.commands(owner) == expected
    assert (await desk.recording(owner)).attempt == 1


async def test_the_dry_run_of_an_unfinished_recording_is_true_too(desk: Desk) -> None:
    """Uploading with an earlier stage asked for, and a stopped capture whose worker is silent: dry run and run agree."""
    owner = await _pending(desk)
    asked = {"TaskId": owner[:26], "From": "transcoding"}
    dry = await desk.say("replay", DryRun=True, **asked)
    assert await desk.say("replay", **asked) == dry
    assert (await desk.recording(owner)).state == dry["Recordings"][0]["To"] == "Transcoding"
    other = await desk.start(RoomId=77)
    await desk.publish(RoomId=77)
    await desk.take(f"{other}/al/1")
    await desk.say("stop", TaskId=other)
    dry = await desk.say("replay", DryRun=True, TaskId=other)
    assert await desk.say("replay", TaskId=other) == dry
    assert (await desk.recording(f"{other}/al/1")).state == dry["Recordings"][0]["To"] == "Failed"
    assert (await desk.session(other)).state == "Finished"


async def test_only_the_named_recordings_are_replayed(desk: Desk) -> None:
    """Speaker and N choose; without them, all that is not Done."""
    task_id = await desk.start()
    for speaker in ("al", "bo", "cy"):
        await desk.publish(speaker)
        await desk.capture(f"{task_id}/{speaker}/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.recorded(f"{task_id}/cy/1")
    for speaker in ("al", "bo"):
        await desk.transcode(f"{task_id}/{speaker}/1", good=False)
    await desk.say("replay", TaskId=task_id, Speaker="al", N=1)
    assert await desk.states(task_id) == {"al/1": "Transcoding", "bo/1": "Failed", "cy/1": "Done"}
    answer = await desk.say("replay", TaskId=task_id)
    assert [r["Speaker"] for r in answer["Recordings"]] == ["al", "bo"]


# --- secrets ---------------------------------------------------------------------------------------------------------
async def _secrets(desk: Desk, task_id: str) -> str:
    async with desk.store.transaction() as tx:
        return (await tx.secrets(task_id)).user_sig


async def test_secrets_are_wiped_when_all_is_done(desk: Desk) -> None:
    """With every recording Done the secrets go; with one Failed they stay for its replay."""
    task_id = await desk.start()
    for speaker in ("al", "bo"):
        await desk.publish(speaker)
        await desk.capture(f"{task_id}/{speaker}/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.recorded(f"{task_id}/al/1")
    await desk.transcode(f"{task_id}/bo/1", good=False)
    assert (await desk.session(task_id)).state == "Finished"
    assert await _secrets(desk, task_id) == "MARK-sig"
    await desk.say("replay", TaskId=task_id)
    await desk.recorded(f"{task_id}/bo/1")
    assert await _secrets(desk, task_id) == ""


async def test_secrets_are_wiped_at_keep_failed(desk: Desk) -> None:
    """KEEP_FAILED after the last failure they go, and not while another recording may still need them."""
    task_id = await desk.start()
    for speaker in ("al", "bo"):
        await desk.publish(speaker)
        await desk.capture(f"{task_id}/{speaker}/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.transcode(f"{task_id}/al/1", good=False)
    await desk.jump(3 * 24 * model.HOUR)
    await desk.transcode(f"{task_id}/bo/1", good=False)
    await desk.jump(5 * 24 * model.HOUR)
    assert await _secrets(desk, task_id) == "MARK-sig"
    await desk.jump(3 * 24 * model.HOUR)
    assert await _secrets(desk, task_id) == ""


async def test_secrets_lie_in_their_own_table_only(desk: Desk, database: engines.Database) -> None:
    """Planted secrets are in no journal, inbox, outbox or any other table; wiped, they are nowhere in the database's files."""
    task_id = await desk.start()
    fresh = {"SecretId": "MARK-id3", "SecretKey": "MARK-key3", "Token": "MARK-token3"}
    await desk.start(UserSig="MARK-sig2", CosConfig={k: COS[k] for k in ("Region", "Bucket", "Path")})
    await desk.publish()
    await desk.say("replay", TaskId=task_id, UserSig="MARK-sig3", CosConfig=fresh)
    for refused in ({"RoomId": 0}, {"CosConfig": COS | {"Path": ".."}}):
        with pytest.raises(errors.InvalidParameter):
            await desk.start(**refused)
    tables = [name for (name,) in database.ask("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        rows = repr(database.ask(f"SELECT * FROM {table}"))
        assert ("MARK" in rows) is (table == "secrets"), table
    await desk.capture(f"{task_id}/al/1", reason="eof")
    await desk.say("stop", TaskId=task_id)
    await desk.recorded(f"{task_id}/al/1")
    await desk.store.stop()
    with sqlite3.connect(database.path) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert b"MARK" not in database.everything()


async def test_wiped_secrets_are_gone_from_the_file(desk: Desk, database: engines.Database) -> None:
    """What was wiped is overwritten on disk, not only unlinked: nobody finds it in a copy of the file."""
    task_id = await desk.start()
    await desk.say("stop", TaskId=task_id)
    await desk.store.stop()
    assert b"MARK" not in database.everything()


# --- what must never happen ------------------------------------------------------------------------------------------
async def test_bad_data_never_gets_past_the_door(desk: Desk) -> None:
    """An event that the schema refuses never reaches a handler."""
    with pytest.raises(event_errors.InvalidEvent):
        await desk.say("user-publishing", SdkAppId=APP, RoomId=88, UserId="", EventMs=1, Kind="audio")
    with pytest.raises(event_errors.InvalidEvent):
        await desk.say("user-publishing", SdkAppId=APP, RoomId=88, UserId="x" * 65, EventMs=1, Kind="audio")


async def test_the_longest_names_go_all_the_way(desk: Desk) -> None:
    """Speaker, room and user at their longest, with slashes and marks, are recorded like any others."""
    speaker, room = "sp/#" + "k" * 60, "房" * 21 + "x"
    task_id = await desk.start(RoomId=None, StrRoomId=room, UserId="u" * 64)
    await desk.trtc("user-publishing", speaker, StrRoomId=room, Kind="audio")
    owner = f"{task_id}/{speaker}/1"
    await desk.capture(owner, reason="eof")
    await desk.trtc("room-destroyed", StrRoomId=room)
    await desk.recorded(owner)
    (body,) = await desk.reading.results(task_id)
    assert [(f["UserId"], f["Code"]) for f in body["Files"]] == [(speaker, "Success")]
    assert (body["RoomId"], body["StrRoomId"], body["SdkAppId"]) == ("", room, str(APP))
