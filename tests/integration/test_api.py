"""The HTTP API over a real Decider and a database of each engine: what is taken, what is refused and how, what never leaks."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from machine import errors
from tests import engines
from tests.integration import api_service
from tests.integration.api_service import Service, start_body

TOKENS = ("first-token", "second-token")
AS_JSON = {"Content-Type": "application/json"}
UNKNOWN = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"
# What a browser says of the page that asks, and what a stop is answered.
PAGES: list[tuple[dict[str, str], int]] = [
    ({}, 202),
    ({"Sec-Fetch-Site": "none"}, 202),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "{here}"}, 202),
    ({"Origin": "{here}"}, 202),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "https://attacker.example"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "anything-else"}, 403),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "https://attacker.example"}, 403),
    ({"Origin": "https://attacker.example"}, 403),
    ({"Origin": "http://localhost.attacker.example:{port}"}, 403),
    ({"Origin": "http://127.0.0.1:1"}, 403),
    ({"Origin": "http://127.0.0.1"}, 403),
    ({"Origin": "https://127.0.0.1:{port}"}, 403),
    ({"Origin": "{here}.attacker.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": ""}, 403),
]


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database) as running:
        yield running


@pytest.fixture
async def guarded(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, TOKENS) as running:
        yield running


async def started(service: Service, **more: Any) -> str:
    status, answer = await service.ask("POST", "/sessions", json=start_body(**more))
    assert status == 202, answer
    return str(answer["TaskId"])


def trtc(type_: int, **info: Any) -> dict[str, Any]:
    group = 1 if type_ < 200 else 2
    info = {"RoomId": 8489, "EventMsTs": api_service.now_ms(), "UserId": "alice"} | info
    return {"EventGroupId": group, "EventType": type_, "CallbackTs": api_service.now_ms(), "EventInfo": info}


def signed(raw: bytes, key: str = api_service.CALLBACK_KEY) -> dict[str, str]:
    sign = base64.b64encode(hmac.new(key.encode(), raw, hashlib.sha256).digest()).decode()
    return {"Sign": sign, "SdkAppId": str(api_service.SDK_APP_ID), "Content-Type": "application/json"}


async def deliver(service: Service, body: dict[str, Any], key: str = api_service.CALLBACK_KEY) -> tuple[int, dict[str, Any]]:
    raw = json.dumps(body).encode()
    return await service.ask("POST", "/trtc/callbacks", data=raw, headers=signed(raw, key))


class TestStart:
    async def test_answers_the_task_id(self, service: Service) -> None:
        """A right start is accepted with TaskId, Repeated, Warnings and a RequestId, and can be looked at."""
        status, answer = await service.ask("POST", "/sessions", json=start_body())
        assert status == 202
        assert set(answer) == {"TaskId", "Repeated", "Warnings", "RequestId"}
        assert answer["Repeated"] is False
        assert "TRTC_CALLBACK_KEYS" in answer["Warnings"][0]
        status, session = await service.ask("GET", f"/sessions/{answer['TaskId']}")
        assert (status, session["State"], session["RoomId"], session["Mode"]) == (200, "Open", "8489", "02")

    async def test_a_second_start_of_the_same_room_is_the_same_session(self, service: Service) -> None:
        """A repeated start answers the first TaskId and says so."""
        task_id = await started(service)
        _, answer = await service.ask("POST", "/sessions", json=start_body())
        assert (answer["TaskId"], answer["Repeated"]) == (task_id, True)

    async def test_a_repeat_under_one_key_gets_the_first_answer(self, service: Service) -> None:
        """The Idempotency-Key is the event's id: the repeat is no second start."""
        headers = {"Idempotency-Key": "lesson 7"}
        _, first = await service.ask("POST", "/sessions", json=start_body(), headers=headers)
        _, again = await service.ask("POST", "/sessions", json=start_body(), headers=headers)
        assert (again["TaskId"], again["Repeated"]) == (first["TaskId"], False)
        assert again["RequestId"] != first["RequestId"]
        assert {e.id for e in service.decided} == {"http-start-lesson 7"}

    @pytest.mark.parametrize("key", ["", "k" * 129, "a\tb", "schlüssel"])
    async def test_a_key_that_is_none_is_refused(self, service: Service, key: str) -> None:
        """An Idempotency-Key has 1 to 128 printable ASCII characters."""
        status, answer = await service.ask("POST", "/sessions", json=start_body(), headers={"Idempotency-Key": key})
        assert (status, answer["Code"]) == (400, "InvalidParameter")
        assert answer["Message"].startswith("Idempotency-Key: ")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"RoomId": "8489"}, "RoomId: "),
            ({"RoomId": 0}, "RoomId: one of RoomId and StrRoomId is required"),
            ({"Mode": "03"}, "Mode: "),
            ({"Modus": "00"}, "Modus: is not a known field"),
            ({"UserSig": ""}, "UserSig: is required"),
            ({"CosConfig": {"Region": "ap-shanghai", "Path": ""}}, "CosConfig.Bucket: is required"),
            ({"SubscribeUserIds": ["a", 5]}, "SubscribeUserIds.1: "),
            ({"Callback": "ftp://x"}, "Callback: "),
        ],
    )
    async def test_a_wrong_field_is_named(self, service: Service, change: dict[str, Any], message: str) -> None:
        """A refusal names the field and the reason, is no half session, and repeats no secret."""
        status, answer = await service.ask("POST", "/sessions", json=start_body(**change))
        assert (status, answer["Code"]) == (400, "InvalidParameter")
        assert answer["Message"].startswith(message)
        assert "PLANTED" not in json.dumps(answer)
        _, listed = await service.ask("GET", "/sessions")
        assert listed["Sessions"] == []

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"[]",
            b"{",
            b'{"a": NaN}',
            b"\xff",
            b'{"a":' + b"[" * 20 + b"]" * 20 + b"}",
            b'{"a":' + b"[" * 450 + b"]" * 450 + b"}",
            b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"\\ud800": 1}',
            b'{"SdkAppId": 1e400}',
        ],
    )
    async def test_what_is_no_request_is_refused(self, service: Service, raw: bytes) -> None:
        """Bodies that are not JSON, no object, bottomless or not text are the client's fault, never the service's."""
        status, answer = await service.ask("POST", "/sessions", data=raw, headers=AS_JSON)
        assert (status, answer["Code"]) == (400, "InvalidParameter"), answer
        assert set(answer) == {"Code", "Message", "RequestId"}

    async def test_a_large_body_is_refused_unread(self, service: Service) -> None:
        """More than 256 KB is refused, announced or not, and nothing of it is decided."""

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(300):
                yield b" " * 1024

        for data in (b" " * (256 * 1024 + 1), chunks()):
            status, answer = await service.ask("POST", "/sessions", data=data, headers=AS_JSON)
            assert (status, answer["Code"]) == (413, "RequestTooLarge")
        assert service.decided == []


class TestSessions:
    async def test_the_list_is_paged_newest_first(self, service: Service) -> None:
        """`Next` of a page is `before` of the page after it; the last page has none."""
        ids = [await started(service, RoomId=n) for n in (1, 2, 3)]
        _, first = await service.ask("GET", "/sessions?limit=2")
        assert [s["TaskId"] for s in first["Sessions"]] == ids[:0:-1]
        _, second = await service.ask("GET", f"/sessions?limit=2&before={first['Next']}")
        assert ([s["TaskId"] for s in second["Sessions"]], second["Next"]) == ([ids[0]], "")

    async def test_the_list_can_be_of_one_state(self, service: Service) -> None:
        """`state` chooses; a session without recordings finishes as soon as it is stopped."""
        await started(service, RoomId=1)
        task_id = await started(service, RoomId=2)
        await service.ask("POST", f"/sessions/{task_id}/stop")
        _, answer = await service.ask("GET", "/sessions?state=Finished")
        assert [(s["TaskId"], s["EndReason"]) for s in answer["Sessions"]] == [(task_id, "Stopped")]

    async def test_the_list_can_be_filtered(self, service: Service) -> None:
        """By application, by room of either kind, by time; filters go together, and with paging."""
        integer = await started(service, RoomId=8489)
        string = await started(service, RoomId="", StrRoomId="8489")
        other = await started(service, RoomId=1, SdkAppId=1400000002)
        for query, ids in (
            ("room=8489", [string, integer]),
            ("app=1400000002", [other]),
            ("app=1400000001&room=1", []),
            ("room=8489&limit=1", [string]),
            ("since=2020-01-01", [other, string, integer]),
            ("since=2020-01-01T00:00:00%2B08:00&room=1", [other]),
            ("since=2999-01-01T00:00:00Z", []),
        ):
            _, answer = await service.ask("GET", f"/sessions?{query}")
            assert [s["TaskId"] for s in answer["Sessions"]] == ids, query

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("since=soon", "since: "),
            ("app=-1", "app: "),
            ("stuck=perhaps", "stuck: "),
            ("limit=0", "limit: "),
            ("limit=x", "limit: "),
            ("state=open", "state: "),
            ("stat=Open", "stat: is not a known"),
            ("before=a%00b", "before: "),
            ("room=%00", "room: "),
        ],
    )
    async def test_a_wrong_query_is_refused(self, service: Service, query: str, message: str) -> None:
        """A parameter that is wrong or unknown is named, and not passed over."""
        status, answer = await service.ask("GET", f"/sessions?{query}")
        assert (status, answer["Code"]) == (400, "InvalidParameter")
        assert answer["Message"].startswith(message)

    async def test_a_session_shows_its_recordings_and_what_to_do(self, service: Service) -> None:
        """State, code, detail, timeline, result and the command to type are there; secrets and the callback's path are not."""
        task_id = await started(service, Callback="https://user:PLANTED@example.com/PLANTED?t=PLANTED")
        await service.failed_recording(task_id)
        status, body = await service.ask("GET", f"/sessions/{task_id}")
        assert status == 200
        assert (body["State"], body["EndReason"], body["Callback"]) == ("Finished", "RoomDestroyed", "https://example.com/…")
        (recording,) = body["Recordings"]
        assert (recording["Speaker"], recording["N"], recording["State"]) == ("alice", 1, "Failed")
        assert (recording["Code"], recording["Detail"]) == ("FailedCosWrite", "The bucket refused the key (403).")
        assert f"recorder replay {task_id} --speaker=alice --n=1" in recording["Next"]
        assert recording["File"]["Message"] == "写cos失败"
        moves = [(t["Of"], t["From"], t["To"]) for t in body["Timeline"]]
        assert ("alice/1", "Uploading", "Failed") in moves
        assert moves[0] == ("", "", "Open")
        assert [r["Revision"] for r in body["Results"]] == [1]
        assert body["Callbacks"][0]["State"] == "pending"
        assert "PLANTED" not in json.dumps(body)

    async def test_a_callback_that_is_no_address_hides_no_session(self, service: Service) -> None:
        """A session can be looked at whatever its callback address is."""
        task_id = await started(service, Callback="http://[PLANTED")
        status, body = await service.ask("GET", f"/sessions/{task_id}")
        assert (status, body["Callback"]) == (200, "…")

    async def test_the_list_counts_recordings_by_state(self, service: Service) -> None:
        """An operator sees in the list which sessions have failures."""
        await service.failed_recording(await started(service))
        _, answer = await service.ask("GET", "/sessions")
        assert answer["Sessions"][0]["Recordings"] == {"Failed": 1}

    @pytest.mark.parametrize("task_id", [UNKNOWN, "nothing", UNKNOWN.lower(), "%00", "%ff"])
    async def test_no_such_session(self, service: Service, task_id: str) -> None:
        """What names no session is 404 on every route, whatever it looks like."""
        for method, path in (("GET", ""), ("POST", "/stop"), ("POST", "/replay")):
            status, answer = await service.ask(method, f"/sessions/{task_id}{path}")
            assert (status, answer["Code"]) == (404, "NotFound")


class TestStopAndReplay:
    async def test_stop_closes_the_session(self, service: Service) -> None:
        """A stop is answered with the state after it, and may be repeated."""
        task_id = await started(service)
        for _ in range(2):
            status, answer = await service.ask("POST", f"/sessions/{task_id}/stop")
            assert (status, answer["TaskId"], answer["State"]) == (202, task_id, "Finished")

    async def test_replay_goes_on_from_the_files(self, service: Service) -> None:
        """A failed upload is replayed from the finished file, with the TaskId of the path."""
        task_id = await started(service)
        await service.failed_recording(task_id)
        status, answer = await service.ask("POST", f"/sessions/{task_id}/replay")
        assert status == 202
        assert answer["Recordings"] == [{"Speaker": "alice", "N": 1, "State": "Failed", "To": "Uploading", "Attempt": 2}]
        _, body = await service.ask("GET", f"/sessions/{task_id}")
        assert body["Recordings"][0]["State"] == "Uploading"

    async def test_a_dry_run_changes_nothing_even_under_a_key(self, service: Service) -> None:
        """A dry run does not use up the Idempotency-Key of the replay that follows."""
        task_id = await started(service)
        await service.failed_recording(task_id)
        key = {"Idempotency-Key": "again"}
        path = f"/sessions/{task_id}/replay"
        status, dry = await service.ask("POST", path, json={"DryRun": True}, headers=key)
        assert (status, dry["Recordings"][0]["To"]) == (200, "Uploading")
        _, body = await service.ask("GET", f"/sessions/{task_id}")
        assert body["Recordings"][0]["State"] == "Failed"
        status, _ = await service.ask("POST", path, json={}, headers=key)
        _, body = await service.ask("GET", f"/sessions/{task_id}")
        assert (status, body["Recordings"][0]["State"]) == (202, "Uploading")

    async def test_a_replay_of_nothing_is_refused(self, service: Service) -> None:
        """Unknown fields, another TaskId, an unknown speaker: each is refused with its reason."""
        task_id = await started(service)
        await service.failed_recording(task_id)
        path = f"/sessions/{task_id}/replay"
        for body, status in (({"Speakers": "a"}, 400), ({"TaskId": UNKNOWN}, 400), ({"N": 1}, 400), ({"Speaker": "bob"}, 404)):
            assert (await service.ask("POST", path, json=body))[0] == status, body


class TestCallbacks:
    async def test_a_signed_callback_moves_the_session(self, service: Service) -> None:
        """203 opens a recording; the answer is what TRTC expects; the same callback again changes nothing."""
        task_id = await started(service)
        event = trtc(203)
        for _ in range(2):
            status, answer = await deliver(service, event)
            assert (status, answer["code"]) == (200, 0)
        _, body = await service.ask("GET", f"/sessions/{task_id}")
        assert [(r["Speaker"], r["N"], r["State"]) for r in body["Recordings"]] == [("alice", 1, "Joining")]

    @pytest.mark.parametrize(
        ("number", "info"),
        [
            (102, {"UserId": None}),
            (103, {"Role": 20}),
            (104, {"Reason": 1}),
            (105, {"Role": 21}),
            (201, {}),
            (202, {}),
            (204, {}),
        ],
        ids=lambda given: str(given) if isinstance(given, int) else "",
    )
    async def test_every_understood_callback_fits_its_schema(self, service: Service, number: int, info: dict[str, Any]) -> None:
        """What the mapping adds for people is left out; what is decided has passed the event's schema."""
        event = trtc(number, **info)
        event["EventInfo"] = {name: value for name, value in event["EventInfo"].items() if value is not None}
        assert (await deliver(service, event))[0] == 200
        assert len(service.decided) == 1

    async def test_what_changes_nothing_is_taken(self, service: Service) -> None:
        """An event that is not acted on is answered as taken, and decides nothing."""
        for type_ in (101, 205, 999):
            status, answer = await deliver(service, trtc(type_))
            assert (status, answer["code"]) == (200, 0)
        assert service.decided == []

    async def test_a_forged_callback_is_refused_before_it_is_read(self, service: Service) -> None:
        """Wrong key, no Sign, another application, none: 401, even where the body is not JSON, and nothing is decided."""
        raw = json.dumps(trtc(102)).encode()
        right = signed(raw)
        forged = [
            (raw, signed(raw, "guess")),
            (raw + b" ", right),
            (b"not JSON", signed(b"not JSON", "guess")),
            (raw, {k: v for k, v in right.items() if k != "Sign"}),
            (raw, right | {"SdkAppId": "1400000002"}),
            (raw, right | {"SdkAppId": "9" * 30}),
            (raw, {k: v for k, v in right.items() if k != "SdkAppId"}),
        ]
        for body, headers in forged:
            status, answer = await service.ask("POST", "/trtc/callbacks", data=body, headers=headers)
            assert (status, answer["Code"]) == (401, "Unauthorized")
        assert service.decided == []

    async def test_a_signed_callback_that_says_nothing_is_refused(self, service: Service) -> None:
        """A genuine signature over a body that is none of TRTC's is a fault of the body, named."""
        for body, field in (({}, "CallbackTs"), (trtc(203, UserId=7), "UserId"), (trtc(203, RoomId=""), "RoomId")):
            status, answer = await deliver(service, body)
            assert (status, answer["Code"]) == (400, "InvalidParameter")
            assert field in answer["Message"]

    async def test_a_large_callback_is_refused(self, service: Service) -> None:
        """The limit of 256 KB holds before the signature is computed."""
        raw = b" " * (256 * 1024 + 1)
        status, _ = await service.ask("POST", "/trtc/callbacks", data=raw, headers=signed(raw))
        assert status == 413


class TestDoor:
    async def test_a_token_is_asked_for(self, guarded: Service) -> None:
        """Each of the tokens opens; no token, a wrong one and another scheme do not, on known and unknown paths alike."""
        for header in ("Bearer first-token", "bearer second-token"):
            assert (await guarded.ask("GET", "/sessions", headers={"Authorization": header}))[0] == 200
        for header in ("", "Bearer", "Bearer first-toke", "Bearer first-token2", "Basic first-token", "first-token"):
            for path in ("/sessions", "/openapi.json", "/nothing"):
                status, answer = await guarded.ask("GET", path, headers={"Authorization": header})
                assert (status, answer["Code"]) == (401, "Unauthorized")

    async def test_probes_and_signed_callbacks_need_no_token(self, guarded: Service) -> None:
        """Probes carry no token; TRTC signs instead."""
        none = {"Authorization": ""}
        assert (await guarded.ask("GET", "/healthz", headers=none))[0] == 200
        assert (await guarded.ask("GET", "/readyz", headers=none))[0] == 200
        raw = json.dumps(trtc(203)).encode()
        assert (await guarded.ask("POST", "/trtc/callbacks", data=raw, headers=none | signed(raw)))[0] == 200

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost", 200),
            ("LOCALHOST:8080", 200),
            ("127.0.0.1:8080", 200),
            ("127.1.2.3", 200),
            ("[::1]:8080", 200),
            ("[::1]", 200),
            ("attacker.example", 403),
            ("attacker.example:8080", 403),
            ("127.0.0.1.attacker.example", 403),
            ("localhost.attacker.example:80", 403),
            ("10.0.0.1:8080", 403),
            ("0.0.0.0:8080", 403),
            ("127.0.0.1:8080:x", 403),
            ("", 403),
        ],
    )
    async def test_another_name_for_this_machine_is_refused(self, service: Service, host: str, status: int) -> None:
        """Without tokens a web page must not get in under a name of its own that it lets point here (DNS rebinding)."""
        got, answer = await service.ask("GET", "/sessions", headers={"Host": host})
        assert (got, answer.get("Code", "")) == (status, "Forbidden" if status == 403 else "")

    async def test_a_form_is_refused(self, service: Service) -> None:
        """What a web page may send to another origin unasked, a form or plain text, starts nothing; nothing at all may stop."""
        task_id = await started(service)
        raw = json.dumps(start_body(RoomId=1)).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json"):
            status, answer = await service.ask("POST", "/sessions", data=raw, headers={"Content-Type": kind})
            assert (status, answer["Code"]) == (415, "UnsupportedMediaType")
        for kind in ("application/json; charset=utf-8", "application/cloudevents+json"):
            assert (await service.ask("POST", "/sessions", data=raw, headers={"Content-Type": kind}))[0] == 202
        assert (await service.ask("POST", f"/sessions/{task_id}/stop"))[0] == 202

    async def test_a_page_of_another_site_stops_nothing(self, service: Service) -> None:
        """A stop and a replay need no body, and a page may send what needs none to any origin (`mode: "no-cors"`): where a
        browser says that it is of another, nothing is decided; programs, which say nothing, and a page of ours go on."""
        port = service.url.rpartition(":")[2]
        for number, (said, status) in enumerate(PAGES, 1):
            path = f"/sessions/{await started(service, RoomId=number)}"
            headers = {name: value.format(here=service.url, port=port) for name, value in said.items()}
            decided = len(service.decided)
            for method, asked in (("DELETE", path), ("POST", f"{path}/replay"), ("POST", f"{path}/stop")):
                got, answer = await service.ask(method, asked, headers=headers)
                assert (answer.get("Code") == "Forbidden") == (status == 403), (said, asked)
            assert got == status, said
            assert (len(service.decided) == decided) == (status == 403), said
            assert (await service.ask("GET", path, headers=headers))[0] == 200, said

    async def test_a_token_is_asked_of_every_page(self, guarded: Service) -> None:
        """With a token the browser's headers say nothing: no browser adds one by itself, and a page that has it may use it."""
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://school.example"}
        assert (await guarded.ask("POST", "/sessions", json=start_body(), headers=headers))[0] == 202
        assert (await guarded.ask("POST", "/sessions", json=start_body(), headers=headers | {"Authorization": ""}))[0] == 401

    async def test_with_a_token_any_name_is_good(self, guarded: Service) -> None:
        """Behind a proxy the Host is the public one: a token is what a web page does not have."""
        headers = {"Host": "recorder.example", "Content-Type": "text/plain"}
        assert (await guarded.ask("POST", "/sessions", data=json.dumps(start_body()), headers=headers))[0] == 202

    async def test_signed_callbacks_and_probes_may_come_under_any_name(self, service: Service) -> None:
        """TRTC's callbacks come through whatever leads here, and are signed; probes give nothing away."""
        raw = json.dumps(trtc(203)).encode()
        public = {"Host": "recorder.example"}
        assert (await service.ask("POST", "/trtc/callbacks", data=raw, headers=signed(raw) | public))[0] == 200
        assert (await service.ask("GET", "/readyz", headers=public))[0] == 200

    async def test_what_does_not_exist_is_an_error_of_the_same_form(self, service: Service) -> None:
        """404 and 405 have Code, Message and RequestId like all errors, and no path is redirected."""
        for method, path, status, code in (
            ("GET", "/nothing", 404, "NotFound"),
            ("GET", "/sessions/", 404, "NotFound"),
            ("GET", "/docs", 404, "NotFound"),
            ("DELETE", "/sessions", 405, "MethodNotAllowed"),
        ):
            got, answer = await service.ask(method, path)
            assert (got, answer["Code"], set(answer)) == (status, code, {"Code", "Message", "RequestId"})

    async def test_what_nobody_expected_is_logged_and_not_told(self, service: Service) -> None:
        """A bug is 500 with a RequestId, its words in the log only."""
        service.failure = RuntimeError("inside of ours")
        with structlog.testing.capture_logs() as lines:
            status, answer = await service.ask("POST", "/sessions", json=start_body())
        assert (status, answer["Code"]) == (500, "InternalError")
        assert "inside" not in json.dumps(answer)
        assert any(line["event"] == "http.failed" and line.get("exc_info") for line in lines)

    @pytest.mark.parametrize(
        ("failure", "status", "code"),
        [
            (errors.Unavailable(), 503, "ServiceUnavailable"),
            (errors.Conflict(), 503, "ServiceUnavailable"),
            (errors.InsufficientSpace(), 507, "InsufficientSpace"),
            (errors.Refused(), 409, "FailedOperation"),
            (errors.LeaseRefused(), 500, "InternalError"),
        ],
    )
    async def test_every_error_has_its_status(self, service: Service, failure: Exception, status: int, code: str) -> None:
        """The error tree decides status and code; what has no status of its own is ours."""
        service.failure = failure
        assert (await service.ask("POST", "/sessions", json=start_body()))[0] == status
        assert (await service.ask("POST", "/sessions", json=start_body()))[1]["Code"] == code

    async def test_one_line_a_request(self, service: Service) -> None:
        """The log has the path's template, the status, the time taken and the ids, and none of the secrets."""
        with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
            _, answer = await service.ask("POST", "/sessions", json=start_body())
            await service.ask("GET", f"/sessions/{answer['TaskId']}")
            await service.ask("GET", "/PLANTED")
        said = [line for line in lines if line["event"] == "http.request"]
        assert [(line["path"], line["status"]) for line in said] == [("/sessions", 202), ("/sessions/{TaskId}", 200), ("", 404)]
        assert said[0]["task_id"] == said[1]["task_id"] == answer["TaskId"]
        assert said[0]["request_id"] == said[0]["event_id"] == answer["RequestId"]
        assert "task_id" not in said[2]
        assert "PLANTED" not in repr(lines)

    async def test_requests_at_once_keep_their_ids_apart(self, service: Service) -> None:
        """Twenty starts of one room at once are one session, each answer under an id of its own."""
        answers = await asyncio.gather(*(service.ask("POST", "/sessions", json=start_body()) for _ in range(20)))
        assert len({answer["TaskId"] for _, answer in answers}) == 1
        assert len({answer["RequestId"] for _, answer in answers}) == 20
        assert sum(not answer["Repeated"] for _, answer in answers) == 1


class TestHealth:
    async def test_ready_unless_there_is_a_reason(self, service: Service) -> None:
        """`/readyz` gives every reason; `/healthz` asks nobody."""
        assert (await service.ask("GET", "/readyz"))[0] == 200
        service.not_ready = ["The spool is full.", "The service is stopping."]
        status, answer = await service.ask("GET", "/readyz")
        assert (status, answer["Message"]) == (503, "The spool is full. The service is stopping.")
        status, answer = await service.ask("GET", "/healthz")
        assert (status, answer["Version"]) == (200, "1.2.3")
