"""Queries of API and operators: sessions, recordings, timelines, results.

Rules: reads only, except for the places of results. The number of queries for a page does not depend on its length.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, Text, and_, bindparam, cast, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import delivery, errors, job_key, model, session_view, states
from store import connections, jobs, rows, tables

NOW = "now"
# The text of a result's cursor: "s" and the outbox's sequence, or "p" and the result's place.
_CURSOR = re.compile(r"([sp])(\d{1,18})")
MAX_PLACED = 10_000


class SessionQueries:
    """Read-only views of one database."""

    def __init__(self, database: connections.Connections) -> None:
        self._database = database
        self._places = database.engine.dialect.name == "postgresql"
        self._letter = "p" if self._places else "s"

    async def sessions(
        self,
        *,
        state: str = "",
        sdk_app_id: int = 0,
        room: str = "",
        since_ms: int = 0,
        maybe_stuck: bool = False,
        before: str = "",
        limit: int = 50,
    ) -> list[model.Session]:
        """Sessions, newest first: in a state, of an application, in a room (integer or string), opened at or after `since_ms`
        (Unix ms), older than the TaskId `before`. `maybe_stuck` leaves out sessions that surely need no attention."""
        table = tables.sessions
        wanted = (
            (state, table.c.state == state),
            (sdk_app_id, table.c.sdk_app_id == sdk_app_id),
            (room, table.c.room == room),
            (since_ms, table.c.opened_ms >= since_ms),
            (before, table.c.task_id < before),
            (maybe_stuck, _maybe_stuck()),
        )
        found = select(table).where(*(condition for given, condition in wanted if given))
        return [rows.session(r) for r in await self._all(found.order_by(table.c.task_id.desc()).limit(limit))]

    async def session(self, task_id: str) -> model.Session | None:
        """One session, or None."""
        found = await self._all(select(tables.sessions).where(tables.sessions.c.task_id == task_id))
        return rows.session(found[0]) if found else None

    async def counts(self, task_ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """The number of recordings of each session in each state, without subscribed speakers who were never seen."""
        table = tables.recordings
        found = select(table.c.task_id, table.c.state, func.count().label("number"))
        found = found.where(table.c.task_id.in_(task_ids), table.c.awaited.is_(False)).group_by(table.c.task_id, table.c.state)
        counted: dict[str, dict[str, int]] = {task_id: {} for task_id in task_ids}
        for row in await self._all(found):
            counted[row["task_id"]][row["state"]] = row["number"]
        return counted

    async def parts(self, task_ids: Sequence[str]) -> dict[str, session_view.SessionParts]:
        """The recordings, deliveries and jobs of each of these sessions, oldest first."""
        found = {task_id: session_view.SessionParts() for task_id in task_ids}
        async with self._database.read() as connection:
            job_rows = await _recordings_and_jobs(connection, task_ids)
            for row in job_rows:
                found[row["task_id"]].recordings.append(rows.recording(row))
            delivery_rows = await _deliveries_and_jobs(connection, task_ids)
            for row in delivery_rows:
                found[row["task_id"]].deliveries.append(rows.delivery(row))
            busy = [r for r in (*job_rows, *delivery_rows) if r["job_state"] in (states.QUEUED, states.LEASED)]
            since = await _queued_since(connection, [r for r in busy if r["job_state"] == states.QUEUED])
        for row in busy:
            found[row["task_id"]].jobs[job_key.parse_job(row["job_owner"])] = session_view.JobView(
                kind=row["job_kind"],
                state=row["job_state"],
                node=row["job_node"],
                since_ms=since.get(row["job_owner"], 0),
                lease_until_ms=row["job_lease_until_ms"],
            )
        return found

    async def segments(self, task_id: str) -> list[session_view.SegmentView]:
        """The segments of a session's recordings, by recording and epoch."""
        table = tables.segments
        of_session = select(tables.recordings.c.id).where(tables.recordings.c.task_id == task_id)
        names = ("epoch", "node", "first_packet_ms", "last_packet_ms", "media_ms", "size_bytes", "reason")
        found = select(table.c.recording_id, *(table.c[n] for n in names)).where(table.c.recording_id.in_(of_session))
        return [
            session_view.SegmentView(recording=job_key.parse_recording(r.pop("recording_id")), **r)
            for r in await self._all(found.order_by(table.c.recording_id, table.c.epoch))
        ]

    async def timeline(self, task_id: str) -> list[session_view.TimelineEntry]:
        """The timeline of a session, in order."""
        table = tables.journal
        names = ("at_ms", "owner", "event_type", "from_state", "to_state", "note")
        found = select(*(table.c[n] for n in names)).where(table.c.task_id == task_id).order_by(table.c.seq)
        return [session_view.TimelineEntry(**{**r, "owner": job_key.parse(r["owner"])}) for r in await self._all(found)]

    async def results(self, task_id: str) -> list[dict[str, Any]]:
        """Every revision of a session's result, oldest first."""
        table = tables.results
        found = select(table.c.body).where(table.c.task_id == task_id).order_by(table.c.revision)
        return [json.loads(r["body"]) for r in await self._all(found)]

    async def results_after(
        self, after: str, *, types: Sequence[str] = (), limit: int = 50
    ) -> tuple[list[session_view.PublishedResult], str]:
        """Results of all sessions after a cursor ("": from the first; `now`: only future ones), and the cursor for the next call.
        Raises InvalidParameter for a malformed cursor.

        SQLite has one writer at a time, so the sequence is the order of commits. PostgreSQL commits sequence numbers out of
        order, and "seq > last" would skip a result that a slower transaction commits later. There, results are read by place,
        which they get after their commit.
        """
        table = tables.outbox
        place = table.c.place if self._places else table.c.seq
        last = self._last(after)
        if self._places:
            await self._assign_places()
        async with self._database.read() as connection:
            highest = select(func.max(place)).where(table.c.channel == "result")
            end = max(last, int((await connection.execute(highest)).scalar() or 0))
            if after == NOW:
                return [], self._cursor(end)
            # Up to `end`: more results may be committed between the two queries.
            found = select(place.label("place"), table.c.body).where(table.c.channel == "result", place > last, place <= end)
            if types:
                found = found.where(table.c.type.in_(types))
            read = (await connection.execute(found.order_by(place).limit(limit))).all()
        results = [_result(self._cursor(r.place), json.loads(r.body)) for r in read]
        return results, results[-1].cursor if len(results) == limit else self._cursor(end)

    async def _assign_places(self) -> None:
        """Assign the next places to committed results without one. One reader at a time does this, and the next one sees its
        commit, so places are committed in order, whatever the order of the results' own transactions. Transaction ids would not
        do: they start over when a backup is restored into another server."""
        table = tables.outbox
        unplaced = select(table.c.seq).where(table.c.channel == "result", table.c.place.is_(None)).order_by(table.c.seq)
        async with self._database.read() as connection:
            if (await connection.execute(unplaced.limit(1))).first() is None:
                return
        async with self._database.write() as connection:
            await connections.hold_lock(connection, connections.PLACES)
            end = int((await connection.execute(select(func.max(table.c.place)))).scalar() or 0)
            waiting = (await connection.execute(unplaced.limit(MAX_PLACED))).scalars().all()
            # Waiting for a row that a relay marks could deadlock, so it is left for the next reading. So are the rows after it,
            # because one transaction may have written them in this order.
            free = set((await connection.execute(unplaced.limit(MAX_PLACED).with_for_update(skip_locked=True))).scalars())
            seqs = list(itertools.takewhile(free.__contains__, waiting))
            if seqs:
                given = update(table).where(table.c.seq == bindparam("of")).values(place=bindparam("to"))
                await connection.execute(given, [{"of": seq, "to": end + n} for n, seq in enumerate(seqs, 1)])

    def _last(self, cursor: str) -> int:
        if cursor in ("", NOW):
            return 0
        known = _CURSOR.fullmatch(cursor)
        if known is None or known[1] != self._letter:
            raise errors.InvalidParameter("after: is not a cursor of this service", field="after")
        return int(known[2])

    def _cursor(self, place: int) -> str:
        return f"{self._letter}{place}"

    async def _all(self, query: Select[Any]) -> list[dict[str, Any]]:
        async with self._database.read() as connection:
            return [dict(r) for r in (await connection.execute(query)).mappings()]


def _maybe_stuck() -> Any:
    """A superset of the sessions that need attention (web/stuck.py): sessions and recordings that have not ended, failed
    recordings that keep files, results that were not delivered."""
    sessions, recordings, callbacks = tables.sessions, tables.recordings, tables.callbacks
    unfinished = or_(
        recordings.c.state.notin_(states.FINAL),
        and_(recordings.c.state == states.FAILED, recordings.c.files_removed.is_(False)),
    )
    undelivered = callbacks.c.state.in_((delivery.PENDING, delivery.FAILED))
    return or_(
        sessions.c.state != states.FINISHED,
        sessions.c.task_id.in_(select(recordings.c.task_id).where(unfinished)),
        sessions.c.task_id.in_(select(callbacks.c.task_id).where(undelivered)),
    )


async def _recordings_and_jobs(connection: AsyncConnection, task_ids: Sequence[str]) -> list[dict[str, Any]]:
    table = tables.recordings
    found = jobs.recordings().where(table.c.task_id.in_(task_ids))
    found = found.order_by(table.c.opened_ms, table.c.speaker, table.c.n)
    return [dict(r) for r in (await connection.execute(found)).mappings()]


async def _deliveries_and_jobs(connection: AsyncConnection, task_ids: Sequence[str]) -> list[dict[str, Any]]:
    table = tables.callbacks
    found = jobs.deliveries().where(table.c.task_id.in_(task_ids)).order_by(table.c.revision)
    return [dict(r) for r in (await connection.execute(found)).mappings()]


async def _queued_since(connection: AsyncConnection, queued: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The time since which each queued job waits, Unix ms: its owner's last journal entry that was not ignored. For a delivery
    without attempts, the time of the result."""
    if not queued:
        return {}
    since: dict[str, int] = defaultdict(int)
    task_ids = {r["task_id"] for r in queued}
    lines, results = tables.journal, tables.results
    active = select(lines.c.owner, func.max(lines.c.at_ms)).where(lines.c.task_id.in_(task_ids))
    active = active.where(lines.c.owner.in_([r["job_owner"] for r in queued]), lines.c.note.notlike("ignored:%"))
    made = select(results.c.task_id + "#" + cast(results.c.revision, Text), results.c.at_ms)
    for query in (active.group_by(lines.c.owner), made.where(results.c.task_id.in_(task_ids))):
        for owner, at_ms in (await connection.execute(query)).all():
            since[owner] = max(since[owner], at_ms)
    return since


def _result(cursor: str, body: Mapping[str, Any]) -> session_view.PublishedResult:
    return session_view.PublishedResult(
        cursor=cursor,
        id=body["id"],
        type=body["type"],
        time=body["time"],
        subject=body.get("subject", ""),
        data=body["data"],
    )
