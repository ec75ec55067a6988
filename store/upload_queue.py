"""Queries of the queued uploads by their bucket, for a worker whose uploads have stalled.

Rule: the request of a session is JSON of our own spelling in which quotes are escaped, so its bucket is found as text.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, Select, func, or_, select, text

from machine import states
from store import connections, tables

_TASK_ID_CHARS = 26


class UploadQueue:
    """Reads one database; nothing is written."""

    def __init__(self, database: connections.Connections) -> None:
        self._database = database

    async def others_wait(self, buckets: Collection[str]) -> bool:
        """Whether an upload to none of these buckets is queued, for any worker. Raises DatabaseUnavailable."""
        jobs, sessions = tables.jobs, tables.sessions
        its_session = sessions.c.task_id == func.substr(jobs.c.owner, 1, _TASK_ID_CHARS)
        wanted = (
            select(jobs.c.owner).join(sessions, its_session).where(text(f"jobs.{tables.QUEUED}"), jobs.c.kind == states.UPLOAD)
        )
        return await self._any(wanted.where(*(~_to(bucket) for bucket in buckets)))

    async def is_to(self, task_id: str, buckets: Collection[str]) -> bool:
        """Whether a session's uploads go to one of these buckets. Raises DatabaseUnavailable."""
        wanted = select(tables.sessions.c.task_id).where(tables.sessions.c.task_id == task_id)
        return await self._any(wanted.where(or_(*(_to(bucket) for bucket in buckets))))

    async def _any(self, wanted: Select[tuple[str]]) -> bool:
        async with self._database.read() as connection:
            return (await connection.execute(wanted.limit(1))).first() is not None


def _to(bucket: str) -> ColumnElement[bool]:
    return tables.sessions.c.request.contains(f'"bucket":"{bucket}"', autoescape=True)
