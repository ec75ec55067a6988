"""Checks of a start while something that they ask hangs: uploads, one customer's bucket, a role service, a spool."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pydantic
import pytest
from aiohttp import abc, web

from assembly import slots, start_checks
from assembly import work as node_work
from config import settings as settings_module
from machine import errors
from media import file_threads, free_space, spool
from tencent import cos, cos_target, credentials
from tests import waiting
from tests.integration import scripted_cos
from webhook import sender

SLOW = "slow-1250000000"
STARTS = 40
# More requests than any test makes, also on a machine with many CPUs.
HANGING = 2_000
KEYS = {"SecretId": "AKIDmarked", "SecretKey": "KEYmarked"}


@pytest.fixture
def end() -> asyncio.Event:
    """Lets all requests that hang fail."""
    return asyncio.Event()


@pytest.fixture
async def server(end: asyncio.Event) -> AsyncIterator[scripted_cos.Cos]:
    """A COS that takes requests and answers those of uploads, and those about the bucket SLOW, only at the end."""

    async def hang(_: scripted_cos.Cos, request: web.Request) -> web.StreamResponse | None:
        if request.method != "HEAD" or request.host.startswith(SLOW):
            await end.wait()
            return web.Response(status=503)
        return None

    async with scripted_cos.serving() as running:
        running.script = {name: [hang] * HANGING for name in ("create", "begun", "bucket")}
        yield running


@pytest.fixture
async def work(server: scripted_cos.Cos, end: asyncio.Event, tmp_path: Path) -> AsyncIterator[node_work.NodeWork]:
    settings = settings_module.load({"HOME": str(tmp_path), "COS_ENDPOINT": f"http://127.0.0.1:{server.port}"})
    chain = credentials.CredentialChain({}, clock=lambda: 0, home=tmp_path, system_profile=tmp_path / "none")
    made = node_work.NodeWork(settings, spool.Spool(tmp_path / "spool"), chain)
    await made.uploader.start()
    yield made
    end.set()
    await made.uploader.stop()


def checks(work: node_work.NodeWork, **more: Any) -> start_checks.StartChecks:
    async def roomy() -> tuple[str, ...]:
        return ()

    return start_checks.StartChecks(work._settings, work, more.get("chain", work._chain), more.get("capacity", roomy))


def start(bucket: str = scripted_cos.BUCKET, **keys: str) -> dict[str, Any]:
    return {"CosConfig": {"Region": scripted_cos.REGION, "Bucket": bucket, "Path": "p", **keys}}


@pytest.mark.parametrize(
    ("speakers", "letter"),
    [([], "p"), (["al"], "p"), (["al", "b" * 64], "p"), (["名" * 64], "p"), ([], "名"), (["b64-x", "a"], "é")],
)
async def test_a_key_that_could_become_too_long(work: node_work.NodeWork, speakers: list[str], letter: str) -> None:
    """The longest folder with which every file of the session has a legal key is accepted, and one more byte is refused."""
    body = start(**KEYS) | ({"SubscribeUserIds": speakers} if speakers else {})
    names = speakers or ["\U0001f600" * 64]

    def fits(path: str) -> bool:
        return all(len(cos_target.object_key(path, "0" * 26, name, 1_000_000, "02").encode()) <= 850 for name in names)

    longest = 0
    with contextlib.suppress(errors.InvalidParameter):
        while fits(letter * (longest + 1)):
            longest += 1
    body["CosConfig"]["Path"] = "/" + letter * longest + "/"
    assert await checks(work).check(body) == ()
    body["CosConfig"]["Path"] = letter * (longest + 1)
    with pytest.raises(errors.InvalidParameter) as refused:
        await checks(work).check(body)
    assert refused.value.field == "CosConfig.Path"
    assert longest > 100


class Names(abc.AbstractResolver):
    """A resolver of a few names. `slow.example` never answers."""

    ADDRESSES = MappingProxyType(
        {"public.example": ["8.8.8.8"], "mixed.example": ["10.0.0.1", "8.8.8.8"], "inner.example": ["10.1.2.3"]}
    )

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[abc.ResolveResult]:
        if host == "slow.example":
            await asyncio.Event().wait()
        if host not in self.ADDRESSES:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        made = abc.ResolveResult(hostname=host, host="", port=port, family=family, proto=0, flags=0)
        return [made | {"host": address} for address in self.ADDRESSES[host]]

    async def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("public.example", ""),
        ("mixed.example", ""),
        ("8.8.4.4", ""),
        ("inner.example", "not public (private)"),
        ("typo.example", "no address"),
        ("slow.example", "could not be looked up within"),
    ],
)
async def test_a_receiver_that_cannot_be_reached(
    work: node_work.NodeWork, monkeypatch: pytest.MonkeyPatch, host: str, reason: str
) -> None:
    """A callback host without an address, with private ones only, or whose name server is silent gives a warning in time; the
    start is accepted."""
    work.webhook = sender.WebhookSender(secret="s", resolver=Names())
    monkeypatch.setattr(work, "_settings", work._settings.model_copy(update={"callback_secret": pydantic.SecretStr("s")}))
    monkeypatch.setattr(start_checks, "LIMIT_S", 0.2 if host == "slow.example" else 60)
    warnings = await checks(work).check(start(**KEYS) | {"Callback": f"https://{host}/x?secret=MARK"})
    about = [warning for warning in warnings if warning.startswith("Callback: ")]
    assert len(about) == bool(reason)
    assert all(reason in warning and "MARK" not in warning for warning in about)
    assert "slow" in host or len(warnings) == len(about)


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "NoSuchBucket"])
async def test_credentials_that_fail(work: node_work.NodeWork, server: scripted_cos.Cos, code: str) -> None:
    """A start whose key or bucket COS refuses is refused with the next step for a start, and nothing about a replay: nothing was
    recorded. Credentials that have expired are a warning, as an expired UserSig is."""
    refused = {"bucket": [scripted_cos.refuse(403, "")], "listing": [scripted_cos.refuse(403, code)]}
    server.script |= {"bucket": [scripted_cos.refuse(404, "")]} if code == "NoSuchBucket" else refused
    if code == "ExpiredToken":
        (said,) = await checks(work).check(start(**KEYS))
    else:
        with pytest.raises(errors.InvalidParameter) as caught:
            await checks(work).check(start(**KEYS))
        said = caught.value.message
    assert code in said
    assert "tart again" in said
    assert "replay" not in said


async def test_starts_wait_for_no_upload(work: node_work.NodeWork, server: scripted_cos.Cos, tmp_path: Path) -> None:
    """While more uploads hang than there are threads, buckets are checked as usual: one is there, the other is not."""
    path = tmp_path / "file.mp4"
    path.write_bytes(b"x" * 100)
    threads = slots.of(work._settings)["start-upload"]
    uploads = [asyncio.create_task(scripted_cos.upload(work.uploader, path, server)) for _ in range(threads + 5)]
    try:
        await waiting.until(lambda: len(server.operations) >= threads, what="the uploads hang")
        assert await asyncio.wait_for(checks(work).check(start(**KEYS)), 60) == ()
        with pytest.raises(errors.InvalidParameter, match="NoSuchBucket"):
            await checks(work).check(start("other-1250000000", **KEYS))
        assert not any(task.done() for task in uploads)
    finally:
        for task in uploads:
            task.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)


async def test_a_bucket_that_hangs_delays_no_other(work: node_work.NodeWork, server: scripted_cos.Cos) -> None:
    """Starts into a bucket that does not answer proceed with a warning; meanwhile another bucket's start is checked."""
    made = checks(work)
    slow = [asyncio.create_task(made.check(start(SLOW, **KEYS))) for _ in range(STARTS)]
    await waiting.until(lambda: server.operations, what="the first check hangs")
    assert await made.check(start(**KEYS)) == ()
    assert sum(task.done() and not task.result() for task in slow) == 0
    for warnings in await asyncio.gather(*slow):
        (warning,) = warnings
        assert "could not be checked" in warning
    assert server.operations.count("bucket") <= STARTS / 2
    assert cos.CHECKS_PER_BUCKET <= cos.CHECK_THREADS / 2


async def test_a_role_service_that_hangs(
    work: node_work.NodeWork, server: scripted_cos.Cos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start without credentials proceeds with a warning while the search hangs, and all starts share one search."""
    found, searches = asyncio.Event(), []

    async def search() -> credentials.Credentials:
        searches.append(1)
        await found.wait()
        return credentials.Credentials(secret_id="AKIDrole", secret_key="KEYrole", token="t", expires_ms=10**15)

    monkeypatch.setattr(start_checks, "LIMIT_S", 0.05)
    monkeypatch.setattr(work._chain, "_search", search)
    made = checks(work)
    for answer in await asyncio.gather(*(made.check(start()) for _ in range(STARTS))):
        assert "could not be checked" in answer[0]
    found.set()
    monkeypatch.setattr(start_checks, "LIMIT_S", 60)
    assert await made.check(start()) == ()
    assert len(searches) == 1


async def test_no_credentials_is_a_refusal_within_the_limit(work: node_work.NodeWork, tmp_path: Path) -> None:
    """A metadata service that does not answer leaves the time to refuse a start that has no credentials."""
    assert credentials.METADATA_TIMEOUT_S <= start_checks.LIMIT_S / 2
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and nobody answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        chain = credentials.CredentialChain(
            {}, clock=lambda: 0, home=tmp_path, system_profile=tmp_path / "none", metadata_url=url
        )
        with pytest.raises(errors.InvalidParameter, match="No credentials"):
            await checks(work, chain=chain).check(start())


async def test_a_spool_that_hangs(work: node_work.NodeWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start is refused for now, and the event loop goes on meanwhile."""
    ends = threading.Event()
    folder = spool.Spool(tmp_path / "spool")
    monkeypatch.setattr(folder, "space", lambda: ends.wait(60) and (0, 0))
    monkeypatch.setattr(file_threads, "ANSWER_S", 0.05)
    space = start_checks.SpoolSpace(work._settings, free_space.FreeSpace(folder))
    made = checks(work, capacity=space.check)
    try:
        for answer in await asyncio.gather(*(made.check(start(**KEYS)) for _ in range(STARTS)), return_exceptions=True):
            assert isinstance(answer, errors.Unavailable)
            assert "does not answer" in answer.message
    finally:
        ends.set()
