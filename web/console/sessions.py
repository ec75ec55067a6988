"""The list of sessions: filters, pages by cursor; the address is the view."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass
from typing import Annotated, Literal

import fastapi
import pydantic

from machine import model, states
from web import attention_watch, dependencies, request_body
from web.console import frame as frames
from web.console import times

PAGE = 50
MAX_SDK_APP_ID = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One session of the list, with the number of its recordings in each state."""

    session: model.Session
    counts: list[tuple[str, int]]


class View(pydantic.BaseModel):
    """Query parameters of the list."""

    state: Literal["", "Open", "Closing", "Finished"] = ""
    app: int = pydantic.Field(0, ge=0, le=MAX_SDK_APP_ID)
    room: str = pydantic.Field("", max_length=64, pattern=request_body.TEXT)
    before: str = pydantic.Field("", max_length=26, pattern=request_body.TEXT)

    @pydantic.field_validator("app", mode="before")
    @classmethod
    def _empty(cls, value: object) -> object:
        return value or 0  # an empty field of the form

    def address(self, **changed: str) -> str:
        """The address of this view, with other values."""
        wanted = {name: value for name, value in (self.model_dump() | changed).items() if value}
        return "/console/sessions" + (f"?{urllib.parse.urlencode(wanted)}" if wanted else "")


def add(routes: fastapi.APIRouter, frame: frames.Frame, api: dependencies.Api, watch: attention_watch.AttentionWatch) -> None:
    """Register the page."""

    @routes.get("/sessions")
    async def listing(request: fastapi.Request, query: Annotated[View, fastapi.Query()]) -> fastapi.Response:
        found = await api.queries.sessions(
            state=query.state, sdk_app_id=query.app, room=query.room, before=query.before, limit=PAGE
        )
        counts = await api.queries.counts([session.task_id for session in found])
        lines = [
            Line(session=session, counts=[(s, n) for s in states.RECORDING_STATES if (n := counts[session.task_id].get(s))])
            for session in found
        ]
        now_ms = api.clock()

        def duration(session: model.Session) -> str:
            return times.duration((session.closing_ms or now_ms) - session.opened_ms)

        return frame.page(
            request,
            "sessions.html",
            active="sessions",
            query=query,
            lines=lines,
            duration=duration,
            newest=query.address(before=""),
            older=query.address(before=found[-1].task_id) if len(found) == PAGE else "",
        )
