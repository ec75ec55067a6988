"""Retention: deletes rows that nothing needs any more.

Rules: one transaction deletes at most BATCH rows, which an index finds, and a pause for other writers follows. Nothing is
remembered between two: deleting goes on until nothing is left. One node deletes at a time. A session is deleted only when none of
its parts can advance and none of its files is on a spool; its own row goes last, so that an interrupted deletion goes on.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, Text, cast, exists, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import delivery
from store import connections, statements, tables

BATCH = 500
SESSIONS_AT_ONCE = 20
# The pause after a batch, as a multiple of the time that the batch took.
PAUSE_RATIO = 4
MAX_PAUSE_S = 1.0


class Retention:
    """Deletes old rows of one database."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def delete_messages(self, before_ms: int) -> bool:
        """Delete ids of events, sent commands and events, and attempt counts from before that time (Unix ms): older than any
        repeat can be. False: another node deletes now, so this one leaves it all to that node."""
        attempts, inbox, outbox = tables.attempts, tables.inbox, tables.outbox
        return await self._all(
            (attempts, (attempts.c.at_ms < before_ms,)),
            (inbox, (inbox.c.at_ms < before_ms,)),
            (outbox, (text(tables.SENT), outbox.c.sent_ms < before_ms)),
        )

    async def delete_sessions(self, before_ms: int, presence_before_ms: int = 0) -> int:
        """Delete sessions that finished before that time (Unix ms) and keep no file, with all their rows; and rows of that age
        that belong to no session, presence by a time of its own. Returns the number of sessions."""
        presence, nodes, audit, outbox = tables.presence, tables.nodes, tables.audit, tables.outbox
        holds = or_(
            exists().where(tables.segments.c.node == nodes.c.node),
            exists().where(tables.recordings.c.output_node == nodes.c.node, text("output_node <> ''")),
        )
        sessions = 0

        async def some(connection: AsyncConnection) -> int:
            nonlocal sessions
            rows, gone = await _delete_parts(connection, before_ms)
            sessions += gone
            return rows

        if await self._repeat(some):
            await self._all(
                (presence, (presence.c.updated_ms < presence_before_ms,)),
                (nodes, (nodes.c.seen_ms < before_ms, ~holds)),
                (audit, (audit.c.at_ms < before_ms,)),
                (outbox, (text(tables.REFUSED), outbox.c.sent_ms < before_ms, _not_last_result())),
            )
        return sessions

    async def _all(self, *old: tuple[Table, tuple[Any, ...]]) -> bool:
        for table, where in old:
            if not await self._repeat(functools.partial(_delete, limit=BATCH, table=table, where=where)):
                return False
        return True

    async def _repeat(self, step: Callable[[AsyncConnection], Awaitable[int]]) -> bool:
        """Run a step in transactions of its own until it deletes less than a whole batch. False: another node deletes."""
        deleted = BATCH
        while deleted == BATCH:
            began = time.monotonic()
            async with self._database.write() as connection:
                if not await connections.try_lock(connection, connections.RETENTION):
                    return False
                deleted = await step(connection)
            if deleted == BATCH:
                await asyncio.sleep(min(PAUSE_RATIO * (time.monotonic() - began), MAX_PAUSE_S))
        return True


async def _delete(connection: AsyncConnection, *, limit: int, table: Table, where: tuple[Any, ...]) -> int:
    """Delete at most `limit` rows, none that another transaction has locked; returns their number."""
    keys = list(table.primary_key)
    found = select(*keys).where(*where).limit(limit).with_for_update(skip_locked=True)
    rows = (await connection.execute(found)).all() if limit else []
    if rows:
        names = [key.name for key in keys]
        one = [{f"at_{name}": value for name, value in zip(names, row, strict=True)} for row in rows]
        await connection.execute(statements.deleting(table, *names), one)
    return len(rows)


async def _delete_parts(connection: AsyncConnection, before_ms: int) -> tuple[int, int]:
    """Delete at most BATCH rows of old sessions; returns the number of rows, and that of sessions that are gone."""
    table, left, gone = tables.sessions, BATCH, 0
    old = select(table.c.task_id).where(text(tables.FINISHED), table.c.finished_ms < before_ms, ~_needed())
    chosen = old.order_by(table.c.finished_ms).limit(SESSIONS_AT_ONCE).with_for_update(skip_locked=True)
    while left and (task_ids := list((await connection.execute(chosen)).scalars())):
        for part, where in _parts(task_ids):
            left -= await _delete(connection, limit=left, table=part, where=where)
        ended = await _delete(connection, limit=left, table=table, where=(table.c.task_id.in_(task_ids),))
        gone, left = gone + ended, left - ended
    return BATCH - left, gone


def _parts(task_ids: list[str]) -> list[tuple[Table, tuple[ColumnElement[bool], ...]]]:
    """The rows of sessions in all tables, except their own rows; those that decisions read last."""
    recordings, callbacks, outbox = tables.recordings, tables.callbacks, tables.outbox
    of_recordings = select(recordings.c.id).where(recordings.c.task_id.in_(task_ids))
    of_deliveries = select(callbacks.c.task_id + "#" + cast(callbacks.c.revision, Text)).where(callbacks.c.task_id.in_(task_ids))
    by_owner: tuple[tuple[ColumnElement[Any], Select[Any] | list[str]], ...] = (
        (tables.jobs.c.owner, of_recordings),
        (tables.jobs.c.owner, of_deliveries),
        (tables.deadlines.c.owner, task_ids),
        (tables.deadlines.c.owner, of_recordings),
        (tables.deadlines.c.owner, of_deliveries),
        (tables.uploads.c.recording_id, of_recordings),
    )
    by_session = (tables.journal, tables.results, tables.secrets, callbacks, recordings)
    return [
        (outbox, (outbox.c.task_id.in_(task_ids), outbox.c.sent_ms.is_not(None), _not_last_result())),
        *((column.table, (column.in_(owners),)) for column, owners in by_owner),
        *((part, (part.c.task_id.in_(task_ids),)) for part in by_session),
    ]


def _needed() -> ColumnElement[bool]:
    """Whether a file of the session is kept, or its result is not delivered yet."""
    recordings, segments, callbacks = tables.recordings, tables.segments, tables.callbacks
    of = recordings.c.task_id == tables.sessions.c.task_id
    kept = or_(recordings.c.files_removed.is_(False), recordings.c.output_node != "")
    return or_(
        exists().where(of, kept),
        exists().where(of, segments.c.recording_id == recordings.c.id),
        exists().where(callbacks.c.task_id == tables.sessions.c.task_id, callbacks.c.state == delivery.PENDING),
    )


def _not_last_result() -> ColumnElement[bool]:
    """Whether a message is not the result with the highest place: readers continue after that one, so it stays."""
    outbox = tables.outbox.alias()
    last = select(func.max(outbox.c.place)).scalar_subquery()
    return or_(tables.outbox.c.place.is_(None), tables.outbox.c.place < last)
