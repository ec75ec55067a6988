"""Route of results: all messages to subscribers, in order, by long poll.

Rule: every answer is read from the database. A published result only wakes the waiting requests; polling finds it as well.
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

LOST = {"model": models.CursorLostBody, "description": "The database is older than this cursor, after a restore or a failover."}
MAX_WAIT_S = 30.0
POLL_S = 1.0


class ResultFilter(pydantic.BaseModel):
    """Query parameters of GET /results; any other parameter is an error."""

    model_config = pydantic.ConfigDict(extra="forbid")

    after: str = pydantic.Field(
        "",
        max_length=64,
        pattern=request_body.TEXT,
        description="Only results after this cursor. Empty: from the first; `now`: only future results.",
    )
    limit: int = pydantic.Field(50, ge=1, le=100, description="The largest number of results.")
    wait: float = pydantic.Field(0, ge=0, le=MAX_WAIT_S, description="Without results, wait up to this many seconds for one.")
    type: list[str] = pydantic.Field([], max_length=16, description="Only results of this type; can be repeated.")


class ResultSignal:
    """Wakes all requests that wait for a result. `published` is the event of the next one."""

    def __init__(self) -> None:
        self.published = asyncio.Event()

    def notify(self, _: codec.Event) -> None:
        """Wake the waiting requests; later ones wait for the next result."""
        published, self.published = self.published, asyncio.Event()
        published.set()


def router(api: dependencies.Api) -> fastapi.APIRouter:
    """The route of one service."""
    routes = fastapi.APIRouter(prefix="/results", tags=["results"])
    signal = ResultSignal()
    api.listeners.append(signal.notify)

    @routes.get(
        "",
        summary="Results of all sessions, oldest first; waits for the next",
        response_model=models.ResultsBody,
        response_description="Results behind `after`; none if `wait` passed without one. `Next` is the next `after`.",
        responses={**openapi.failures(400), 410: LOST},
    )
    async def results(request: fastapi.Request, query: Annotated[ResultFilter, fastapi.Query()]) -> fastapi.Response:
        for name in query.type:
            if name not in codec.types("out"):
                raise errors.InvalidEvent("type", f"must be one of {', '.join(codec.types('out'))}")
        found, after = await _wait(api, query, signal, request)
        return await responses.large(request, lambda: {"Results": [views.result(r) for r in found], "Next": after})

    return routes


async def _wait(
    api: dependencies.Api, query: ResultFilter, signal: ResultSignal, request: fastapi.Request
) -> tuple[Sequence[session_view.PublishedResult], str]:
    """The results after the cursor. Without any, the first ones within the wait; none after it, on shutdown, or if the client
    disconnects."""
    loop = asyncio.get_running_loop()
    until, after = loop.time() + query.wait, query.after
    while True:
        # Taken before the query, so that a commit during the query sets this event.
        published = signal.published
        found, after = await api.queries.results_after(after, types=query.type, limit=query.limit)
        left_s = until - loop.time()
        if found or left_s <= 0 or api.draining() or await request.is_disconnected():
            return found, after
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(POLL_S, left_s)):
                await published.wait()
