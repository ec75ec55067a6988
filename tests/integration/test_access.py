"""API access: keys, scopes, limits, audit, headers, and the age of callbacks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import fastapi
import pytest

from machine import api_keys, model
from tests import engines, waiting
from tests.integration import api_service
from tests.integration.api_service import Service, start_body
from tests.integration.callback_sender import deliver, signed, trtc
from web import app, middleware, rate_limit, scopes

UNKNOWN = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"
MASTER = "master-token"


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, (MASTER,)) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def guarded_routes() -> list[tuple[str, str, str]]:
    return [(method, path, scope) for (method, path), scope in scopes.TABLE.items() if scope in api_keys.SCOPES]


async def test_every_route_declares_its_scope(service: Service) -> None:
    """Every route of the application has an entry in the table of scopes, and every entry has a route."""
    assert scopes.missing(service.routes) == []
    real = {(method, path) for route in service.routes for path, methods in scopes.leaves(route) for method in methods}
    assert set(scopes.TABLE) <= real


async def test_a_route_without_a_scope_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application with a route that has no entry in the table of scopes is not built."""
    for method, path in (("GET", "/results"), ("GET", "/internal/segments"), ("GET", "/openapi.json")):
        with monkeypatch.context() as patch:
            patch.delitem(scopes.TABLE, (method, path))
            with pytest.raises(RuntimeError, match=path):
                app.create(_api())


def _api() -> Any:
    """An Api of which only the routes matter."""

    async def nothing(*_: Any) -> Any:
        return {}

    parts: dict[str, Any] = dict.fromkeys(("decide", "take_callback", "ping"), nothing)
    parts |= {"queries": None, "ready": list, "new_id": str, "clock": int, "verify_callback": bool, "map_callback": dict}
    return app.Api(**parts, version="1")


def test_a_mounted_application_is_detected() -> None:
    """A mounted application cannot hide its routes from the check."""
    made = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    made.mount("/pages", fastapi.FastAPI())
    assert scopes.missing(made.routes) == ["MOUNT /pages"]


async def test_a_scope_opens_its_routes_and_no_others(service: Service) -> None:
    """A key without a route's scope is refused with 403, which names the scope, and a key with only that scope is accepted."""
    lacking = {scope: (await service.key(*(s for s in api_keys.SCOPES if s != scope)))[1] for scope in api_keys.SCOPES}
    right = {scope: (await service.key(scope))[1] for scope in api_keys.SCOPES}
    await _key_is_known(service, right[api_keys.SCOPES[-1]])
    for method, path, scope in guarded_routes():
        real = path.replace("{TaskId}", UNKNOWN)
        decided = len(service.decided)
        status, answer = await service.ask(method, real, headers=bearer(lacking[scope]))
        assert (status, answer["Code"]) == (403, "Forbidden"), path
        assert f"scope {scope}," in answer["Message"]
        assert len(service.decided) == decided
        async with service.http.request(method, service.url + real, headers=bearer(right[scope])) as response:
            assert response.status not in (401, 403), path


async def _key_is_known(service: Service, key: str) -> None:
    async def known() -> bool:
        return (await service.ask("GET", "/nothing", headers=bearer(key)))[0] == 404

    await waiting.until(known, what="the door to have read the new key")


async def test_an_invalid_key_is_refused(service: Service) -> None:
    """A wrong secret under a right id, an unknown id, a digest and a revoked key each get 401 with the challenge."""
    id_, key = await service.key("read")
    await _key_is_known(service, key)
    wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
    for text in (wrong, key.replace(id_, "aaaaaaaa"), api_keys.digest(key), id_, key + "x", "", "rec_" + "a" * 4000):
        status, answer = await service.ask("GET", "/sessions", headers=bearer(text))
        assert (status, answer["Code"]) == (401, "Unauthorized"), text
    await service.keys.revoke(id_, model.Caller(name="cli test"))

    async def refused() -> bool:
        return (await service.ask("GET", "/sessions", headers=bearer(key)))[0] == 401

    await waiting.until(refused, 5, "the revoked key to open nothing")
    async with service.http.get(service.url + "/sessions", headers=bearer(key)) as answer:
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_only_the_digest_is_stored(service: Service, database: engines.Database) -> None:
    """No value in the database is accepted as a key, and the time of a key's last use is stored."""
    id_, key = await service.key("read")
    await _key_is_known(service, key)
    stored = database.everything()
    assert api_keys.digest(key).encode() in stored
    assert key.split("_", 2)[2].encode() not in stored
    (found,) = await service.keys.all()
    assert (found.id, found.used_ms is not None) == (id_, True)


async def test_the_first_key_ends_open_access_for_good(database: engines.Database) -> None:
    """On loopback the API needs no key until the first one is created, and revoking the last one does not open it again."""
    async with api_service.running(database) as service:
        assert (await service.ask("GET", "/sessions"))[0] == 200
        id_, key = await service.key("read")

        async def closed() -> bool:
            return (await service.ask("GET", "/sessions"))[0] == 401

        await waiting.until(closed, 5, "the door to ask for a key")
        assert (await service.ask("GET", "/sessions", headers=bearer(key)))[0] == 200
        await service.keys.revoke(id_, model.Caller(name="cli test"))

        async def revoked() -> bool:
            return (await service.ask("GET", "/sessions", headers=bearer(key)))[0] == 401

        await waiting.until(revoked, 5, "the revoked key to open nothing")
        assert await closed()
        assert (await service.ask("GET", "/healthz"))[0] == 200


class TestLimits:
    async def test_requests_are_limited_for_each_key(self, database: engines.Database) -> None:
        """A key with too many requests gets 429 with Retry-After, while another key and the probes go on."""
        async with api_service.running(database, (MASTER,), requests_per_minute=5) as service:
            statuses = [(await service.ask("GET", "/sessions"))[0] for _ in range(7)]
            assert statuses == [200] * 5 + [429] * 2
            async with service.http.get(service.url + "/sessions", headers=bearer(MASTER)) as answer:
                assert 1 <= int(answer.headers["Retry-After"]) <= 12
                assert (await answer.json())["Code"] == "LimitExceeded"
            _, other = await service.key("read")
            assert (await service.ask("GET", "/sessions", headers=bearer(other)))[0] == 200
            assert (await service.ask("GET", "/healthz"))[0] == 200

    def test_a_bucket_is_refilled(self) -> None:
        """The next request passes after the announced seconds, and not before."""
        now_s = [0.0]
        limited = rate_limit.RateLimiter(60, lambda: now_s[0])
        assert [limited.wait_s("a") for _ in range(60)] == [0.0] * 60
        assert limited.wait_s("a") == 1.0
        now_s[0] = 0.5
        assert limited.wait_s("a") == 0.5
        now_s[0] = 1.0
        assert (limited.wait_s("a"), limited.wait_s("b")) == (0.0, 0.0)
        assert rate_limit.RateLimiter(0).wait_s("a") == 0.0

    async def test_a_key_has_no_more_open_sessions_than_its_quota(self, service: Service) -> None:
        """A key cannot exceed its quota of open sessions, even with parallel starts; a repeated start needs no quota, and a
        stopped session returns it."""
        _, key = await service.key("start", quota=3)
        await _key_is_known(service, key)
        starts = (service.ask("POST", "/sessions", json=start_body(RoomId=n), headers=bearer(key)) for n in range(1, 11))
        answers = await asyncio.gather(*starts)
        taken = [answer["TaskId"] for status, answer in answers if status == 202]
        refused = [answer["Code"] for status, answer in answers if status == 429]
        assert (len(taken), refused) == (3, ["LimitExceeded"] * 7)
        rooms = {s["TaskId"]: int(s["RoomId"]) for s in (await service.ask("GET", "/sessions?state=Open"))[1]["Sessions"]}
        again = start_body(RoomId=rooms[taken[0]])
        assert (await service.ask("POST", "/sessions", json=again, headers=bearer(key)))[1]["Repeated"] is True
        assert (await service.ask("POST", "/sessions", json=start_body(RoomId=99)))[0] == 202
        await service.ask("POST", f"/sessions/{taken[0]}/stop")
        assert (await service.ask("POST", "/sessions", json=start_body(RoomId=98), headers=bearer(key)))[0] == 202
        body = json.dumps(start_body(RoomId=97))
        async with service.http.post(service.url + "/sessions", data=body, headers=bearer(key)) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "60")

    async def test_a_key_cannot_repeat_the_start_of_another(self, service: Service) -> None:
        """Only the key that opened a session, or one that may stop it, may repeat its start, because the fresh secrets of a
        repeat could end a recording."""
        (_, own), (_, other), (_, operator) = [
            await service.key(*scopes) for scopes in (["start"], ["start"], ["start", "operate"])
        ]
        await _key_is_known(service, operator)
        body = start_body(RoomId=7)
        _, first = await service.ask("POST", "/sessions", json=body, headers=bearer(own))
        wrong = body | {"UserSig": "garbage", "CosConfig": body["CosConfig"] | {"SecretId": "theirs", "SecretKey": "theirs"}}
        status, answer = await service.ask("POST", "/sessions", json=wrong, headers=bearer(other))
        assert (status, answer["Code"]) == (409, "FailedOperation")
        assert first["TaskId"] not in json.dumps(answer)
        assert await service.user_sig(first["TaskId"]) == body["UserSig"]
        for key, sig in ((own, "fresh"), (operator, "fresher")):
            status, answer = await service.ask("POST", "/sessions", json=body | {"UserSig": sig}, headers=bearer(key))
            assert (status, answer["TaskId"], answer["Repeated"]) == (202, first["TaskId"], True)
            assert await service.user_sig(first["TaskId"]) == sig

    async def test_one_key_does_not_get_the_answers_of_another(self, service: Service) -> None:
        """The same Idempotency-Key under two API keys is two requests."""
        (_, one), (_, other) = await service.key("start"), await service.key("start")
        await _key_is_known(service, other)
        same = {"Idempotency-Key": "lesson 7"}
        _, first = await service.ask("POST", "/sessions", json=start_body(RoomId=1), headers=bearer(one) | same)
        _, second = await service.ask("POST", "/sessions", json=start_body(RoomId=2), headers=bearer(other) | same)
        assert first["TaskId"] != second["TaskId"]


async def test_every_action_is_audited(service: Service) -> None:
    """The audit has actor, action, subject and outcome of each action, refused ones included, and a repeat under one key is no
    second action."""
    id_, key = await service.key("start", "operate")
    await _key_is_known(service, key)
    mine, once = bearer(key), {"Idempotency-Key": "a"}
    for _ in range(2):
        _, answer = await service.ask("POST", "/sessions", json=start_body(), headers=mine | once)
    task_id = answer["TaskId"]
    await service.ask("POST", "/sessions", json=start_body(), headers=mine)
    await service.failed_recording(task_id)
    await service.ask("POST", f"/sessions/{task_id}/replay", json={"DryRun": True}, headers=mine)
    await service.ask("POST", f"/sessions/{task_id}/replay", headers=mine)
    await service.ask("POST", f"/sessions/{task_id}/stop")
    await service.ask("POST", f"/sessions/{UNKNOWN}/stop", headers=mine)
    await service.keys.revoke(id_, model.Caller(name="cli test"))
    lines, count = await service.audit.list()
    entries = [(line.who, line.action, line.subject, line.outcome) for line in reversed(lines)]
    key_name = f"key {id_} school"
    assert entries == [
        ("cli test", "keys-create", f"{id_} school", "ok"),
        (key_name, "start", task_id, "ok"),
        (key_name, "start-again", task_id, "ok"),
        (key_name, "replay", task_id, "ok"),
        ("token 1", "stop", task_id, "ok"),
        (key_name, "stop", UNKNOWN, "NotFound"),
        ("cli test", "keys-revoke", f"{id_} school", "ok"),
    ]
    assert count == len(entries)
    assert "PLANTED" not in repr(lines)


async def test_every_answer_has_the_headers(service: Service) -> None:
    """Every response, whether success, refusal, error or probe, forbids sniffing, framing and caching."""
    large = b" " * (256 * 1024 + 1)
    requests: list[tuple[str, str, dict[str, Any], int]] = [
        ("GET", "/sessions", {"headers": bearer(MASTER)}, 200),
        ("GET", "/openapi.json", {"headers": bearer(MASTER)}, 200),
        ("GET", "/healthz", {}, 200),
        ("GET", "/sessions", {}, 401),
        ("GET", "/nothing", {"headers": bearer(MASTER)}, 404),
        ("POST", "/sessions", {"headers": bearer(MASTER), "data": large}, 413),
        ("POST", "/trtc/callbacks", {}, 401),
        ("GET", "/internal/segments", {"params": {"recording": "x", "epoch": "1"}}, 401),
    ]
    for method, path, options, status in requests:
        async with service.http.request(method, service.url + path, **options) as answer:
            assert answer.status == status, path
            for name, value in middleware.HEADERS.items():
                assert answer.headers.getall(name) == [value], (path, name)
            assert "set-cookie" not in answer.headers
            assert answer.headers["content-type"] == "application/json"


async def test_a_field_named_twice_is_refused(service: Service) -> None:
    """A field with two values is refused at any depth, because one reader takes the first and another the last."""
    raw = json.dumps(start_body())
    for twice in (raw[:-1] + ', "UserId": "other"}', raw.replace('"Path"', '"Region": "ap-beijing", "Path"')):
        status, answer = await service.ask("POST", "/sessions", data=twice, headers={"Content-Type": "application/json"})
        assert (status, answer["Message"].split(": ")[1]) == (400, "is given twice")


class TestCallbacks:
    async def test_an_old_callback_sent_again_is_refused(self, service: Service) -> None:
        """A genuine callback that is older than the window, or from the future, gets 401 and is not taken; one within the
        window is accepted."""
        now_ms = api_service.now_ms()
        for age_ms, status in ((0, 200), (60_000, 200), (-60_000, 200), (301_000, 401), (-330_000, 401), (10**9, 401)):
            event = trtc(203) | {"CallbackTs": now_ms - age_ms}
            assert (await deliver(service, event))[0] == status, age_ms
        assert len(service.taken) == 3
        for wrong in (None, "now", True, 1.5):
            status, answer = await deliver(service, trtc(203) | {"CallbackTs": wrong})
            assert (status, answer["Message"]) == (400, "CallbackTs must be an integer.")

    async def test_a_forged_callback_is_refused_before_its_body_arrives(self, service: Service) -> None:
        """A callback for a foreign application, or with a Sign of the wrong length, gets its response before its body has
        arrived."""
        right = signed(b"{}")
        for change in ({"SdkAppId": "1400000002"}, {"SdkAppId": "x"}, {"Sign": "short"}, {"Sign": ""}, {"Sign": "A" * 45}):
            gate = asyncio.Event()

            async def body(gate: asyncio.Event = gate) -> AsyncIterator[bytes]:
                yield b"{"
                await gate.wait()

            headers = right | change
            try:
                post = service.http.post(service.url + "/trtc/callbacks", data=body(), headers=headers)
                async with waiting.at_most(5), post as answer:
                    assert answer.status == 401
            finally:
                gate.set()

    async def test_a_chunked_body_without_a_length_is_cut(self, service: Service) -> None:
        """A body without a stated length is cut at 256 KB, and its connection is closed instead of read to the end."""
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < 64 * 1024 * 1024:
                sent += 64 * 1024
                yield b" " * 64 * 1024

        refused: list[int] = []
        try:
            async with service.http.post(service.url + "/sessions", data=endless(), headers=bearer(MASTER)) as answer:
                refused.append(answer.status)
        except (aiohttp.ClientError, ConnectionError):
            refused.append(413)  # closed while it was still sending
        assert refused == [413]
        assert sent < 32 * 1024 * 1024
