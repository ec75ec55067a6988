"""What a deciding transaction writes at its end, in one go: timeline, messages, deadlines. Imports this room alone.

Rule: nothing in the same transaction reads what waits here. Deadlines come last in the order of all locks anyway, and a statement
for many rows costs as much as one for a single row.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from store import statements, tables


class Pending:
    """The rows that wait for the end of one transaction."""

    def __init__(self) -> None:
        self.journal: list[dict[str, Any]] = []
        self.outbox: list[dict[str, Any]] = []
        self._deadlines: dict[tuple[str, str], dict[str, Any] | None] = {}

    def arm(self, owner: str, kind: str, at_ms: int, serial: str) -> None:
        """Arm a deadline, in place of an earlier arming of the same kind."""
        self._deadlines[owner, kind] = {"owner": owner, "kind": kind, "at_ms": at_ms, "serial": serial}

    def disarm(self, owner: str, kind: str) -> None:
        """Take a deadline away, if it is armed."""
        self._deadlines[owner, kind] = None

    async def write(self, connection: AsyncConnection) -> None:
        """Write it all, in the order in which it was said; once."""
        if self.journal:
            await connection.execute(statements.INSERT[tables.journal], self.journal)
        if self.outbox:
            await connection.execute(statements.INSERT[tables.outbox], self.outbox)
        if self._deadlines:
            # In one order everywhere, so that two transactions do not wait for each other.
            keys = [{"at_owner": owner, "at_kind": kind} for owner, kind in sorted(self._deadlines)]
            await connection.execute(statements.DISARM, keys)
            if armed := [row for _, row in sorted(self._deadlines.items()) if row is not None]:
                await connection.execute(statements.INSERT[tables.deadlines], armed)
