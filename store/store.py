"""The store: one database, its decisions, and one object for each concern of bus, worker and sweeper.

Rule: every write is short and its own transaction; no caller sees a connection, a table or SQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from machine import encryption
from store import (
    assignments,
    attempts,
    connections,
    database_time,
    deadlines,
    decisions,
    encrypted_rows,
    leases,
    nodes,
    outbox,
    presence,
    retention,
    schema,
    segments,
    spool_files,
    uploads,
)


class Store:
    """One database. Two hints for tasks that poll as well: `changed` is set after each commit that may have written to the
    outbox, `armed` after each that may have armed a deadline."""

    def __init__(
        self,
        database: connections.Connections,
        *,
        clock: Callable[[], int],
        keyring: encryption.Keyring,
        pinned: bool = False,
    ) -> None:
        """`clock` estimates the database's time (machine.database_clock). `pinned`: statements take its time too, for tests."""
        time = database_time.DatabaseTime(clock if pinned else None)
        self.connections = database
        self._keyring = keyring
        self.changed = asyncio.Event()
        self.armed = asyncio.Event()
        self.assignments = assignments.Assignments(database, keyring=keyring)
        self.attempts = attempts.Attempts(database, clock=clock)
        self.deadlines = deadlines.Deadlines(database, clock=clock, time=time, changed=self.changed)
        self.decisions = decisions.Decisions(database, time=time, keyring=keyring, changed=self._wake)
        self.leases = leases.Leases(database, time=time)
        self.nodes = nodes.Nodes(database, time=time)
        self.outbox = outbox.Outbox(
            database, clock=clock, time=time, changed=self.changed, beside_older=lambda: self.nodes.older_alive
        )
        self.presence = presence.Presence(database, clock=clock)
        self.retention = retention.Retention(database, clock=clock)
        self.segments = segments.Segments(database, time=time)
        self.spool_files = spool_files.SpoolFiles(database)
        self.uploads = uploads.Uploads(database)

    async def start(self) -> None:
        """Migrate the schema, and encrypt secrets that older schemas kept in plain text. Raises Unavailable, also for secrets
        that no key decrypts."""
        await schema.migrate(self.connections)
        await self.check_encrypted()

    async def check_encrypted(self) -> None:
        """Verify that a key for every secret is here, and encrypt those in plain text. Raises Unavailable."""
        secrets = encrypted_rows.EncryptedRows(self.connections, self._keyring)
        await secrets.check()
        await secrets.encrypt_plain()

    def _wake(self) -> None:
        self.changed.set()
        self.armed.set()

    async def stop(self) -> None:
        """Wait for the decisions that run, and close the connections."""
        await self.decisions.stop()
        await self.connections.close()
