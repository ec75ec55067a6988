"""Receivers: they store every POST, for application developers without a server of their own.

`POST /receiver/{name}` stores headers and body unchanged, `GET` lists them (`?wait=30` first waits up to 30 seconds for one),
`PUT` sets the response to further posts, `DELETE` clears the list. Rule: nothing is interpreted; the body is shown as text and,
if it is JSON, as JSON too.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web

from simulator import bodies

KEPT = 1000
MAX_WAIT_S = 600.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request, unchanged; `at_ms` is Unix milliseconds."""

    at_ms: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON, None if it is not."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Receiver:
    """Stored posts by name, the latest 1000 of each. `answer_with` sets the status of a name's responses (200)."""

    def __init__(self, wall_ms: Callable[[], int] = lambda: time.time_ns() // 10**6) -> None:
        self.received: defaultdict[str, deque[Received]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.statuses: dict[str, int] = {}
        self.delays_s: dict[str, float] = {}
        self._wall_ms = wall_ms
        self._came = asyncio.Event()

    def answer_with(self, name: str, status: int, *, delay_s: float = 0.0) -> None:
        """Answer further posts to `name` with this status after this delay; they are stored in any case. A redirect leads to the
        receiver `elsewhere`."""
        self.statuses[name] = status
        self.delays_s[name] = delay_s

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the four routes."""
        router.add_post("/receiver/{name}", self._post)
        router.add_get("/receiver/{name}", self._get)
        router.add_put("/receiver/{name}", self._put)
        router.add_delete("/receiver/{name}", self._delete)

    async def _post(self, request: web.Request) -> web.Response:
        name, body = request.match_info["name"], await request.read()
        self.received[name].append(Received(at_ms=self._wall_ms(), headers=dict(request.headers), body=body))
        self._came.set()
        if delay_s := self.delays_s.get(name):
            await asyncio.sleep(delay_s)
        status = self.statuses.get(name, 200)
        headers = {"Location": "/receiver/elsewhere"} if 300 <= status < 400 else None
        return web.json_response({"code": 0}, status=status, headers=headers)

    async def _get(self, request: web.Request) -> web.Response:
        name, wait = request.match_info["name"], request.query.get("wait", "0")
        if not wait.isdecimal():
            return bodies.answer({"Code": "InvalidParameter", "Message": "wait is a number of seconds"}, status=400)
        try:
            async with asyncio.timeout(min(int(wait), MAX_WAIT_S)):
                await self._first(name)
        except TimeoutError:
            log.debug("receiver.waited", name=name)
        return bodies.answer([_shown(received) for received in self.received.get(name, deque())])

    async def _first(self, name: str) -> None:
        while not self.received.get(name):
            self._came.clear()
            await self._came.wait()

    async def _put(self, request: web.Request) -> web.Response:
        try:
            body = await bodies.read(request, {"Status": int})
            if not 200 <= body.get("Status", 0) < 600:
                raise ValueError("Status is 200 to 599")
        except ValueError as error:
            return bodies.answer({"Code": "InvalidParameter", "Message": str(error)}, status=400)
        self.answer_with(request.match_info["name"], body["Status"])
        return web.Response(status=204)

    async def _delete(self, request: web.Request) -> web.Response:
        self.received.pop(request.match_info["name"], None)
        return web.Response(status=204)


def _shown(received: Received) -> dict[str, Any]:
    text = received.body.decode(errors="replace")
    return {"AtMs": received.at_ms, "Headers": received.headers, "Body": text, "Json": received.json()}
