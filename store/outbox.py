"""The outbox: messages that a transaction wrote, until a relay or the local bus has delivered them.

Rule: messages are delivered in the order of their numbers, at least once. A row counts as sent only after delivery; a crash in
between delivers it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import bindparam, func, select, update

from events import codec
from machine import changes, due_work
from store import connections, saving, statements, tables

_MESSAGE = (tables.outbox.c.seq, tables.outbox.c.channel, tables.outbox.c.type, tables.outbox.c.node, tables.outbox.c.body)
_UNSENT = select(*_MESSAGE).where(tables.outbox.c.sent_ms.is_(None)).order_by(tables.outbox.c.seq).limit(bindparam("limit"))
_DUE = (
    select(*_MESSAGE)
    .where(
        tables.outbox.c.sent_ms.is_(None),
        tables.outbox.c.claimed_until_ms <= bindparam("now_ms"),
        tables.outbox.c.type.not_in(bindparam("without", expanding=True)),
    )
    .order_by(tables.outbox.c.seq)
    .limit(bindparam("limit"))
)
_UNCLAIMED = (
    select(tables.outbox.c.seq)
    .where(tables.outbox.c.sent_ms.is_(None), tables.outbox.c.claimed_until_ms < bindparam("now_ms"))
    .order_by(tables.outbox.c.seq)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_CLAIM = update(tables.outbox).where(tables.outbox.c.seq.in_(_UNCLAIMED)).returning(*_MESSAGE)
_MARK_SENT = statements.updating(tables.outbox, "seq")


class Outbox:
    """The outbox of one database. `changed` is set after each commit that wrote to it."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int], changed: asyncio.Event) -> None:
        self._database = database
        self._clock = clock
        self._changed = changed

    async def unsent(self, limit: int = 100) -> list[due_work.OutboxMessage]:
        """The oldest unsent messages, oldest first."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_UNSENT, {"limit": limit})).all()
        return [_message(r) for r in rows]

    async def due(self, limit: int, *, without: Collection[str] = ()) -> list[due_work.OutboxMessage]:
        """The oldest unsent messages that are due and of no type of `without`, oldest first."""
        wanted = {"now_ms": self._clock(), "without": list(without), "limit": limit}
        async with self._database.read() as connection:
            rows = (await connection.execute(_DUE, wanted)).all()
        return [_message(r) for r in rows]

    async def newest_seq(self) -> int:
        """The number of the newest message; 0 when there is none."""
        async with self._database.read() as connection:
            return int((await connection.execute(select(func.max(tables.outbox.c.seq)))).scalar() or 0)

    async def claim(self, limit: int, hold_ms: int) -> list[due_work.OutboxMessage]:
        """Claim the oldest unsent messages that no other relay holds, oldest first. A claim expires after `hold_ms`: a relay
        that has not marked a message by then is considered dead, and the message can be claimed again."""
        now_ms = self._clock()
        claimed = {"now_ms": now_ms, "limit": limit, "claimed_until_ms": now_ms + hold_ms}
        async with self._database.write() as connection:
            rows = (await connection.execute(_CLAIM, claimed)).all()
        return [_message(r) for r in sorted(rows, key=lambda r: int(r.seq))]

    async def release(self, seqs: Sequence[int]) -> None:
        """Give up the claims on messages that were not sent."""
        table = tables.outbox
        free = update(table).where(table.c.seq.in_(seqs), table.c.sent_ms.is_(None)).values(claimed_until_ms=0)
        async with self._database.write() as connection:
            await connection.execute(free)

    async def mark_sent(self, seq: int, parked: str = "") -> None:
        """Mark a message as delivered, or as a dead letter for the reason `parked`."""
        async with self._database.write() as connection:
            await connection.execute(_MARK_SENT, {"at_seq": seq, "sent_ms": self._clock(), "parked": parked})

    async def mark_all_sent(self, seqs: Sequence[int]) -> None:
        """Mark messages as delivered."""
        table = tables.outbox
        async with self._database.write() as connection:
            await connection.execute(update(table).where(table.c.seq.in_(seqs)).values(sent_ms=self._clock()))

    async def send(self, channel: str, event: codec.Event, task_id: str = "") -> None:
        """Write a message outside a decision: a worker's outcome, an event of the sweeper."""
        message = changes.OutgoingMessage(channel, event, task_id)
        await self._database.fetch(statements.ADD_MESSAGE, saving.message_row(message, self._clock()))
        self._changed.set()


def _message(row: Any) -> due_work.OutboxMessage:
    return due_work.OutboxMessage(seq=row.seq, channel=row.channel, type=row.type, node=row.node, body=row.body.encode())
