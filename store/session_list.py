"""The list of sessions, newest first, by any of their fields and by those of their recordings.

Rule: a page reads a bounded number of rows, however many sessions there ever were. A field of a session has an index that ends in
the TaskId. For a field of a recording, the newest CANDIDATES sessions with such a recording are looked at, at most ROUNDS times:
then the page is short, and its cursor goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, and_, exists, func, select, text, union
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import delivery, job_key, model, session_view, states
from store import connections, rows, tables, unreadable_rows

CANDIDATES = 500
ROUNDS = 10
# Leased jobs of a node that are looked at; none has as many.
JOBS = 5_000
# TaskIds have the order of the openings, as far as clocks of nodes agree: their difference is less than this.
CLOCKS_AGREE_MS = 24 * model.HOUR


async def page(
    database: connections.Connections, wanted: session_view.SessionFilter, *, before: str, limit: int
) -> tuple[list[model.Session], str]:
    """At most `limit` sessions older than the TaskId `before` ("": the newest), and the `before` of the next page ("": none)."""
    found: list[model.Session] = []
    async with database.read() as connection:
        if not (wanted.speaker or wanted.code or wanted.node):
            return await _newest(connection, _query(wanted), before, limit)
        for _ in range(ROUNDS):
            ids = await _candidates(connection, wanted, before)
            of_these = _query(wanted).where(tables.sessions.c.task_id.in_(ids))
            more, cursor = await _newest(connection, of_these, before, limit - len(found))
            found += more
            if cursor or len(ids) < CANDIDATES:
                return found, cursor
            before = ids[-1]
    return found, before


async def _newest(connection: AsyncConnection, query: Select[Any], before: str, limit: int) -> tuple[list[model.Session], str]:
    table = tables.sessions
    found: list[model.Session] = []
    while True:
        asked = limit - len(found)
        older = query.where(table.c.task_id < before) if before else query
        read = [dict(r) for r in (await connection.execute(older.limit(asked))).mappings()]
        found += unreadable_rows.readable("sessions", read, rows.session)
        if len(read) < asked:
            return found, ""
        before = str(read[-1]["task_id"])
        # A row that cannot be read must not look like the end of the list.
        if len(found) == limit:
            return found, before


def _query(wanted: session_view.SessionFilter) -> Select[Any]:
    table = tables.sessions
    # With a user, the index of users is the right one; "+ 0" keeps the engine from that of applications, which reads far more.
    app = table.c.sdk_app_id + 0 if wanted.user_id else table.c.sdk_app_id
    conditions = (
        (wanted.state, table.c.state == wanted.state),
        (wanted.state in (states.OPEN, states.CLOSING), text(tables.ACTIVE)),
        (wanted.sdk_app_id, app == wanted.sdk_app_id),
        (wanted.room, table.c.room == wanted.room),
        (wanted.user_id, table.c.user_id == wanted.user_id),
        (wanted.since_ms, _opened_since(wanted.since_ms)),
        (wanted.until_ms, _opened_before(wanted.until_ms)),
        (wanted.speaker or wanted.code, _has_recording(wanted)),
        (wanted.maybe_stuck, _maybe_stuck()),
        (wanted.undelivered, _undelivered()),
    )
    found = select(table).where(*(condition for given, condition in conditions if given))
    return found.order_by(table.c.task_id.desc())


def _opened_since(at_ms: int) -> Any:
    """Sessions opened at or after a time. The TaskIds bound the search; the index of the times finds where they begin."""
    table, other = tables.sessions, tables.sessions.alias()
    earlier = select(other.c.task_id).where(other.c.opened_ms <= at_ms - CLOCKS_AGREE_MS)
    first = earlier.order_by(other.c.opened_ms.desc()).limit(1).scalar_subquery()
    return and_(table.c.opened_ms + 0 >= at_ms, table.c.task_id >= func.coalesce(first, ""))


def _opened_before(at_ms: int) -> Any:
    """Sessions opened before a time, as `_opened_since`."""
    table, other = tables.sessions, tables.sessions.alias()
    later = select(other.c.task_id).where(other.c.opened_ms >= at_ms + CLOCKS_AGREE_MS)
    last = later.order_by(other.c.opened_ms).limit(1).scalar_subquery()
    return and_(table.c.opened_ms + 0 < at_ms, table.c.task_id <= func.coalesce(last, "Z" * 26))


def _of_recording(wanted: session_view.SessionFilter) -> list[Any]:
    table = tables.recordings
    conditions: list[tuple[object, Any]] = [
        (wanted.speaker, table.c.speaker == wanted.speaker),
        (wanted.code, table.c.code == wanted.code),
    ]
    # A partial index is used for a query that repeats its condition.
    conditions.append((wanted.code not in ("", states.SUCCESS), text(f"recordings.{tables.NOT_SUCCESS}")))
    return [condition for given, condition in conditions if given]


def _has_recording(wanted: session_view.SessionFilter) -> Any:
    table = tables.recordings
    return exists(select(table.c.id).where(table.c.task_id == tables.sessions.c.task_id, *_of_recording(wanted)))


async def _candidates(connection: AsyncConnection, wanted: session_view.SessionFilter, before: str) -> Sequence[str]:
    """The newest sessions with such a recording, or with a job that the node holds now, newest first."""
    if wanted.node:
        jobs = tables.jobs
        held = select(jobs.c.owner).where(text(tables.LEASED), jobs.c.node == wanted.node).limit(JOBS)
        ids = {job_key.parse(owner).task_id for owner in (await connection.execute(held)).scalars()}
        return sorted((id_ for id_ in ids if not before or id_ < before), reverse=True)[:CANDIDATES]
    table = tables.recordings
    found = select(table.c.task_id).where(*_of_recording(wanted)).distinct()
    if before:
        found = found.where(table.c.task_id < before)
    return (await connection.execute(found.order_by(table.c.task_id.desc()).limit(CANDIDATES))).scalars().all()


def _maybe_stuck() -> Any:
    """A superset of the sessions that need attention (web/stuck.py): sessions and recordings that have not ended, failed
    recordings that keep files, results that were not delivered. Each part has an index of its own."""
    sessions, recordings, callbacks = tables.sessions.alias(), tables.recordings, tables.callbacks
    kept = and_(recordings.c.state == states.FAILED, recordings.c.files_removed.is_(False))
    parts = (
        select(sessions.c.task_id).where(text(tables.ACTIVE)),
        select(recordings.c.task_id).where(text(tables.UNFINISHED)),
        select(recordings.c.task_id).where(kept),
        select(callbacks.c.task_id).where(text(tables.UNDELIVERED)),
    )
    return tables.sessions.c.task_id.in_(union(*parts))


def _undelivered() -> Any:
    """Sessions whose newest result was given up."""
    callbacks = tables.callbacks
    given_up = select(callbacks.c.task_id).where(text(tables.UNDELIVERED), callbacks.c.state == delivery.FAILED)
    return tables.sessions.c.task_id.in_(given_up.where(callbacks.c.revision == tables.sessions.c.revision))
