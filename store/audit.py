"""The audit: one row for each action of an operator or of an API key.

Rules: the row of a decision is written in its transaction (store.saving). A row holds no secret, only ids, names and codes.
Rows are kept as long as sessions (KEEP_SESSIONS).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import model
from store import connections, tables

# The action of the caller who opened a session. A caller who repeats the start gets another action.
START = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One action. `outcome` is ok, or the Code of the refusal. `seq` is its place."""

    seq: int
    at_ms: int
    who: str
    action: str
    subject: str
    outcome: str


class Audit:
    """The audit of one database."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def add(self, by: model.Caller, action: str, subject: str, outcome: str = "ok") -> None:
        """Write one row in a transaction of its own."""
        async with self._database.write() as connection:
            await write(connection, self._clock(), by, action, subject, outcome)

    async def page(self, before: int, limit: int) -> Sequence[AuditEntry]:
        """The newest `limit` entries, newest first, with a place less than `before`; 0: of all. Nothing is counted."""
        table = tables.audit
        newest = select(table).order_by(table.c.seq.desc()).limit(limit)
        async with self._database.read() as connection:
            rows = (await connection.execute(newest.where(table.c.seq < before) if before else newest)).all()
        return [_entry(row) for row in rows]

    async def list(self, limit: int = 100) -> tuple[list[AuditEntry], int]:
        """The newest `limit` entries, newest first, and the total count."""
        table = tables.audit
        async with self._database.read() as connection:
            rows = (await connection.execute(select(table).order_by(table.c.seq.desc()).limit(limit))).all()
            count = (await connection.execute(select(func.count()).select_from(table))).scalar_one()
        return [_entry(row) for row in rows], int(count)


async def write(
    connection: AsyncConnection, at_ms: int, by: model.Caller, action: str, subject: str, outcome: str = "ok"
) -> None:
    """Write one row in the caller's transaction."""
    row = {"at_ms": at_ms, "who": by.name[:128], "key_id": by.key_id, "action": action}
    await connection.execute(insert(tables.audit).values(row | {"subject": subject[:128], "outcome": outcome}))


def _entry(row: Any) -> AuditEntry:
    return AuditEntry(seq=row.seq, at_ms=row.at_ms, who=row.who, action=row.action, subject=row.subject, outcome=row.outcome)
