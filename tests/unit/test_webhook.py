"""The webhook sender: Standard Webhooks headers, the definition of success, and no connection to a non-public address."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import abc, web

from machine import errors
from tests import waiting
from webhook import sender as sender_module
from webhook import ssrf

ID = "msg_01JD"
NOW_S = 1_700_000_000
BODY = b'{"TaskId":"01JD","Files":[]}'
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


class Receiver:
    """A receiver that returns scripted responses, and counts requests."""

    def __init__(self) -> None:
        self.port = 0
        self.status = 200
        self.headers: dict[str, str] = {}
        self.silent = False
        self.endless = False
        self.written_bytes = 0
        self.ended = asyncio.Event()
        self.got: list[tuple[dict[str, str], bytes, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.got.append((dict(request.headers), await request.read(), request.path_qs))
        if self.silent:
            await asyncio.Event().wait()
        if not self.endless:
            return web.Response(status=self.status, headers=self.headers)
        response = web.StreamResponse(status=self.status)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"x" * 16384)
                self.written_bytes += 16384
        self.ended.set()
        return response

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    one = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", one.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.port = runner.addresses[0][1]
    yield one
    await runner.cleanup()


class Resolver(abc.AbstractResolver):
    """A resolver with scripted addresses."""

    def __init__(self, *answers: str) -> None:
        self.answers = answers

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[abc.ResolveResult]:
        if not self.answers:
            raise OSError("no such name")
        return [
            abc.ResolveResult(
                hostname=host,
                host=answer,
                port=port,
                family=socket.AF_INET6 if ":" in answer else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for answer in self.answers
        ]

    async def close(self) -> None:
        """Nothing to close."""


async def send(url: str, **more: Any) -> None:
    await sender_module.WebhookSender(**{"allow": ["127.0.0.1"]} | more).send(url, BODY, webhook_id=ID, now_s=NOW_S)


async def test_body_and_headers_arrive(receiver: Receiver) -> None:
    """The body arrives unchanged, with the id, the time and a signature over all three."""
    await send(receiver.url("/hook?a=%2Fb"), secret=SECRET)
    headers, body, path = receiver.got[0]
    assert (body, path, headers["Content-Type"]) == (BODY, "/hook?a=%2Fb", "application/json")
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == (ID, str(NOW_S))
    signed = f"{ID}.{NOW_S}.".encode() + BODY
    expected = base64.b64encode(hmac.new(b"0123456789abcdef01234567", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert "Cookie" not in headers
    assert "Authorization" not in headers


def test_published_vector() -> None:
    """The signature equals the test vector of the Standard Webhooks libraries."""
    signature = sender_module.sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_plain_secret_signs_and_none_does_not(receiver: Receiver) -> None:
    """A secret without the prefix is its own bytes; without a secret there is no signature."""
    await send(receiver.url(), secret="plain text")
    await send(receiver.url())
    signed = f"{ID}.{NOW_S}.".encode() + BODY
    expected = base64.b64encode(hmac.new(b"plain text", signed, hashlib.sha256).digest()).decode()
    assert receiver.got[0][0]["webhook-signature"] == f"v1,{expected}"
    assert "webhook-signature" not in receiver.got[1][0]


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_is_delivered(receiver: Receiver, status: int) -> None:
    """Every 2xx is success."""
    receiver.status = status
    await send(receiver.url())


@pytest.mark.parametrize(
    ("status", "reason", "retry"),
    [
        (301, "redirect", True),
        (302, "redirect", True),
        (304, "redirect", True),
        (307, "redirect", True),
        (400, "status", True),
        (404, "status", True),
        (410, "gone", False),
        (429, "status", True),
        (500, "status", True),
        (503, "status", True),
    ],
)
async def test_anything_else_is_not(receiver: Receiver, status: int, reason: str, retry: bool) -> None:
    """Other statuses fail with their reason, 410 is fatal, and no redirect is followed."""
    receiver.status = status
    receiver.headers = {"Location": receiver.url("/elsewhere")}
    with pytest.raises(errors.DeliveryFailed) as caught:
        await send(receiver.url())
    assert (caught.value.reason, caught.value.retry) == (reason, retry)
    assert str(status) in caught.value.detail
    assert len(receiver.got) == 1


async def test_silence_is_a_timeout(receiver: Receiver) -> None:
    """A receiver that reads the body and sends nothing ends the try after the time limit."""
    receiver.silent = True
    with pytest.raises(errors.DeliveryFailed) as caught:
        await send(receiver.url(), timeout_s=0.2)
    assert (caught.value.reason, caught.value.retry) == ("timeout", True)


async def test_endless_answer_is_cut(receiver: Receiver) -> None:
    """An endless response is read to 64 KB and no further; its status counts."""
    receiver.endless = True
    async with waiting.at_most(30):
        await send(receiver.url())
        await receiver.ended.wait()
    # The buffers of two sockets; a second of reading would be hundreds of times as much.
    assert receiver.written_bytes < 32 << 20


async def test_nobody_there_is_network(receiver: Receiver) -> None:
    """A refused connection and an unresolvable name are retryable network failures."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(errors.DeliveryFailed) as caught:
            await send(f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert (caught.value.reason, caught.value.retry) == ("network", True)
    with pytest.raises(errors.DeliveryFailed) as caught:
        await send("http://callback.invalid/", resolver=Resolver())
    assert (caught.value.reason, caught.value.retry) == ("network", True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "0",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "169.254.0.23",
        "2852039166",
        "100.64.0.1",
        "192.0.0.170",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::1]",
        "[2002:7f00:1::]",
        "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
        "[2001:db8::1]",
        "[3fff::1]",
        "[fc00::1]",
        "[fd12:3456::1]",
        "[fe80::1]",
        "[fe80::1%25lo]",
        "[fec0::1]",
        "[ff02::1]",
        "[100::1]",
        "[5f00::1]",
    ],
)
async def test_literal_that_is_not_public_is_refused(receiver: Receiver, host: str) -> None:
    """No spelling of a private address leads to a connection."""
    with pytest.raises(errors.DeliveryFailed) as caught:
        await send(f"http://{host}:{receiver.port}/", allow=[])
    assert (caught.value.reason, caught.value.retry) == ("private-address", False)
    assert "CALLBACK_ALLOW" in caught.value.detail
    assert receiver.got == []


@pytest.mark.parametrize("answer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "64:ff9b::7f00:1", "10.0.0.1"])
async def test_name_that_leads_inside_is_refused(receiver: Receiver, answer: str) -> None:
    """The address is checked after resolving, at connect time, for any name."""
    with pytest.raises(errors.DeliveryFailed) as caught:
        await send(f"http://public.example:{receiver.port}/", allow=[], resolver=Resolver(answer))
    assert caught.value.reason == "private-address"
    assert receiver.got == []


async def test_rebinding_name_is_refused(receiver: Receiver) -> None:
    """A name that resolved to an allowed address is checked again when it resolves to a private one: neither verdict nor address
    is cached."""
    resolver = Resolver("127.0.0.1")
    sender = sender_module.WebhookSender(allow=["127.0.0.1"], resolver=resolver)
    await sender.send(f"http://public.example:{receiver.port}/", BODY, webhook_id=ID, now_s=NOW_S)
    resolver.answers = ("127.0.0.2",)
    with pytest.raises(errors.DeliveryFailed) as caught:
        await sender.send(f"http://public.example:{receiver.port}/", BODY, webhook_id=ID, now_s=NOW_S)
    assert caught.value.reason == "private-address"
    assert len(receiver.got) == 1


async def test_only_the_allowed_of_several_addresses_is_dialled(receiver: Receiver) -> None:
    """A name with a private and an allowed address is reached at the allowed one."""
    await send(f"http://public.example:{receiver.port}/", resolver=Resolver("10.0.0.1", "::1", "127.0.0.1"))
    assert len(receiver.got) == 1


async def test_local_name_is_refused_by_the_systems_resolver(receiver: Receiver) -> None:
    """`localhost` through the system's resolver is refused too."""
    with pytest.raises(errors.DeliveryFailed) as caught:
        await send(f"http://localhost:{receiver.port}/", allow=[])
    assert caught.value.reason == "private-address"


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.0/8", "hook.example", "HOOK.example.", " 127.0.0.1 "])
async def test_listed_host_or_network_is_reached(receiver: Receiver, entry: str) -> None:
    """Targets in the operator's list are reached, by address, network or name."""
    await send(f"http://hook.example:{receiver.port}/", allow=[entry], resolver=Resolver("127.0.0.1"))
    assert len(receiver.got) == 1


async def test_list_is_no_wider_than_written(receiver: Receiver) -> None:
    """A listed name allows no other name, and a listed network no other address."""
    for entry in ("hook.example", "example", "10.0.0.0/8", "127.0.0.2"):
        with pytest.raises(errors.DeliveryFailed) as caught:
            await send(f"http://a.hook.example:{receiver.port}/", allow=[entry], resolver=Resolver("127.0.0.1"))
        assert caught.value.reason == "private-address"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "//host/",
        "ftp://host/",
        "file:///etc/passwd",
        "gopher://host:6379/_x",
        "http://",
        "http:///path",
        "http://user@host/",
        "http://user:password@host/",
        "http://:@host/",
        "http://host:0/",
        "http://host:65536/",
        "http://host:x/",
        "http://host\\@127.0.0.1/",
        "http://host /",
        "http://host/\r\nX: y",
        "http://房间.example/",
        "http://host/" + "x" * 3000,
        "http://[::1/",
    ],
)
async def test_url_that_is_none_is_refused_at_the_door(url: str) -> None:
    """Other schemes, credentials, control characters and broken URLs are refused before any look-up, by field and as fatal."""
    with pytest.raises(errors.InvalidParameter) as refused:
        sender_module.WebhookSender().check(url)
    assert refused.value.field == "Callback"
    assert "password" not in refused.value.message
    with pytest.raises(errors.DeliveryFailed) as caught:
        await send(url)
    assert (caught.value.reason, caught.value.retry) == ("bad-url", False)


@pytest.mark.parametrize(
    "url", ["https://example.com/", "http://example.com:8080/a?b=%20#c", "https://[2606:4700::1]/", "HTTP://EXAMPLE.COM"]
)
def test_usual_urls_pass_the_door(url: str) -> None:
    """Customers' usual URLs are accepted."""
    sender_module.WebhookSender().check(url)


@pytest.mark.parametrize("secret", ["whsec_", "whsec_***", "whsec_abc"])
def test_broken_secret_names_the_setting(secret: str) -> None:
    """A secret that claims to be base64 and is not stops the start, by name and without repeating it."""
    with pytest.raises(errors.InvalidParameter) as caught:
        sender_module.WebhookSender(secret=secret)
    assert caught.value.field == "CALLBACK_SECRET"
    assert "***" not in caught.value.message


def test_broken_allow_list_names_the_setting() -> None:
    """A CIDR with host bits is refused, by name."""
    with pytest.raises(errors.InvalidParameter) as caught:
        sender_module.WebhookSender(allow=["10.1.2.3/8"])
    assert caught.value.field == "CALLBACK_ALLOW"


@pytest.mark.parametrize(
    "public", ["8.8.8.8", "1.1.1.1", "119.29.29.29", "2606:4700::1111", "240e::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
)
def test_public_addresses_are_allowed(public: str) -> None:
    """Public addresses pass, also as IPv6 writes IPv4 ones."""
    assert ssrf.refusal(public, ssrf.AllowList()) == ""


def test_nothing_passes_that_python_calls_private() -> None:
    """Our list is at least as strict as the standard library's for one address of every special block it knows."""
    for text in (
        "0.0.0.1",
        "10.0.0.1",
        "127.9.9.9",
        "169.254.1.1",
        "192.168.0.1",
        "240.0.0.1",
        "::1",
        "fe80::1",
        "fc00::1",
        "2001:db8::1",
    ):
        assert not ipaddress.ip_address(text).is_global
        assert ssrf.refusal(text, ssrf.AllowList())
    assert ssrf.refusal("not an address", ssrf.AllowList()) == "not-an-address"
