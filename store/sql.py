"""SQL of the paths that every event takes: statements compiled once for both engines, and steps that a driver runs.

Rules: a query is declared with SQLAlchemy and run by the database's own driver, because building and wrapping a statement costs
several times its execution (`python -m bench.decisions`). Code that needs the database is a generator of steps: it yields a
statement with parameters and receives rows, and the same code runs in SQLite's thread and on a connection to PostgreSQL.
"""

from __future__ import annotations

import json
import operator
import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Boolean, Executable
from sqlalchemy.dialects import postgresql, sqlite

from machine import errors

# PostgreSQL: the class of violated constraints; serialization_failure, deadlock_detected.
CONSTRAINT = "23"
CONFLICTS = ("40001", "40P01")
# lock_not_available: the transaction waited longer than LOCK_TIMEOUT_MS for a row.
LOCKED = "55P03"
Row = Mapping[str, Any]
Value = TypeVar("Value")
_DIALECTS = {"sqlite": sqlite.dialect(paramstyle="qmark"), "postgresql": postgresql.asyncpg.dialect()}  # type: ignore[no-untyped-call]


class Statement:
    """One statement, compiled for each engine on first use. Parameters are named as in store/statements.py.

    `columns` are the columns of an insert. Rows come back from a query, and from a write with RETURNING. A `counted` write
    returns something for each row that it wrote: PostgreSQL by RETURNING, SQLite by its count, which is cheaper."""

    def __init__(self, clause: Executable | Mapping[str, Executable], *columns: str, counted: bool = False) -> None:
        self._clause = clause
        self.counted = counted
        self._columns = list(columns) or None
        self._made: dict[str, tuple[str, Callable[[Row], tuple[Any, ...]]]] = {}
        one: Any = clause["sqlite"] if isinstance(clause, Mapping) else clause
        self.names = tuple(c.key for c in one.exported_columns)
        self.booleans = tuple(c.key for c in one.exported_columns if isinstance(c.type, Boolean))

    def on(self, dialect: str) -> tuple[str, Callable[[Row], tuple[Any, ...]]]:
        """The text for an engine, and the function that brings parameters into its order."""
        if dialect not in self._made:
            clause: Any = self._clause[dialect] if isinstance(self._clause, Mapping) else self._clause
            compiled = clause.compile(dialect=_DIALECTS[dialect], column_keys=self._columns)
            order, constants = compiled.positiontup or (), {n: v for n, v in compiled.params.items() if v is not None}
            self._made[dialect] = str(compiled), _arranging(order, constants)
        return self._made[dialect]


def _arranging(order: Sequence[str], constants: Row) -> Callable[[Row], tuple[Any, ...]]:
    if constants:
        return lambda row: tuple([row[name] if name in row else constants[name] for name in order])
    if len(order) > 1:
        return operator.itemgetter(*order)
    return lambda row: tuple([row[name] for name in order])


class Step(NamedTuple):
    """Run a statement once for each of `rows`; the answer is all rows that come back, in their order."""

    statement: Statement
    rows: Sequence[Row]


def packed(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows as the one parameter of a statement that unpacks them (`_given` in store/statements.py) and runs once for all."""
    return [{"rows": json.dumps(rows)}] if rows else ()


Answer = Sequence[Row]
Steps = Generator[Step, Answer, Value]


def run_in_thread(connection: sqlite3.Connection, steps: Steps[Value]) -> Value:
    """Run steps on SQLite. Raises Conflict for a row that violates a constraint."""
    answer: Any = None
    try:
        while True:
            statement, rows = steps.send(answer)
            text, arrange = statement.on("sqlite")
            if not statement.names:
                written = connection.executemany(text, [arrange(row) for row in rows])
                answer = [{}] * written.rowcount if statement.counted else ()
                continue
            names, booleans = statement.names, statement.booleans
            answer = [dict(zip(names, values, strict=True)) for row in rows for values in connection.execute(text, arrange(row))]
            for name in booleans:
                for made in answer:
                    if made[name] is not None:
                        made[name] = bool(made[name])
    except StopIteration as end:
        value: Value = end.value
        return value
    except sqlite3.IntegrityError as error:
        raise errors.Conflict(f"the row exists already, or another has its place ({error})") from error


async def run_on_server(connection: Any, steps: Steps[Value]) -> Value:
    """Run steps on a connection of asyncpg; the rows of one step are sent together. Raises Conflict for a row that violates a
    constraint, and for a transaction that the server rolled back in favor of another."""
    answer: Any = None
    try:
        while True:
            statement, rows = steps.send(answer)
            text, arrange = statement.on("postgresql")
            answer = ()
            if not rows:
                continue
            if not statement.names and not statement.counted:
                await connection.executemany(text, [arrange(row) for row in rows])
            elif len(rows) == 1:
                answer = await connection.fetch(text, *arrange(rows[0]))
            else:
                answer = await connection.fetchmany(text, [arrange(row) for row in rows])
    except StopIteration as end:
        value: Value = end.value
        return value
    except Exception as error:
        state = getattr(error, "sqlstate", None) or ""
        if state.startswith(CONSTRAINT):
            raise errors.Conflict("the row exists already, or another has its place") from error
        if state in (*CONFLICTS, LOCKED):
            raise errors.Conflict("PostgreSQL rolled this transaction back in favor of a concurrent one") from error
        raise
