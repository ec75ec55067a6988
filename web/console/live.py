"""Live updates of the console by server-sent events: which sessions changed, and their lines for the lists that show them.

Rules: the node reads the database at most once in EVERY_S, however many browsers watch, and not at all while none does. The
number of watching browsers is bounded. A stream ends when the service stops or when its key is revoked.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import fastapi
import pydantic
from starlette import responses

from machine import errors, session_view
from web import attention_watch, authentication, dependencies, stuck, stuck_sessions
from web.console import frame as frames
from web.console import sessions

EVERY_S = 1.0
# The overview is fetched again so often, because not everything in it has a line in the journal.
TICK_S = 5.0
WATCHERS = 100
# Sessions that one turn reads; the next turn goes on.
AT_ONCE = 50
# Turns that are kept for browsers that were away for a moment.
KEPT = 60
# With more new lines than this, browsers read their pages again.
BEHIND = 1_000
# Lines of the journal that may be committed after one with a higher number.
OVERLAP = 500
FULL = "Too many browsers watch this node: this page is not updated by itself."


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One session that changed, with its line of the list and its recordings."""

    line: sessions.Line
    parts: session_view.SessionParts
    # The line of the list in each language, drawn once for all browsers.
    drawn: dict[str, str] = field(default_factory=dict)

    def is_in(self, wanted: session_view.SessionFilter, *, stuck_only: bool) -> bool:
        """Whether a list with this filter shows the session, by the rules of `store.session_list`."""
        session, request = self.line.session, self.line.session.request
        fields = (
            (wanted.state, session.state),
            (wanted.sdk_app_id, request.room.sdk_app_id),
            (wanted.room, request.room.name),
            (wanted.user_id, request.user_id),
        )
        if any(given and given != own for given, own in fields) or (stuck_only and not self.line.reasons):
            return False
        if session.opened_ms < wanted.since_ms or (wanted.until_ms and session.opened_ms >= wanted.until_ms):
            return False
        return self._has_job(wanted.node) and self._has_recording(wanted.speaker, wanted.code)

    def _has_job(self, node: str) -> bool:
        return not node or any(job.node == node and job.state == "leased" for job in self.parts.jobs.values())

    def _has_recording(self, speaker: str, code: str) -> bool:
        if not speaker and not code:
            return True
        return any(speaker in ("", r.speaker) and code in ("", r.code) for r in self.parts.recordings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The changes that one reading found, up to the line `seq` of the journal."""

    seq: int
    changes: Sequence[Change]


class Feed:
    """The changes of one node's watchers. It needs no task: whoever comes first in a turn reads for all."""

    def __init__(self, api: dependencies.Api, watch: attention_watch.AttentionWatch) -> None:
        self._api, self._watch = api, watch
        self._lock = asyncio.Lock()
        self._turns: deque[Turn] = deque(maxlen=KEPT)
        self._seq = 0
        self._known: frozenset[int] = frozenset()
        self._until_s = 0.0
        self.watchers = 0

    async def begin(self) -> int:
        """The line of the journal from which a page that is read now is continued. Raises DatabaseUnavailable."""
        return await self._queries.newest_line()

    async def turns_after(self, seq: int) -> list[Turn] | None:
        """The turns after a line of the journal, read now if the last reading is EVERY_S old; None if they are not known any
        more. Raises DatabaseUnavailable."""
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._until_s:
                if now_s >= self._until_s + KEPT * EVERY_S or not self._turns:
                    newest = await self._queries.newest_line()
                    # A browser may name any line, and all others share what is read.
                    self._begin(seq if newest - OVERLAP <= seq <= newest else newest)
                await self._read()
                self._until_s = asyncio.get_running_loop().time() + EVERY_S
        if self._turns[0].seq > seq:
            return None
        return [turn for turn in self._turns if turn.seq > seq]

    @property
    def _queries(self) -> dependencies.OverviewQueries:
        if self._api.overview_queries is None:
            raise errors.Unavailable("This service has no live updates.")
        return self._api.overview_queries

    def _begin(self, seq: int) -> None:
        self._seq, self._known = seq, frozenset()
        self._turns.clear()
        self._turns.append(Turn(seq=seq, changes=()))

    async def _read(self) -> None:
        lines = await self._queries.lines_after(max(0, self._seq - OVERLAP))
        if len(lines) > OVERLAP and lines[-1][0] > self._seq + BEHIND:
            self._begin(await self._queries.newest_line())
            return
        task_ids: dict[str, None] = {}
        seen = set[int]()
        for seq, task_id in lines:
            # At the first reading, the lines up to `_seq` are in the page already.
            if seq in self._known or (not self._known and seq <= self._seq):
                seen.add(seq)
            elif task_id in task_ids or len(task_ids) < AT_ONCE:
                task_ids[task_id] = None
                seen.add(seq)
            else:
                break
        changes = await self._changes(list(task_ids)) if task_ids else ()
        self._known = frozenset(seen)
        if changes:
            self._seq = max(self._seq + 1, *seen)
            self._turns.append(Turn(seq=self._seq, changes=changes))

    async def _changes(self, task_ids: Sequence[str]) -> list[Change]:
        found = await self._queries.sessions_of(task_ids)
        counts = await self._api.queries.counts(task_ids)
        now_ms = self._api.clock()
        snapshots = await stuck_sessions.snapshots(self._api, found, await self._watch.alive())
        return [
            Change(line=sessions.line(each.session, counts[each.session.task_id], now_ms, stuck.findings(each)), parts=each.parts)
            for each in snapshots
        ]


class LiveView(sessions.View):
    """The view of a list, and the line of the journal from which it goes on."""

    after: int = pydantic.Field(0, ge=0)


class Stream:
    """The events for one browser: `row` for the list with its filter, `change` with TaskIds, `tick`, `reload` after a break."""

    def __init__(self, feed: Feed, draw: Callable[[Change], str], view: LiveView) -> None:
        self._feed = feed
        self._draw = draw
        self._after = view.after
        self._wanted, self._stuck = view.wanted(), view.stuck

    async def events(self, goes_on: Callable[[], Awaitable[bool]]) -> AsyncIterator[str]:
        """Server-sent events, as text, while `goes_on`."""
        loop = asyncio.get_running_loop()
        tick_s = loop.time() + TICK_S
        self._feed.watchers += 1
        try:
            while True:
                try:
                    if not await goes_on():
                        return
                    texts = await self._next()
                except errors.Unavailable:
                    texts = [_event("lost", "", self._after)]
                if loop.time() >= tick_s:
                    tick_s = loop.time() + TICK_S
                    texts.append(_event("tick", "", self._after))
                if texts:
                    yield "".join(texts)
                await asyncio.sleep(EVERY_S)
        finally:
            self._feed.watchers -= 1

    async def _next(self) -> list[str]:
        turns = await self._feed.turns_after(self._after)
        if turns is None:
            self._after = await self._feed.begin()
            return [_event("reload", "", self._after)]
        return [text for turn in turns for text in self._of_turn(turn)]

    def _of_turn(self, turn: Turn) -> list[str]:
        self._after = turn.seq
        rows = []
        for change in turn.changes:
            html = self._draw(change) if change.is_in(self._wanted, stuck_only=self._stuck) else ""
            data = json.dumps({"id": change.line.session.task_id, "html": html})
            rows.append(_event("row", data, turn.seq))
        task_ids = [change.line.session.task_id for change in turn.changes]
        return [*rows, _event("change", json.dumps(task_ids), turn.seq)]


def add(
    routes: fastapi.APIRouter,
    frame: frames.Frame,
    api: dependencies.Api,
    feed: Feed,
    authenticator: authentication.Authenticator,
) -> None:
    """Register the stream."""

    @routes.get("/live")
    async def live(request: fastapi.Request, query: Annotated[LiveView, fastapi.Query()]) -> fastapi.Response:
        if feed.watchers >= WATCHERS:
            return responses.PlainTextResponse(FULL, 503, {"retry-after": "60"})
        visit, language = request.state.visit, frame.language(request)

        async def goes_on() -> bool:
            if api.draining() or api.clock() >= visit.until_ms:
                return False
            if not visit.key:
                return await authenticator.open_to_all()
            return await authenticator.identify(f"Bearer {visit.key}") is not None

        def draw(change: Change) -> str:
            if language not in change.drawn:
                change.drawn[language] = frame.render(request, "session_row.html", line=change.line)
            return change.drawn[language]

        events = Stream(feed, draw, query).events(goes_on)
        return responses.StreamingResponse(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


def _event(name: str, data: str, seq: int) -> str:
    return f"id: {seq}\nevent: {name}\ndata: {data}\n\n"
