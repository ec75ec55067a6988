"""TRTC's callbacks at the HTTP API: signed ones are decided once, forged and malformed ones are refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from handlers import callback_intake
from machine import errors
from tests import engines
from tests.integration import api_service
from tests.integration.api_service import Service
from tests.integration.callback_sender import deliver, signed, trtc


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database) as running:
        yield running


class TestCallbacks:
    async def test_a_signed_callback_moves_the_session(self, service: Service) -> None:
        """203 opens a recording and returns the code that TRTC expects; the same callback changes nothing the second time."""
        task_id = await service.open_session()
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
        """The event of each callback has only fields of its schema, so it is taken."""
        event = trtc(number, **info)
        event["EventInfo"] = {name: value for name, value in event["EventInfo"].items() if value is not None}
        assert (await deliver(service, event))[0] == 200
        assert (len(service.taken), service.decided) == (1, [])

    async def test_every_genuine_callback_is_forwarded(self, database: engines.Database) -> None:
        """The raw body and its signature go on, of ignored types too, and before the recorder's own decision can fail; a forged
        callback and a stale one do not."""
        forwarded: list[tuple[int, bytes, str]] = []
        async with api_service.running(database, forward_callback=lambda *given: forwarded.append(given)) as service:
            raw = [json.dumps(trtc(type_), indent=type_ % 5).encode() for type_ in (203, 205, 999)]
            for each in raw:
                await service.ask("POST", "/trtc/callbacks", data=each, headers=signed(each))
            await service.open_session()
            service.failure = errors.Unavailable("away")
            failing = json.dumps(trtc(104)).encode()
            status, _ = await service.ask("POST", "/trtc/callbacks", data=failing, headers=signed(failing))
            assert status == 503
            await deliver(service, trtc(203), key="forged")
            await deliver(service, trtc(203) | {"CallbackTs": 1})
        assert forwarded == [(api_service.SDK_APP_ID, each, signed(each)["Sign"]) for each in (*raw, failing)]

    async def test_an_ignored_callback_is_acknowledged(self, service: Service) -> None:
        """A callback without an event is acknowledged, and decides nothing."""
        for type_ in (101, 205, 999):
            status, answer = await deliver(service, trtc(type_))
            assert (status, answer["code"]) == (200, 0)
        assert service.taken == []

    async def test_a_callback_in_an_odd_form_is_taken(self, service: Service) -> None:
        """Numbers as strings and a byte-order mark lose no speaker; an unknown type with odd fields is acknowledged."""
        task_id = await service.open_session()
        event = trtc(201, Reason="none")
        event |= {"CallbackTs": str(event["CallbackTs"]), "EventType": "201", "EventGroupId": "2"}
        event["EventInfo"]["EventMsTs"] = str(event["EventInfo"]["EventMsTs"])
        raw = b"\xef\xbb\xbf" + json.dumps(event).encode()
        status, answer = await service.ask("POST", "/trtc/callbacks", data=raw, headers=signed(raw))
        assert (status, answer["code"]) == (200, 0)
        _, body = await service.ask("GET", f"/sessions/{task_id}")
        assert [(r["Speaker"], r["State"]) for r in body["Recordings"]] == [("alice", "Joining")]
        for unknown in (trtc(207, UserId=5), trtc(310, RoomId={}) | {"EventGroupId": 3}, trtc(108) | {"EventInfo": None}):
            assert (await deliver(service, unknown))[0] == 200
        assert len(service.taken) == 1

    async def test_too_many_callbacks_get_503_with_a_time_to_retry(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A callback above the limit of those that wait is refused at once, with Retry-After, and taken when it is repeated."""
        event = json.dumps(trtc(203)).encode()
        monkeypatch.setattr(callback_intake, "MAX_WAITING", 0)
        async with service.http.post(service.url + "/trtc/callbacks", data=event, headers=signed(event)) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "10")
            assert (await response.json())["Code"] == "ServiceUnavailable"
        monkeypatch.undo()
        assert (await service.ask("POST", "/trtc/callbacks", data=event, headers=signed(event)))[0] == 200

    async def test_a_forged_callback_is_refused_before_it_is_read(self, service: Service) -> None:
        """A wrong key, a missing Sign or another application is a 401, also for a body that is not JSON; nothing is decided."""
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
        assert service.taken == []

    async def test_a_signed_but_malformed_callback_is_refused(self, service: Service) -> None:
        """A valid signature over a body that TRTC would not send is a 400 that names the field."""
        for body, field in (({}, "CallbackTs"), (trtc(203, UserId=7), "UserId"), (trtc(203, RoomId=""), "RoomId")):
            status, answer = await deliver(service, body)
            assert (status, answer["Code"]) == (400, "InvalidParameter")
            assert field in answer["Message"]

    async def test_a_large_callback_is_refused(self, service: Service) -> None:
        """The limit of 256 KB holds before the signature is computed."""
        raw = b" " * (256 * 1024 + 1)
        status, _ = await service.ask("POST", "/trtc/callbacks", data=raw, headers=signed(raw))
        assert status == 413
