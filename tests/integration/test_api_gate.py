"""The request gate and the probes of the HTTP API: tokens, foreign names and pages, errors, log lines, readiness."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import structlog

from machine import errors
from tests import engines
from tests.integration import api_service
from tests.integration.api_service import Service, start_body
from tests.integration.callback_sender import signed, trtc

TOKENS = ("first-token", "second-token")
# Headers with which a browser describes the requesting page, and the status of a stop.
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


class TestRequestGate:
    async def test_a_token_is_required(self, guarded: Service) -> None:
        """Each token is accepted; no token, a wrong one or another scheme is a 401, on known and unknown paths."""
        for header in ("Bearer first-token", "bearer second-token"):
            assert (await guarded.ask("GET", "/sessions", headers={"Authorization": header}))[0] == 200
        for header in ("", "Bearer", "Bearer first-toke", "Bearer first-token2", "Basic first-token", "first-token"):
            for path in ("/sessions", "/openapi.json", "/nothing"):
                status, answer = await guarded.ask("GET", path, headers={"Authorization": header})
                assert (status, answer["Code"]) == (401, "Unauthorized")

    async def test_probes_and_signed_callbacks_need_no_token(self, guarded: Service) -> None:
        """Probes need no token, and TRTC signs instead."""
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
        """Without tokens a web page cannot get in under its own name that resolves to this machine (DNS rebinding)."""
        got, answer = await service.ask("GET", "/sessions", headers={"Host": host})
        assert (got, answer.get("Code", "")) == (status, "Forbidden" if status == 403 else "")

    async def test_a_form_is_refused(self, service: Service) -> None:
        """A form or plain text, which a web page may send to any origin, starts nothing; a program may stop without a body."""
        task_id = await service.open_session()
        raw = json.dumps(start_body(RoomId=1)).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json"):
            status, answer = await service.ask("POST", "/sessions", data=raw, headers={"Content-Type": kind})
            assert (status, answer["Code"]) == (415, "UnsupportedMediaType")
        for kind in ("application/json; charset=utf-8", "application/cloudevents+json"):
            assert (await service.ask("POST", "/sessions", data=raw, headers={"Content-Type": kind}))[0] == 202
        assert (await service.ask("POST", f"/sessions/{task_id}/stop"))[0] == 202

    async def test_a_page_of_another_site_stops_nothing(self, service: Service) -> None:
        """A page may send a request without a body, like stop and replay, to any origin (`mode: "no-cors"`). If the browser
        reports another origin, nothing is decided; programs, which send no such headers, and the service's own pages pass."""
        port = service.url.rpartition(":")[2]
        for number, (page, status) in enumerate(PAGES, 1):
            path = f"/sessions/{await service.open_session(RoomId=number)}"
            headers = {name: value.format(here=service.url, port=port) for name, value in page.items()}
            decided = len(service.decided)
            for method, url in (("DELETE", path), ("POST", f"{path}/replay"), ("POST", f"{path}/stop")):
                got, answer = await service.ask(method, url, headers=headers)
                assert (answer.get("Code") == "Forbidden") == (status == 403), (page, url)
            assert got == status, page
            assert (len(service.decided) == decided) == (status == 403), page
            assert (await service.ask("GET", path, headers=headers))[0] == 200, page

    async def test_a_token_replaces_the_checks_of_the_page(self, guarded: Service) -> None:
        """With tokens the browser's headers do not count: no browser adds a token, and a page that has one may use it."""
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://school.example"}
        assert (await guarded.ask("POST", "/sessions", json=start_body(), headers=headers))[0] == 202
        assert (await guarded.ask("POST", "/sessions", json=start_body(), headers=headers | {"Authorization": ""}))[0] == 401

    async def test_with_a_token_every_host_name_is_accepted(self, guarded: Service) -> None:
        """Behind a proxy the Host is the public name; a foreign web page has no token."""
        headers = {"Host": "recorder.example", "Content-Type": "text/plain"}
        assert (await guarded.ask("POST", "/sessions", data=json.dumps(start_body()), headers=headers))[0] == 202

    async def test_signed_callbacks_and_probes_accept_every_host_name(self, service: Service) -> None:
        """TRTC's callbacks arrive under a public name and are signed; probes reveal nothing."""
        raw = json.dumps(trtc(203)).encode()
        public = {"Host": "recorder.example"}
        assert (await service.ask("POST", "/trtc/callbacks", data=raw, headers=signed(raw) | public))[0] == 200
        assert (await service.ask("GET", "/readyz", headers=public))[0] == 200

    async def test_unknown_paths_and_methods_have_the_same_error_form(self, service: Service) -> None:
        """404 and 405 have Code, Message and RequestId like all errors, and no path is redirected."""
        for method, path, status, code in (
            ("GET", "/nothing", 404, "NotFound"),
            ("GET", "/sessions/", 404, "NotFound"),
            ("GET", "/docs", 404, "NotFound"),
            ("DELETE", "/sessions", 405, "MethodNotAllowed"),
        ):
            got, answer = await service.ask(method, path)
            assert (got, answer["Code"], set(answer)) == (status, code, {"Code", "Message", "RequestId"})

    async def test_an_unexpected_error_is_logged_and_not_published(self, service: Service) -> None:
        """A bug is a 500 with a RequestId; only the log has its message."""
        service.failure = RuntimeError("internal detail")
        with structlog.testing.capture_logs() as lines:
            status, answer = await service.ask("POST", "/sessions", json=start_body())
        assert (status, answer["Code"]) == (500, "InternalError")
        assert "internal detail" not in json.dumps(answer)
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
        """The error tree gives status and code; an error without a status is a 500."""
        service.failure = failure
        assert (await service.ask("POST", "/sessions", json=start_body()))[0] == status
        assert (await service.ask("POST", "/sessions", json=start_body()))[1]["Code"] == code

    async def test_a_request_has_one_log_line(self, service: Service) -> None:
        """The log line has the path's template, the status, the duration and the ids, and no secrets."""
        with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
            _, answer = await service.ask("POST", "/sessions", json=start_body())
            await service.ask("GET", f"/sessions/{answer['TaskId']}")
            await service.ask("GET", "/PLANTED")
        logged = [line for line in lines if line["event"] == "http.request"]
        assert [(line["path"], line["status"]) for line in logged] == [("/sessions", 202), ("/sessions/{TaskId}", 200), ("", 404)]
        assert logged[0]["task_id"] == logged[1]["task_id"] == answer["TaskId"]
        assert logged[0]["request_id"] == logged[0]["event_id"] == answer["RequestId"]
        assert "task_id" not in logged[2]
        assert "PLANTED" not in repr(lines)

    async def test_concurrent_requests_keep_their_ids_apart(self, service: Service) -> None:
        """Twenty concurrent starts of one room make one session, and each answer has its own RequestId."""
        answers = await asyncio.gather(*(service.ask("POST", "/sessions", json=start_body()) for _ in range(20)))
        assert len({answer["TaskId"] for _, answer in answers}) == 1
        assert len({answer["RequestId"] for _, answer in answers}) == 20
        assert sum(not answer["Repeated"] for _, answer in answers) == 1


class TestHealth:
    async def test_ready_unless_there_is_a_reason(self, service: Service) -> None:
        """`/readyz` gives every reason; `/healthz` checks nothing."""
        assert (await service.ask("GET", "/readyz"))[0] == 200
        service.not_ready = ["The spool is full.", "The service is stopping."]
        status, answer = await service.ask("GET", "/readyz")
        assert (status, answer["Message"]) == (503, "The spool is full. The service is stopping.")
        status, answer = await service.ask("GET", "/healthz")
        assert (status, answer["Version"]) == (200, "1.2.3")

    async def test_ready_with_warnings(self, database: engines.Database) -> None:
        """What an operator must do although the node is ready comes in headers, and the body is that of any ready node."""
        warnings = ["One queue is full.", "Another too."]
        async with (
            api_service.running(database, warnings=lambda: warnings) as service,
            service.http.get(f"{service.url}/readyz") as answer,
        ):
            assert (answer.status, (await answer.json())["Status"]) == (200, "ready")
            assert answer.headers.getall("Recorder-Warning") == warnings
