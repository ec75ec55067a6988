"""The database's clock inside a statement: the time between machines.

Rule: leases, heartbeats, deadlines and claims are written and compared by it, in the statement that writes or compares them.
PostgreSQL's is that of the statement's arrival, which an index can be searched for. The clock of SQLite is the machine's. Tests
pin it: then statements get the time of their clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import BigInteger, bindparam, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from store import sql


class _Now(FunctionElement[int]):
    """Unix ms by the database's clock."""

    type = BigInteger()
    inherit_cache = True


@compiles(_Now, "postgresql")
def _on_postgresql(_element: _Now, _compiler: Any, **_: Any) -> str:
    return "(EXTRACT(EPOCH FROM statement_timestamp()) * 1000)::BIGINT"


@compiles(_Now, "sqlite")
def _on_sqlite(_element: _Now, _compiler: Any, **_: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


NOW_MS = func.coalesce(bindparam("now_ms", type_=BigInteger), _Now(), type_=BigInteger)
READ = sql.Statement(select(NOW_MS.label("now_ms")))


class DatabaseTime:
    """The time of one store's statements."""

    def __init__(self, pinned: Callable[[], int] | None) -> None:
        self._pinned = pinned

    def parameters(self) -> dict[str, int | None]:
        """The parameters that NOW_MS needs."""
        return {"now_ms": self._pinned() if self._pinned is not None else None}

    def read(self) -> sql.Steps[int]:
        """The time now, as a step of a transaction."""
        found = yield sql.Step(READ, [self.parameters()])
        return int(found[0]["now_ms"])
