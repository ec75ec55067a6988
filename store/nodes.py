"""The nodes' signs of life, and what they say of themselves with them. Imports `machine`.

Rule: a node writes its own row and no other's. What is moved besides, once, are the deadlines of all when no node was alive.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import model, states
from store import locks, statements, tables

SPARE_COLUMNS = ("free_bytes", "needed_bytes", "busy")


async def _write_down(connection: AsyncConnection, node: str, now_ms: int, url: str, spare: model.SpareCapacity | None) -> None:
    said: dict[str, Any] = {name: getattr(spare, name) if spare is not None else None for name in SPARE_COLUMNS}
    values = {"seen_ms": now_ms, "url": url} | said
    if not (await connection.execute(statements.SIGN_OF_LIFE, {"at_node": node} | values)).rowcount:
        await connection.execute(statements.INSERT[tables.nodes], {"node": node} | values)


async def url(connection: AsyncConnection, node: str, alive_since_ms: int) -> str:
    """Where its files can be fetched; "" if it gave no sign of life since then, or offers none."""
    table = tables.nodes
    found = select(table.c.url).where(table.c.node == node, table.c.seen_ms >= alive_since_ms)
    row = (await connection.execute(found)).first()
    return str(row.url) if row else ""


async def spare_capacities(connection: AsyncConnection, alive_since_ms: int) -> list[model.SpareCapacity]:
    """The rooms of the workers that gave a sign of life since then, in the order of their names."""
    table = tables.nodes
    alive = select(table).where(table.c.seen_ms >= alive_since_ms, table.c.needed_bytes.is_not(None)).order_by(table.c.node)
    return [
        model.SpareCapacity(**{name: getattr(row, name) for name in SPARE_COLUMNS})
        for row in (await connection.execute(alive)).all()
    ]


async def last_seen_ms(connection: AsyncConnection) -> int | None:
    """When any of them was last alive; None where there is none."""
    row = (await connection.execute(statements.LAST_SEEN)).first()
    return int(row.seen_ms) if row else None


async def forgive(connection: AsyncConnection, away_ms: int) -> None:
    """Move join, idle and linger deadlines, and what idleness counts from, by so much."""
    for rows in (tables.sessions, tables.recordings):
        live = rows.c.state.in_((states.OPEN, *states.CAPTURING))
        (key,) = rows.primary_key
        # Nodes decide meanwhile: rows are locked in the order in which decisions lock them.
        await connection.execute(select(key).where(live).order_by(key).with_for_update())
        await connection.execute(update(rows).where(live).values(idle_from_ms=rows.c.idle_from_ms + away_ms))
    table = tables.deadlines
    await connection.execute(
        update(table).where(table.c.kind.in_(model.EXTENDED_BY_DOWNTIME)).values(at_ms=table.c.at_ms + away_ms)
    )


async def heartbeat(
    connection: AsyncConnection, node: str, now_ms: int, url: str, spare: model.SpareCapacity | None, *, over_ms: int | None
) -> int:
    """As Store.heartbeat."""
    away_ms = 0 if over_ms is None else await _away_ms(connection, now_ms, over_ms)
    if away_ms and over_ms is not None:
        # Nodes that come back together would each forgive the same time; every other sign of life waits for nobody.
        await locks.hold(connection, locks.RESUME)
        away_ms = await _away_ms(connection, now_ms, over_ms)
    if away_ms:
        await forgive(connection, away_ms)
    await _write_down(connection, node, now_ms, url, spare)
    return away_ms


async def _away_ms(connection: AsyncConnection, now_ms: int, over_ms: int) -> int:
    """For how long there was no sign of life; 0 if not for longer than `over_ms`."""
    seen_ms = await last_seen_ms(connection)
    return now_ms - seen_ms if seen_ms is not None and now_ms > seen_ms + over_ms else 0
