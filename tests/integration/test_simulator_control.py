"""The simulator's control API, as docs/simulator.md promises it to users of any language."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from simulator import callbacks, server
from simulator.cos import signature
from tencent import trtc_callbacks
from tests import waiting

APP, KEY = 1400000001, "callback-key"
LESSON = {"Room": "lesson", "SdkAppId": APP, "RoomId": 8489}


@pytest.fixture
async def simulator(tmp_path: Path, loops: Path) -> AsyncIterator[server.Simulator]:
    account = signature.Account(secret_id="AKIDone", secret_key="key-one")
    rule = callbacks.RetryRule(timeout_s=1.0, pause_s=0.1, give_up_after_s=0.3)
    running = server.Simulator(folder=tmp_path, content_folder=loops, accounts=[account], retry_rule=rule)
    await running.start()
    running.configure_app(APP, callback_url=running.receiver_url("trtc"), callback_key=KEY)
    yield running
    await running.stop()


class Caller:
    """A client of the control API like curl: JSON without the Content-Type of JSON."""

    def __init__(self, simulator: server.Simulator, http: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self._http = http

    async def __call__(self, method: str, path: str, body: Any = None, *, status: int = 0) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        async with self._http.request(method, self.simulator.url + path, data=data, headers=headers) as answer:
            text = await answer.text()
            assert answer.status == status or (not status and answer.status < 300), text
            return json.loads(text) if text else None

    def events(self) -> list[Any]:
        """The callbacks so far, without fields that differ between runs."""
        messages = [received.json() for received in self.simulator.receiver.received["trtc"]]
        return [(m["EventType"], m["EventInfo"].get("UserId", ""), m["EventInfo"].get("Role")) for m in messages]


@pytest.fixture
async def call(simulator: server.Simulator) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession() as http:
        yield Caller(simulator, http)


async def test_a_room_with_speakers_in_one_call(call: Caller) -> None:
    """One call creates a room with a name and speakers, the same room keeps its name, and a name belongs to one room."""
    shown = await call("POST", "/control/rooms", LESSON | {"Speakers": [{"UserId": "alice"}, {"UserId": "bob", "Video": False}]})
    assert (shown["Room"], shown["Exists"]) == ("lesson", True)
    assert [(each["UserId"], each["Audio"], each["Video"]) for each in shown["Speakers"]] == [
        ("alice", True, True),
        ("bob", True, False),
    ]
    assert (await call("POST", "/control/rooms", {"SdkAppId": APP, "RoomId": 8489}))["Room"] == "lesson"
    assert (await call("POST", "/control/rooms", {"SdkAppId": APP, "StrRoomId": "8489"}))["Room"] == "room-1"
    for wrong in (LESSON | {"Room": "other"}, LESSON | {"RoomId": 7}, LESSON | {"RoomId": 7, "Room": "a/b"}):
        assert (await call("POST", "/control/rooms", wrong, status=400))["Code"] == "InvalidParameter"
    wrong = LESSON | {"Room": "x", "RoomId": 9, "Speakers": [{"UserId": "a"}, {"Name": "b"}]}
    assert "Name is not known" in (await call("POST", "/control/rooms", wrong, status=400))["Message"]
    assert [room["Room"] for room in (await call("GET", "/control"))["Rooms"]] == ["lesson", "room-1"]


async def test_roles_and_screens(call: Caller) -> None:
    """A speaker who becomes audience gives only 105 and ends the stream, and as an anchor again publishes as before."""
    await call("POST", "/control/rooms", LESSON | {"Speakers": [{"UserId": "alice"}]})
    alice, speaker = "/control/rooms/lesson/speakers/alice", call.simulator.create_room(APP, 8489).speakers["alice"]
    values = {"room": "8489", "sdkappid": str(APP), "userid": "r", "usersig": "s", "speaker": "alice"}
    address = call.simulator.pull_template.format(**values, number_room="&use_number_room_id=1")
    async with aiohttp.ClientSession() as http:
        async with http.get(address) as answer:
            await answer.content.readany()
            shown = await call("PATCH", alice, {"Role": 21})
            async with waiting.at_most(5):
                await answer.content.read()
        async with http.get(address) as answer:
            assert answer.status == 404
    assert (shown["Role"], shown["Audio"], shown["Video"]) == (21, False, False)
    assert "anchor" in (await call("PATCH", alice, {"Audio": True}, status=400))["Message"]
    assert (await call("PATCH", alice, {"Role": 20}))["Video"] is True
    assert speaker.publishing
    await call("PATCH", alice, {"Screen": True})
    await call("PATCH", alice, {"Screen": False})
    await call("DELETE", alice, {"Reason": 2})
    types = [(101, None), (103, 20), (203, None), (201, None), (105, 21), (105, 20), (203, None), (201, None)]
    types += [(205, None), (206, None), (104, 20)]
    await waiting.until(lambda: [(each[0], each[2]) for each in call.events()] == types, what=str(types))
    assert call.simulator.receiver.received["trtc"][-1].json()["EventInfo"]["Reason"] == 2


async def test_callbacks_without_a_cause(call: Caller) -> None:
    """Any callback can be sent, with other fields of EventInfo and with a wrong signature, which a receiver can detect."""
    await call("POST", "/control/rooms", LESSON)
    announce = "/control/rooms/lesson/announce"
    sent = await call("POST", announce, {"EventType": 104, "UserId": "eve", "Info": {"Reason": 3, "EventMsTs": 7}})
    assert sent["EventInfo"] == sent["EventInfo"] | {"RoomId": 8489, "UserId": "eve", "Reason": 3, "EventMsTs": 7}
    assert sent["EventGroupId"] == 1
    await call("POST", announce, {"EventType": 205, "UserId": "eve", "Forged": True})
    assert "EventInfo" in (await call("POST", announce, {"EventType": 102, "Info": {"forged": 1}}, status=400))["Message"]
    await call.simulator.callbacks.settled()
    genuine, forged = call.simulator.receiver.received["trtc"]
    assert trtc_callbacks.verify(KEY, genuine.body, genuine.headers["Sign"])
    assert not trtc_callbacks.verify(KEY, forged.body, forged.headers["Sign"])
    assert [each["Forged"] for each in await call("GET", "/control/callbacks")] == [False, True]


async def test_a_forging_fault(call: Caller) -> None:
    """With the fault `forge` every attempt has a wrong signature, so a receiver that checks never accepts the message."""
    await call("PUT", "/control/callbacks/faults", [{"Action": "forge", "EventType": 103, "Times": 1}])
    call.simulator.receiver.answer_with("trtc", 401)
    await call("POST", "/control/rooms", LESSON | {"Speakers": [{"UserId": "alice", "Video": False}]})
    await call.simulator.callbacks.settled()
    outcomes = {each["EventType"]: (each["Forged"], each["Outcome"]) for each in await call("GET", "/control/callbacks")}
    assert outcomes == {101: (False, "lost"), 103: (True, "lost"), 203: (False, "lost")}
    for received in call.simulator.receiver.received["trtc"]:
        genuine = trtc_callbacks.verify(KEY, received.body, received.headers["Sign"])
        assert genuine == (received.json()["EventType"] != 103)


async def test_faults_are_shown_and_checked(call: Caller) -> None:
    """Fault scripts are returned as given, and a wrong field, type, action or status is refused by name and changes nothing."""
    late = {"Action": "delay", "EventType": 104, "UserId": "", "Times": 0, "DelayS": 0.5}
    await call("PUT", "/control/callbacks/faults", [late])
    assert await call("GET", "/control/callbacks/faults") == [late]
    broken = {"Action": "status", "Operation": "upload-part", "Bucket": "*", "Key": "*.mp4", "Signer": "*", "Skip": 1, "Times": 2}
    broken |= {"Status": 500, "Code": "InternalError", "DelayS": 0.0}
    await call("PUT", "/control/cos/faults", [broken])
    assert await call("GET", "/control/cos/faults") == [broken]
    for path, wrong, expected in (
        ("callbacks", [{"Action": "drop", "Times": "2"}], "Times is not a whole number"),
        ("callbacks", [{"Times": 2}], "Action is required"),
        ("callbacks", {"Action": "drop"}, "array"),
        ("cos", [{"Action": "status", "Status": 200}], "Status"),
        ("cos", [{"Action": "burn"}], "Action is one of status, delay"),
        ("cos", [{"action": "status"}], "action is not known"),
        ("cos", [7], "not a JSON object"),
    ):
        answer = await call("PUT", f"/control/{path}/faults", wrong, status=400)
        assert expected in answer["Message"]
    assert await call("GET", "/control/cos/faults") == [broken]


async def test_a_change_is_whole_or_not_at_all(call: Caller) -> None:
    """A change with a wrong field leaves the speaker unchanged."""
    await call("POST", "/control/rooms", LESSON | {"Speakers": [{"UserId": "alice"}]})
    alice = "/control/rooms/lesson/speakers/alice"
    before = await call("GET", "/control/rooms/lesson")
    for wrong in ({"Size": "1x1"}, {"Declares": "all"}, {"Role": 22}, {"Refuse": 99}, {"JumpMs": "1"}, {"Stalled": 1}):
        assert next(iter(wrong)) in (await call("PATCH", alice, {"Audio": False} | wrong, status=400))["Message"]
    after = await call("GET", "/control/rooms/lesson")
    assert after["Speakers"][0] | {"MediaMs": 0} == before["Speakers"][0] | {"MediaMs": 0}
    assert (await call("PATCH", f"{alice}x", {}, status=404))["Code"] == "NotFound"


async def test_a_stall_without_an_answer(call: Caller) -> None:
    """A stalled speaker can leave new viewers without a response, and the stream goes on after it resumes."""
    await call("POST", "/control/rooms", LESSON | {"Speakers": [{"UserId": "alice"}]})
    alice = "/control/rooms/lesson/speakers/alice"
    stream = call.simulator.create_room(APP, 8489).speakers["alice"].stream
    assert (await call("PATCH", alice, {"Stalled": True, "Answers": False}))["Stalled"] is True
    assert (stream.stalled, stream.answers) == (True, False)
    assert (await call("PATCH", alice, {"Stalled": False}))["Stalled"] is False
    assert (stream.stalled, stream.answers) == (False, True)


async def test_the_receiver_waits_and_refuses(call: Caller) -> None:
    """A receiver can be waited for, responds with the configured status, and can be cleared."""
    waits = asyncio.create_task(call("GET", "/receiver/lesson?wait=30"))
    assert await call("GET", "/receiver/lesson") == []
    await call("POST", "/receiver/lesson", {"Revision": 1})
    assert [each["Json"] for each in await waits] == [{"Revision": 1}]
    await call("PUT", "/receiver/lesson", {"Status": 503})
    await call("POST", "/receiver/lesson", {"Revision": 2}, status=503)
    assert len(await call("GET", "/receiver/lesson?wait=30")) == 2
    await call("DELETE", "/receiver/lesson")
    began_s = time.monotonic()
    assert await call("GET", "/receiver/lesson?wait=1") == []
    assert time.monotonic() - began_s >= 1
    await call("GET", "/receiver/lesson?wait=soon", status=400)
    await call("PUT", "/receiver/lesson", {"Status": 99}, status=400)


async def test_accounts_and_pulls(call: Caller) -> None:
    """Keys can be added, expired and removed, and the counting of pulls as users can be changed at run time."""
    await call("PUT", "/control/accounts/AKIDtwo", {"SecretKey": "key-two", "Token": "t", "ExpiresInS": 60})
    added = call.simulator.cos.accounts["AKIDtwo"]
    assert (added.secret_key, added.token) == ("key-two", "t")
    assert added.expires_s == pytest.approx(time.time() + 60, abs=waiting.limit_s(5))
    assert (await call("GET", "/control"))["Accounts"] == ["AKIDone", "AKIDtwo"]
    await call("DELETE", "/control/accounts/AKIDtwo")
    assert list(call.simulator.cos.accounts) == ["AKIDone"]
    await call("PUT", "/control/accounts/AKIDtwo", {}, status=400)
    await call("PUT", "/control/pulls", {"Announce": True, "OnePerUser": True})
    assert (call.simulator.pulls.announce, call.simulator.pulls.one_per_user) == (True, True)


async def test_variants_of_a_dismissal(call: Caller) -> None:
    """A dismissal can send a callback for each leaver, and can name an integer room as text."""
    room = LESSON | {"AnnouncesLeavers": True, "DismissalAsText": True, "Speakers": [{"UserId": "alice", "Video": False}]}
    await call("POST", "/control/rooms", room)
    await call("DELETE", "/control/rooms/lesson")
    await waiting.until(lambda: [each[0] for each in call.events()] == [101, 103, 203, 104, 102])
    last = call.simulator.receiver.received["trtc"][-1].json()
    assert last["EventInfo"]["RoomId"] == "8489"
    assert (await call("GET", "/control/rest")) == []


def test_tencents_figures() -> None:
    """The default retry rule is TRTC's: after 5 s, then every 10 s, for a minute."""
    assert callbacks.RetryRule() == callbacks.RetryRule(timeout_s=5, pause_s=10, give_up_after_s=60)
