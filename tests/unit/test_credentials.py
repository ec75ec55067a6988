"""Credentials: the order of the chain, each place, caching, and an error that names every place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from machine import errors
from tencent import credentials
from tests import waiting

NOW_MS = 1_700_000_000_000
HOUR_S = NOW_MS // 1000 + 3600
SCF = {"TENCENTCLOUD_SECRETID": "scf-id", "TENCENTCLOUD_SECRETKEY": "scf-key", "TENCENTCLOUD_SESSIONTOKEN": "scf-token"}
VARIABLES = {"TENCENTCLOUD_SECRET_ID": "env-id", "TENCENTCLOUD_SECRET_KEY": "env-key"}


class Cloud:
    """A metadata service and an STS on one port."""

    def __init__(self) -> None:
        self.address = ""
        self.role = ""
        self.expires_s = HOUR_S
        self.asked: list[str] = []
        self.exact = True
        self.sts: dict[str, Any] = {}
        self.sts_raw: bytes | None = None
        self.sts_body: dict[str, Any] = {}

    async def roles(self, request: web.Request) -> web.Response:
        self.asked.append("roles")
        return web.Response(text=self.role) if self.role else web.Response(status=404)

    async def keys(self, request: web.Request) -> web.Response:
        self.asked.append(request.match_info["role"])
        answer = {
            "Code": "Success",
            "TmpSecretId": f"cvm-id-{len(self.asked)}",
            "TmpSecretKey": "cvm-key",
            "Token": "cvm-token",
            "ExpiredTime": self.expires_s,
        }
        return web.Response(text=json.dumps(answer))

    async def assume(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers["X-TC-Action"])
        self.sts_body = await request.json()
        headers = {"Content-Type": "application/json" if self.exact else "application/json; charset=utf-8"}
        body = json.dumps({"Response": self.sts}).encode() if self.sts_raw is None else self.sts_raw
        return web.Response(body=body, headers=headers)


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    running = Cloud()
    app = web.Application()
    app.router.add_get("/meta/cam/security-credentials/", running.roles)
    app.router.add_get("/meta/cam/security-credentials/{role}", running.keys)
    app.router.add_post("/", running.assume)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running.address = f"127.0.0.1:{runner.addresses[0][1]}"
    yield running
    await runner.cleanup()


class Clock:
    """Unix milliseconds that a test moves."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def write_profile(home: Path, text: str) -> None:
    (home / ".tencentcloud").mkdir()
    (home / ".tencentcloud" / "credentials").write_text(text)


def chain(cloud: Cloud, clock: Clock, home: Path, environment: dict[str, str]) -> credentials.CredentialChain:
    return credentials.CredentialChain(
        environment,
        clock=clock,
        home=home,
        system_profile=home / "none",
        metadata_url=f"http://{cloud.address}/meta",
        sts_endpoint=("http", cloud.address),
    )


async def test_order_of_the_places(cloud: Cloud, clock: Clock, home: Path) -> None:
    """Explicit wins over SCF, SCF over the environment, that over the profile, that over the CVM's role."""
    write_profile(home, "[default]\nsecret_id = pro-id\nsecret_key = pro-%key\n")
    cloud.role = "recorder"
    given = {"SecretId": "my-id", "SecretKey": "my-key", "Region": "ap-shanghai"}
    found = await chain(cloud, clock, home, SCF | VARIABLES).resolve(given)
    assert (found.source, found.secret_id, found.secret_key, found.token) == ("explicit", "my-id", "my-key", "")
    found = await chain(cloud, clock, home, SCF | VARIABLES).resolve()
    assert (found.source, found.secret_id, found.secret_key, found.token) == ("scf", "scf-id", "scf-key", "scf-token")
    found = await chain(cloud, clock, home, VARIABLES).resolve()
    assert (found.source, found.secret_id, found.secret_key, found.token) == ("environment", "env-id", "env-key", "")
    found = await chain(cloud, clock, home, {}).resolve()
    assert (found.source, found.secret_id, found.secret_key) == ("profile", "pro-id", "pro-%key")
    assert cloud.asked == []


async def test_cvm_role(cloud: Cloud, clock: Clock, home: Path) -> None:
    """The machine's role gives temporary credentials with their expiry."""
    cloud.role = "recorder role"
    found = await chain(cloud, clock, home, {}).resolve()
    assert (found.source, found.token, found.expires_ms) == ("cvm-role", "cvm-token", HOUR_S * 1000)
    assert cloud.asked == ["roles", "recorder role"]


async def test_a_search_serves_later_callers_although_the_first_gave_up(cloud: Cloud, clock: Clock, home: Path) -> None:
    """A start that waited too long leaves its search running; what it finds is kept for the next one."""
    cloud.role = "recorder"
    places = chain(cloud, clock, home, {})
    first = asyncio.create_task(places.resolve())
    await waiting.until(lambda: cloud.asked, what="the search to have begun")
    first.cancel()
    await waiting.until(lambda: len(cloud.asked) == 2, what="the search to go on")
    found = await places.resolve()
    assert (found.source, await places.resolve() is found, len(cloud.asked)) == ("cvm-role", True, 2)


async def test_temporary_ones_are_kept_until_a_minute_before_their_end(cloud: Cloud, clock: Clock, home: Path) -> None:
    """Temporary credentials are cached, and fetched again from 60 s before their expiry, or after the server refused them as
    expired."""
    cloud.role = "recorder"
    places = chain(cloud, clock, home, {})
    first = await places.resolve()
    assert await places.resolve() is first
    clock.now_ms = HOUR_S * 1000 - 60_001
    assert await places.resolve() is first
    clock.now_ms += 1
    cloud.expires_s += 3600
    second = await places.resolve()
    assert second.secret_id != first.secret_id
    places.forget()
    assert (await places.resolve()).secret_id != second.secret_id


def pod(home: Path) -> dict[str, str]:
    """The variables of a pod in TKE."""
    (home / "token").write_text("pod-token")
    return {
        "TKE_REGION": "ap-guangzhou",
        "TKE_PROVIDER_ID": "cls-1",
        "TKE_WEB_IDENTITY_TOKEN_FILE": str(home / "token"),
        "TKE_ROLE_ARN": "qcs::cam::uin/1:roleName/r",
    }


DEEP = "[" * 30_000
ODD_STS = ["", "not json", "[]", '"x"', "null", "{}", DEEP, '{"Response": null}', '{"Response": "x"}', '{"Response": []}',
    '{"Response": {"Error": "x"}}', '{"Response": {"Credentials": "x", "ExpiredTime": 1}}',
    '{"Response": {"Credentials": {"TmpSecretId": 1, "TmpSecretKey": [], "Token": "t"}, "ExpiredTime": 1}}']  # fmt: skip


@pytest.mark.parametrize("answer", ODD_STS)
async def test_odd_sts_is_no_role(cloud: Cloud, clock: Clock, home: Path, answer: str) -> None:
    """Only a complete response of STS gives credentials, whatever server answers."""
    cloud.sts_raw = answer.encode()
    for cloud.exact in (True, False):
        with pytest.raises(credentials.NoCredentials):
            await chain(cloud, clock, home, pod(home)).resolve()


async def test_tke(cloud: Cloud, clock: Clock, home: Path) -> None:
    """In TKE the pod's web identity is exchanged for temporary credentials at STS, unsigned."""
    variables = pod(home)
    cloud.sts = {
        "Credentials": {"TmpSecretId": "tke-id", "TmpSecretKey": "tke-key", "Token": "tke-token"},
        "ExpiredTime": HOUR_S,
        "RequestId": "r",
    }
    found = await chain(cloud, clock, home, variables).resolve()
    assert (found.source, found.secret_id, found.token, found.expires_ms) == ("tke", "tke-id", "tke-token", HOUR_S * 1000)
    assert cloud.sts_body["WebIdentityToken"] == "pod-token"
    assert cloud.sts_body["RoleArn"] == variables["TKE_ROLE_ARN"]
    cloud.sts = {"Error": {"Code": "InvalidParameter.WebIdentityTokenError", "Message": "no"}, "RequestId": "req-9"}
    for cloud.exact in (True, False):
        with pytest.raises(credentials.NoCredentials, match=r"WebIdentityTokenError.*req-9"):
            await chain(cloud, clock, home, variables).resolve()


async def test_nothing_found_says_where_was_looked(cloud: Cloud, clock: Clock, home: Path) -> None:
    """The error names every place with its result and the request's field, and is retryable."""
    write_profile(home, "secret_id without a section")
    with pytest.raises(credentials.NoCredentials) as caught:
        await chain(cloud, clock, home, {"TENCENTCLOUD_SECRET_ID": "only-half"}).resolve()
    message = caught.value.message
    for place in ("CosConfig.SecretId", "SECRETID", "SECRET_ID", ".tencentcloud", "CVM", "TKE_REGION"):
        assert place in message
    assert "only-half" not in message
    assert isinstance(caught.value, errors.InvalidParameter)
    assert (caught.value.field, caught.value.retry, caught.value.temporary) == ("CosConfig.SecretId", True, False)


async def test_a_role_whose_service_fails_is_temporary(cloud: Cloud, clock: Clock, home: Path) -> None:
    """A role that is configured or gave credentials before, and whose service fails, is temporary. A machine on which nothing
    answers, or a refusal, is not."""

    async def temporary(places: credentials.CredentialChain) -> bool:
        places.forget()
        with pytest.raises(credentials.NoCredentials) as caught:
            await places.resolve()
        return caught.value.temporary

    cloud.sts = {"Error": {"Code": "InternalError", "Message": "no"}, "RequestId": "r"}
    assert await temporary(chain(cloud, clock, home, pod(home)))
    cloud.sts = {"Error": {"Code": "AuthFailure", "Message": "no"}, "RequestId": "r"}
    assert not await temporary(chain(cloud, clock, home, pod(home)))
    cloud.role = "recorder"
    before = chain(cloud, clock, home, {})
    await before.resolve()
    cloud.address = before._metadata_url = "http://127.0.0.1:1/meta"
    assert await temporary(before)
    cloud.address = "127.0.0.1:1"
    assert not await temporary(chain(cloud, clock, home, {}))


async def test_a_search_without_a_result_is_not_repeated_at_once(cloud: Cloud, clock: Clock, home: Path) -> None:
    """Many starts without keys ask the metadata once in some seconds, and a role that was bound is found then."""
    places = chain(cloud, clock, home, {})
    for _ in range(50):
        with pytest.raises(credentials.NoCredentials, match="no role is bound"):
            await places.resolve()
    assert cloud.asked == ["roles"]
    cloud.role = "recorder"
    clock.now_ms += credentials.MISSING_FOR_MS
    assert (await places.resolve()).source == "cvm-role"


@pytest.mark.parametrize("answer", ["", "not json", "[]", DEEP, '{"Code": "Success"}', '{"Code": "Failed"}'])
@pytest.mark.parametrize("role", ["", "recorder"])
async def test_odd_metadata_is_no_role(cloud: Cloud, clock: Clock, home: Path, answer: str, role: str) -> None:
    """Only a complete metadata response gives credentials, whatever server answers for the role's name or its keys."""

    async def keys(request: web.Request) -> web.Response:
        return web.Response(text=role if role and request.path.endswith("/") else answer)

    app = web.Application()
    app.router.add_get("/{tail:.*}", keys)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    cloud.address = f"127.0.0.1:{runner.addresses[0][1]}"
    with pytest.raises(credentials.NoCredentials):
        await chain(cloud, clock, home, {}).resolve()
    await runner.cleanup()


async def test_secrets_are_not_in_repr_or_errors() -> None:
    """Neither printing credentials nor refusing a broken key shows it."""
    shown = repr(credentials.Credentials(secret_id="planted-id", secret_key="planted-key", token="planted-token"))
    assert "planted" not in shown
    for broken in ("planted key", "planted\nkey", "", "planted密"):
        with pytest.raises(errors.InvalidParameter) as caught:
            credentials.Credentials(secret_id="id", secret_key=broken)
        assert "planted" not in str(caught.value)
        assert caught.value.field == "CosConfig.SecretKey"
