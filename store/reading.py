"""What faces and operators read: sessions, recordings, timelines, results. Imports `machine`. Rule: reads only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncEngine

from machine import model
from store import rows, tables, transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a session's timeline. `owner` is the TaskId, a recording's id, or `TaskId#revision`."""

    at_ms: int
    owner: str
    event_type: str
    from_state: str
    to_state: str
    note: str


class Reading:
    """Read-only views of one database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def sessions(self, *, state: str = "", limit: int = 50, before: str = "") -> list[model.Session]:
        """Sessions, newest first; with `before` (a TaskId) those older than it."""
        table = tables.sessions
        found = select(table).order_by(table.c.task_id.desc()).limit(limit)
        if state:
            found = found.where(table.c.state == state)
        if before:
            found = found.where(table.c.task_id < before)
        return [rows.session(r) for r in await self._all(found)]

    async def session(self, task_id: str) -> model.Session | None:
        """One session, or None."""
        found = await self._all(select(tables.sessions).where(tables.sessions.c.task_id == task_id))
        return rows.session(found[0]) if found else None

    async def recordings(self, task_id: str) -> list[model.Recording]:
        """All recordings of a session, oldest first."""
        async with self._engine.connect() as connection:
            return await transaction.Transaction(connection, 0, str).recordings(task_id)

    async def callbacks(self, task_id: str) -> list[model.Callback]:
        """The deliveries of a session's results."""
        async with self._engine.connect() as connection:
            return await transaction.Transaction(connection, 0, str).callbacks(task_id)

    async def timeline(self, task_id: str) -> list[Line]:
        """What happened to a session, in order."""
        table = tables.journal
        names = ("at_ms", "owner", "event_type", "from_state", "to_state", "note")
        found = select(*(table.c[n] for n in names)).where(table.c.task_id == task_id).order_by(table.c.seq)
        return [Line(**r) for r in await self._all(found)]

    async def results(self, task_id: str) -> list[dict[str, Any]]:
        """Every revision of a session's result, oldest first."""
        table = tables.results
        found = select(table.c.body).where(table.c.task_id == task_id).order_by(table.c.revision)
        return [json.loads(r["body"]) for r in await self._all(found)]

    async def _all(self, query: Select[Any]) -> list[dict[str, Any]]:
        async with self._engine.connect() as connection:
            return [dict(r) for r in (await connection.execute(query)).mappings()]
