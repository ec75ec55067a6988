"""Overdue rows: deadlines that have passed and leases that have ended. Decisions arm and disarm deadlines (store.saving).

Rules: a row is handed out until its event is published, and again after a while, because the event may be lost. The row stays
until a decision deletes it, so rows that wait for their event never hide others. A row that cannot be read is set aside alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from sqlalchemy import Select, Table, bindparam, or_, select, text, tuple_, union_all

from events import codec
from events import errors as event_errors
from machine import changes, due_work, internal_events, job_key, model
from store import connections, saving, sql, statements, tables

log = structlog.get_logger()

# The pause before an event is published again doubles from the first to the second value.
AGAIN_MS = 30 * model.SECOND
MAX_AGAIN_MS = model.HOUR
_FIELDS = {
    tables.deadlines: ("owner", "kind", "serial", "at_ms"),
    tables.jobs: ("owner", "epoch", "kind", "node", "lease_until_ms"),
}
# One arming of a deadline, and one end of a lease: rows that were armed again or renewed since are others.
_KEYS = {tables.deadlines: ("owner", "kind", "serial"), tables.jobs: ("owner", "epoch", "lease_until_ms")}


def _read(table: Table) -> Select[Any]:
    return select(*(table.c[name] for name in _FIELDS[table]), table.c.again_ms).limit(bindparam("limit"))


def _due() -> Select[Any]:
    """Both parts end after `limit` entries of an index, however many rows wait for their event."""
    table = tables.deadlines
    unpublished = _read(table).where(table.c.again_ms.is_(None), table.c.at_ms <= bindparam("until_ms")).order_by(table.c.at_ms)
    published = _read(table).where(table.c.again_ms <= bindparam("now_ms")).order_by(table.c.again_ms)
    both = union_all(select(unpublished.subquery()), select(published.subquery())).subquery()
    return select(both).order_by(both.c.at_ms).limit(bindparam("limit"))


_DUE = sql.Statement(_due())
_EXPIRED = sql.Statement(
    _read(tables.jobs)
    .where(text(tables.LEASED), tables.jobs.c.lease_until_ms < bindparam("until_ms"))
    .where(or_(tables.jobs.c.again_ms.is_(None), tables.jobs.c.again_ms <= bindparam("now_ms")))
    .order_by(tables.jobs.c.lease_until_ms)
)
_SET_AGAIN = {table: statements.updating(table, *_KEYS[table]) for table in _FIELDS}


class Deadlines:
    """The overdue rows of one database."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int], changed: asyncio.Event) -> None:
        self._database = database
        self._clock = clock
        self._changed = changed

    async def due(self, limit: int = 100, *, ahead_ms: int = 0) -> list[due_work.Deadline]:
        """Deadlines that have passed or pass within `ahead_ms`, oldest first, without those whose event is under way."""
        now_ms = self._clock()
        found = await self._rows(tables.deadlines, _DUE, {"now_ms": now_ms, "until_ms": now_ms + ahead_ms, "limit": limit})
        return [due_work.Deadline(kind=r["kind"], serial=r["serial"], **common) for r, common in found]

    async def expired(self, before_ms: int, limit: int = 100) -> list[due_work.Lease]:
        """Leases that ended before that time (Unix ms), oldest first, without those whose event is under way."""
        found = await self._rows(tables.jobs, _EXPIRED, {"now_ms": self._clock(), "until_ms": before_ms, "limit": limit})
        return [due_work.Lease(epoch=r["epoch"], kind=r["kind"], node=r["node"], **common) for r, common in found]

    async def publish(self, events: Sequence[tuple[due_work.Overdue, codec.Event]]) -> int:
        """Write the events of overdue rows to the outbox in one transaction, and return their number. Another node may have
        published some of them first, or a decision may have changed or locked the row: those are left out."""
        messages: list[sql.Row] = []
        now_ms = self._clock()
        async with self._database.write() as connection:
            for table, type_ in ((tables.jobs, due_work.Lease), (tables.deadlines, due_work.Deadline)):
                named = {_key(item): (item, event) for item, event in events if isinstance(item, type_)}
                if not named:
                    continue
                columns = [table.c[name] for name in _KEYS[table]]
                free = or_(table.c.again_ms.is_(None), table.c.again_ms <= now_ms)
                found = select(*columns).where(tuple_(*columns).in_(list(named)), free).order_by(*columns)
                # A decision that holds a row may wait for another of these, so this waits for none.
                claimed = [tuple(r) for r in (await connection.execute(found.with_for_update(skip_locked=True))).all()]
                if claimed:
                    again = [_again(table, key, now_ms + pause_ms(named[key][0], now_ms)) for key in claimed]
                    await connection.execute(_SET_AGAIN[table], again)
                for item, event in (named[key] for key in claimed):
                    message = changes.OutgoingMessage("event", event, item.owner.task_id)
                    messages.append(saving.message_row(message, now_ms))
            if messages:
                await connection.execute(statements.INSERT[tables.outbox], messages)
        if messages:
            self._changed.set()
        return len(messages)

    async def _rows(self, table: Table, query: sql.Statement, parameters: dict[str, int]) -> list[tuple[sql.Row, dict[str, Any]]]:
        """The rows with the fields that every overdue row has. A row whose owner is no key is logged, and set aside for a while:
        it must neither end the round nor take a place in the next."""
        good: list[tuple[sql.Row, dict[str, Any]]] = []
        for row in await self._database.fetch(query, parameters):
            try:
                owner = _parsed(table, row)
            except (ValueError, event_errors.InvalidEvent) as error:
                log.error("overdue.unreadable", table=table.name, owner=row["owner"], error=str(error))
                key = tuple(row[name] for name in _KEYS[table])
                async with self._database.write() as connection:
                    await connection.execute(_SET_AGAIN[table], _again(table, key, self._clock() + MAX_AGAIN_MS))
                continue
            over_ms = row["at_ms" if table is tables.deadlines else "lease_until_ms"]
            good.append((row, {"owner": owner, "over_ms": over_ms, "published": row["again_ms"] is not None}))
        return good


def _key(item: due_work.Overdue) -> tuple[Any, ...]:
    if isinstance(item, due_work.Deadline):
        return (item.owner.text, item.kind, item.serial)
    return (item.owner.text, item.epoch, item.over_ms)


def _again(table: Table, key: tuple[Any, ...], again_ms: int) -> dict[str, Any]:
    return {f"at_{name}": value for name, value in zip(_KEYS[table], key, strict=True)} | {"again_ms": again_ms}


def pause_ms(item: due_work.Overdue, now_ms: int) -> int:
    """The pause before an event is published once more: the age of the row doubles it each time."""
    return min(max(now_ms - item.over_ms, AGAIN_MS), MAX_AGAIN_MS) if item.published else AGAIN_MS


def _parsed(table: Table, row: sql.Row) -> Any:
    """The key of a row's owner. Raises ValueError for a text that is none, and InvalidEvent for a row that no event can name."""
    if table is tables.deadlines:
        owner = job_key.parse(row["owner"])
        payload: internal_events.TimerEvent = internal_events.DeadlinePassed(owner=owner, kind=row["kind"], serial=row["serial"])
    else:
        owner = job_key.parse_job(row["owner"])
        payload = internal_events.WorkerLost(owner=owner, epoch=row["epoch"], node=row["node"])
    codec.check(internal_events.TYPE_OF[type(payload)], codec.from_payload(payload))
    return owner
