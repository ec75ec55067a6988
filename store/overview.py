"""Queries of the console's overview and of its live updates.

Rules: reads only. Each statement reads an index of the rows that have not ended, or a bounded part of an index in the order of
time: its cost does not depend on how many sessions ever were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, text, true

from machine import model, overview
from store import connections, rows, tables, unreadable_rows

LINES = 2_000


class OverviewQueries:
    """Read-only views of one database."""

    def __init__(self, database: connections.Connections) -> None:
        self._database = database

    async def hours(self, begins_ms: Sequence[int], length_ms: int = model.HOUR) -> list[overview.Hour]:
        """The numbers of the time spans that begin then, each counted up to `overview.COUNTED`."""
        sessions, recordings = tables.sessions, tables.recordings
        # Word for word the condition of the index of recordings that keep files, as those that failed lately do.
        kept = recordings.c.files_removed.is_(False)
        sources: tuple[tuple[str, Any, Any, Any], ...] = (
            ("opened", sessions, sessions.c.opened_ms, true()),
            ("finished", sessions, sessions.c.finished_ms, text(tables.FINISHED)),
            ("failed", recordings, recordings.c.ended_ms, (recordings.c.state == "Failed") & kept),
        )
        found = []
        async with self._database.read() as connection:
            for begin_ms in begins_ms:
                counts = []
                for name, table, column, condition in sources:
                    within = select(column).where(condition, column >= begin_ms, column < begin_ms + length_ms)
                    one = select(func.count()).select_from(within.select_from(table).limit(overview.COUNTED).subquery())
                    counts.append(one.scalar_subquery().label(name))
                row = (await connection.execute(select(*counts))).one()
                found.append(overview.Hour(from_ms=begin_ms, opened=row.opened, finished=row.finished, failed=row.failed))
        return found

    async def newest_line(self) -> int:
        """The number of the newest line of the journal; 0 if there is none."""
        async with self._database.read() as connection:
            return int((await connection.execute(select(func.max(tables.journal.c.seq)))).scalar() or 0)

    async def lines_after(self, after: int) -> list[tuple[int, str]]:
        """The first LINES lines of the journal after the number `after`: number and TaskId. A line may be committed later than
        one with a higher number, on PostgreSQL."""
        table = tables.journal
        lines = select(table.c.seq, table.c.task_id).where(table.c.seq > after).order_by(table.c.seq).limit(LINES)
        async with self._database.read() as connection:
            return [(int(row.seq), row.task_id) for row in (await connection.execute(lines)).all()]

    async def sessions_of(self, task_ids: Sequence[str]) -> list[model.Session]:
        """These sessions, without order."""
        query = select(tables.sessions).where(tables.sessions.c.task_id.in_(task_ids))
        async with self._database.read() as connection:
            read = [dict(r) for r in (await connection.execute(query)).mappings()]
        return unreadable_rows.readable("sessions", read, rows.session)
