"""Connections to SQLite's file through SQLAlchemy, for queries and for single transactions.

Rules:
- One writer of this process at a time: `writer` is held until the connection of the last one is closed.
- Nobody waits for a file that hangs. After `group_commit.SILENT_S`, or a cancellation, the connection is left to itself, and is
  closed when its call returns. If that takes longer than `SILENT_S`, every further use is refused at once until then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from store import group_commit, outages

log = structlog.get_logger()

# Execution option of a connection whose transactions begin as writers.
WRITE = "recorder_write"
# Connections at a time.
MOST = 15
# How long the end of a use waits until its connection is closed.
CLOSE_S = 1.0


class FileConnections:
    """The connections of one engine on one file."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.writer = asyncio.Lock()
        # Whoever waits in SQLAlchemy's pool is not told that another one failed to open a connection.
        self._slots = asyncio.Semaphore(MOST)
        self._engine = engine
        self._writing = engine.execution_options(**{WRITE: True})
        # Connections that are left to themselves, and when they were opened (monotonic).
        self._left: dict[asyncio.Task[None], float] = {}
        self._ending = False
        # Connections that their threads close after the present call.
        self._stopping: dict[Any, asyncio.Future[Any]] = {}
        # SQLAlchemy waits for the end of the call when it discards a connection, even in a task that is being cancelled.
        engine.sync_engine.dialect.do_terminate = self._terminate  # type: ignore[assignment, method-assign]

    @property
    def hangs(self) -> bool:
        """Whether a connection was left to itself, and its call has not returned."""
        return bool(self._left)

    @property
    def silent_s(self) -> float:
        """For how long the file has not answered; 0 if no connection is left to itself."""
        return time.monotonic() - min(self._left.values(), default=time.monotonic())

    @asynccontextmanager
    async def read(self, *, limited: bool = True) -> AsyncIterator[AsyncConnection]:
        """A connection that only reads. `limited`: raise Hanging after SILENT_S."""
        async with self._opened(self._engine, limited=limited) as connection:
            yield connection

    @asynccontextmanager
    async def write(self, *, limited: bool = True) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end of the block. `limited`: raise Hanging after SILENT_S; then it may be committed
        later."""
        async with self._opened(self._writing, limited=limited, lock=self.writer) as connection:
            await connection.begin()
            yield connection
            await connection.commit()

    async def close(self) -> None:
        """Close all connections, except those that hang. Safe to call twice."""
        self._ending = True
        disposing = asyncio.create_task(self._engine.dispose())
        await asyncio.wait((disposing, *self._left), timeout=group_commit.CLOSE_S)
        if self._left or not disposing.done():
            log.warning("database.connections_not_closed", connections=len(self._left))

    @asynccontextmanager
    async def _opened(
        self, engine: AsyncEngine, *, limited: bool, lock: asyncio.Lock | None = None
    ) -> AsyncIterator[AsyncConnection]:
        if self.silent_s >= group_commit.SILENT_S:
            raise outages.Hanging(self.silent_s)
        began_s = time.monotonic()
        limit = asyncio.timeout(group_commit.SILENT_S if limited else None)
        opening: asyncio.Task[AsyncConnection] | None = None
        held: list[asyncio.Lock | asyncio.Semaphore] = []
        try:
            async with limit:
                for needed in (lock, self._slots):
                    if needed is not None:
                        await needed.acquire()
                        held.append(needed)
                opened_s = time.monotonic()
                opening = asyncio.create_task(_start(engine.connect()))
                yield await asyncio.shield(opening)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise outages.Hanging(time.monotonic() - began_s) from error
        finally:
            if opening is not None:
                await self._leave(asyncio.create_task(self._close(opening)), opened_s, held)
            else:
                _release(held)

    async def _leave(self, closing: asyncio.Task[None], opened_s: float, held: list[asyncio.Lock | asyncio.Semaphore]) -> None:
        """Wait a moment until the connection is closed; its place and its lock are released then."""
        closing.add_done_callback(lambda _: _release(held))
        try:
            await asyncio.wait((closing,), timeout=CLOSE_S)
        finally:  # also if this wait is cancelled
            if not closing.done():
                self._left[closing] = opened_s
                closing.add_done_callback(lambda _: self._left.pop(closing))

    async def _close(self, opening: asyncio.Task[AsyncConnection]) -> None:
        """Close a connection when its call returns, which rolls back what is not committed. Logs its errors: nobody waits any
        more, and whoever waited for the opening has its error."""
        try:
            connection = await opening
            if self._ending:
                # The pool closes no connection that comes back after its end.
                await connection.invalidate()
            await connection.close()
        except Exception as error:  # noqa: BLE001 - not swallowed: logged, and the connection is not used again
            log.debug("database.connection_not_closed", reason=type(error).__name__)
        while self._stopping:
            await asyncio.wait(self._stopping.values())

    def _terminate(self, connection: Any) -> None:
        """Have the thread of a connection close it after its present call."""
        driver = connection.driver_connection
        try:
            open_ = driver.isolation_level is None
        except ValueError:
            open_ = False
        # A thread that has ended would never answer.
        if open_ and driver not in self._stopping:
            self._stopping[driver] = driver.stop()
            self._stopping[driver].add_done_callback(lambda _: self._stopping.pop(driver))


async def _start(connection: AsyncConnection) -> AsyncConnection:
    return await connection.start()


def _release(held: list[asyncio.Lock | asyncio.Semaphore]) -> None:
    for each in held:
        each.release()
