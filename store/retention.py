"""Retention: deletes rows that nothing needs any more.

Rules: a session is deleted whole or not at all, and only when none of its parts can advance and none of its files is on a spool.
One short transaction deletes a bounded number. Sessions that another transaction has locked are skipped.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import delivery, states
from store import connections, tables, transaction

# Every other writer of SQLite waits for this transaction.
AT_ONCE = 20


class Retention:
    """Deletes old rows of one database."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def delete_messages(self, before_ms: int) -> None:
        """Delete ids of events, sent commands and events, and attempt counts from before that time (Unix ms): older than any
        repeat can be."""
        inbox, outbox = tables.inbox, tables.outbox
        internal = or_(outbox.c.channel == "command", outbox.c.channel == "event")
        async with self._database.write() as connection:
            await connection.execute(delete(tables.attempts).where(tables.attempts.c.at_ms < before_ms))
            await connection.execute(delete(inbox).where(inbox.c.at_ms < before_ms))
            await connection.execute(delete(outbox).where(internal, outbox.c.sent_ms < before_ms, outbox.c.parked == ""))

    async def delete_sessions(self, before_ms: int) -> int:
        """Delete sessions that finished before that time (Unix ms) and keep no file, with all their rows; and rows of that age
        that belong to no session. Returns the number of sessions: AT_ONCE as long as there may be more."""
        presence_ms = self._clock() - transaction.PRESENCE_KEPT_MS
        table = tables.sessions
        old = and_(table.c.state == states.FINISHED, table.c.finished_ms < before_ms)
        found = select(table.c.task_id).where(old, ~_needed()).order_by(table.c.task_id).limit(AT_ONCE)
        async with self._database.write() as connection:
            gone = list((await connection.execute(found.with_for_update(skip_locked=True))).scalars())
            for task_id in gone:
                await _delete_session(connection, task_id)
            await _delete_loose(connection, presence_before_ms=presence_ms, before_ms=before_ms)
        return len(gone)


async def _delete_loose(connection: AsyncConnection, *, presence_before_ms: int, before_ms: int) -> None:
    """Delete rows that belong to no session: stale presence, lost nodes that hold no file, refusals of starts, audit rows."""
    presence, nodes, segments, outbox = tables.presence, tables.nodes, tables.segments, tables.outbox
    await connection.execute(delete(presence).where(presence.c.updated_ms < presence_before_ms))
    holds = or_(
        exists().where(segments.c.node == nodes.c.node),
        exists().where(tables.recordings.c.output_node == nodes.c.node),
    )
    await connection.execute(delete(nodes).where(nodes.c.seen_ms < before_ms, ~holds))
    await connection.execute(delete(tables.audit).where(tables.audit.c.at_ms < before_ms))
    refusal = and_(outbox.c.channel == "result", outbox.c.task_id == "", outbox.c.sent_ms < before_ms)
    await connection.execute(delete(outbox).where(refusal, _not_last_result()))


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


async def _delete_session(connection: AsyncConnection, task_id: str) -> None:
    owners = [task_id, *await _owners(connection, task_id)]
    for column in (tables.jobs.c.owner, tables.deadlines.c.owner, tables.uploads.c.recording_id):
        await connection.execute(delete(column.table).where(column.in_(owners)))
    outbox = tables.outbox
    await connection.execute(delete(outbox).where(outbox.c.task_id == task_id, outbox.c.sent_ms.is_not(None), _not_last_result()))
    for table in (tables.journal, tables.callbacks, tables.results, tables.secrets, tables.recordings, tables.sessions):
        await connection.execute(delete(table).where(table.c.task_id == task_id))


def _not_last_result() -> ColumnElement[bool]:
    """Whether a message is not the result with the highest place: readers continue after that one, so it stays."""
    outbox = tables.outbox.alias()
    last = select(func.max(outbox.c.place)).scalar_subquery()
    return or_(tables.outbox.c.place.is_(None), tables.outbox.c.place < last)


async def _owners(connection: AsyncConnection, task_id: str) -> list[str]:
    """The ids of its recordings and of the deliveries of its results."""
    recordings, callbacks = tables.recordings, tables.callbacks
    of_recordings = await connection.execute(select(recordings.c.id).where(recordings.c.task_id == task_id))
    revisions = await connection.execute(select(callbacks.c.revision).where(callbacks.c.task_id == task_id))
    return [*of_recordings.scalars(), *(f"{task_id}#{revision}" for revision in revisions.scalars())]
