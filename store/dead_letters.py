"""Dead letters of the outbox: rows that could not be delivered. An operator lists them, requeues them or drops them.

Rule: no row is deleted here. A dropped row counts as sent, and a result among them stays readable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Update, and_, func, select, text, update

from machine import errors, model
from store import audit, connections, outbox, tables


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterRow:
    """One dead letter. `body` is the whole message, including secrets; `parked_ms` is Unix ms."""

    seq: int
    channel: str
    type: str
    reason: str
    parked_ms: int
    body: str


class DeadLetterRows:
    """The dead letters of one outbox. The service may run at the same time."""

    def __init__(self, database: connections.Connections) -> None:
        self._database = database

    async def list(self, limit: int = 100) -> tuple[list[DeadLetterRow], int]:
        """The oldest `limit` rows, and the total count."""
        table = tables.outbox
        async with self._database.read() as connection:
            found = (await connection.execute(_rows(connection.dialect.name).order_by(table.c.seq).limit(limit))).all()
            count = (await connection.execute(select(func.count()).select_from(table).where(text(tables.PARKED)))).scalar_one()
        return [_row(r) for r in found], int(count)

    async def show(self, seq: int) -> DeadLetterRow:
        """One row. Raises NotFound."""
        async with self._database.read() as connection:
            found = (await connection.execute(_rows(connection.dialect.name).where(tables.outbox.c.seq == seq))).first()
        if found is None:
            raise errors.NotFound("There is no such parked message; `recorder parked list` shows them.")
        return _row(found)

    async def requeue(self, seq: int, by: model.Caller, now_ms: int) -> DeadLetterRow:
        """Deliver a row again: by the running service, or at its next start. Raises NotFound."""
        change = update(tables.outbox).values(parked="", sent_ms=None, claimed_until_ms=0)
        return await self._release(seq, change, (by, now_ms, "parked-requeue"))

    async def drop(self, seq: int, by: model.Caller, now_ms: int) -> DeadLetterRow:
        """Drop a row: it counts as sent. Raises NotFound."""
        return await self._release(seq, update(tables.outbox).values(parked=""), (by, now_ms, "parked-drop"))

    async def _release(self, seq: int, change: Update, entry: tuple[model.Caller, int, str]) -> DeadLetterRow:
        found = await self.show(seq)
        by, now_ms, action = entry
        async with self._database.write() as connection:
            await connection.execute(change.where(and_(tables.outbox.c.seq == seq, tables.outbox.c.parked != "")))
            await audit.write(connection, now_ms, by, action, f"row-{seq} {found.channel}.{found.type}")
        return found


def _rows(engine: str) -> Any:
    table = tables.outbox
    names = (table.c.seq, table.c.channel, table.c.type, table.c.sent_ms, table.c.parked, outbox.BODY[engine].label("body"))
    return select(*names).where(text(tables.PARKED))


def _row(row: Any) -> DeadLetterRow:
    body = row.body.decode("utf-8", "replace") if isinstance(row.body, bytes) else row.body
    return DeadLetterRow(
        seq=row.seq, channel=row.channel, type=row.type, reason=row.parked, parked_ms=int(row.sent_ms or 0), body=body
    )
