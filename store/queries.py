"""Queries of API and operators: sessions, recordings, timelines, results.

Rules: reads only, except for the places of results. The number of queries for a page does not depend on its length, and no
query returns more rows than a page has: a session may have thousands of recordings, pulls and timeline lines.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Select,
    Table,
    Text,
    bindparam,
    case,
    cast,
    func,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import errors, job_key, model, session_view, states
from store import connections, jobs, rows, session_list, tables, unreadable_rows

NOW = "now"
# The text of a result's cursor: "s" and the outbox's sequence, or "p" and the result's place; then when the result was made,
# which tells it from another one at this place of a restored database. Older versions gave cursors without it.
_CURSOR = re.compile(r"([sp])(\d{1,18})(?:-(\d{1,18}))?")
MAX_PLACED = 10_000
# The largest number of rows of each kind that one call returns.
RECORDINGS = 200
DELIVERIES = 100
SEGMENTS = 50
TIMELINE = 1_000
RESULTS = 20
PAGE_BYTES = 2**20
# The last lines of a timeline in which the time is searched since which a job is queued.
SEARCHED_LINES = 2_000


class SessionQueries:
    """Read-only views of one database."""

    def __init__(self, database: connections.Connections) -> None:
        self._database = database
        self._places = database.engine.dialect.name == "postgresql"
        self._letter = "p" if self._places else "s"

    async def sessions(
        self, wanted: session_view.SessionFilter = session_view.EVERY_SESSION, *, before: str = "", limit: int = 50
    ) -> tuple[list[model.Session], str]:
        """Sessions, newest first, older than the TaskId `before`, and the `before` of the next page ("": there is none). A page
        may be short although there is a next one."""
        return await session_list.page(self._database, wanted, before=before, limit=limit)

    async def unreadable(self, limit: int = 100) -> list[unreadable_rows.UnreadableRow]:
        """Rows of unfinished sessions and of their recordings that cannot be read, and sessions that count other recordings than
        there are, because some were deleted."""
        sessions, recordings = tables.sessions, tables.recordings
        unfinished = text(f"recordings.{tables.UNFINISHED}")
        # In the statement that reads the sessions: a decision between two statements would look like a wrong count.
        counted = select(func.count()).where(recordings.c.task_id == sessions.c.task_id, unfinished).scalar_subquery()
        active = select(sessions, counted.label("counted")).where(text(tables.ACTIVE))
        read = await self._all(active.order_by(sessions.c.task_id.desc()).limit(limit))
        ids = [row["task_id"] for row in read]
        query = jobs.recordings().where(recordings.c.task_id.in_(ids), unfinished).limit(limit)
        made = [
            *(unreadable_rows.read("sessions", row, rows.session) for row in read),
            *(unreadable_rows.read("recordings", row, rows.recording) for row in await self._all(query)),
        ]
        found = [each for each in made if isinstance(each, unreadable_rows.UnreadableRow)]
        for row in read:
            if row["live"] != row["counted"]:
                reason = f"it counts {row['live']} unfinished recordings, and there are {row['counted']}"
                known = {"table": "sessions", "task_id": row["task_id"], "id": row["task_id"]}
                found.append(unreadable_rows.UnreadableRow(**known, reason=reason))
        return found

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

    async def parts(self, task_ids: Sequence[str], *, bodies: bool = False) -> dict[str, session_view.SessionParts]:
        """The recordings, deliveries and jobs of each of these sessions, oldest first. Of a session with more than RECORDINGS,
        those that may need attention come before those that are Done, and newer ones before older ones. Deliveries are the
        newest; `bodies` reads their bodies too."""
        found = {task_id: session_view.SessionParts() for task_id in task_ids}
        async with self._database.read() as connection:
            job_rows = await _recordings_and_jobs(connection, task_ids)
            for recording in unreadable_rows.readable("recordings", job_rows, rows.recording):
                found[recording.task_id].recordings.append(recording)
            delivery_rows = await _deliveries_and_jobs(connection, task_ids, bodies=bodies)
            for row in delivery_rows:
                parts, value = found[row["task_id"]], rows.delivery(row)
                (parts.manifests if value.is_manifest else parts.deliveries).append(value)
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

    async def next_tries(self, owners: Sequence[job_key.JobKey]) -> dict[str, int]:
        """When the jobs of these owners that wait for a retry are due: owner → Unix ms."""
        table = tables.deadlines
        names = [owner.text for owner in owners]
        found = select(table.c.owner, table.c.at_ms).where(table.c.owner.in_(names), table.c.kind == "retry")
        return {row["owner"]: row["at_ms"] for row in await self._all(found)}

    async def recordings(self, task_id: str, *, first: int = 0, limit: int = RECORDINGS) -> list[model.Recording]:
        """The recordings of a session in the order of their opening, from number `first` on."""
        table = tables.recordings
        found = jobs.recordings().where(table.c.task_id == task_id).order_by(table.c.opened_ms, table.c.speaker, table.c.n)
        return unreadable_rows.readable("recordings", await self._all(found.offset(first).limit(limit)), rows.recording)

    async def segments(
        self, task_id: str, *, only: Sequence[str] | None = None, limit: int = SEGMENTS
    ) -> list[session_view.SegmentView]:
        """The newest `limit` segments of each recording of a session (or only of these recordings), by recording and epoch."""
        table = tables.segments
        wanted = table.c.task_id == task_id if only is None else table.c.recording_id.in_(only)
        names = ("epoch", "node", "first_packet_ms", "last_packet_ms", "media_ms", "size_bytes", "reason")
        of: dict[str, Any] = {"partition_by": table.c.recording_id, "order_by": table.c.epoch}
        place = func.row_number().over(partition_by=table.c.recording_id, order_by=table.c.epoch.desc()).label("place")
        number = func.row_number().over(**of).label("number")
        until_ms = func.sum(table.c.media_ms).over(**of).label("until_ms")
        placed = select(table.c.recording_id, *(table.c[n] for n in names), place, number, until_ms).where(wanted).subquery()
        found = select(placed).where(placed.c.place <= limit).order_by(placed.c.recording_id, placed.c.epoch)
        return [
            session_view.SegmentView(
                recording=job_key.parse_recording(r["recording_id"]),
                number=r["number"],
                until_ms=int(r["until_ms"]),
                **{name: r[name] for name in names},
            )
            for r in await self._all(found)
        ]

    async def timeline(self, task_id: str, *, before: int = 0, limit: int = TIMELINE) -> list[session_view.TimelineEntry]:
        """The newest `limit` lines of a session's timeline, oldest first; with `before` only those before the line `seq`."""
        table = tables.journal
        names = ("seq", "at_ms", "owner", "event_type", "from_state", "to_state", "note")
        found = select(*(table.c[n] for n in names)).where(table.c.task_id == task_id)
        if before:
            found = found.where(table.c.seq < before)
        lines = await self._all(found.order_by(table.c.seq.desc()).limit(limit))
        return [session_view.TimelineEntry(**{**r, "owner": job_key.parse(r["owner"])}) for r in reversed(lines)]

    async def results(self, task_id: str, *, before: int = 0, limit: int = RESULTS) -> list[dict[str, Any]]:
        """The newest revisions of a session's result, oldest first: at most `limit`, and at least one, up to PAGE_BYTES. With
        `before` only those before that revision."""
        table = tables.results
        of_session = select(table.c.revision, func.length(table.c.body)).where(table.c.task_id == task_id)
        if before:
            of_session = of_session.where(table.c.revision < before)
        async with self._database.read() as connection:
            sizes = (await connection.execute(of_session.order_by(table.c.revision.desc()).limit(limit))).all()
            revisions = [revision for revision, _ in _up_to(PAGE_BYTES, sizes)]
            found = select(table.c.body).where(table.c.task_id == task_id, table.c.revision.in_(revisions))
            return [json.loads(body) for body in (await connection.execute(found.order_by(table.c.revision))).scalars()]

    async def results_after(
        self, after: str, *, types: Sequence[str] = (), limit: int = 50
    ) -> tuple[list[session_view.PublishedResult], str]:
        """Results of all sessions after a cursor ("": from the first; `now`: only future ones), and the cursor for the next call.
        At most `limit`, and at least one, up to PAGE_BYTES. Raises InvalidParameter for a malformed cursor, and CursorLost for
        one of a result that this database does not have.

        SQLite has one writer at a time, so the sequence is the order of commits. PostgreSQL commits sequence numbers out of
        order, and "seq > last" would skip a result that a slower transaction commits later. There, results are read by place,
        which they get after their commit.
        """
        table = tables.outbox
        place = table.c.place if self._places else table.c.seq
        last, made_ms = self._last(after)
        if self._places:
            await self._assign_places()
        async with self._database.read() as connection:
            newest = select(place, table.c.created_ms).where(table.c.channel == "result", place.is_not(None))
            end, end_ms = (await connection.execute(newest.order_by(place.desc()).limit(1))).first() or (0, 0)
            if after == NOW:
                return [], self._cursor(end, end_ms)
            if last and await self._is_lost(connection, last, made_ms, end):
                raise errors.CursorLost(self._cursor(end, end_ms))
            if last > end:
                end, end_ms = last, made_ms
            # Up to `end`: more results may be committed between the two queries.
            found = select(place, func.length(table.c.body)).where(table.c.channel == "result", place > last, place <= end)
            if types:
                found = found.where(table.c.type.in_(types))
            sizes = (await connection.execute(found.order_by(place).limit(limit))).all()
            chosen = [row[0] for row in _up_to(PAGE_BYTES, sizes)]
            bodies = select(place.label("place"), table.c.created_ms, table.c.body).where(place.in_(chosen)).order_by(place)
            read = (await connection.execute(bodies)).all()
        results = unreadable_rows.readable("outbox", (dict(r._mapping) for r in read), self._published)
        more = len(sizes) == limit or len(chosen) < len(sizes)
        # The last one may not be readable.
        return results, self._cursor(read[-1].place, read[-1].created_ms) if read and more else self._cursor(end, end_ms)

    async def _is_lost(self, connection: AsyncConnection, last: int, made_ms: int, end: int) -> bool:
        """Whether a cursor is of a result that this database does not have, because the database is an older one."""
        table = tables.outbox
        place = table.c.place if self._places else table.c.seq
        found = (await connection.execute(select(table.c.channel, table.c.created_ms).where(place == last))).first()
        if found is not None:
            return bool(found.channel != "result" or (made_ms and found.created_ms != made_ms))
        # Retention keeps the newest result that has a place. SQLite keeps the highest number that it ever gave.
        if not self._places:
            end = (await connection.execute(text("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'"))).scalar() or 0
        return last > end

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

    def _last(self, cursor: str) -> tuple[int, int]:
        """The place in a cursor, and when its result was made (0: unknown)."""
        if cursor in ("", NOW):
            return 0, 0
        known = _CURSOR.fullmatch(cursor)
        if known is None or known[1] != self._letter:
            raise errors.InvalidParameter("after: is not a cursor of this service", field="after")
        return int(known[2]), int(known[3] or 0)

    def _published(self, row: Mapping[str, Any]) -> session_view.PublishedResult:
        return _result(self._cursor(row["place"], row["created_ms"]), json.loads(row["body"]))

    def _cursor(self, place: int, made_ms: int) -> str:
        return f"{self._letter}{place}-{made_ms}" if made_ms else f"{self._letter}{place}"

    async def _all(self, query: Select[Any]) -> list[dict[str, Any]]:
        async with self._database.read() as connection:
            return [dict(r) for r in (await connection.execute(query)).mappings()]


def _first(limit: int, table: Table, task_ids: Sequence[str], *order: Any, only: tuple[Any, ...] = ()) -> Any:
    """The keys of the first `limit` rows of each session, in this order; `only` are conditions."""
    place = func.row_number().over(partition_by=table.c.task_id, order_by=order).label("place")
    keys = list(table.primary_key)
    placed = select(*keys, place).where(table.c.task_id.in_(task_ids), *only).subquery()
    return tuple_(*keys).in_(select(*(placed.c[key.name] for key in keys)).where(placed.c.place <= limit))


async def _recordings_and_jobs(connection: AsyncConnection, task_ids: Sequence[str]) -> list[dict[str, Any]]:
    table = tables.recordings
    rank = case((table.c.ended_ms.is_(None), 0), (table.c.state == states.DONE, 2), else_=1)
    chosen = _first(RECORDINGS, table, task_ids, rank, table.c.opened_ms.desc(), table.c.id)
    found = jobs.recordings().where(chosen).order_by(table.c.opened_ms, table.c.speaker, table.c.n)
    return [dict(r) for r in (await connection.execute(found)).mappings()]


async def _deliveries_and_jobs(connection: AsyncConnection, task_ids: Sequence[str], *, bodies: bool) -> list[dict[str, Any]]:
    table = tables.callbacks
    newest = table.c.revision.desc()
    results = _first(DELIVERIES, table, task_ids, newest, only=(table.c.revision < model.EVENTS_FROM,))
    manifest = _first(1, table, task_ids, newest, only=(table.c.revision > model.MANIFESTS_FROM,))
    found = (jobs.deliveries() if bodies else jobs.bodiless_deliveries()).order_by(table.c.revision)
    # One after the other: lists of keys that are joined by OR, both engines find by a scan of the table.
    return [dict(r) for chosen in (results, manifest) for r in (await connection.execute(found.where(chosen))).mappings()]


async def _queued_since(connection: AsyncConnection, queued: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The time since which each queued job waits, Unix ms: its owner's last journal entry that was not ignored. For a delivery
    without attempts, the time of the result. Of a long timeline only the end is read: a job without an entry there waits for as
    long as that end, and longer."""
    if not queued:
        return {}
    since: dict[str, int] = defaultdict(int)
    task_ids = {r["task_id"] for r in queued}
    table, results = tables.journal, tables.results
    columns = (table.c.task_id, table.c.owner, table.c.at_ms, table.c.note)
    ends = [
        select(select(*columns).where(table.c.task_id == t).order_by(table.c.seq.desc()).limit(SEARCHED_LINES).subquery())
        for t in sorted(task_ids)
    ]
    lines = union_all(*ends).subquery()
    active = select(lines.c.owner, func.max(lines.c.at_ms)).where(lines.c.note.notlike("ignored:%")).group_by(lines.c.owner)
    active = active.where(lines.c.owner.in_([r["job_owner"] for r in queued]))
    begins = select(lines.c.task_id, func.min(lines.c.at_ms)).group_by(lines.c.task_id)
    made = select(results.c.task_id + "#" + cast(results.c.revision, Text), results.c.at_ms)
    for query in (union_all(active, begins), made.where(results.c.task_id.in_(task_ids))):
        for owner, at_ms in (await connection.execute(query)).all():
            since[owner] = max(since[owner], at_ms)
    return {r["job_owner"]: since[r["job_owner"]] or since[r["task_id"]] for r in queued}


def _up_to(most: int, sizes: Sequence[Any]) -> list[Any]:
    """The first of these (key, size) pairs whose sizes sum up to at most `most`, and at least one."""
    sums = itertools.accumulate(size for _, size in sizes)
    return [pair for number, (pair, total) in enumerate(zip(sizes, sums, strict=True)) if number == 0 or total <= most]


def _result(cursor: str, body: Mapping[str, Any]) -> session_view.PublishedResult:
    return session_view.PublishedResult(
        cursor=cursor,
        id=body["id"],
        type=body["type"],
        time=body["time"],
        subject=body.get("subject", ""),
        data=body["data"],
    )
