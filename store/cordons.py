"""Nodes as operators see them: the list of the nodes with their leases, and the cordon of a node.

Rules: a cordon and its audit entry are one transaction. A node reads its cordon with its next heartbeat. The list is bounded, and
leaves out nodes without the role worker that send no heartbeat: they hold no file, and never come back under their name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import errors, model, nodes
from store import audit, connections, tables

# Nodes that are listed; more are not alive at a time.
LISTED = 500
ACTIONS = {nodes.ACTIVE: "node-uncordon", nodes.CORDONED: "node-cordon", nodes.DRAINING: "node-drain"}
_LEASES = select(tables.jobs.c.node, tables.jobs.c.kind, func.count().label("number")).where(text(tables.LEASED))


class Cordons:
    """The nodes of one database. A node is alive for `alive_ms` after its last heartbeat."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int], alive_ms: int) -> None:
        self._database = database
        self._clock = clock
        self._alive_ms = alive_ms

    async def list(self) -> Sequence[nodes.NodeRow]:
        """The living nodes and the workers that are away, by their names. Raises Unavailable."""
        async with self._database.read() as connection:
            return await self._rows(connection)

    async def set(self, name: str, cordon: str, by: model.Caller) -> nodes.NodeRow:
        """Ask a worker for one of the keys of ACTIONS; returns its row. Idempotent.

        Raises NotFound, Refused for a node that takes no captures or knows no cordon, and for a drain without another worker."""
        async with self._database.write() as connection:
            # Of two drains at a time, the second one sees the first.
            await connections.hold_lock(connection, connections.CORDON)
            found = {node.node: node for node in await self._rows(connection)}
            if name not in found:
                raise errors.NotFound("There is no such node; `recorder nodes list` shows them.")
            _check(found[name], cordon, [node for node in found.values() if node.node != name])
            if found[name].cordon != cordon:
                await connection.execute(update(tables.nodes).where(tables.nodes.c.node == name).values(cordon=cordon))
                await audit.write(connection, self._clock(), by, ACTIONS[cordon], name)
        return replace(found[name], cordon=cordon)

    async def _rows(self, connection: AsyncConnection) -> Sequence[nodes.NodeRow]:
        now_ms, table = self._clock(), tables.nodes
        rows = (await connection.execute(select(table).order_by(table.c.seen_ms.desc()).limit(LISTED))).all()
        leases: dict[str, dict[str, int]] = {}
        for lease in await connection.execute(_LEASES.group_by(tables.jobs.c.node, tables.jobs.c.kind)):
            leases.setdefault(lease.node, {})[lease.kind] = lease.number
        found = [
            nodes.NodeRow(
                node=row.node,
                seen_ms=row.seen_ms,
                alive=now_ms - row.seen_ms <= self._alive_ms,
                cordon=row.cordon,
                free_bytes=row.free_bytes,
                needed_bytes=row.needed_bytes,
                busy=row.busy or "",
                skew_ms=row.skew_ms,
                report=nodes.NodeReport.from_json(row.report),
                leases=leases.get(row.node, {}),
            )
            for row in rows
        ]
        return sorted((node for node in found if node.alive or node.is_worker), key=lambda node: node.node)


def _check(node: nodes.NodeRow, cordon: str, others: list[nodes.NodeRow]) -> None:
    """Raise Refused for a cordon that would do nothing, or leave captures without a node."""
    if cordon == nodes.ACTIVE:
        return
    if not node.is_worker:
        raise errors.Refused(f"{node.node} is no worker: it takes no captures. Stop it when you like.")
    if node.report is None:
        raise errors.Refused(
            f"{node.node} runs an earlier version, which knows no cordon. When it stops, it hands over its captures."
        )
    takers = [other for other in others if other.alive and other.is_worker and other.cordon == nodes.ACTIVE]
    if cordon == nodes.DRAINING and not takers:
        raise errors.Refused(
            f"No other worker is alive and free of a cordon to take the captures of {node.node}: start one, or `recorder nodes"
            " uncordon` one."
        )
