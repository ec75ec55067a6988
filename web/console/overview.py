"""The first page: what needs attention, counts by state, nodes, backlog, and the numbers of the last hours.

Rule: the figures are read at most once in EVERY_S, however many browsers ask; an hour that is over is read once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import fastapi

from machine import attention as findings
from machine import backlog, model, overview, states
from web import attention_watch, dependencies, stuck_sessions
from web.console import frame as frames

EVERY_S = 1.0
HOURS = 24
# An hour is read again until so long after its end: a transaction may commit late.
SETTLED_MS = 10 * model.MINUTE
SHOWN_SESSIONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything that the page shows."""

    attention: Sequence[findings.Attention]
    stuck: stuck_sessions.Found
    nodes: Sequence[findings.NodeView]
    backlog: backlog.Backlog
    hours: Sequence[overview.Hour]


class Overview:
    """The figures of one node."""

    def __init__(self, api: dependencies.Api, watch: attention_watch.AttentionWatch) -> None:
        self._api, self._watch = api, watch
        self._lock = asyncio.Lock()
        self._hours: dict[int, overview.Hour] = {}
        self._figures: Figures | None = None
        self._until_s = 0.0

    async def figures(self) -> Figures:
        """The figures, at most EVERY_S old. Raises DatabaseUnavailable."""
        async with self._lock:
            loop = asyncio.get_running_loop()
            if self._figures is None or loop.time() >= self._until_s:
                self._figures = await self._read()
                self._until_s = loop.time() + EVERY_S
            return self._figures

    async def _read(self) -> Figures:
        found = await self._watch.look_at_all()
        queries = self._api.overview_queries
        rules = {reason.rule for _, reasons in self._watch.listed for reason in reasons}
        return Figures(
            attention=[each for each in found if each.cause not in rules],
            stuck=self._watch.listed,
            nodes=self._watch.nodes,
            backlog=await self._api.backlog(),
            hours=await self._last_hours(queries) if queries else (),
        )

    async def _last_hours(self, queries: dependencies.OverviewQueries) -> list[overview.Hour]:
        now_ms = self._api.clock()
        newest_ms = now_ms - now_ms % model.HOUR
        begins_ms = [newest_ms - number * model.HOUR for number in reversed(range(HOURS))]
        over_ms = now_ms - model.HOUR - SETTLED_MS
        unknown = [begin_ms for begin_ms in begins_ms if begin_ms not in self._hours or begin_ms > over_ms]
        known = {hour.from_ms: hour for hour in await queries.hours(unknown)}
        self._hours = {begin_ms: known.get(begin_ms) or self._hours[begin_ms] for begin_ms in begins_ms}
        return list(self._hours.values())


def add(
    routes: fastapi.APIRouter,
    frame: frames.Frame,
    api: dependencies.Api,
    watch: attention_watch.AttentionWatch,
) -> None:
    """Register the page."""
    figures = Overview(api, watch)

    @routes.get("")
    async def page(request: fastapi.Request) -> fastapi.Response:
        found = await figures.figures()
        return frame.page(
            request,
            "overview.html",
            active="overview",
            live=await frame.live(),
            figures=found,
            states=states,
            alive_ms=2 * api.policy.lease_ms,
            now_ms=api.clock(),
            shown=SHOWN_SESSIONS,
            counted=overview.COUNTED,
            most_messages=backlog.MOST_MESSAGES,
        )
