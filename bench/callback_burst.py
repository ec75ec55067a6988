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
    """What the sender met: statuses ("" for no answer), and latencies in ms."""

    took_s: float
    statuses: dict[str, int] = field(default_factory=dict)
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    longest_ms: float = 0.0


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


class Burst:
    """One burst."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._requests = [request(order.key, body) for _, body in callbacks(order.count, order.users)]
        self._due: deque[tuple[float, bytes]] = deque()
        self._more = asyncio.Event()
        self._latencies_s: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._all_due = False
        self._begun_s = 0.0

    async def run(self) -> Met:
        """Send everything."""
        ready = [await asyncio.open_connection("127.0.0.1", self._order.port) for _ in range(self._order.connections)]
        self._begun_s = time.perf_counter()
        async with asyncio.TaskGroup() as running:
            running.create_task(self._arrive() if self._order.rate else self._repeat())
            for streams in ready:
                running.create_task(self._send(*streams))
        took_s = time.perf_counter() - self._begun_s
        met = Met(took_s=took_s, statuses=dict(self._statuses))
        if self._latencies_s:
            met.p50_ms, met.p99_ms = (arrivals.percentile(self._latencies_s, each) * 1000 for each in (50, 99))
            met.longest_ms = max(self._latencies_s) * 1000
        return met

    async def _arrive(self) -> None:
        """Make callbacks due at random times."""
        chance = random.Random(1)  # noqa: S311 - arrivals, not secrets
        due_s = self._begun_s
        for each in self._requests:
            due_s += chance.expovariate(self._order.rate)
            if (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            self._due.append((due_s, each))
            self._more.set()
        self._all_due = True
        self._more.set()

    async def _repeat(self) -> None:
        """Keep something due for each connection."""
        number = 0
        while time.perf_counter() - self._begun_s < self._order.seconds:
            while len(self._due) < self._order.connections:
                self._due.append((0.0, self._requests[number % len(self._requests)]))
                number += 1
            self._more.set()
            await asyncio.sleep(0)
        self._due.clear()
        self._all_due = True
        self._more.set()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            while not self._due:
                if self._all_due:
                    writer.close()
                    return
                self._more.clear()
                await self._more.wait()
            due_s, each = self._due.popleft()
            try:
                async with asyncio.timeout(GIVE_UP_S):
                    writer.write(each)
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
                    await reader.readexactly(length)
            except (OSError, EOFError, TimeoutError):
                self._statuses[""] += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", self._order.port)
                continue
            self._statuses[head[9:12].decode()] += 1
            if due_s:
                self._latencies_s.append(time.perf_counter() - due_s)


def main() -> None:
    """The command."""
    met = asyncio.run(Burst(Order(**json.load(sys.stdin))).run())
    print(json.dumps(dataclasses.asdict(met)))


if __name__ == "__main__":
    main()
