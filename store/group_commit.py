"""Group commit on SQLite: one thread writes, and the transactions that wait together share one commit.

Rule: each transaction has a savepoint of its own, so one that fails is rolled back alone. If the commit fails, all of them fail.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any

from store import sql

MAX_GROUP = 64
CACHED_STATEMENTS = 512

Work = Callable[[], sql.Steps[Any]]


class GroupCommit:
    """Writes to one database file. `writer` excludes the other writers of this process."""

    def __init__(self, path: str, pragmas: Sequence[str], writer: AbstractAsyncContextManager[Any]) -> None:
        self._path = path
        self._pragmas = pragmas
        self._writer = writer
        self._waiting: deque[tuple[Work, asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None

    async def run(self, work: Work) -> Any:
        """Run steps in a transaction; returns their value after the commit."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((work, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="sqlite.group-commit")
        return await done

    async def close(self) -> None:
        """Commit what waits, and close the connection. Idempotent."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
            self._connection = None

    async def _run(self) -> None:
        while self._waiting:
            async with self._writer:
                waiting = [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))]
                group = [(work, done) for work, done in waiting if not done.done()]
                work = [each for each, _ in group]
                outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, work)
            for (_, done), (value, error) in zip(group, outcomes, strict=True):
                if done.done():
                    continue
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(value)

    def _commit(self, group: Sequence[Work]) -> list[tuple[Any, Exception | None]]:
        """Run a group in one transaction; (value, error) of each."""
        try:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                outcomes = [self._one(connection, work) for work in group]
                connection.execute("COMMIT")
            except BaseException:
                connection.rollback()
                raise
        except Exception as error:  # noqa: BLE001 - not swallowed: every caller of the group gets it
            return [(None, error)] * len(group)
        return outcomes

    def _one(self, connection: sqlite3.Connection, work: Work) -> tuple[Any, Exception | None]:
        connection.execute("SAVEPOINT one")
        try:
            value, error = sql.run_in_thread(connection, work()), None
        except Exception as raised:
            if not connection.in_transaction:
                raise  # SQLite rolled everything back, as it may when its disk is full: the whole group has failed
            connection.execute("ROLLBACK TO one")
            value, error = None, raised
        connection.execute("RELEASE one")
        return value, error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, cached_statements=CACHED_STATEMENTS
            )
            for pragma in self._pragmas:
                connection.execute(f"PRAGMA {pragma}")
            self._connection = connection
        return self._connection
