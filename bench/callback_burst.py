"""Sender of signed TRTC callbacks, in a process of its own: it reads one order as JSON and prints what it met as JSON.

    echo '{"port": 8000, "key": "k", "count": 100, "rate": 50, …}' | .venv/bin/python -m bench.callback_burst

Rule: with a rate, callbacks are due at random times, whether the server keeps up or not. A latency begins when a callback is due.
Without a rate, each connection sends its next callback after the answer to the last one, until the time is over.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import hmac
import json
import math
import random
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from bench import arrivals

APP = 1400000001
# A user's entering, microphone and camera.
EVENTS = ((1, 103, {"Role": 20}), (2, 203, {}), (2, 201, {}))
GIVE_UP_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to send: `count` callbacks of rooms with so many `users`, at `rate` a second; or without end for `seconds`."""

    port: int
    key: str
    count: int
    users: int
    connections: int = 128
    rate: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class Met:
    """What the sender met: statuses ("" for none, and sent again), and latencies in ms."""

    took_s: float
    statuses: dict[str, int] = field(default_factory=dict)
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    longest_ms: float = 0.0
    tenths_ms: list[float] = field(default_factory=list)
    """p99 of each tenth of the burst."""


def callbacks(count: int, users: int) -> list[tuple[int, dict[str, Any]]]:
    """(room, body) of callbacks in the order of their time: classes of `users` begin at once, as many as are needed."""
    rooms = max(1, count // (users * len(EVENTS)))
    made, at_ms = [], time.time_ns() // 1_000_000
    for user in range(users):
        for step, (group, number, more) in enumerate(EVENTS):
            for room in range(1, rooms + 1):
                event_ms = at_ms + user * len(EVENTS) + step
                info = {"RoomId": room, "EventTs": event_ms // 1000, "EventMsTs": event_ms, "UserId": f"user-{user}", **more}
                made.append((room, {"EventGroupId": group, "EventType": number, "CallbackTs": at_ms, "EventInfo": info}))
    return made[:count]


def request(key: str, body: dict[str, Any]) -> bytes:
    """The HTTP request of one callback."""
    raw = json.dumps(body).encode()
    sign = base64.b64encode(hmac.new(key.encode(), raw, hashlib.sha256).digest()).decode()
    head = (
        f"POST /trtc/callbacks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
        f"SdkAppId: {APP}\r\nSign: {sign}\r\n\r\n"
    )
    return head.encode() + raw


class Connection:
    """One connection, as asyncio's transports call it: sends a request after the answer to the last one."""

    def __init__(self, burst: Burst) -> None:
        self._burst = burst
        self._due_s = -1.0
        self._request = self._received = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio's."""
        self._transport = transport

    def send(self, due_s: float, request: bytes) -> None:
        """Send a request that was due then."""
        self._due_s, self._request, self._received = due_s, request, b""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """As asyncio's."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]):
            due_s, self._due_s = self._due_s, -1.0
            self._burst.answered(self, head[9:12].decode(), due_s)

    def eof_received(self) -> None:
        """As asyncio's: the transport closes."""

    def pause_writing(self) -> None:
        """As asyncio's: a request is smaller than any buffer."""

    def resume_writing(self) -> None:
        """As asyncio's."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""
        under_way = [(self._due_s, self._request)] if self._due_s >= 0 else []
        self._burst.lost(self, under_way)


class Burst:
    """One burst."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._requests = [request(order.key, body) for _, body in callbacks(order.count, order.users)]
        self._due: deque[tuple[float, bytes]] = deque()
        self._idle: list[Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._latencies_s: list[tuple[float, float]] = []  # when it was due, and how long it took
        self._statuses: Counter[str] = Counter()
        self._sent = 0
        self._under_way = 0
        self._begun_s = 0.0
        self._over = asyncio.Event()

    async def run(self) -> Met:
        """Send everything."""
        for _ in range(self._order.connections):
            await self._open()
        self._begun_s = time.perf_counter()
        async with asyncio.timeout(
            GIVE_UP_S + self._order.seconds + (self._order.count / self._order.rate if self._order.rate else 0)
        ):
            if self._order.rate:
                await self._arrive()
            else:
                while self._idle:
                    self._send(self._idle.pop(), 0.0, self._next())
            await self._over.wait()
        took_s = time.perf_counter() - self._begun_s
        met = Met(took_s=took_s, statuses=dict(self._statuses))
        if self._latencies_s:
            in_order = [latency_s for _, latency_s in sorted(self._latencies_s)]
            met.p50_ms, met.p99_ms = (arrivals.percentile(in_order, each) * 1000 for each in (50, 99))
            met.longest_ms = max(in_order) * 1000
            size = math.ceil(len(in_order) / 10)
            tenths = (in_order[at : at + size] for at in range(0, len(in_order), size))
            met.tenths_ms = [round(arrivals.percentile(each, 99) * 1000, 1) for each in tenths]
        return met

    def answered(self, connection: Connection, status: str, due_s: float) -> None:
        """A connection has its answer, and sends what is due next."""
        self._under_way -= 1
        self._statuses[status] += 1
        if self._order.rate:
            self._latencies_s.append((due_s, time.perf_counter() - due_s))
            if self._due:
                self._send(connection, *self._due.popleft())
            else:
                self._idle.append(connection)
        elif time.perf_counter() - self._begun_s < self._order.seconds:
            self._send(connection, 0.0, self._next())
        self._end()

    def lost(self, connection: Connection, under_way: list[tuple[float, bytes]]) -> None:
        """The server closed a connection. A callback without an answer is sent again, as TRTC does."""
        self._under_way -= len(under_way)
        self._due.extendleft(under_way)
        self._statuses[""] += len(under_way)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._over.is_set():
            opening = asyncio.create_task(self._open())
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self), "127.0.0.1", self._order.port
        )
        if self._due:
            self._send(connection, *self._due.popleft())
        else:
            self._idle.append(connection)

    async def _arrive(self) -> None:
        """Make callbacks due at random times."""
        chance = random.Random(1)  # noqa: S311 - arrivals, not secrets
        due_s = self._begun_s
        for _ in self._requests:
            due_s += chance.expovariate(self._order.rate)
            if (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            if self._idle:
                self._send(self._idle.pop(), due_s, self._next())
            else:
                self._due.append((due_s, self._next()))

    def _next(self) -> bytes:
        self._sent += 1
        return self._requests[(self._sent - 1) % len(self._requests)]

    def _send(self, connection: Connection, due_s: float, raw: bytes) -> None:
        self._under_way += 1
        connection.send(due_s, raw)

    def _end(self) -> None:
        if not self._under_way and not self._due and (not self._order.rate or self._sent == len(self._requests)):
            self._over.set()


def main() -> None:
    """The command."""
    met = asyncio.run(Burst(Order(**json.load(sys.stdin))).run())
    print(json.dumps(dataclasses.asdict(met)))


if __name__ == "__main__":
    main()
