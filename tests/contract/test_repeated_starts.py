"""Starts that repeat an earlier one: with other settings, or under its id, on a real store."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text

from events import codec
from events import errors as event_errors
from machine import errors
from store import store as stores
from tests import decider_harness, engines, transactions

FIRST = {"Mode": "02", "Callback": "https://x.example/a?key=MARK", "SubscribeUserIds": ["al", "bo"]}
OTHER_SETTINGS: list[tuple[dict[str, Any], list[str]]] = [
    ({"Mode": "01"}, ["Mode"]),
    ({"Mode": None}, ["Mode"]),
    ({"CosConfig": decider_harness.COS | {"Path": "p/q"}}, ["CosConfig.Path"]),
    ({"CosConfig": decider_harness.COS | {"Bucket": "c-12345", "Region": "ap-x"}}, ["CosConfig.Region", "CosConfig.Bucket"]),
    ({"Callback": "https://x.example/a?key=MARK2"}, ["Callback"]),
    ({"Callback": "https://y.example/a?key=MARK"}, ["Callback"]),
    ({"Callback": None}, ["Callback"]),
    ({"SubscribeUserIds": ["al"]}, ["SubscribeUserIds"]),
    ({"UserData": {"lesson": 7}}, ["UserData"]),
    ({"CallbackEvents": ["recording-started"]}, ["CallbackEvents"]),
    ({"SubscribeUserIds": None, "UnSubscribeUserIds": ["al"]}, ["SubscribeUserIds", "UnSubscribeUserIds"]),
]


@pytest.mark.parametrize(("changes", "fields"), OTHER_SETTINGS)
async def test_a_start_with_other_settings_is_refused(
    harness: decider_harness.Harness, changes: dict[str, Any], fields: list[str]
) -> None:
    """A start of an Open key with other settings is refused with the session and the differing fields, over both doors; nothing
    changes, not even the secrets."""
    task_id = await harness.start(**FIRST)
    before = await harness.session(task_id)
    data = {k: v for k, v in (decider_harness.START | FIRST | changes | {"UserSig": "MARK-sig2"}).items() if v is not None}
    with pytest.raises(errors.AlreadyRecording) as refused:
        await harness.say("start", **data)
    assert (refused.value.http_status, refused.value.details) == (409, {"TaskId": task_id, "Fields": fields})
    await harness.decider.decide_from_bus(codec.make("start", id="s9", time_ms=0, data=data))
    (reply,) = [m for m in await harness.messages("result") if m.type == "session-refused"]
    assert (reply.correlation_id, reply.data["Code"], reply.data["TaskId"]) == ("s9", "AlreadyRecording", task_id)
    assert reply.data["Fields"] == fields
    assert "MARK" not in refused.value.message
    assert await harness.session(task_id) == before
    async with transactions.opened(harness.store) as tx:
        assert (await tx.read("secrets", task_id)).user_sig == "MARK-sig"


async def test_a_session_without_a_callback_is_not_given_one(harness: decider_harness.Harness) -> None:
    """A start that adds what the Open session does not have is refused as well; a stop makes way for it."""
    task_id = await harness.start()
    with pytest.raises(errors.AlreadyRecording) as refused:
        await harness.start(Callback="https://x.example/a", UnSubscribeUserIds=["cy"])
    assert refused.value.details["Fields"] == ["Callback", "UnSubscribeUserIds"]
    await harness.say("stop", TaskId=task_id)
    assert await harness.start(Callback="https://x.example/a", UnSubscribeUserIds=["cy"]) != task_id


async def test_another_request_under_one_id_is_refused(harness: decider_harness.Harness) -> None:
    """A start under the id of another one is not answered with that one's session: it is refused, and can come under its own id.
    Fresh secrets make no other request, and neither does the order of fields."""
    data = decider_harness.START | {"Callback": "https://x.example/a?key=MARK"}
    first = await harness.say("start", "timetable-7", **data)
    fresh = {"UserSig": "MARK-sig2", "CosConfig": {k: data["CosConfig"][k] for k in ("Path", "Bucket", "Region")}}
    assert await harness.say("start", "timetable-7", **dict(reversed((data | fresh).items()))) == first
    for changes in ({"RoomId": 89}, {"Mode": "01"}, {"Callback": "https://x.example/a?key=MARK2"}, {"UserId": "rec2"}):
        with pytest.raises(errors.KeyReused) as refused:
            await harness.say("start", "timetable-7", **(data | changes))
        assert refused.value.http_status == 422
    with pytest.raises(errors.KeyReused):
        await harness.say("stop", "timetable-7", TaskId=first["TaskId"])
    assert (await harness.session(first["TaskId"])).state == "Open"
    assert (await harness.say("start", "timetable-8", **(data | {"RoomId": 89})))["TaskId"] != first["TaskId"]


async def test_another_request_under_one_id_on_the_bus(harness: decider_harness.Harness) -> None:
    """On the bus the second request gets a refusal with an id of its own, and the first one's reply stays what it was."""
    data = decider_harness.START
    for room in (88, 89, 88):
        await harness.decider.decide_from_bus(codec.make("start", id="s1", time_ms=5, data=data | {"RoomId": room}))
    first, other, again = [m for m in await harness.messages("result") if m.correlation_id == "s1"]
    assert (first.type, first.id, again.id, again.data) == ("session-accepted", "s1.accepted", "s1.accepted", first.data)
    assert (other.type, other.id, other.data["Code"]) == ("session-refused", "s1.reused", "IdempotencyKeyReused")


async def test_malformed_requests_at_the_same_moment(harness: decider_harness.Harness) -> None:
    """Each of several malformed messages under one id gets a reply: the same for the same message, and another for another."""
    error = event_errors.InvalidEvent("Mode", "is wrong")
    bodies = ["one", "one", "two", "one"]
    made = [codec.Event(id="m1", type="start", time_ms=5, data={"Body": body}) for body in bodies]
    await asyncio.gather(*(harness.decider.refuse_invalid(each, error) for each in made))
    replies = await harness.messages("result")
    assert {(r.type, r.correlation_id) for r in replies} == {("session-refused", "m1")}
    ids = Counter(r.id for r in replies)
    assert ids in (Counter({"m1.refused": 3, "m1.reused": 1}), Counter({"m1.refused": 1, "m1.reused": 3}))
    assert all(r.data["Fields"] == ["Mode"] for r in replies if r.id == "m1.refused")


async def test_a_fingerprint_tells_nothing(harness: decider_harness.Harness, database: engines.Database) -> None:
    """The same request under two ids has two fingerprints. A node of the version before kept none: its answers hold."""
    data = decider_harness.START | {"RoomId": 90}
    answers = [await harness.say("start", id_, **data) for id_ in ("k1", "k2")]
    query = "SELECT fingerprint FROM inbox WHERE event_id IN ('k1', 'k2')"
    assert len({row[0] for row in database.ask(query)} - {""}) == 2
    async with harness.store.connections.write() as connection:
        await connection.execute(text("UPDATE inbox SET fingerprint = '' WHERE event_id = 'k1'"))
    assert await harness.say("start", "k1", **(data | {"RoomId": 91})) == answers[0]


@pytest.mark.parametrize("speakers", [3, 70])
async def test_a_large_session_is_retried_with_a_fresh_signature(harness: decider_harness.Harness, speakers: int) -> None:
    """The captures of many speakers failed: a dry run of a replay and a repeated start with a fresh UserSig retry all of them."""
    names = [f"s{n:02}" for n in range(speakers)]
    task_id = await harness.start()
    for name in names:
        await harness.publish(name)
        await harness.capture(f"{task_id}/{name}/1", media_ms=0, reason="refused-for-good", Retry=False)
    answer = await harness.say("replay", TaskId=task_id, DryRun=True)
    assert [r["Speaker"] for r in answer["Recordings"]] == names
    assert await harness.start(UserSig="fresh") == task_id
    found = await harness.states(task_id)
    assert [found[f"{name}/2"] for name in names] == ["Joining"] * speakers


async def test_a_start_whose_callback_url_was_forgotten_is_repeated(
    harness: decider_harness.Harness, database: engines.Database
) -> None:
    """Without the URL its origin is compared: the same start renews the secrets, and one to another host is refused."""
    task_id = await harness.start(**FIRST)
    async with harness.store.connections.write() as connection:
        await connection.execute(text("DELETE FROM secrets WHERE kind = 'callback'"))
    assert await harness.start(**FIRST | {"UserSig": "fresh"}) == task_id
    with pytest.raises(errors.AlreadyRecording):
        await harness.start(**FIRST | {"Callback": "https://y.example/a?key=MARK"})


@pytest.mark.parametrize("given", [{"lesson": 7, "of": [1.5, None, "ü"]}, 0, False, "x" * 1022])
async def test_user_data_comes_back_in_every_result(harness: decider_harness.Harness, given: object) -> None:
    """UserData of any kind is in the result of each recording, in both revisions of the session's result, and in the body that is
    posted; a repeated start with the same one is the same start, whatever the order of its fields."""
    task_id = await harness.start(UserData=given, Callback="https://x.example/a")
    again = dict(reversed(given.items())) if isinstance(given, dict) else given
    assert await harness.start(UserData=again, Callback="https://x.example/a") == task_id
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.capture(owner)
    await harness.say("stop", TaskId=task_id)
    await harness.transcode(owner)
    await harness.upload(owner, good=False)
    await harness.say("replay", TaskId=task_id)
    await harness.upload(owner)
    found = {m.type: m.data.get("UserData") for m in await harness.messages("result") if m.type != "session-accepted"}
    assert found == {"failed-cos-write": given, "recording-done": given, "session-finished": given}
    assert [body["UserData"] for body in await harness.reading.results(task_id)] == [given, given]
    assert json.loads((await harness.deliveries(task_id))[-1].body)["UserData"] == given


async def test_a_start_without_user_data_has_results_without_it(harness: decider_harness.Harness) -> None:
    """Nothing is added to the result of a start that gave none; "" and null count as not given."""
    for given in (None, ""):
        task_id = await harness.start(UserData=given)
        await harness.say("stop", TaskId=task_id)
        (body,) = await harness.reading.results(task_id)
        assert "UserData" not in body


async def test_a_repeated_start_renews_the_warnings(store: stores.Store, clock: engines.Clock) -> None:
    """The checks of a repeated start replace the warnings of the first one, in its answer and with the session; checks that ended
    early, because the disk is full, replace nothing."""
    found: list[Any] = [("The UserSig has expired: …",), errors.InsufficientSpace("full"), ()]

    async def inspect(_: codec.Data) -> tuple[str, ...]:
        each = found.pop(0)
        if isinstance(each, Exception):
            raise each
        return tuple(each)

    harness = decider_harness.connect(store, clock, inspect)
    data = decider_harness.START | {"SubscribeUserIds": ["al"]}
    first = await harness.say("start", **data)
    assert first["Warnings"] == ["The UserSig has expired: …"]
    assert (await harness.say("start", **data))["Warnings"] == first["Warnings"]
    assert (await harness.session(first["TaskId"])).warnings == tuple(first["Warnings"])
    assert (await harness.say("start", **data))["Warnings"] == []
    assert (await harness.session(first["TaskId"])).warnings == ()
