"""The route of results: everything that subscribers are told, in order, by long poll. May import `machine` and `events`.

Rule: the database is the truth and is asked each time; the bus's word that something went out only wakes who waits, and
polling wakes them without it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Annotated

import fastapi
import pydantic

from events import codec, errors
from machine import session_view
from web import dependencies, models, openapi, request_body, responses, views

MAX_WAIT_S = 30.0
POLL_S = 0.5


class Query(pydantic.BaseModel):
    """Which results, and how long to wait for the first; anything else in the query is an error."""

    model_config = pydantic.ConfigDict(extra="forbid")

    after: str = pydantic.Field(
        "",
        max_length=64,
        pattern=request_body.TEXT,
        description="Only results behind this cursor. Empty: from the first; `now`: only those to come.",
    )
    limit: int = pydantic.Field(50, ge=1, le=100, description="At most so many.")
    wait: float = pydantic.Field(0, ge=0, le=MAX_WAIT_S, description="Where there is none, wait so many seconds for one.")
    type: list[str] = pydantic.Field([], max_length=16, description="Only results of this type; may be repeated.")


class Bell:
    """Wakes everybody who waits for a result."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()

    def ring(self, _: codec.Event) -> None:
        """Something went out. Who waits from now on waits for the next."""
        rung, self.rung = self.rung, asyncio.Event()
        rung.set()


def router(api: dependencies.Api) -> fastapi.APIRouter:
    """The route, for one service."""
    routes = fastapi.APIRouter(prefix="/results", tags=["results"])
    bell = Bell()
    api.listeners.append(bell.ring)

    @routes.get(
        "",
        summary="Results of all sessions, oldest first; waits for the next",
        response_model=models.ResultsBody,
        response_description="Results behind `after`; none if `wait` passed without one. `Next` is the next `after`.",
        responses=openapi.failures(400),
    )
    async def results(request: fastapi.Request, query: Annotated[Query, fastapi.Query()]) -> fastapi.Response:
        for name in query.type:
            if name not in codec.types("out"):
                raise errors.InvalidEvent("type", f"must be one of {', '.join(codec.types('out'))}")
        found, after = await _first(api, query, bell, request)
        return responses.ok(request, {"Results": [views.result(r) for r in found], "Next": after})

    return routes


async def _first(
    api: dependencies.Api, query: Query, bell: Bell, request: fastapi.Request
) -> tuple[Sequence[session_view.PublishedResult], str]:
    """What is there, or the first that comes within the wait; none at its end, when the service stops or the client leaves."""
    loop = asyncio.get_running_loop()
    until, after = loop.time() + query.wait, query.after
    while True:
        # Taken before the look, so that what is committed during the look rings this one.
        rung = bell.rung
        found, after = await api.queries.results_after(after, types=query.type, limit=query.limit)
        left_s = until - loop.time()
        if found or left_s <= 0 or api.draining() or await request.is_disconnected():
            return found, after
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(POLL_S, left_s)):
                await rung.wait()
