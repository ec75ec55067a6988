"""Leases: which node works on which job, and until when.

Rules: a lease belongs to exactly one epoch of a job; the database's rows decide who holds it. Rows are locked in the order of all
locks: session, recording, job.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Executable,
    Integer,
    Table,
    Update,
    and_,
    bindparam,
    cast,
    exists,
    func,
    literal_column,
    null,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql

from machine import due_work, job_key, states
from store import connections, database_time, sql, statements, tables

_LEASE_UNTIL_MS = database_time.NOW_MS + bindparam("lease_ms", type_=BigInteger)
_QUEUED = and_(statements.matching(tables.jobs, "owner", "epoch"), tables.jobs.c.state == states.QUEUED)
_TAKEN = (
    update(tables.jobs)
    .where(_QUEUED)
    .values(state=states.LEASED, node=bindparam("node"), lease_until_ms=_LEASE_UNTIL_MS, again_ms=null())
    .returning(tables.jobs.c.owner, tables.jobs.c.epoch)
)


def _at(table: Table, **key: str) -> Any:
    return and_(*(table.c[name] == statements.at(parameter) for name, parameter in key.items()))


_OWNERS: dict[type, tuple[Table, Any]] = {
    job_key.RecordingKey: (tables.recordings, _at(tables.recordings, id="owner", epoch="epoch")),
    job_key.DeliveryKey: (tables.callbacks, _at(tables.callbacks, task_id="task_id", revision="revision", epoch="epoch")),
}


def _touch(table: Table, owner: Any) -> Update:
    """A lease changes data that decisions read: it raises its owner's version, so that a concurrent decision is repeated."""
    return update(table).where(owner).values(version=table.c.version + 1)


def _take(table: Table, owner: Any, *, free: bool) -> sql.Statement:
    """Take a job. On PostgreSQL the same statement touches its owner, first and only if the job is queued (`free`: and if no
    other transaction has locked the owner). SQLite knows no update inside another statement, and needs none: it has no round
    trips."""
    chosen = and_(owner, exists().where(_QUEUED))
    if free:
        unlocked = select(*table.primary_key).where(chosen).with_for_update(skip_locked=True).scalar_subquery()
        chosen = tuple_(*table.primary_key) == unlocked
    first = _touch(table, chosen).returning(table.c.epoch).cte("touched")
    return sql.Statement({"sqlite": _TAKEN, "postgresql": _TAKEN.where(exists(select(literal_column("1")).select_from(first)))})


_TOUCH = {kind: sql.Statement(_touch(*of)) for kind, of in _OWNERS.items()}
_TAKE = {kind: _take(*of, free=False) for kind, of in _OWNERS.items()}
_TAKE_FREE = {kind: _take(*of, free=True) for kind, of in _OWNERS.items()}
_HELD = statements.matching(tables.jobs, "owner", "epoch", "node", "state")
HELD = select(tables.jobs.c.epoch).where(_HELD)
_HOLDS = sql.Statement(HELD)


def _renew_on_sqlite() -> Executable:
    each = func.json_each(bindparam("jobs")).table_valued("value")
    # Not as a list of pairs: SQLite finds these by their owners alone, and an owner may have thousands of ended jobs.
    asked = select(
        *(func.json_extract(each.c.value, literal_column(f"'$[{n}]'")).label(name) for n, name in enumerate(("owner", "epoch")))
    ).subquery()
    table = tables.jobs
    named = (table.c.owner == asked.c.owner, table.c.epoch == asked.c.epoch)
    found = update(table).where(*named, statements.matching(table, "node", "state"))
    return found.values(lease_until_ms=_LEASE_UNTIL_MS).returning(table.c.owner, table.c.epoch)


def _renew_on_postgresql() -> Executable:
    # A row that a decision has locked is skipped: the renewals of all others must not wait for it, and no order of locks is kept.
    each = func.json_array_elements(cast(bindparam("jobs"), postgresql.JSON)).table_valued("value")
    owner, epoch = (each.c.value.op("->>")(literal_column(str(place))) for place in (0, 1))
    table, held = tables.jobs, tables.jobs.alias("held")
    free = (
        select(held.c.owner, held.c.epoch)
        .where(
            held.c.owner == owner,
            held.c.epoch == cast(epoch, Integer),
            held.c.node == statements.at("node"),
            held.c.state == statements.at("state"),
        )
        .with_for_update(of=held, skip_locked=True)
        .subquery()
    )
    found = update(table).where(table.c.owner == free.c.owner, table.c.epoch == free.c.epoch)
    return found.values(lease_until_ms=_LEASE_UNTIL_MS).returning(table.c.owner, table.c.epoch)


# `jobs` is a JSON array of [owner, epoch]: one text for any number of jobs.
_RENEW = sql.Statement({"sqlite": _renew_on_sqlite(), "postgresql": _renew_on_postgresql()})
_LEASES = select(tables.jobs.c.owner, tables.jobs.c.epoch, tables.jobs.c.kind, tables.jobs.c.node).where(text(tables.LEASED))


class Leases:
    """The leases of one database."""

    def __init__(self, database: connections.Connections, *, time: database_time.DatabaseTime) -> None:
        self._database = database
        self._time = time

    async def take(self, owner: job_key.JobKey, epoch: int, node: str, lease_ms: int) -> bool:
        """Take the queued job of `owner` under exactly this epoch. False: it is leased, stopped or superseded; do nothing."""
        leased = {"at_owner": owner.text, "at_epoch": epoch, "node": node, "lease_ms": lease_ms}
        leased |= self._time.parameters()
        if isinstance(owner, job_key.DeliveryKey):
            leased |= {"at_task_id": owner.task_id, "at_revision": owner.revision}
        if self._database.on_server:
            # Those that are taken at the same moment share a commit. None of them waits for an owner that a decision has locked:
            # it is taken alone.
            free = await self._database.together(_TAKE_FREE[type(owner)], leased)
            return bool(free or await self._database.fetch(_TAKE[type(owner)], leased))

        def steps() -> sql.Steps[bool]:
            taken = yield sql.Step(_TAKE[type(owner)], [leased])
            if taken:
                yield sql.Step(_TOUCH[type(owner)], [leased])
            return bool(taken)

        return await self._database.run(steps)

    async def renew_all(
        self, jobs: Sequence[tuple[job_key.JobKey, int]], node: str, lease_ms: int
    ) -> set[tuple[job_key.JobKey, int]]:
        """Renew the leases of these jobs, given by owner and epoch, in one transaction. Returns the refused ones: stop their work
        and write nothing more."""
        asked = {"jobs": json.dumps([(owner.text, epoch) for owner, epoch in jobs]), "lease_ms": lease_ms}
        asked |= self._time.parameters()
        rows = await self._database.fetch(_RENEW, asked | {"at_node": node, "at_state": states.LEASED})
        held = {(row["owner"], row["epoch"]) for row in rows}
        missing = {job for job in jobs if (job[0].text, job[1]) not in held}
        if not missing or not self._database.on_server:
            return missing
        # A row that was locked is no refusal.
        async with self._database.read() as connection:
            named = _LEASES.where(tables.jobs.c.node == node, tables.jobs.c.owner.in_([owner.text for owner, _ in missing]))
            locked = {(row.owner, row.epoch) for row in (await connection.execute(named)).all()}
        return {job for job in missing if (job[0].text, job[1]) not in locked}

    async def is_held(self, owner: job_key.JobKey, epoch: int, node: str) -> bool:
        """Whether this node still holds the lease."""
        return bool(await self._database.fetch(_HOLDS, held(owner, epoch, node)))

    async def to_stop(self, captures: Sequence[tuple[job_key.RecordingKey, int]]) -> set[tuple[job_key.RecordingKey, int]]:
        """Those of these captures, given by recording and epoch, that are asked to stop."""
        table = tables.recordings
        named = table.c.id.in_([owner.text for owner, _ in captures])
        async with self._database.read() as connection:
            rows = (await connection.execute(select(table.c.id, table.c.epoch).where(named, table.c.stop_requested))).all()
        asked = {(row.id, row.epoch) for row in rows}
        return {job for job in captures if (job[0].text, job[1]) in asked}

    async def of_node(self, node: str) -> list[due_work.Lease]:
        """The leases that a node holds."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_LEASES.where(tables.jobs.c.node == node))).all()
        return [due_work.Lease(owner=job_key.parse_job(r.owner), epoch=r.epoch, kind=r.kind, node=r.node) for r in rows]


def held(owner: job_key.JobKey, epoch: int, node: str) -> dict[str, Any]:
    """The parameters of HELD."""
    return {"at_owner": owner.text, "at_epoch": epoch, "at_node": node, "at_state": states.LEASED}
