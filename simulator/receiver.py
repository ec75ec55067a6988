"""Keeps what is posted to it: where an application developer without a server looks at result messages.

Imports nothing of the simulator. `POST /receiver/{name}` stores headers and body as they came, `GET` lists them, `DELETE`
forgets them. Rule: nothing is interpreted; the body is shown as text and, if it is JSON, as such too.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

KEPT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request as it came; `at_ms` is Unix milliseconds."""

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
    """What was posted, by name, the latest 1000 of each. `answer_with` decides the status that a name answers (200)."""

    def __init__(self, wall_ms: Callable[[], int] = lambda: time.time_ns() // 10**6) -> None:
        self.received: defaultdict[str, deque[Received]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.statuses: dict[str, int] = {}
        self._wall_ms = wall_ms

    def answer_with(self, name: str, status: int) -> None:
        """Answer further posts to `name` with this status; they are stored all the same."""
        self.statuses[name] = status

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the three routes."""
        router.add_post("/receiver/{name}", self._post)
        router.add_get("/receiver/{name}", self._get)
        router.add_delete("/receiver/{name}", self._delete)

    async def _post(self, request: web.Request) -> web.Response:
        name, body = request.match_info["name"], await request.read()
        self.received[name].append(Received(at_ms=self._wall_ms(), headers=dict(request.headers), body=body))
        return web.json_response({"code": 0}, status=self.statuses.get(name, 200))

    async def _get(self, request: web.Request) -> web.Response:
        kept = self.received.get(request.match_info["name"], deque())
        return web.json_response([_shown(received) for received in kept])

    async def _delete(self, request: web.Request) -> web.Response:
        self.received.pop(request.match_info["name"], None)
        return web.Response(status=204)


def _shown(received: Received) -> dict[str, Any]:
    text = received.body.decode(errors="replace")
    return {"AtMs": received.at_ms, "Headers": received.headers, "Body": text, "Json": received.json()}
