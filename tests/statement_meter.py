"""Meter of a store's statements: how many run, how many rows come back, and how much the database reads for them.

Rule: figures without time. SQLite counts the instructions of its virtual machine, PostgreSQL the rows that its scans read.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import pytest
from sqlalchemy import event

from store import connections, sql
from store import store as stores
from tests import decider_harness, engines, waiting

Value = TypeVar("Value")
_READ_BY_SCANS = (
    "SELECT (SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables)"
    " + (SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes)"
)
_OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


class Cost(NamedTuple):
    """The cost of one call."""

    name: str
    statements: int
    rows: int
    instructions: int  # SQLite's; 0 on PostgreSQL


class Meter:
    """Counts what the stores of this process do, from its creation on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = self.statements = self.rows = self.instructions = 0
        self.costs: list[Cost] = []
        self.executed: dict[str, tuple[sql.Statement | None, Any]] = {}
        """Text → its statement, None for one that SQLAlchemy ran, and parameters of it."""
        run, fetch, connect = connections.Connections.run, connections.Connections.fetch, sqlite3.connect

        async def counted_run(database: Any, steps: Callable[[], sql.Steps[Value]]) -> Value:
            return await run(database, lambda: self._counting(steps(), database.engine.dialect.name))

        async def counted_fetch(database: Any, statement: sql.Statement, parameters: sql.Row) -> Any:
            before = self.statements
            rows = await fetch(database, statement, parameters)
            if self.statements == before:
                self._count(sql.Step(statement, [parameters]), database.engine.dialect.name)
                self.rows += len(rows)
            return rows

        def counted_connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
            opened = connect(*arguments, **named)
            opened.set_progress_handler(self._instruction, 1)
            return opened

        monkeypatch.setattr(connections.Connections, "run", counted_run)
        monkeypatch.setattr(connections.Connections, "fetch", counted_fetch)
        monkeypatch.setattr(sqlite3, "connect", counted_connect)

    async def measure(self, name: str, call: Awaitable[Value]) -> Value:
        """Note the cost of one call."""
        statements, rows, instructions = self.statements, self.rows, self.instructions
        value = await call
        spent = self.statements - statements, self.rows - rows, self.instructions - instructions
        self.costs.append(Cost(name, *spent))
        return value

    @contextlib.contextmanager
    def watching(self, store: stores.Store) -> Iterator[None]:
        """Count the statements of this store that SQLAlchemy runs, too."""
        engine = store.connections.engine.sync_engine
        event.listen(engine, "before_cursor_execute", self._note)
        yield
        event.remove(engine, "before_cursor_execute", self._note)

    async def read(self, database: engines.Database) -> int:
        """How much the database has read so far. On PostgreSQL the stores must be closed: only then is all counted."""
        if database.engine == "sqlite":
            return self.instructions
        await waiting.until(lambda: asyncio.to_thread(database.ask, _OTHERS + " HAVING count(*) = 0"), what="closed connections")
        return int((await asyncio.to_thread(database.ask, _READ_BY_SCANS))[0][0])

    def _counting(self, running: sql.Steps[Value], dialect: str) -> sql.Steps[Value]:
        answer: Any = None
        while True:
            try:
                step = running.send(answer)
            except StopIteration as end:
                value: Value = end.value
                return value
            self._count(step, dialect)
            answer = yield step
            self.rows += len(answer)

    def _count(self, step: sql.Step, dialect: str) -> None:
        self.steps += 1
        self.statements += len(step.rows)
        if step.rows:
            text, arrange = step.statement.on(dialect)
            self.executed[text] = step.statement, arrange(step.rows[0])

    def _note(self, _: Any, __: Any, text: str, parameters: Any, ___: Any, many: bool) -> None:
        self.steps += 1
        self.statements += 1
        if text.startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
            self.executed.setdefault(text, (None, parameters[0] if many else parameters))

    def _instruction(self) -> int:
        self.instructions += 1
        return 0


class Work(NamedTuple):
    """The work of a database for some calls."""

    steps: int  # a statement for any number of rows
    reads: int  # of rows, or instructions of SQLite


async def work(
    meter: Meter,
    database: engines.Database,
    clock: engines.Clock,
    prefix: str,
    act: Callable[[decider_harness.Harness], Awaitable[Any]],
) -> Work:
    """The work for `act`, on a store of its own whose ids begin with `prefix`."""
    steps, reads = meter.steps, await meter.read(database)
    async with decider_harness.opened(database, clock, prefix) as harness:
        with meter.watching(harness.store):
            await act(harness)
    return Work(meter.steps - steps, await meter.read(database) - reads)
