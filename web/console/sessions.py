"""The list of sessions: filters, pages by cursor; the address is the view."""

from __future__ import annotations

import typing
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import fastapi
import pydantic

from machine import model, states
from web import attention_watch, dependencies, session_filter, stuck, stuck_sessions
from web.console import frame as frames
from web.console import times

PAGE = 50
CODES = typing.get_args(session_filter.SessionFilter.model_fields["code"].annotation)
NAMES = ("state", "app", "room", "user", "speaker", "node", "code", "since", "until", "stuck")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One session of the list: the number of its recordings in each state, how long it was open, and what needs attention."""

    session: model.Session
    counts: list[tuple[str, int]]
    duration: str
    reasons: Sequence[stuck.StuckFinding] = ()


class View(session_filter.SessionFilter):
    """The filter, as a form sends it: an empty field is as good as none."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value != ""} if isinstance(given, Mapping) else given

    def address(self, before: str = "", page: str = "sessions") -> str:
        """The address of this view, from the TaskId `before` on, or of another page about it."""
        values = {name: getattr(self, name) for name in NAMES} | {"before": before}
        chosen = {name: str(value).lower() if value is True else str(value) for name, value in values.items() if value}
        return f"/console/{page}" + (f"?{urllib.parse.urlencode(chosen)}" if chosen else "")

    @property
    def chosen(self) -> list[str]:
        """The filters that are set."""
        return [name for name in NAMES if getattr(self, name)]


def line(session: model.Session, counted: Mapping[str, int], now_ms: int, reasons: Sequence[stuck.StuckFinding] = ()) -> Line:
    """One line of the list."""
    open_ms = (session.closing_ms or now_ms) - session.opened_ms
    counts = [(state, counted[state]) for state in states.RECORDING_STATES if counted.get(state)]
    return Line(session=session, counts=counts, duration=times.duration(open_ms), reasons=reasons)


def add(routes: fastapi.APIRouter, frame: frames.Frame, api: dependencies.Api, watch: attention_watch.AttentionWatch) -> None:
    """Register the page."""

    @routes.get("/sessions")
    async def listing(request: fastapi.Request, query: Annotated[View, fastapi.Query()]) -> fastapi.Response:
        wanted, updates = query.wanted(), await frame.live(query.address())
        found: stuck_sessions.Found
        if query.stuck:
            alive = await watch.alive()
            found, after = await stuck_sessions.page(api, alive, limit=PAGE, before=query.before, wanted=wanted)
        else:
            sessions, after = await api.queries.sessions(wanted, before=query.before, limit=PAGE)
            found = [(session, []) for session in sessions]
        counts = await api.queries.counts([session.task_id for session, _ in found])
        now_ms = api.clock()
        return frame.page(
            request,
            "sessions.html",
            active="sessions",
            live=updates,
            codes=CODES,
            page_size=PAGE,
            query=query,
            bulk=lambda action: query.address(page=f"bulk/{action}"),
            lines=[line(session, counts[session.task_id], now_ms, reasons) for session, reasons in found],
            newest=query.address() if query.before else "",
            older=query.address(after) if after else "",
        )
