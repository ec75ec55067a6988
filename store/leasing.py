"""What a lease changes beside its own row. Imports `machine`.

Rule: in the order of all locks, session, recording, and then the caller's job.
"""

from __future__ import annotations

from sqlalchemy import and_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import model
from store import tables


async def touch(connection: AsyncConnection, owner: str, epoch: int) -> None:
    """A lease changes what a decision would see: bump the owner's version, so that a concurrent decision is made again."""
    if "#" in owner and "/" not in owner:
        callbacks = tables.callbacks
        task_id, revision = owner.split("#")
        where = and_(callbacks.c.task_id == task_id, callbacks.c.revision == int(revision), callbacks.c.epoch == epoch)
        await connection.execute(update(callbacks).where(where).values(version=callbacks.c.version + 1))
        return
    table = tables.recordings
    where = and_(table.c.id == owner, table.c.epoch == epoch)
    await connection.execute(update(table).where(where).values(version=table.c.version + 1))


async def note_media(connection: AsyncConnection, owner: str, epoch: int, last_packet_ms: int) -> None:
    """When media last came, to the recording and its session: they are not idle."""
    recordings, sessions = tables.recordings, tables.sessions
    task_id = model.split_id(owner)[0]
    late = and_(sessions.c.task_id == task_id, sessions.c.idle_from_ms < last_packet_ms)
    await connection.execute(update(sessions).where(late).values(idle_from_ms=last_packet_ms))
    late = and_(recordings.c.id == owner, recordings.c.epoch == epoch, recordings.c.idle_from_ms < last_packet_ms)
    await connection.execute(update(recordings).where(late).values(idle_from_ms=last_packet_ms))
