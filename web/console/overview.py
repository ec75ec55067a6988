"""The first page: what needs attention, counts, nodes, backlog, and charts of the last hours."""

from __future__ import annotations

import fastapi

from web import attention_watch, dependencies, stuck_sessions
from web.console import frame as frames

LISTED = 20
ROUNDS = 5


def add(routes: fastapi.APIRouter, frame: frames.Frame, api: dependencies.Api, watch: attention_watch.AttentionWatch) -> None:
    """Register the page."""

    @routes.get("")
    async def overview(request: fastapi.Request) -> fastapi.Response:
        attention = await watch.look()
        stuck, _ = await stuck_sessions.page(api, await watch.alive(), limit=LISTED, rounds=ROUNDS)
        return frame.page(request, "overview.html", active="overview", attention=attention, stuck=stuck)
