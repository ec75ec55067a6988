"""Rows that a deciding transaction writes at its end, in one go: journal, outbox, deadlines.

Rule: nothing in the same transaction reads these rows. Deadlines come last in the order of all locks, and a statement for many
rows costs as much as one for a single row.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from events import codec
from store import statements, tables

_DISARM = statements.deleting(tables.deadlines, "owner", "kind")


class PendingWrites:
    """The rows that one transaction writes at its end."""

    def __init__(self) -> None:
        self.journal: list[dict[str, Any]] = []
        self.outbox: list[dict[str, Any]] = []
        self._deadlines: dict[tuple[str, str], dict[str, Any] | None] = {}

    def send(self, channel: str, event: codec.Event, task_id: str, node: str, now_ms: int) -> None:
        """Add a message to the outbox."""
        body = codec.encode(event).decode()
        row = {"channel": channel, "type": event.type, "task_id": task_id, "node": node, "body": body, "parked": ""}
        self.outbox.append(row | {"created_ms": now_ms, "claimed_until_ms": 0, "sent_ms": None})

    def arm(self, owner: str, kind: str, at_ms: int, serial: str) -> None:
        """Arm a deadline; replaces an earlier one of the same kind."""
        self._deadlines[owner, kind] = {"owner": owner, "kind": kind, "at_ms": at_ms, "serial": serial}

    def disarm(self, owner: str, kind: str) -> None:
        """Disarm a deadline, if it is armed."""
        self._deadlines[owner, kind] = None

    async def write(self, connection: AsyncConnection) -> None:
        """Write all rows in the order in which they were added. Called once."""
        if self.journal:
            await connection.execute(statements.INSERT[tables.journal], self.journal)
        if self.outbox:
            await connection.execute(statements.INSERT[tables.outbox], self.outbox)
        if self._deadlines:
            # In the same order in every transaction, so that two do not deadlock.
            keys = [{"at_owner": owner, "at_kind": kind} for owner, kind in sorted(self._deadlines)]
            await connection.execute(_DISARM, keys)
            if armed := [row for _, row in sorted(self._deadlines.items()) if row is not None]:
                await connection.execute(statements.INSERT[tables.deadlines], armed)
