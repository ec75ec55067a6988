"""Heartbeats of nodes, with the URL of their files and their spare capacity.

Rules: a heartbeat writes the row of its own node, and all times are the database's. The first heartbeat after a time without any
extends the join, idle and linger deadlines by that time, once. If the database's clock was set back, the first heartbeat moves
everything that waits for a time back with it, and takes heartbeats of the future out of the rows of other nodes. A node that is
older than the database allows sends none. Rows are locked in the order of `store/connections.py`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, bindparam, exists, func, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import model, nodes, states
from store import connections, database_time, schema, side_by_side, statements, tables

_SPARE_COLUMNS = ("free_bytes", "needed_bytes", "busy")
# Nodes of an older version wrote their own times: those do not tell that the database's clock was set back.
_SEEN_MS = tables.nodes.c.seen_ms
_LAST_SEEN = select(
    select(func.max(_SEEN_MS)).scalar_subquery().label("seen_ms"),
    select(func.max(_SEEN_MS)).where(tables.nodes.c.skew_ms.is_not(None)).scalar_subquery().label("told_ms"),
    database_time.NOW_MS.label("now_ms"),
)
_SAVE = statements.updating(tables.nodes, "node").returning(tables.nodes.c.cordon)
_OLDER = and_(tables.nodes.c.revision < side_by_side.OLDEST, tables.nodes.c.seen_ms > bindparam("since_ms"))
_SIDES = select(tables.schema_range.c.oldest, exists().where(_OLDER).label("older")).where(tables.schema_range.c.id == 1)
# What downtime extends, and what a clock that was set back moves: everything that waits for a time. In the order of the locks.
_EXTENDED = ((tables.deadlines, tables.deadlines.c.at_ms, tables.deadlines.c.kind.in_(model.EXTENDED_BY_DOWNTIME)),)
_WAITING = (
    (tables.jobs, tables.jobs.c.lease_until_ms, text(tables.LEASED)),
    (tables.jobs, tables.jobs.c.again_ms, tables.jobs.c.again_ms.is_not(None)),
    (tables.deadlines, tables.deadlines.c.at_ms, true()),
    (tables.deadlines, tables.deadlines.c.again_ms, tables.deadlines.c.again_ms.is_not(None)),
    (
        tables.outbox,
        tables.outbox.c.claimed_until_ms,
        and_(tables.outbox.c.sent_ms.is_(None), tables.outbox.c.claimed_until_ms > 0),
    ),
)


class Nodes:
    """The nodes of one database."""

    def __init__(self, database: connections.Connections, *, time: database_time.DatabaseTime) -> None:
        self._database = database
        self._time = time
        self.older_alive = False
        """Whether nodes of release 0.1.0 are alive too, by the last heartbeat."""
        self.cordon = nodes.ACTIVE
        """What an operator asked of the node, by the last heartbeat."""

    async def now_ms(self) -> int:
        """The database's time."""
        (row,) = await self._database.fetch(database_time.READ, self._time.parameters())
        return int(row["now_ms"])

    async def heartbeat(
        self,
        node: str,
        url: str = "",
        spare: model.SpareCapacity | None = None,
        *,
        over_ms: int | None = None,
        skew_ms: int | None = None,
        report: nodes.NodeReport | None = None,
    ) -> int:
        """Record that this node is alive, where other nodes fetch its files ("": nowhere), a worker's spare capacity, how far
        its clock is ahead of the database's (None: unknown), and its report to operators.

        If no node sent a heartbeat for longer than `over_ms` (None: no limit), that downtime extends deadlines, once, however
        many nodes come back. If the last heartbeat is so far in the future, the database's clock was set back: whatever waits
        for a time moves back as far, once. Returns the downtime in ms, negative for a clock set back, otherwise 0. Raises
        Outdated."""
        async with self._database.write() as connection:
            moved_ms, now_ms = await self._moved(connection, over_ms)
            sides = (await connection.execute(_SIDES, {"since_ms": now_ms - side_by_side.ALIVE_MS})).one()
            side_by_side.check(sides.oldest, schema.HEAD)
            self.older_alive = bool(sides.older)
            if moved_ms:
                # Nodes that return together would each move by the same time; every other heartbeat waits for no lock.
                await connections.hold_lock(connection, connections.RESUME)
                moved_ms, now_ms = await self._moved(connection, over_ms)
            if moved_ms:
                await _move_idleness(connection, moved_ms)
                for table, column, where in _EXTENDED if moved_ms > 0 else _WAITING:
                    await connection.execute(update(table).where(where).values({column: column + moved_ms}))
            if moved_ms < 0:
                await connection.execute(update(tables.nodes).where(tables.nodes.c.seen_ms > now_ms).values(seen_ms=now_ms))
            capacity: dict[str, Any] = {name: getattr(spare, name) if spare is not None else None for name in _SPARE_COLUMNS}
            values = {"seen_ms": now_ms, "url": url, "revision": schema.HEAD, "skew_ms": skew_ms} | capacity
            self.cordon = await _save(connection, node, values | {"report": report.to_json() if report is not None else ""})
        return moved_ms

    async def _moved(self, connection: AsyncConnection, over_ms: int | None) -> tuple[int, int]:
        """The time since the last heartbeat of any node, 0 if it is not longer than `over_ms`; and the time now."""
        seen_ms, told_ms, now_ms = (await connection.execute(_LAST_SEEN, self._time.parameters())).one()
        if over_ms is None or seen_ms is None:
            return 0, now_ms
        if told_ms is not None and told_ms - now_ms > over_ms:
            return now_ms - told_ms, now_ms
        return (now_ms - seen_ms if now_ms - seen_ms > over_ms else 0), now_ms

    async def url(self, node: str, alive_since_ms: int) -> str:
        """Where the files of a node can be fetched; "" if it sent no heartbeat since then (Unix ms), or offers none."""
        table = tables.nodes
        async with self._database.read() as connection:
            found = select(table.c.url).where(table.c.node == node, table.c.seen_ms >= alive_since_ms)
            row = (await connection.execute(found)).first()
        return str(row.url) if row else ""

    async def spare_capacities(self, alive_since_ms: int) -> list[model.SpareCapacity]:
        """The spare capacities of workers that sent a heartbeat since then (Unix ms), in the order of their names."""
        table = tables.nodes
        alive = select(table).where(table.c.seen_ms >= alive_since_ms, table.c.needed_bytes.is_not(None)).order_by(table.c.node)
        async with self._database.read() as connection:
            rows = (await connection.execute(alive)).all()
        return [model.SpareCapacity(**{name: getattr(row, name) for name in _SPARE_COLUMNS}) for row in rows]


async def older(connection: AsyncConnection, now_ms: int) -> list[str]:
    """The living nodes that are older than a contract allows."""
    found = select(tables.nodes.c.node).where(_OLDER).order_by(tables.nodes.c.node)
    return list((await connection.execute(found, {"since_ms": now_ms - side_by_side.ALIVE_MS})).scalars())


async def _save(connection: AsyncConnection, node: str, values: dict[str, Any]) -> str:
    """Write a node's row; returns its cordon."""
    cordon = (await connection.execute(_SAVE, {"at_node": node} | values)).scalar()
    if cordon is None:
        await connection.execute(statements.INSERT[tables.nodes], {"node": node} | values)
    return cordon or nodes.ACTIVE


async def _move_idleness(connection: AsyncConnection, moved_ms: int) -> None:
    """Move the times from which idleness counts."""
    for rows, active in ((tables.sessions, tables.ACTIVE), (tables.recordings, tables.UNFINISHED)):
        live = and_(text(active), rows.c.state.in_((states.OPEN, *states.CAPTURING)))
        (key,) = rows.primary_key
        if connection.dialect.name == "postgresql":
            # Nodes decide meanwhile: rows are locked in the order in which decisions lock them.
            await connection.execute(select(key).where(live).order_by(key).with_for_update())
        await connection.execute(update(rows).where(live).values(idle_from_ms=rows.c.idle_from_ms + moved_ms))
