"""Group commit on SQLite: one thread writes, and the transactions that wait together share one commit.

Rules:
- Each transaction has a savepoint of its own, so one that fails is rolled back alone. If the commit fails, all of them fail.
- A disk that hangs keeps nobody waiting: after `SILENT_S` all transactions are refused, and further ones at once, until it
  answers. Those that the thread had begun may be committed then, as with a server that was lost during the commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog

from machine import daemon_threads
from store import outages, sql

log = structlog.get_logger()

MAX_GROUP = 64
CACHED_STATEMENTS = 512
# Longer than SQLite waits for the lock of another process (connections.BUSY_TIMEOUT_MS), and than a slow disk takes for a commit.
SILENT_S = 15.0
# How long `close` waits for a disk that hangs.
CLOSE_S = 3.0

Work = Callable[[], sql.Steps[Any]]


class GroupCommit:
    """Writes to one database file. `writer` excludes the other writers of this process."""

    def __init__(self, path: str, pragmas: Sequence[str], writer: AbstractAsyncContextManager[Any]) -> None:
        self._path = path
        self._pragmas = pragmas
        self._writer = writer
        self._waiting: deque[tuple[Work, asyncio.Future[Any]]] = deque()
        self._group: list[tuple[Work, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None
        # A daemon: a write that hangs does not keep the process from ending.
        self._thread = daemon_threads.DaemonThreads("sqlite", 1)
        self._connection: sqlite3.Connection | None = None
        self._heard_s = 0.0
        self._hangs = False
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def hangs(self) -> bool:
        """Whether transactions are refused until the file answers."""
        return self._hangs

    @property
    def silent_s(self) -> float:
        """How long the file has not answered while transactions wait for it."""
        return time.monotonic() - self._heard_s if self._task is not None and not self._task.done() else 0.0

    async def run(self, work: Work) -> Any:
        """Run steps in a transaction; returns their value after the commit. Raises Hanging."""
        if self._hangs:
            raise outages.Hanging(self.silent_s)
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((work, done))
        if self._task is None or self._task.done():
            self._heard()
            self._task = asyncio.create_task(self._run(), name="sqlite.group-commit")
        return await done

    async def close(self) -> None:
        """Commit what waits, and close the connection; a disk that hangs is left alone. Idempotent."""
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=CLOSE_S)
        connection, self._connection = self._connection, None
        if connection is not None and not await self._thread.run_within(CLOSE_S, connection.close):
            self._hangs = True
            log.warning("database.not_closed", silent_s=round(self.silent_s))

    async def _run(self) -> None:
        try:
            while self._waiting:
                async with self._writer:
                    waiting = [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))]
                    self._group = [(work, done) for work, done in waiting if not done.done()]
                    self._heard()
                    await self._commit_group()
        finally:
            if self._alarm is not None:
                self._alarm.cancel()

    async def _commit_group(self) -> None:
        group = self._group
        try:
            outcomes = await self._thread.run(self._commit, [work for work, _ in group])
        except RuntimeError as no_thread:  # the system's limit
            outcomes = [(None, no_thread)] * len(group)
        self._heard()
        self._group = []
        for (_, done), (value, error) in zip(group, outcomes, strict=True):
            if done.done():
                continue
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(value)

    def _heard(self) -> None:
        """The file answers: from now on it may be silent for `SILENT_S`."""
        self._heard_s = time.monotonic()
        if self._hangs:
            log.info("database.answers_again")
        if self._hangs or self._alarm is None or self._alarm.cancelled():
            self._hangs = False
            self._alarm = asyncio.get_running_loop().call_later(SILENT_S, self._look)

    def _look(self) -> None:
        """Refuse everything that waits if the file was silent for too long."""
        left_s = SILENT_S - self.silent_s
        if left_s > 0:
            self._alarm = asyncio.get_running_loop().call_later(left_s, self._look)
            return
        self._hangs = True
        log.error("database.hangs", silent_s=round(self.silent_s), waiting=len(self._group) + len(self._waiting))
        for _, done in (*self._group, *self._waiting):
            if not done.done():
                done.set_exception(outages.Hanging(self.silent_s))
        self._waiting.clear()

    def _commit(self, group: Sequence[Work]) -> list[tuple[Any, Exception | None]]:
        """Run a group in one transaction; (value, error) of each."""
        try:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                outcomes = [self._one(connection, work) for work in group]
                self._heard_s = time.monotonic()
                connection.execute("COMMIT")
            except BaseException:
                connection.rollback()
                raise
        except Exception as error:  # noqa: BLE001 - not swallowed: every caller of the group gets it
            return [(None, error)] * len(group)
        return outcomes

    def _one(self, connection: sqlite3.Connection, work: Work) -> tuple[Any, Exception | None]:
        self._heard_s = time.monotonic()
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
