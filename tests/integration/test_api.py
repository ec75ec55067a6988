"""The HTTP API over a real Decider and a database of each engine: starts, sessions, stops and replays, and their refusals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from events import requests
from tests import engines, transactions
from tests.integration import api_service
from tests.integration.api_service import Service, start_body

JSON_TYPE = {"Content-Type": "application/json"}
UNKNOWN = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database) as running:
        yield running


class TestStart:
    async def test_answers_the_task_id(self, service: Service) -> None:
        """A valid start is accepted with TaskId, Repeated, Warnings and a RequestId, and its session can be read."""
        status, answer = await service.ask("POST", "/sessions", json=start_body())
        assert status == 202
        assert set(answer) == {"TaskId", "Repeated", "Warnings", "RequestId"}
        assert answer["Repeated"] is False
        assert "TRTC_CALLBACK_KEYS" in answer["Warnings"][0]
        status, session = await service.ask("GET", f"/sessions/{answer['TaskId']}")
        assert (status, session["State"], session["RoomId"], session["Mode"]) == (200, "Open", "8489", "02")

    async def test_a_start_in_another_form_is_the_same_start(self, service: Service) -> None:
        """Digits in strings, null, white space around secrets and a byte-order mark: the start is the one that was meant."""
        body = start_body(SdkAppId="1400000001", RoomId="77", StrRoomId=None, Callback=None, SubscribeUserIds=None, Mode="")
        body |= {"UserSig": "PLANTED-SIG\r\n", "CosConfig": body["CosConfig"] | {"SecretKey": " PLANTED-KEY\n", "Token": None}}
        raw = b"\xef\xbb\xbf" + json.dumps(body).encode()
        status, answer = await service.ask("POST", "/sessions", data=raw, headers=JSON_TYPE)
        assert status == 202, answer
        _, session = await service.ask("GET", f"/sessions/{answer['TaskId']}")
        assert (session["RoomId"], session["StrRoomId"], session["Mode"]) == ("77", "", "00")
        async with transactions.opened(service.store) as tx:
            secrets = await tx.read("secrets", answer["TaskId"])
        assert secrets == requests.Secrets(user_sig="PLANTED-SIG", secret_id="PLANTED-ID", secret_key="PLANTED-KEY")
        stopped = b'\xef\xbb\xbf{"TaskId": null}'
        status, _ = await service.ask("POST", f"/sessions/{answer['TaskId']}/stop", data=stopped, headers=JSON_TYPE)
        assert status == 202

    async def test_user_data_is_shown(self, service: Service) -> None:
        """UserData is shown with the session, alone and in the list; null where the start gave none. One that is too long is
        refused by its name."""
        given = {"lesson": 7.5, "of": ["a", None]}
        task_id = await service.open_session(UserData=given)
        bare = await service.open_session(RoomId=77)
        _, listed = await service.ask("GET", "/sessions")
        assert {s["TaskId"]: s["UserData"] for s in listed["Sessions"]} == {task_id: given, bare: None}
        _, shown = await service.ask("GET", f"/sessions/{task_id}")
        assert shown["UserData"] == given
        status, answer = await service.ask("POST", "/sessions", json=start_body(RoomId=78, UserData="x" * 1100))
        assert (status, answer["Code"]) == (400, "InvalidParameter")
        assert answer["Message"].startswith("UserData")

    async def test_a_second_start_of_the_same_room_is_the_same_session(self, service: Service) -> None:
        """A repeated start returns the first TaskId, marked as Repeated."""
        task_id = await service.open_session()
        _, answer = await service.ask("POST", "/sessions", json=start_body())
        assert (answer["TaskId"], answer["Repeated"]) == (task_id, True)

    async def test_a_start_with_other_settings_is_a_conflict(self, service: Service) -> None:
        """A second start of the same room with other settings gets 409 with the session and the differing fields."""
        task_id = await service.open_session()
        status, answer = await service.ask(
            "POST", "/sessions", json=start_body(Mode="00", Callback="https://x.example/a?s=PLANTED")
        )
        assert (status, answer["Code"], answer["TaskId"]) == (409, "AlreadyRecording", task_id)
        assert answer["Fields"] == ["Mode", "Callback"]
        assert "PLANTED" not in json.dumps(answer)
        assert set(answer) == {"Code", "Message", "TaskId", "Fields", "RequestId"}

    async def test_a_repeat_under_one_key_gets_the_first_answer(self, service: Service) -> None:
        """The Idempotency-Key is the event's id: a repeat under it does not start again."""
        headers = {"Idempotency-Key": "lesson 7"}
        _, first = await service.ask("POST", "/sessions", json=start_body(), headers=headers)
        _, again = await service.ask("POST", "/sessions", json=start_body(), headers=headers)
        assert (again["TaskId"], again["Repeated"]) == (first["TaskId"], False)
        assert again["RequestId"] != first["RequestId"]
        assert {e.id for e in service.decided} == {"http-start-lesson 7"}

    async def test_another_body_under_one_key_is_refused(self, service: Service) -> None:
        """The second room of an Idempotency-Key is not silently left out: 422, and nothing is recorded; a fresh UserSig is no
        other body."""
        headers = {"Idempotency-Key": "lesson 8"}
        _, first = await service.ask("POST", "/sessions", json=start_body(), headers=headers)
        status, answer = await service.ask("POST", "/sessions", json=start_body(RoomId=8490), headers=headers)
        assert (status, answer["Code"]) == (422, "IdempotencyKeyReused")
        status, again = await service.ask("POST", "/sessions", json=start_body(UserSig="PLANTED-2"), headers=headers)
        assert (status, again["TaskId"]) == (202, first["TaskId"])
        _, listed = await service.ask("GET", "/sessions")
        assert [session["RoomId"] for session in listed["Sessions"]] == ["8489"]

    @pytest.mark.parametrize("key", ["", "k" * 129, "a\tb", "schlüssel"])
    async def test_an_invalid_idempotency_key_is_refused(self, service: Service, key: str) -> None:
        """An Idempotency-Key has 1 to 128 printable ASCII characters."""
        status, answer = await service.ask("POST", "/sessions", json=start_body(), headers={"Idempotency-Key": key})
        assert (status, answer["Code"]) == (400, "InvalidParameter")
        assert answer["Message"].startswith("Idempotency-Key: ")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"RoomId": "room 8489"}, "RoomId: "),
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
        """A refusal names the field and the reason, leaves no session, and repeats no secret."""
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
    async def test_a_malformed_body_is_refused(self, service: Service, raw: bytes) -> None:
        """A body that is not JSON, not an object, nested too deeply or not text is a 400, never a 500."""
        status, answer = await service.ask("POST", "/sessions", data=raw, headers=JSON_TYPE)
        assert (status, answer["Code"]) == (400, "InvalidParameter"), answer
        assert set(answer) == {"Code", "Message", "RequestId"}

    async def test_a_large_body_is_refused_unread(self, service: Service) -> None:
        """A body above 256 KB is refused, announced or not, and decides nothing."""

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(300):
                yield b" " * 1024

        for data in (b" " * (256 * 1024 + 1), chunks()):
            status, answer = await service.ask("POST", "/sessions", data=data, headers=JSON_TYPE)
            assert (status, answer["Code"]) == (413, "RequestTooLarge")
        assert service.decided == []


class TestSessions:
    async def test_the_list_is_paged_newest_first(self, service: Service) -> None:
        """`Next` of a page is the `before` of the next page; the last page has none."""
        ids = [await service.open_session(RoomId=n) for n in (1, 2, 3)]
        _, first = await service.ask("GET", "/sessions?limit=2")
        assert [s["TaskId"] for s in first["Sessions"]] == ids[:0:-1]
        _, second = await service.ask("GET", f"/sessions?limit=2&before={first['Next']}")
        assert ([s["TaskId"] for s in second["Sessions"]], second["Next"]) == ([ids[0]], "")

    async def test_the_list_can_be_limited_to_one_state(self, service: Service) -> None:
        """`state` filters; a session without recordings finishes as soon as it is stopped."""
        await service.open_session(RoomId=1)
        task_id = await service.open_session(RoomId=2)
        await service.ask("POST", f"/sessions/{task_id}/stop")
        _, answer = await service.ask("GET", "/sessions?state=Finished")
        assert [(s["TaskId"], s["EndReason"]) for s in answer["Sessions"]] == [(task_id, "Stopped")]

    async def test_the_list_can_be_filtered(self, service: Service) -> None:
        """The list is filtered by application, by integer or string room, and by time; filters combine, also with paging."""
        integer = await service.open_session(RoomId=8489)
        string = await service.open_session(RoomId="", StrRoomId="8489")
        other = await service.open_session(RoomId=1, SdkAppId=1400000002)
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
        """A wrong or unknown parameter is refused by name, not ignored."""
        status, answer = await service.ask("GET", f"/sessions?{query}")
        assert (status, answer["Code"]) == (400, "InvalidParameter")
        assert answer["Message"].startswith(message)

    async def test_a_session_shows_its_recordings_and_the_next_step(self, service: Service) -> None:
        """The body has state, code, detail, timeline, result and the next command; no secrets, no callback path."""
        task_id = await service.open_session(Callback="https://user:PLANTED@example.com/PLANTED?t=PLANTED")
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

    async def test_a_malformed_callback_address_hides_no_session(self, service: Service) -> None:
        """A session can be read whatever its callback address is."""
        task_id = await service.open_session(Callback="http://[PLANTED")
        status, body = await service.ask("GET", f"/sessions/{task_id}")
        assert (status, body["Callback"]) == (200, "…")

    async def test_the_list_counts_recordings_by_state(self, service: Service) -> None:
        """The list shows operators the sessions with failures."""
        await service.failed_recording(await service.open_session())
        _, answer = await service.ask("GET", "/sessions")
        assert answer["Sessions"][0]["Recordings"] == {"Failed": 1}

    @pytest.mark.parametrize("task_id", [UNKNOWN, "nothing", UNKNOWN.lower(), "%00", "%ff"])
    async def test_no_such_session(self, service: Service, task_id: str) -> None:
        """An unknown or malformed TaskId is a 404 on every route."""
        for method, path in (("GET", ""), ("POST", "/stop"), ("POST", "/replay")):
            status, answer = await service.ask(method, f"/sessions/{task_id}{path}")
            assert (status, answer["Code"]) == (404, "NotFound")


class TestStopAndReplay:
    async def test_stop_closes_the_session(self, service: Service) -> None:
        """A stop returns the state after it, and can be repeated."""
        task_id = await service.open_session()
        for _ in range(2):
            status, answer = await service.ask("POST", f"/sessions/{task_id}/stop")
            assert (status, answer["TaskId"], answer["State"]) == (202, task_id, "Finished")

    async def test_replay_resumes_from_the_files(self, service: Service) -> None:
        """A failed upload is replayed from the finished file, with the TaskId of the path."""
        task_id = await service.open_session()
        await service.failed_recording(task_id)
        status, answer = await service.ask("POST", f"/sessions/{task_id}/replay")
        assert status == 202
        expected = {"Speaker": "alice", "N": 1, "State": "Failed", "To": "Uploading", "Attempt": 2}
        assert answer["Recordings"] == [
            expected | {"Action": "upload from its files", "Object": answer["Recordings"][0]["Object"]}
        ]
        _, body = await service.ask("GET", f"/sessions/{task_id}")
        assert body["Recordings"][0]["State"] == "Uploading"

    async def test_a_dry_run_changes_nothing_even_under_a_key(self, service: Service) -> None:
        """A dry run does not use up the Idempotency-Key of the real replay."""
        task_id = await service.open_session()
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
        """A replay with an unknown field, another TaskId or an unknown speaker is refused."""
        task_id = await service.open_session()
        await service.failed_recording(task_id)
        path = f"/sessions/{task_id}/replay"
        for body, status in (({"Speakers": "a"}, 400), ({"TaskId": UNKNOWN}, 400), ({"N": 1}, 400), ({"Speaker": "bob"}, 404)):
            assert (await service.ask("POST", path, json=body))[0] == status, body
