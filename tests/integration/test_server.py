"""The HTTP server: it listens on a free port, ends on request, and explains a wrong address."""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Any

import aiohttp
import fastapi
import pytest

from machine import errors
from tests import waiting
from web import connection_limits, http_server


def application() -> fastapi.FastAPI:
    made = fastapi.FastAPI()

    @made.get("/")
    async def hello() -> dict[str, Any]:
        return {"Hello": True}

    return made


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_it_answers_and_ends(host: str) -> None:
    """The port is known after the start, start and stop may be repeated, and nothing listens after the stop."""
    server = http_server.HttpServer(application(), host=host, port=0)
    await server.start()
    await server.start()
    async with aiohttp.ClientSession() as http, http.get(f"http://{host}:{server.port}/") as answer:
        assert answer.status == 200
    await server.stop()
    await server.stop()
    assert server.task is not None
    assert server.task.done()
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection(host, server.port)


async def test_no_part_of_an_answer_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections send small parts at once: head and body of an answer are two, and the second waits for no acknowledgement."""
    found = []
    made = connection_limits.LimitedProtocol.connection_made

    def noted(protocol: connection_limits.LimitedProtocol, transport: asyncio.Transport) -> None:
        found.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(protocol, transport)

    monkeypatch.setattr(connection_limits.LimitedProtocol, "connection_made", noted)
    server = http_server.HttpServer(application(), host="127.0.0.1", port=0)
    await server.start()
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{server.port}/") as answer:
        assert answer.status == 200
    await server.stop()
    assert found == [1]


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no-such-host.invalid"])
async def test_an_address_that_cannot_be_used(host: str) -> None:
    """A port in use, an address of another machine and an invalid name give an error that names the setting, and no exit."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = http_server.HttpServer(application(), host=host, port=taken.getsockname()[1])
        with pytest.raises(errors.Unavailable, match="set PORT to a free one, or correct HOST"):
            await server.start()
        await server.stop()


async def sent(port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which these bytes were sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    return reader, writer


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side has ended the connection, cleanly or not."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n", WHOLE + b"GET / HT"],
    ids=["nothing", "half a line", "half a head", "half a second request"],
)
async def test_an_incomplete_request_is_closed(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection with no request or an incomplete one is closed after a while, and earlier requests on it are served."""
    monkeypatch.setattr(connection_limits, "HEAD_S", 0.3)
    server = http_server.HttpServer(application(), host="127.0.0.1", port=0)
    await server.start()
    reader, writer = await sent(server.port, begun)
    async with waiting.at_most(20):
        if begun.startswith(WHOLE):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            assert (await reader.read()).endswith(b'{"Hello":true}')
        else:
            assert await closed(reader)
    writer.close()
    await server.stop()


async def test_a_request_may_take_longer_than_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit applies to the head of a request only: a slow body or a slow response ends normally."""
    monkeypatch.setattr(connection_limits, "HEAD_S", 0.2)
    made = application()

    @made.post("/slow")
    async def slow(request: fastapi.Request) -> dict[str, Any]:
        return {"Got": (await request.body()).decode()}

    server = http_server.HttpServer(made, host="127.0.0.1", port=0)
    await server.start()
    reader, writer = await sent(server.port, b"POST /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\n")
    for letter in b"body":
        await waiting.passed(0.1)
        writer.write(bytes([letter]))
    assert (await reader.read()).endswith(b'{"Got":"body"}')
    writer.close()
    await server.stop()


async def test_connections_leave_descriptors_to_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections beyond the limit are closed unread, and new ones are accepted once there is room."""
    monkeypatch.setattr(connection_limits, "max_connections", lambda: 8)
    server = http_server.HttpServer(application(), host="127.0.0.1", port=0)
    await server.start()
    opened = [await sent(server.port, b"GET / HT") for _ in range(8)]
    for _ in range(3):
        reader, writer = await sent(server.port, WHOLE)
        assert await closed(reader)
        writer.close()
    for _, writer in opened:
        writer.close()

    async def answered() -> bool:
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{server.port}/") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await waiting.until(answered, 10, "room for another")
    await server.stop()


async def test_a_burst_of_connections_silences_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """While many connections that ask for nothing fill the limit and every reserved place, a probe is answered; other requests
    are not. The log gets a line or two."""
    monkeypatch.setattr(connection_limits, "max_connections", lambda: 8)
    lines: list[int] = []
    monkeypatch.setattr(connection_limits.log, "warning", lambda *_, connections, **__: lines.append(connections))
    made = application()

    @made.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"Alive": True}

    server = http_server.HttpServer(made, host="127.0.0.1", port=0)
    await server.start()
    opened = await asyncio.gather(*(sent(server.port, b"") for _ in range(200)))
    for pieces in ([b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"], [b"GET /he", b"althz HTTP/1.1\r\nHost: x\r\n\r\n"]):
        reader, writer = await sent(server.port, pieces[0])
        for piece in pieces[1:]:
            await waiting.passed(0.05)
            writer.write(piece)
        async with waiting.at_most(3):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
    reader, writer = await sent(server.port, b"GET /health/x HTTP/1.1\r\nHost: x\r\n\r\n")
    async with waiting.at_most(3):
        assert await closed(reader)
    for _, each in [*opened, (reader, writer)]:
        each.close()
    await server.stop()
    assert len(lines) <= 2
    assert connection_limits._reserved == {}


def test_the_share_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share is a quarter of the descriptors, with a minimum and a maximum."""
    for soft, expected in ((1_024, 256), (32, 16), (1_000_000, 1_024), (resource.RLIM_INFINITY, 1_024)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert connection_limits.max_connections() == expected
