"""Overdue rows: deadlines that have passed, leases that have ended, and queued jobs that nobody takes. Decisions arm and disarm
deadlines and queue jobs (store.saving).

Rules: a row is handed out until its event is published, and again after a while, because the event may be lost. The row stays
until a decision deletes it, so rows that wait for their event never hide others. A row that cannot be read is set aside alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import BigInteger, Select, Table, Update, bindparam, literal_column, or_, select, text, tuple_, union_all, update

from events import codec
from events import errors as event_errors
from machine import changes, due_work, internal_events, job_key, model
from store import connections, database_time, saving, sql, statements, tables

log = structlog.get_logger()

# The pause before an event is published again doubles from the first to the second value.
AGAIN_MS = 30 * model.SECOND
MAX_AGAIN_MS = model.HOUR
NOW_MS = database_time.NOW_MS
# A sweeper that has sent no heartbeat for a while publishes nothing that its next heartbeat may extend. NULL: no limit.
_FRESH_UNTIL_MS = bindparam("fresh_until_ms", type_=BigInteger)
_FRESH = or_(_FRESH_UNTIL_MS.is_(None), NOW_MS <= _FRESH_UNTIL_MS)
_NOT_EXTENDED = tables.deadlines.c.kind.not_in([literal_column(f"'{kind}'") for kind in model.EXTENDED_BY_DOWNTIME])


@dataclass(frozen=True, slots=True)
class _Rows:
    """One kind of overdue rows: the columns that identify one, those that are read, and the state of the rows."""

    table: Table
    key: tuple[str, ...]
    fields: tuple[str, ...]
    over: str
    which: str = ""
    channel: str = "event"

    def read(self) -> Select[Any]:
        """The columns of at most `limit` rows, and the time that is left."""
        found = select(*(self.table.c[name] for name in (*self.key, *self.fields)), self.table.c.again_ms, self.left_ms())
        return (found.where(text(self.which)) if self.which else found).limit(bindparam("limit"))

    def left_ms(self) -> Any:
        """The time until a row is over, by the database's clock."""
        return (self.table.c[self.over] - NOW_MS).label("left_ms")

    def set_again(self) -> Update:
        """Note when a row is due again."""
        return statements.updating(self.table, *self.key).values(again_ms=NOW_MS + bindparam("pause_ms", type_=BigInteger))

    def again(self, key: tuple[Any, ...], pause_ms: int) -> dict[str, Any]:
        """The parameters of `set_again`."""
        return {f"at_{name}": value for name, value in zip(self.key, key, strict=True)} | {"pause_ms": pause_ms}

    def claim(self) -> Select[Any]:
        """The keys of those of `named` rows that are free, with the time that is left; the rows are locked. A decision that holds
        a row may wait for another of these, so this waits for none."""
        columns = [self.table.c[name] for name in self.key]
        again_ms = self.table.c.again_ms
        found = select(*columns, self.left_ms()).where(
            tuple_(*columns).in_(bindparam("named", expanding=True)),
            or_(again_ms.is_(None), again_ms <= NOW_MS),
            or_(_FRESH, _NOT_EXTENDED) if self.table is tables.deadlines else _FRESH,
            *([text(self.which)] if self.which else []),
        )
        return found.order_by(*columns).with_for_update(skip_locked=True)


# The keys name one arming of a deadline, and one end of a lease: rows that were armed again or renewed since are others.
_DEADLINES = _Rows(tables.deadlines, ("owner", "kind", "serial"), ("at_ms",), "at_ms")
_LEASES = _Rows(tables.jobs, ("owner", "epoch", "lease_until_ms"), ("kind", "node"), "lease_until_ms", tables.LEASED)
_QUEUED = _Rows(tables.jobs, ("owner", "epoch"), ("kind", "node", "queued_ms"), "queued_ms", tables.QUEUED, "command")
# In the order of all locks.
_KINDS: Mapping[type, _Rows] = {due_work.QueuedJob: _QUEUED, due_work.Lease: _LEASES, due_work.Deadline: _DEADLINES}


def _due() -> Select[Any]:
    """Both parts end after `limit` entries of an index, however many rows wait for their event."""
    table, read = tables.deadlines, _DEADLINES.read
    until_ms = NOW_MS + bindparam("ahead_ms", type_=BigInteger)
    unpublished = read().where(table.c.again_ms.is_(None), table.c.at_ms <= until_ms).order_by(table.c.at_ms)
    published = read().where(table.c.again_ms <= NOW_MS).order_by(table.c.again_ms)
    both = union_all(select(unpublished.subquery()), select(published.subquery())).subquery()
    return select(both).order_by(both.c.at_ms).limit(bindparam("limit"))


_DUE = sql.Statement(_due())
_EXPIRED = sql.Statement(
    _LEASES.read()
    .where(tables.jobs.c.lease_until_ms < NOW_MS, _FRESH)
    .where(or_(tables.jobs.c.again_ms.is_(None), tables.jobs.c.again_ms <= NOW_MS))
    .order_by(tables.jobs.c.lease_until_ms)
)
_NOT_TAKEN = sql.Statement(
    _QUEUED.read().where(tables.jobs.c.again_ms <= NOW_MS).order_by(tables.jobs.c.again_ms, tables.jobs.c.owner)
)
# Rows of an older version do not say when they were queued: they count from now on.
_ADOPT = sql.Statement(
    update(tables.jobs)
    .where(text(tables.QUEUED), tables.jobs.c.again_ms.is_(None))
    .values(queued_ms=NOW_MS, again_ms=NOW_MS + bindparam("pause_ms", type_=BigInteger))
)
_CLAIM = {rows: rows.claim() for rows in _KINDS.values()}
_SET_AGAIN = {rows: rows.set_again() for rows in _KINDS.values()}


class Deadlines:
    """The overdue rows of one database."""

    def __init__(
        self,
        database: connections.Connections,
        *,
        clock: Callable[[], int],
        time: database_time.DatabaseTime,
        changed: asyncio.Event,
    ) -> None:
        self._database = database
        self._clock = clock
        self._time = time
        self._changed = changed

    async def due(self, limit: int = 100, *, ahead_ms: int = 0) -> list[due_work.Deadline]:
        """Deadlines that have passed or pass within `ahead_ms`, oldest first, without those whose event is under way."""
        found = await self._rows(_DEADLINES, _DUE, {"ahead_ms": ahead_ms, "limit": limit})
        return [due_work.Deadline(kind=r["kind"], serial=r["serial"], **common) for r, common in found]

    async def expired(self, limit: int = 100, *, fresh_until_ms: int | None = None) -> list[due_work.Lease]:
        """Leases that have ended, oldest first, without those whose event is under way. None if it is later than
        `fresh_until_ms` (Unix ms)."""
        found = await self._rows(_LEASES, _EXPIRED, {"fresh_until_ms": fresh_until_ms, "limit": limit})
        return [due_work.Lease(epoch=r["epoch"], kind=r["kind"], node=r["node"], **common) for r, common in found]

    async def queued(self, limit: int = 100) -> list[due_work.QueuedJob]:
        """Jobs that nobody has taken since their command was issued, for REISSUE_MS and longer."""
        await self._database.fetch(_ADOPT, {"pause_ms": due_work.REISSUE_MS} | self._time.parameters())
        found = await self._rows(_QUEUED, _NOT_TAKEN, {"limit": limit})
        return [due_work.QueuedJob(epoch=r["epoch"], kind=r["kind"], node=r["node"], **common) for r, common in found]

    async def publish(self, events: Sequence[tuple[due_work.Overdue, codec.Event]], *, fresh_until_ms: int | None = None) -> int:
        """Write the messages of overdue rows to the outbox in one transaction, and return their number. Another node may have
        published some of them first, or a decision may have changed or locked the row: those are left out. After
        `fresh_until_ms` (Unix ms), so are leases, queued jobs, and deadlines that downtime extends."""
        messages: list[sql.Row] = []
        time = self._time.parameters()
        async with self._database.write() as connection:
            for type_, rows in _KINDS.items():
                named = {_key(item): (item, event) for item, event in events if isinstance(item, type_)}
                if not named:
                    continue
                claim: dict[str, Any] = {"named": list(named), "fresh_until_ms": fresh_until_ms} | time
                claimed = [(tuple(r)[:-1], r.left_ms) for r in (await connection.execute(_CLAIM[rows], claim)).all()]
                if claimed:
                    again = [rows.again(key, pause_ms(named[key][0], -left_ms)) | time for key, left_ms in claimed]
                    await connection.execute(_SET_AGAIN[rows], again)
                for item, event in (named[key] for key, _ in claimed):
                    node = ""
                    if isinstance(item, due_work.QueuedJob):
                        node = item.node
                        log.warning("sweeper.command_issued_again", owner=item.owner, epoch=item.epoch, kind=item.kind)
                    message = changes.OutgoingMessage(rows.channel, event, item.owner.task_id, node)
                    messages.append(saving.message_row(message, self._clock()))
            if messages:
                await connection.execute(statements.INSERT[tables.outbox], messages)
        if messages:
            self._changed.set()
        return len(messages)

    async def _rows(
        self, rows: _Rows, query: sql.Statement, parameters: dict[str, int | None]
    ) -> list[tuple[sql.Row, dict[str, Any]]]:
        """The rows with the fields that every overdue row has. A row whose owner is no key is logged, and set aside for a while:
        it must neither end the round nor take a place in the next."""
        good: list[tuple[sql.Row, dict[str, Any]]] = []
        time = self._time.parameters()
        for row in await self._database.fetch(query, parameters | time):
            try:
                owner = _parsed(rows.table, row)
            except (ValueError, event_errors.InvalidEvent) as error:
                log.error("overdue.unreadable", table=rows.table.name, owner=row["owner"], error=str(error))
                key = tuple(row[name] for name in rows.key)
                async with self._database.write() as connection:
                    await connection.execute(_SET_AGAIN[rows], rows.again(key, MAX_AGAIN_MS) | time)
                continue
            over = {"over_ms": row[rows.over], "left_ms": row["left_ms"]}
            good.append((row, over | {"owner": owner, "published": row["again_ms"] is not None}))
        return good


def _key(item: due_work.Overdue) -> tuple[Any, ...]:
    match item:
        case due_work.Deadline():
            return (item.owner.text, item.kind, item.serial)
        case due_work.Lease():
            return (item.owner.text, item.epoch, item.over_ms)
        case due_work.QueuedJob():
            return (item.owner.text, item.epoch)


def pause_ms(item: due_work.Overdue, age_ms: int) -> int:
    """The pause before an event is published once more: the age of the row doubles it each time."""
    least_ms = due_work.REISSUE_MS if isinstance(item, due_work.QueuedJob) else AGAIN_MS
    return min(max(age_ms, least_ms), MAX_AGAIN_MS) if item.published else least_ms


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
