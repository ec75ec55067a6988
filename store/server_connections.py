"""Connections to PostgreSQL for the paths that every event takes: kept between transactions, and used without SQLAlchemy.

Rules: a connection on which anything but a conflict failed is closed. One that the server has ended is noticed before its use,
and replaced. A transaction that waits too long for a row gives up, because its batch waits with it; it is repeated alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from machine import batches, errors
from store import outages, sql

LOCK_TIMEOUT_MS = 500
# Kept of those that a moment of much work took from the engine's pool.
KEPT = 4
MAX_TOGETHER = 64

Value = TypeVar("Value")


class ServerConnections:
    """Takes connections from the pool of an engine, and keeps some of them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        pool: Any = engine.pool
        # The rest stays in the pool: reads take theirs from it, and would wait without end for a kept one.
        self._kept = min(KEPT, pool.size() // 2)
        self._closed = False
        self._together = batches.Batches("store.together", self._run_together, at_most=MAX_TOGETHER)
        self._free: list[tuple[AsyncConnection, Any]] = []

    async def run(self, steps: Callable[[], sql.Steps[Value]]) -> Value:
        """Run steps in one transaction."""
        async with self._connection() as server, server.transaction():
            return await sql.run_on_server(server, steps())

    async def fetch(self, statement: sql.Statement, parameters: sql.Row) -> Any:
        """Run one statement, which is a transaction of its own."""

        def steps() -> sql.Steps[Any]:
            return (yield sql.Step(statement, [parameters]))

        async with self._connection() as server:
            return await sql.run_on_server(server, steps())

    async def together(self, statement: sql.Statement, parameters: sql.Row) -> Any:
        """Run one statement in a transaction that it shares with those that wait at the same moment."""
        return await self._together.run((statement, parameters))

    async def _run_together(self, items: Sequence[tuple[sql.Statement, sql.Row]]) -> Sequence[Any]:
        by_statement: dict[sql.Statement, list[sql.Row]] = {}
        for statement, parameters in items:
            by_statement.setdefault(statement, []).append(parameters)

        def steps() -> sql.Steps[dict[sql.Statement, list[sql.Row]]]:
            found = {}
            for statement, rows in by_statement.items():
                found[statement] = list((yield sql.Step(statement, rows)))
            return found

        try:
            found = await self.run(steps)
        except Exception as error:
            if outages.outage(error) is not None:
                raise
            # Each meets its own error.
            return await asyncio.gather(*(self.fetch(*item) for item in items), return_exceptions=True)
        return [_own(found[statement], parameters) for statement, parameters in items]

    async def close(self) -> None:
        """Close the kept connections. Idempotent."""
        self._closed = True
        await self._together.stop()
        await self.drop_free()

    async def drop_free(self) -> None:
        """Close the kept connections that no transaction uses now; new ones are made on demand."""
        free, self._free = self._free, []
        for connection, _ in free:
            await _drop(connection)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        connection, server = await self._take()
        try:
            yield server
        except errors.Conflict:
            # The transaction is rolled back, and the connection is as good as before.
            await self._give_back(connection, server)
            raise
        except BaseException:
            await _drop(connection)
            raise
        await self._give_back(connection, server)

    async def _give_back(self, connection: AsyncConnection, server: Any) -> None:
        if not self._closed and len(self._free) < self._kept and not server.is_closed():
            self._free.append((connection, server))
            return
        try:
            await server.execute("RESET lock_timeout")
        except BaseException:
            await _drop(connection)
            raise
        await connection.close()

    async def _take(self) -> tuple[AsyncConnection, Any]:
        while self._free:
            connection, held = self._free.pop()
            if not held.is_closed():
                return connection, held
            await _drop(connection)
        connection = await self._engine.connect()
        try:
            server: Any = (await connection.get_raw_connection()).driver_connection
            await server.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
        except BaseException:
            await _drop(connection)
            raise
        return connection, server


async def _drop(connection: AsyncConnection) -> None:
    await connection.invalidate()
    await connection.close()


def _own(found: list[sql.Row], parameters: sql.Row) -> Sequence[sql.Row]:
    """Take out the first row whose columns are those that the parameters name: another caller may have asked for the same."""
    for place, row in enumerate(found):
        if all(parameters[f"at_{name}"] == value for name, value in row.items()):
            return [found.pop(place)]
    return ()
