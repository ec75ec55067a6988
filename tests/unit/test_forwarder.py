"""The forwarder of TRTC's callbacks: each one reaches the application's receiver as it came, or is counted as dropped."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from machine import errors
from tests import scrapes, waiting
from tests.unit.test_webhook import Resolver
from webhook import forwarder as forwarder_module
from webhook import sender

APP, SIGN = 1400000001, "c2lnbmF0dXJl"


class Receiver:
    """The application's receiver; it listens only within `up`. `statuses` are its next answers, then 200."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, bytes]] = []
        self.connections: set[int] = set()
        self.statuses: list[int] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._listening.close()

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_post("/trtc", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        yield
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername")[1])
        self.got.append((request.headers["SdkAppId"], request.headers["Sign"], await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, _, body in self.got]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_module, "BACKOFF_S", (0.01,))


@contextlib.asynccontextmanager
async def forwarding(receiver: Receiver | int, **more: Any) -> AsyncIterator[forwarder_module.CallbackForwarder]:
    webhooks = sender.WebhookSender(allow=["127.0.0.1"])
    port = receiver if isinstance(receiver, int) else receiver.port
    made = forwarder_module.CallbackForwarder(webhooks, {APP: f"http://127.0.0.1:{port}/trtc"}, **more)
    await made.start()
    yield made
    await made.stop()


async def _ended(made: forwarder_module.CallbackForwarder, count: int) -> None:
    await waiting.until(lambda: made.forwarded + made.dropped == count, what="every callback is forwarded or dropped")


def _bodies(count: int) -> Sequence[bytes]:
    return [b'{"CallbackTs":\t%d}' % number for number in range(count)]


async def test_a_callback_goes_on_as_it_came(receiver: Receiver) -> None:
    """Body and signature byte for byte, with the application; of another application nothing goes on."""
    raw = '{\n\t"EventInfo":\t{"RoomId": 1.0, "UserId": "é"}}'.encode()
    async with receiver.up(), forwarding(receiver) as made:
        made.take(APP + 1, b"{}", SIGN)
        made.take(APP, raw, SIGN)
        await _ended(made, 1)
    assert receiver.got == [(str(APP), SIGN, raw)]


async def test_ten_thousand_callbacks_and_a_receiver_that_is_down(receiver: Receiver) -> None:
    """While the receiver is down the queue keeps the newest callbacks, and counts and logs those that it drops; when the receiver
    is back, each of the others arrives."""
    bodies = _bodies(10_000)
    with capture_logs() as lines:
        async with forwarding(receiver, most=300) as made:
            for body in bodies[:5_000]:
                made.take(APP, body, SIGN)
            await waiting.until(lambda: any(line["event"] == "trtc.forward_failed" for line in lines), what="a post failed")
            for body in bodies[5_000:]:
                made.take(APP, body, SIGN)
            async with receiver.up():
                await _ended(made, len(bodies))
    # Some may have been under way when the others came.
    assert set(bodies[-300:]) <= set(receiver.bodies)
    assert made.forwarded == len(receiver.bodies) == len(set(receiver.bodies)) <= 300 + forwarder_module.AT_ONCE
    dropped = [line["callbacks"] for line in lines if line["event"] == "trtc.forward_dropped"]
    assert sum(dropped) == made.dropped == len(bodies) - made.forwarded


async def test_posts_share_connections(receiver: Receiver) -> None:
    """Many callbacks go over a few connections: opening one costs more than a post."""
    async with receiver.up(), forwarding(receiver) as made:
        for body in _bodies(40):
            made.take(APP, body, SIGN)
        await _ended(made, 40)
    assert len(receiver.bodies) == 40
    assert len(receiver.connections) <= forwarder_module.AT_ONCE


async def test_a_connection_that_the_receiver_closed_holds_up_nothing() -> None:
    """A receiver closes a kept connection in the moment in which it gets the next callback: that one goes over a new connection
    at once, and the receiver does not count as down."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answered in (True, False):
            head = await reader.readuntil(b"\r\n\r\n")
            requests.append(await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0])))
            if answered:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    with capture_logs() as lines:
        async with (
            await asyncio.start_server(serve, "127.0.0.1", 0) as server,
            forwarding(server.sockets[0].getsockname()[1]) as made,
        ):
            for number, body in enumerate(_bodies(2), 1):
                made.take(APP, body, SIGN)
                await _ended(made, number)
    first, second = _bodies(2)
    assert requests == [first, second, second]
    assert (made.forwarded, lines) == (2, [])


async def test_a_refused_callback_holds_up_no_other(receiver: Receiver) -> None:
    """An answer such as 400 drops that callback; 503 and 429 do not, and the callback is posted again."""
    receiver.statuses = [503, 429, 400]
    bodies, before = _bodies(2), scrapes.of_this_process()
    async with receiver.up(), forwarding(receiver) as made:
        made.take(APP, bodies[0], SIGN)
        await _ended(made, 1)
        made.take(APP, bodies[1], SIGN)
        await _ended(made, 2)
    assert receiver.bodies == [bodies[0]] * 3 + [bodies[1]]
    assert (made.forwarded, made.dropped) == (1, 1)
    counted = {f'recorder_callbacks_forwarded_total{{outcome="{outcome}"}}': 1 for outcome in ("accepted", "dropped")}
    assert scrapes.grown(before) == counted


async def test_an_old_callback_is_dropped(receiver: Receiver) -> None:
    """A callback that the receiver did not take within KEEP_S tells nothing any more."""
    now_s = 0.0
    async with forwarding(receiver, clock_s=lambda: now_s) as made:
        made.take(APP, b"{}", SIGN)
        now_s = forwarder_module.KEEP_S + 1
        await _ended(made, 1)
    assert (made.forwarded, made.dropped) == (0, 1)


@pytest.mark.parametrize("busy_for", [3, 10**9])
async def test_it_gives_way(receiver: Receiver, busy_for: int) -> None:
    """It posts when the recorder takes no callback at that moment, and after a bounded time in any case."""
    asked = 0

    def busy() -> bool:
        nonlocal asked
        asked += 1
        return asked <= busy_for

    async with receiver.up(), forwarding(receiver, busy=busy) as made:
        made.take(APP, b"{}", SIGN)
        await _ended(made, 1)
    assert asked == min(busy_for + 1, forwarder_module.GIVES_WAY)


async def test_a_stop_counts_what_is_left(receiver: Receiver) -> None:
    """A stop forwards what waits to a receiver that answers; what one that is down was not given is dropped and counted."""
    async with receiver.up(), forwarding(receiver) as made:
        for body in _bodies(20):
            made.take(APP, body, SIGN)
    assert (made.forwarded, made.dropped, len(receiver.got)) == (20, 0, 20)
    with capture_logs() as lines:
        async with forwarding(receiver) as made:
            for body in _bodies(20):
                made.take(APP, body, SIGN)
            await waiting.until(lambda: bool(lines), what="a post failed")
    assert (made.forwarded, made.dropped, made.waiting) == (0, 20, 0)
    assert lines[-1]["callbacks"] == 20


@pytest.mark.parametrize(
    ("url", "resolver", "ended"),
    [
        ("http://10.0.0.1/trtc", None, "TRTC_CALLBACK_FORWARD, application 1400000001: The callback URL leads to an address"),
        ("ftp://x.example/", None, "TRTC_CALLBACK_FORWARD, application 1400000001: must begin with http:// or https://."),
        ("http://x.example/trtc", lambda: Resolver("192.168.0.9"), ""),
    ],
)
async def test_the_address_guard_applies(url: str, resolver: Callable[[], Resolver] | None, ended: str) -> None:
    """A private or invalid address is refused at the start by its setting; a name that leads to one drops the callback."""
    webhooks = sender.WebhookSender(resolver=resolver() if resolver else None)
    if ended:
        with pytest.raises(errors.InvalidParameter) as refused:
            forwarder_module.CallbackForwarder(webhooks, {APP: url})
        assert refused.value.message.startswith(ended)
        return
    made = forwarder_module.CallbackForwarder(webhooks, {APP: url})
    await made.start()
    made.take(APP, b"{}", SIGN)
    await _ended(made, 1)
    await made.stop()
    assert (made.forwarded, made.dropped) == (0, 1)
