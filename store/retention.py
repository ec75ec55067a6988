"""Forgetting: what leaves the tables when nobody can want it any more. Imports `machine`.

Rules: a session goes whole or not at all, and only when nothing of it can move by itself and nothing of it lies on a spool; so
much at a time as one short transaction bears; who else is at work on a session is not waited for.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import delivery, states
from store import tables

# No more than a transaction may take while every other writer of SQLite waits for it.
AT_ONCE = 20


async def messages(connection: AsyncConnection, before_ms: int) -> None:
    """The ids of events, sent commands and events, and counts of tries, from before that time (Unix ms)."""
    inbox, outbox = tables.inbox, tables.outbox
    await connection.execute(delete(tables.attempts).where(tables.attempts.c.at_ms < before_ms))
    inside = or_(outbox.c.channel == "command", outbox.c.channel == "event")
    await connection.execute(delete(inbox).where(inbox.c.at_ms < before_ms))
    await connection.execute(delete(outbox).where(inside, outbox.c.sent_ms < before_ms, outbox.c.parked == ""))


async def sessions(connection: AsyncConnection, before_ms: int) -> int:
    """Sessions that finished before that time, and all that belongs to them; returns how many (at most AT_ONCE)."""
    table = tables.sessions
    old = and_(table.c.state == states.FINISHED, table.c.finished_ms < before_ms)
    found = select(table.c.task_id).where(old, ~_wanted()).order_by(table.c.task_id).limit(AT_ONCE)
    gone = list((await connection.execute(found.with_for_update(skip_locked=True))).scalars())
    for task_id in gone:
        await _forget(connection, task_id)
    return len(gone)


async def loose(connection: AsyncConnection, *, presence_before_ms: int, before_ms: int) -> None:
    """What belongs to no session: who was in a room and was not heard of since, nodes that gave no sign of life since and hold
    nothing, answers to starts that were refused, and who did what."""
    presence, nodes, segments, outbox = tables.presence, tables.nodes, tables.segments, tables.outbox
    await connection.execute(delete(presence).where(presence.c.updated_ms < presence_before_ms))
    holds = or_(
        exists().where(segments.c.node == nodes.c.node),
        exists().where(tables.recordings.c.output_node == nodes.c.node),
    )
    await connection.execute(delete(nodes).where(nodes.c.seen_ms < before_ms, ~holds))
    await connection.execute(delete(tables.audit).where(tables.audit.c.at_ms < before_ms))
    refusal = and_(outbox.c.channel == "result", outbox.c.task_id == "", outbox.c.sent_ms < before_ms)
    await connection.execute(delete(outbox).where(refusal, _passed()))


def _wanted() -> ColumnElement[bool]:
    """Whether somebody may still want the session: a file of it is kept, or its result is on its way."""
    recordings, segments, callbacks = tables.recordings, tables.segments, tables.callbacks
    of = recordings.c.task_id == tables.sessions.c.task_id
    kept = or_(recordings.c.files_removed.is_(False), recordings.c.output_node != "")
    return or_(
        exists().where(of, kept),
        exists().where(of, segments.c.recording_id == recordings.c.id),
        exists().where(callbacks.c.task_id == tables.sessions.c.task_id, callbacks.c.state == delivery.PENDING),
    )


async def _forget(connection: AsyncConnection, task_id: str) -> None:
    owners = [task_id, *await _owners(connection, task_id)]
    for column in (tables.jobs.c.owner, tables.deadlines.c.owner, tables.uploads.c.recording_id):
        await connection.execute(delete(column.table).where(column.in_(owners)))
    outbox = tables.outbox
    await connection.execute(delete(outbox).where(outbox.c.task_id == task_id, outbox.c.sent_ms.is_not(None), _passed()))
    for table in (tables.journal, tables.callbacks, tables.results, tables.secrets, tables.recordings, tables.sessions):
        await connection.execute(delete(table).where(table.c.task_id == task_id))


def _passed() -> ColumnElement[bool]:
    """Whether a message is not the result that holds the last place: readers go on behind that, so it stays."""
    outbox = tables.outbox.alias()
    last = select(func.max(outbox.c.place)).scalar_subquery()
    return or_(tables.outbox.c.place.is_(None), tables.outbox.c.place < last)


async def _owners(connection: AsyncConnection, task_id: str) -> list[str]:
    """The ids of its recordings and of the deliveries of its results."""
    recordings, callbacks = tables.recordings, tables.callbacks
    of_recordings = await connection.execute(select(recordings.c.id).where(recordings.c.task_id == task_id))
    revisions = await connection.execute(select(callbacks.c.revision).where(callbacks.c.task_id == task_id))
    return [*of_recordings.scalars(), *(f"{task_id}#{revision}" for revision in revisions.scalars())]
