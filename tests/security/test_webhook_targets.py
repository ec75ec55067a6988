"""Webhook targets: no callback URL and no response of a receiver makes the service connect to an address that is not public.

Rule: the evidence is the connections made. Listeners on every address of this machine count them, and so does a spy on the event
loop's connect; a control test proves that both detect a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import ipaddress
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import abc

from machine import errors
from tests import waiting
from tests.security import webhook_attempts
from webhook import sender as sender_module
from webhook import ssrf

BODY = b'{"TaskId":"01JD","Files":[]}'
PUBLIC = ("93.184.215.14", "2606:4700::1111")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Listener:
    """Listens on every address of this machine, counts connections, and sends a configurable reply."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self._open: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}
        self.reply: Callable[[asyncio.StreamWriter], Any] = self._ok

    async def start(self) -> None:
        """Take one free port on IPv4 and IPv6."""
        self._server = await asyncio.start_server(self._connected, "0.0.0.0", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._second = await asyncio.start_server(self._connected, "::1", self.port)

    async def stop(self) -> None:
        """End all connections and release the ports."""
        for writer, task in self._open.items():
            writer.transport.abort()
            assert task is not None
            task.cancel()
        await asyncio.gather(*filter(None, self._open.values()), return_exceptions=True)
        for server in (self._server, self._second):
            server.close()
            await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open[writer] = asyncio.current_task()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await self.reply(writer)
        writer.close()

    async def _ok(self, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()


class Resolver(abc.AbstractResolver):
    """Resolves every name to an attempt's addresses, one tuple per query."""

    def __init__(self, answers: tuple[tuple[str, ...], ...]) -> None:
        self.left = list(answers)

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[abc.ResolveResult]:
        answers = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return [
            abc.ResolveResult(
                hostname=host, host=each, port=port, family=_family(each), proto=0, flags=socket.AI_NUMERICHOST
            )
            for each in answers
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing to close."""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    made = Listener()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def connected_to(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address to which the event loop tried to connect. Only connections to this machine are really made."""
    found: list[str] = []
    loop_class = asyncio.selector_events.BaseSelectorEventLoop
    connect = loop_class.sock_connect

    async def spy(self: Any, sock: socket.socket, address: Any) -> None:
        found.append(address[0])
        if not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
            raise OSError(errno.ENETUNREACH, "a test connects to this machine only")
        await connect(self, sock, address)

    monkeypatch.setattr(loop_class, "sock_connect", spy)
    return found


async def send(url: str, *, times: int = 1, **more: Any) -> errors.DeliveryFailed | None:
    """Send `times` times, as retries would; returns the failure of the last one."""
    sender = sender_module.WebhookSender(**more)
    failure = None
    for _ in range(times):
        failure = None
        try:
            await sender.send(url, BODY, webhook_id="msg_1", now_s=1_700_000_000)
        except errors.DeliveryFailed as error:
            failure = error
    return failure


async def test_no_attempt_reaches_an_address_that_is_not_public(listener: Listener, connected_to: list[str]) -> None:
    """No attempt of the corpus, sent once for each answer of its resolver, connects to anything but public addresses, and each
    refusal names its rule."""
    wrong = []
    for attempt in webhook_attempts.ATTEMPTS:
        url = attempt.url.replace("{port}", str(listener.port))
        failure = await send(url, times=len(attempt.answers), resolver=Resolver(attempt.answers))
        if failure is None or attempt.rule not in failure.detail:
            wrong.append((attempt, failure))
    assert len(webhook_attempts.ATTEMPTS) >= 120
    assert wrong == []
    assert listener.connections == 0
    assert {*connected_to} == {*PUBLIC}


def start_refusal(url: str) -> errors.InvalidParameter | None:
    """The error of a start with this callback URL."""
    try:
        sender_module.WebhookSender().check(url)
    except errors.InvalidParameter as error:
        return error
    return None


def test_an_invalid_url_is_refused_at_the_start() -> None:
    """A start with an invalid callback URL is refused with field and rule before any name is resolved; a name is judged later."""
    for attempt in webhook_attempts.ATTEMPTS:
        error = start_refusal(attempt.url.replace("{port}", "8080"))
        assert (error is not None) == attempt.refused_unresolved, attempt
        if error is not None:
            assert error.field == "Callback"
            assert attempt.rule in error.message, attempt
            assert "password" not in error.message


@pytest.mark.parametrize(("status", "location"), webhook_attempts.REDIRECTS)
async def test_no_redirect_is_followed(listener: Listener, connected_to: list[str], status: int, location: str) -> None:
    """A redirect of an allowed receiver to an internal address is not followed."""
    inside = Listener()
    await inside.start()

    async def redirect(writer: asyncio.StreamWriter) -> None:
        target = location.replace("{inside}", str(inside.port))
        writer.write(f"HTTP/1.1 {status} Elsewhere\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()

    listener.reply = redirect
    failure = await send(f"http://hook.example:{listener.port}/", allow=["hook.example"], resolver=Resolver((("127.0.0.1",),)))
    await inside.stop()
    assert failure is not None
    assert failure.reason == "redirect"
    assert (listener.connections, inside.connections, connected_to) == (1, 0, ["127.0.0.1"])


async def test_listener_and_spy_detect_a_connection(listener: Listener, connected_to: list[str]) -> None:
    """As a control, an allowed address of this machine is reached on IPv4 and IPv6, and both detectors count it."""
    for host in ("127.0.0.1", "127.1.2.3", "[::1]"):
        assert await send(f"http://{host}:{listener.port}/", allow=["127.0.0.0/8", "::1"]) is None
    assert listener.connections == 3
    assert connected_to == ["127.0.0.1", "127.1.2.3", "::1"]


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
async def test_no_proxy_is_used(
    listener: Listener, connected_to: list[str], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A proxy in the environment is not used, because it would connect for us past every check."""
    monkeypatch.setenv(variable, f"http://127.0.0.1:{listener.port}")
    for scheme in ("http", "https"):
        failure = await send(f"{scheme}://public.example/", resolver=Resolver((PUBLIC,)))
        assert failure is not None
    assert listener.connections == 0
    assert {*connected_to} == {*PUBLIC}


# IANA's registries of special-purpose IPv4 and IPv6 addresses and of multicast, row by row, as of 2025: written from the
# registries and not from the code. They include "globally reachable" rows (relays, AS112, anycast), because no receiver has such
# an address.
REGISTRY_V4 = (
    "0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24",
    "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.88.99.2/32", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32", "224.0.0.0/4",
)  # fmt: skip
REGISTRY_V6 = (
    "::1/128", "::/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32", "2001:1::1/128",
    "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48", "2001:10::/28", "2001:20::/28",
    "2001:30::/28", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10",
    "ff00::/8",
)  # fmt: skip
# The two rows that embed an IPv4 address: the embedded address is judged.
MAPPED, TRANSLATED = "::ffff:0:0/96", "64:ff9b::/96"
# In no registry: a cloud's metadata service under a public number.
METADATA = "168.63.129.16/32"


def edges(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[list[Any], list[Any]]:
    """The first and the last address of a block, and its neighbors outside."""
    first, last = int(network[0]), int(network[-1])
    outside = [first - 1] * (first > 0) + [last + 1] * (last + 1 < 1 << network.max_prefixlen)
    made = type(network[0])
    return [made(first), made(last)], [made(number) for number in outside]


def test_every_special_block_is_refused_up_to_its_edges() -> None:
    """The first and the last address of every special block are refused, for IPv4 also mapped into IPv6 and through NAT64, and
    their neighbors are public unless another block or the space outside 2000::/3 contains them."""
    nothing = ssrf.AllowList()
    special = [ipaddress.ip_network(text) for text in (*REGISTRY_V4, METADATA, *REGISTRY_V6)]
    for network in special:
        inside, outside = edges(network)
        for address in inside + outside:
            refused = address in inside or any(address in other for other in special if other.version == address.version)
            if address.version == 4:
                wrapped = [ipaddress.IPv6Network(block)[int(address)] for block in (MAPPED, TRANSLATED)]
            else:
                refused, wrapped = refused or address not in ipaddress.IPv6Network("2000::/3"), []
            for written in (address, *wrapped):
                assert bool(ssrf.refusal(str(written), nothing)) == refused, (network, written)


async def _header_flood(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"".join(b"x-%d: %b\r\n" % (number, b"y" * 64) for number in range(1000)))
        await writer.drain()


async def _endless_header(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        writer.write(b"y" * 65536)
        await writer.drain()


async def _one_after_another(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 100)
        await writer.drain()


async def _slow_header(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1000):
        writer.write(b"x-%d: y\r\n" % number)
        await writer.drain()
        await asyncio.wait([asyncio.create_task(writer.wait_closed())], timeout=0.05)


async def _endless_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


async def _slow_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    await writer.drain()
    await writer.wait_closed()


async def _bomb(writer: asyncio.StreamWriter) -> None:
    squeezed = gzip.compress(bytes(1 << 20)) * 1000  # many gzip members in a row: a gigabyte
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(squeezed) + squeezed)
    await writer.drain()


@pytest.mark.parametrize(
    ("reply", "reasons"),
    [
        (_header_flood, {None}),
        (_endless_header, {None}),
        (_one_after_another, {"timeout"}),
        (_slow_header, {"timeout"}),
        (_endless_body, {None}),
        (_slow_body, {None}),
        (_bomb, {None}),
    ],
)
async def test_an_endless_response_costs_little(listener: Listener, reply: Any, reasons: set[str | None]) -> None:
    """A flood, a drip or a bomb as a response ends within the time limit, or counts by its status, and takes a few megabytes of
    memory."""
    listener.reply = reply
    loop = asyncio.get_running_loop()
    tracemalloc.start()
    began = loop.time()
    failure = await send(f"http://127.0.0.1:{listener.port}/", allow=["127.0.0.1"], timeout_s=1.5)
    took_s = loop.time() - began
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (failure.reason if failure else None) in reasons
    assert took_s < waiting.limit_s(8)
    assert peak_bytes < 16 << 20
