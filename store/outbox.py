"""The outbox: messages that a transaction wrote, until a relay or the local bus has delivered them.

Rule: messages are delivered in the order of their numbers, at least once. A row counts as sent only after delivery; a crash in
between delivers it again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import BigInteger, Column, LargeBinary, Select, String, Text, bindparam, cast, func, or_, select, update

from events import codec, earlier
from machine import changes, due_work
from store import connections, database_time, saving, sql, statements, tables

_MESSAGE = (tables.outbox.c.seq, tables.outbox.c.channel, tables.outbox.c.type, tables.outbox.c.node, tables.outbox.c.body)
_UNSENT = select(*_MESSAGE).where(tables.outbox.c.sent_ms.is_(None)).order_by(tables.outbox.c.seq).limit(bindparam("limit"))
# Text of SQLite may be damaged. Read as bytes, such a row becomes a dead letter; read as text, it fails all rows of the answer.
BODY = {"sqlite": cast(tables.outbox.c.body, LargeBinary), "postgresql": tables.outbox.c.body}


def _due(engine: str) -> Select[Any]:
    table = tables.outbox
    named = (*_MESSAGE[:-1], BODY[engine].label("body"), table.c.task_id, (table.c.claimed_until_ms > 0).label("retried"))
    excepted = {"types": table.c.type, "seqs": table.c.seq, "tasks": table.c.task_id}
    return (
        select(*named)
        .where(
            table.c.sent_ms.is_(None),
            or_(table.c.claimed_until_ms <= database_time.NOW_MS, table.c.seq.in_(_listed("ripe", table.c.seq)[engine])),
            *(column.not_in(_listed(f"except_{name}", column)[engine]) for name, column in excepted.items()),
        )
        .order_by(table.c.seq)
        .limit(bindparam("limit"))
    )


def _listed(parameter: str, column: Column[Any]) -> dict[str, Select[Any]]:
    return statements.listed(parameter, Text() if isinstance(column.type, String) else BigInteger())


_DUE = sql.Statement({engine: _due(engine) for engine in BODY})
_UNCLAIMED = (
    select(tables.outbox.c.seq)
    .where(tables.outbox.c.sent_ms.is_(None), tables.outbox.c.claimed_until_ms < database_time.NOW_MS)
    .order_by(tables.outbox.c.seq)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_LATER_MS = database_time.NOW_MS + bindparam("pause_ms", type_=BigInteger)
_CLAIM = update(tables.outbox).where(tables.outbox.c.seq.in_(_UNCLAIMED)).values(claimed_until_ms=_LATER_MS).returning(*_MESSAGE)
_POSTPONE = sql.Statement(
    statements.updating(tables.outbox, "seq").where(tables.outbox.c.sent_ms.is_(None)).values(claimed_until_ms=_LATER_MS)
)
_MARK_SENT = sql.Statement(
    statements.updating(tables.outbox, "seq").values(sent_ms=database_time.NOW_MS, parked=bindparam("parked"))
)
_MARK_ALL_SENT = (
    update(tables.outbox).where(tables.outbox.c.seq.in_(bindparam("seqs", expanding=True))).values(sent_ms=database_time.NOW_MS)
)


class Outbox:
    """The outbox of one database. `changed` is set after each commit that wrote to it."""

    def __init__(
        self,
        database: connections.Connections,
        *,
        clock: Callable[[], int],
        time: database_time.DatabaseTime,
        changed: asyncio.Event,
        beside_older: Callable[[], bool] = lambda: False,
    ) -> None:
        """`beside_older`: whether nodes of release 0.1.0 are alive too."""
        self._database = database
        self._beside_older = beside_older
        self._clock = clock
        self._time = time
        self._changed = changed

    async def unsent(self, limit: int = 100) -> list[due_work.OutboxMessage]:
        """The oldest unsent messages, oldest first."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_UNSENT, {"limit": limit})).mappings().all()
        return [_message(dict(r)) for r in rows]

    async def due(
        self,
        limit: int,
        *,
        ripe: Collection[int] = (),
        except_seqs: Collection[int] = (),
        except_types: Collection[str] = (),
        except_tasks: Collection[str] = (),
    ) -> list[due_work.OutboxMessage]:
        """The oldest unsent messages that are due, oldest first. `ripe` are due in any case."""
        given = {"ripe": ripe, "except_seqs": except_seqs, "except_types": except_types, "except_tasks": except_tasks}
        wanted = {name: json.dumps(list(values)) for name, values in given.items()} | {"limit": limit} | self._time.parameters()
        found = await self._database.fetch(_DUE, wanted)
        return [replace(_message(r), task_id=r["task_id"], retried=r["retried"]) for r in found]

    async def release_all(self) -> None:
        """Make all unsent messages due, whatever claimed or postponed them: this process alone delivers them."""
        table = tables.outbox
        held = update(table).where(table.c.sent_ms.is_(None), table.c.claimed_until_ms > 0).values(claimed_until_ms=0)
        async with self._database.write() as connection:
            await connection.execute(held)

    async def postpone(self, pauses_ms: Mapping[int, int]) -> None:
        """Make unsent messages due after a pause, by their numbers."""
        time = self._time.parameters()
        rows = [{"at_seq": seq, "pause_ms": pause_ms, **time} for seq, pause_ms in pauses_ms.items()]

        def steps() -> sql.Steps[None]:
            yield sql.Step(_POSTPONE, rows)

        await self._database.run(steps)

    async def newest_seq(self) -> int:
        """The number of the newest message; 0 when there is none."""
        async with self._database.read() as connection:
            return int((await connection.execute(select(func.max(tables.outbox.c.seq)))).scalar() or 0)

    async def claim(self, limit: int, hold_ms: int) -> list[due_work.OutboxMessage]:
        """Claim the oldest unsent messages that no other relay holds, oldest first. A claim expires after `hold_ms`: a relay
        that has not marked a message by then is considered dead, and the message can be claimed again."""
        claimed = {"limit": limit, "pause_ms": hold_ms} | self._time.parameters()
        async with self._database.write() as connection:
            rows = (await connection.execute(_CLAIM, claimed)).mappings().all()
        return [_message(dict(r)) for r in sorted(rows, key=lambda r: int(r["seq"]))]

    async def release(self, seqs: Sequence[int]) -> None:
        """Give up the claims on messages that were not sent."""
        table = tables.outbox
        free = update(table).where(table.c.seq.in_(seqs), table.c.sent_ms.is_(None)).values(claimed_until_ms=0)
        async with self._database.write() as connection:
            await connection.execute(free)

    async def mark_sent(self, seq: int, parked: str = "") -> None:
        """Mark a message as delivered, or as a dead letter for the reason `parked`."""
        await self._database.fetch(_MARK_SENT, {"at_seq": seq, "parked": parked} | self._time.parameters())

    async def mark_all_sent(self, seqs: Sequence[int]) -> None:
        """Mark messages as delivered."""
        async with self._database.write() as connection:
            await connection.execute(_MARK_ALL_SENT, {"seqs": list(seqs)} | self._time.parameters())

    async def send(self, channel: str, event: codec.Event, task_id: str = "") -> None:
        """Write a message outside a decision: a worker's outcome, an event of the sweeper."""
        known = earlier.without_later_fields(event) if self._beside_older() else event
        message = changes.OutgoingMessage(channel, known, task_id)
        await self._database.together(statements.ADD_MESSAGE, saving.message_row(message, self._clock()))
        self._changed.set()


def _message(row: Mapping[str, Any]) -> due_work.OutboxMessage:
    body = row["body"] if isinstance(row["body"], bytes) else row["body"].encode()
    return due_work.OutboxMessage(seq=row["seq"], channel=row["channel"], type=row["type"], node=row["node"], body=body)
