"""Starts, stops, and events that must never reach a decision, on a real store."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from events import codec
from events import errors as event_errors
from handlers import dispatch, unit_of_work
from machine import errors, model
from store import store as stores
from tests import decider_harness, engines, transactions


# --- start ------------------------------------------------------------------------------------------------------------
async def test_a_start_opens_a_session(harness: decider_harness.Harness) -> None:
    """A start returns a TaskId; the session is Open, and session-accepted carries the event's id."""
    answer = await harness.say(
        "start",
        "start-1",
        SdkAppId=decider_harness.APP,
        RoomId=88,
        UserId="rec",
        UserSig="MARK-sig",
        CosConfig=decider_harness.COS,
    )
    current = await harness.session(answer["TaskId"])
    assert (current.state, current.request.mode, current.request.room.kind) == ("Open", "00", "integer")
    (accepted,) = await harness.messages("result")
    assert (accepted.type, accepted.correlation_id, accepted.data["TaskId"]) == ("session-accepted", "start-1", answer["TaskId"])
    assert answer["Repeated"] is False


async def test_the_same_start_event_again_gets_the_same_answer(harness: decider_harness.Harness) -> None:
    """A redelivered start changes nothing and gets the first answer."""
    data = decider_harness.START
    first = await harness.say("start", "start-1", **data)
    before = await harness.messages()
    assert await harness.say("start", "start-1", **data) == first
    assert await harness.messages() == before


async def test_a_repeated_start_renews_secrets_and_nothing_else(harness: decider_harness.Harness) -> None:
    """A start of an Open key with the same settings, in any spelling, returns the same TaskId and takes the fresh secrets."""
    settings = {"Callback": "https://x.example/a?key=MARK", "SubscribeUserIds": ["al", "bo"]}
    task_id = await harness.start(**settings)
    fresh = decider_harness.COS | {"SecretId": "MARK-id2", "SecretKey": "MARK-key2", "Path": "/p/"}
    del fresh["Token"]
    spelled = settings | {"SubscribeUserIds": ["bo", "al"], "UnSubscribeUserIds": []}
    again = decider_harness.START | spelled | {"UserSig": "MARK-sig2", "CosConfig": fresh, "Mode": "02", "StrRoomId": "88"}
    answer = await harness.say("start", **again)
    assert (answer["TaskId"], answer["Repeated"]) == (task_id, True)
    async with transactions.opened(harness.store) as tx:
        secrets = await tx.read("secrets", task_id)
    assert secrets.to_json() == {"UserSig": "MARK-sig2", "SecretId": "MARK-id2", "SecretKey": "MARK-key2", "Token": ""}
    current = await harness.session(task_id)
    assert (current.request.mode, current.request.path) == ("02", "p")
    assert "repeated start" in await harness.notes(task_id)


async def test_rooms_of_two_kinds_are_two_keys(harness: decider_harness.Harness) -> None:
    """The integer room and the string room of the same digits are recorded separately; the integer wins if both are given."""
    first = await harness.start()
    second = await harness.start(RoomId=None, StrRoomId="88")
    third = await harness.start(RoomId=88, StrRoomId="88")
    assert first != second
    assert third == first


async def test_a_start_during_closing_opens_a_new_session(harness: decider_harness.Harness) -> None:
    """While the old session still works, a new start gets a new TaskId."""
    first = await harness.start()
    await harness.publish()
    await harness.take(f"{first}/al/1")
    await harness.say("stop", TaskId=first)
    assert (await harness.session(first)).state == "Closing"
    second = await harness.start()
    assert second != first
    assert (await harness.states(second)) == {"al/1": "Joining"}, "who publishes is known"


async def test_a_start_finds_who_is_there(harness: decider_harness.Harness) -> None:
    """Presence from before the start counts: speakers of the wanted kinds get a recording immediately."""
    await harness.publish("al")
    await harness.trtc("user-publishing", "bo", Kind="video")
    await harness.publish("cy")
    await harness.trtc("user-left", "cy")
    await harness.publish("rec")
    task_id = await harness.start(Mode="00")
    assert await harness.states(task_id) == {"al/1": "Joining"}
    assert await harness.commands(f"{task_id}/al/1") == [("start-capture", 1)]


async def test_a_start_without_any_way_to_know_speakers_is_warned(harness: decider_harness.Harness) -> None:
    """A start without subscribed speakers, for an application without callbacks, is accepted with a warning that says what to
    configure."""
    data = decider_harness.START
    (warning,) = (await harness.say("start", **data))["Warnings"]
    assert "TRTC_CALLBACK_KEYS" in warning
    assert (await harness.say("start", **(data | {"RoomId": 89}), SubscribeUserIds=["al"]))["Warnings"] == []
    await harness.publish()
    assert (await harness.say("start", **(data | {"RoomId": 90})))["Warnings"] == []


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"UserSig": None}, "UserSig"),
        ({"UserSig": ""}, "UserSig"),
        ({"RoomId": 0}, "RoomId"),
        ({"RoomId": "", "StrRoomId": ""}, "RoomId"),
        ({"RoomId": None, "StrRoomId": "房" * 22}, "StrRoomId"),
        ({"CosConfig": decider_harness.COS | {"Path": "a/../b"}}, "CosConfig.Path"),
        ({"SubscribeUserIds": ["a"], "UnSubscribeUserIds": ["b"]}, "UnSubscribeUserIds"),
    ],
)
async def test_a_refused_start_names_the_field_and_leaves_nothing(
    harness: decider_harness.Harness, changes: dict[str, Any], where: str
) -> None:
    """A value that no schema can exclude is refused with the field's name, without secrets, and without a written row."""
    with pytest.raises(errors.InvalidParameter) as refused:
        await harness.start(**changes)
    assert refused.value.field == where
    assert "MARK" not in refused.value.message
    assert await harness.reading.sessions() == ([], "")
    assert await harness.messages() == []


async def test_a_refusal_of_the_bus_is_answered(harness: decider_harness.Harness) -> None:
    """A refused start from the bus gets session-refused under the event's id; nothing is raised."""
    data = {"SdkAppId": decider_harness.APP, "RoomId": 0, "UserId": "rec", "UserSig": "MARK", "CosConfig": decider_harness.COS}
    await harness.decider.decide_from_bus(codec.make("start", id="s1", time_ms=harness.clock(), data=data))
    (refused,) = await harness.messages("result")
    assert (refused.type, refused.correlation_id, refused.data["Code"]) == ("session-refused", "s1", "InvalidParameter")
    assert "RoomId" in refused.data["Message"]
    assert "MARK" not in json.dumps(refused.data)


async def test_a_repeat_on_the_bus_is_answered_as_the_first_time(harness: decider_harness.Harness) -> None:
    """A repeated start gets the same answer, message for message, even after the session has ended."""
    start = codec.make("start", id="s1", time_ms=harness.clock(), data=decider_harness.START)
    await harness.decider.decide_from_bus(start)
    (first,) = await harness.messages("result")
    await harness.say("stop", TaskId=first.data["TaskId"])
    harness.clock.advance(60_000)
    await harness.decider.decide_from_bus(start)
    answers = [m for m in await harness.messages("result") if m.type == "session-accepted"]
    assert answers == [first, first]
    assert (first.id, first.correlation_id) == ("s1.accepted", "s1")


async def test_a_refusal_on_the_bus_holds(harness: decider_harness.Harness) -> None:
    """A start refused under an id is refused again under it, even if it would be accepted now; under a new id it is accepted."""
    stop = {"SdkAppId": decider_harness.APP, "RoomId": 88, "UserId": "rec"}
    late = codec.make("stop", id="stop1", time_ms=harness.clock(), data=stop)
    await harness.decider.decide_from_bus(late)
    task_id = await harness.start()
    harness.clock.advance(60_000)
    await harness.decider.decide_from_bus(late)
    first, second = [m for m in await harness.messages("result") if m.type == "session-refused"]
    assert first == second
    assert (first.id, first.data["Code"]) == ("stop1.refused", "NotFound")
    assert (await harness.session(task_id)).state == "Open"
    await harness.decider.decide_from_bus(dataclasses.replace(late, id="stop2"))
    assert (await harness.session(task_id)).state != "Open"


@pytest.mark.parametrize("taken", [False, True], ids=["refused", "accepted"])
async def test_the_bus_cannot_take_the_ids_of_outcomes(harness: decider_harness.Harness, taken: bool) -> None:
    """A publisher may choose any id for a start: if it equals that of a later outcome, the outcome still counts."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    epoch = await harness.take(owner)
    outcome = f"ffmpeg-exit.{owner}.{epoch}"
    data = decider_harness.START | ({"UserId": "another"} if taken else {"UserSig": ""})
    await harness.decider.decide_from_bus(codec.make("start", id=outcome, time_ms=harness.clock(), data=data))
    assert [m.correlation_id for m in await harness.messages("result")][-1] == outcome
    job = {"TaskId": task_id, "Speaker": "al", "N": 1, "Epoch": epoch, "Job": "capture", "Reason": "eof", "MediaMs": 5_000}
    await harness.decider.decide_from_bus(codec.make("ffmpeg-exit", id=outcome, time_ms=harness.clock(), data=job))
    assert (await harness.recording(owner)).state == "Recording"


async def test_a_start_that_no_spool_has_room_for_is_refused(store: stores.Store, clock: engines.Clock) -> None:
    """On the bus, too, the publisher gets the reason immediately."""

    async def full(_: codec.Data) -> tuple[str, ...]:
        raise errors.InsufficientSpace("no worker has room")

    harness = decider_harness.connect(store, clock, full)
    event_id = "\N{MUSICAL NOTE}" * 200
    await harness.decider.decide_from_bus(codec.make("start", id=event_id, time_ms=0, data=decider_harness.START))
    (refused,) = await harness.messages("result")
    assert (refused.data["Code"], refused.data["Message"]) == ("InsufficientSpace", "no worker has room")
    assert refused.data["RequestId"] == event_id
    # AMQP allows 255 bytes.
    assert len(refused.id.encode()) < 100


async def test_a_start_that_cannot_be_judged_now_comes_again(store: stores.Store, clock: engines.Clock) -> None:
    """While no spool is readable, a start on the bus is neither refused nor lost: its redelivery is accepted."""
    away = [errors.Unavailable("no spool can be read")]

    async def inspect(_: codec.Data) -> tuple[str, ...]:
        if away:
            raise away[0]
        return ()

    harness = decider_harness.connect(store, clock, inspect)
    said = codec.make("start", id="s", time_ms=0, data=decider_harness.START)
    with pytest.raises(errors.Unavailable, match="no spool can be read"):
        await harness.decider.decide_from_bus(said)
    assert await harness.messages("result") == []
    away.clear()
    await harness.decider.decide_from_bus(said)
    assert [m.type for m in await harness.messages("result")] == ["session-accepted"]


async def test_the_inspection_comes_before_the_decision(harness: decider_harness.Harness) -> None:
    """The checks before a start (space, bucket) can refuse it with nothing written, or warn."""

    async def inspect(data: codec.Data) -> tuple[str, ...]:
        if data["RoomId"] == 1:
            raise errors.InsufficientSpace
        return ("the bucket is far away",)

    harness.decider = dispatch.Decider(harness.store, unit_of_work.Context(policy=model.Policy(), new_id=engines.ids()), inspect)
    with pytest.raises(errors.InsufficientSpace):
        await harness.start(RoomId=1)
    assert await harness.reading.sessions() == ([], "")
    assert "the bucket is far away" in (await harness.session(await harness.start())).warnings


async def test_a_repeat_is_not_held_against_its_surroundings(harness: decider_harness.Harness) -> None:
    """An Open session takes a fresh UserSig even if spools are full or unreadable. A start repeated after a lost answer gets the
    first answer, whatever is wrong by then. Credentials that the bucket refuses are still refused."""
    wrong: list[errors.RecorderError] = []

    async def inspect(_: codec.Data) -> tuple[str, ...]:
        if wrong:
            raise wrong[0]
        return ()

    harness.decider = dispatch.Decider(harness.store, unit_of_work.Context(policy=model.Policy(), new_id=engines.ids()), inspect)
    said = codec.make("start", id="first", time_ms=harness.clock(), data=decider_harness.START | {"Mode": "02"})
    first = await harness.decider.decide(said)
    for error in (errors.InsufficientSpace("no worker has room"), errors.Unavailable("no spool can be read")):
        wrong[:] = [error]
        assert await harness.decider.decide(said) == first
        assert await harness.start(UserSig=f"MARK-{error.code}") == first["TaskId"]
        async with transactions.opened(harness.store) as tx:
            assert (await tx.read("secrets", first["TaskId"])).user_sig == f"MARK-{error.code}"
        with pytest.raises(type(error)):
            await harness.start(RoomId=77)
    wrong[:] = [errors.InvalidParameter("the key is refused", field="CosConfig.SecretKey")]
    assert await harness.decider.decide(said) == first
    with pytest.raises(errors.InvalidParameter):
        await harness.start(UserSig="MARK-other")


# --- stop -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", ["id", "key", "string key"])
async def test_a_stop_closes_by_id_and_by_key(harness: decider_harness.Harness, by: str) -> None:
    """A stop names the TaskId, or the key of the start; without speakers the result goes out immediately."""
    room = {"StrRoomId": "r 1"} if by == "string key" else {"RoomId": 88}
    task_id = await harness.start(**({"RoomId": None} | room))
    key = {"TaskId": task_id} if by == "id" else {"SdkAppId": decider_harness.APP, "UserId": "rec", **room}
    assert await harness.say("stop", **key) == {"TaskId": task_id, "State": "Finished"}
    (body,) = await harness.reading.results(task_id)
    assert (body["Files"], body["Revision"], body["EndReason"]) == ([], 1, "Stopped")


async def test_a_stop_of_what_is_not_there(harness: decider_harness.Harness) -> None:
    """An unknown TaskId or key is NotFound; a key without a room is refused by name; a second stop changes nothing."""
    with pytest.raises(errors.NotFound):
        await harness.say("stop", TaskId="01" + "9" * 24)
    with pytest.raises(errors.NotFound):
        await harness.say("stop", SdkAppId=decider_harness.APP, RoomId=88, UserId="rec")
    with pytest.raises(errors.InvalidParameter):
        await harness.say("stop", SdkAppId=decider_harness.APP, UserId="rec")
    task_id = await harness.start()
    await harness.say("stop", TaskId=task_id)
    assert await harness.say("stop", TaskId=task_id) == {"TaskId": task_id, "State": "Finished"}
    assert len(await harness.reading.results(task_id)) == 1


async def test_a_leased_capture_is_asked_and_waited_for(harness: decider_harness.Harness) -> None:
    """A stop asks the worker of a running capture; its ffmpeg-exit moves the recording on, to Done, and then the session
    finishes."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    epoch = await harness.take(owner)
    await harness.outcome("capture-started", owner, epoch)
    await harness.say("stop", TaskId=task_id)
    assert (await harness.commands(owner))[-1] == ("stop-capture", epoch)
    assert await harness.states(task_id) == {"al/1": "Recording"}
    await harness.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", MediaMs=4_000)
    await harness.recorded(owner)
    assert (await harness.session(task_id)).state == "Finished"
    (body,) = await harness.reading.results(task_id)
    (file,) = body["Files"]
    assert (file["Code"], file["Size"], file["Crc64"], file["RecordFile"]) == ("Success", 11, "2", f"https://cos/{owner}")
    types = [m.type for m in await harness.messages("result")]
    assert types == ["session-accepted", "recording-done", "session-finished"]


# --- impossible events ------------------------------------------------------------------------------------------------
async def test_bad_data_never_gets_past_the_door(harness: decider_harness.Harness) -> None:
    """An event that the schema refuses never reaches a handler."""
    with pytest.raises(event_errors.InvalidEvent):
        await harness.say("user-publishing", SdkAppId=decider_harness.APP, RoomId=88, UserId="", EventMs=1, Kind="audio")
    with pytest.raises(event_errors.InvalidEvent):
        await harness.say("user-publishing", SdkAppId=decider_harness.APP, RoomId=88, UserId="x" * 65, EventMs=1, Kind="audio")


async def test_the_longest_names_go_all_the_way(harness: decider_harness.Harness) -> None:
    """Speaker, room and user at their longest, with slashes and marks, are recorded like any others."""
    speaker, room = "sp/#" + "k" * 60, "房" * 21 + "x"
    task_id = await harness.start(RoomId=None, StrRoomId=room, UserId="u" * 64)
    await harness.trtc("user-publishing", speaker, StrRoomId=room, Kind="audio")
    owner = f"{task_id}/{speaker}/1"
    await harness.capture(owner, reason="eof")
    await harness.trtc("room-destroyed", StrRoomId=room)
    await harness.recorded(owner)
    (body,) = await harness.reading.results(task_id)
    assert [(f["UserId"], f["Code"]) for f in body["Files"]] == [(speaker, "Success")]
    assert (body["RoomId"], body["StrRoomId"], body["SdkAppId"]) == ("", room, str(decider_harness.APP))
