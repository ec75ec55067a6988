"""Rows that cannot be read: changed by hand, damaged, or written by a version that this one does not know.

Rule: such a row ends the decisions and answers that need it, and no others. It is logged each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from store.sql import Row

log = structlog.get_logger()

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableRow:
    """One such row."""

    table: str
    task_id: str
    id: str
    reason: str

    def error(self) -> RuntimeError:
        """The error of whoever needs the row."""
        return RuntimeError(f"row {self.id} of the table {self.table} cannot be read: {self.reason}. Repair it in the database.")


def read(table: str, row: Row, make: Callable[[Row], Value]) -> Value | UnreadableRow:
    """The value of a row, or the reason why there is none."""
    try:
        return make(row)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        found = UnreadableRow(
            table=table,
            task_id=str(row.get("task_id", "")),
            id=str(row.get("id") or row.get("task_id") or row.get("place", "")),
            reason=f"{type(error).__name__}: {error}"[:200],
        )
        log.error("row.unreadable", table=table, row_id=found.id, reason=found.reason)
        return found


def readable(table: str, rows: Iterable[Row], make: Callable[[Row], Value]) -> list[Value]:
    """The values of the rows that can be read."""
    made = (read(table, row, make) for row in rows)
    return [value for value in made if not isinstance(value, UnreadableRow)]
