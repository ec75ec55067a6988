"""A store of dictionaries: the third engine behind the ports of SQLite and PostgreSQL, fast enough for thousands of histories.

Rule: finding, refusing, overwriting and rolling back follow `store/`; the same rows of the conformance suite
(tests/contract/test_store*.py) verify all engines. Nothing here waits, so `tests.simulated.coroutine_runner` can run a coroutine
to its end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from machine import model
from tests.simulated import (
    dictionary_connections,
    dictionary_decisions,
    dictionary_files,
    dictionary_jobs,
    dictionary_messages,
    dictionary_tables,
)


class Store:
    """One database in memory. `tables` outlive the store, so that a database can be opened again."""

    def __init__(self, *, clock: Callable[[], int], tables: dictionary_tables.Tables | None = None) -> None:
        self.tables = tables or dictionary_tables.Tables()
        self.connections = dictionary_connections.Connections(self.tables, clock=clock)
        self.changed = self.connections.changed
        self.armed = asyncio.Event()
        self.assignments = dictionary_jobs.Assignments(self.connections)
        self.attempts = dictionary_messages.Attempts()
        self.decisions = dictionary_decisions.Decisions(self.connections)
        self.deadlines = dictionary_jobs.Deadlines(self.connections)
        self.leases = dictionary_jobs.Leases(self.connections)
        self.nodes = dictionary_jobs.Nodes(self.connections)
        self.outbox = dictionary_messages.Outbox(self.connections)
        self.presence = dictionary_decisions.Presence(self.connections)
        self.retention = dictionary_messages.Retention(self.connections)
        self.segments = dictionary_files.Segments(self.connections)
        self.spool_files = dictionary_files.SpoolFiles(self.connections)
        self.uploads = dictionary_files.Uploads(self.connections, self.leases)

    async def start(self) -> None:
        """There is no schema to migrate."""

    async def stop(self) -> None:
        """There is nothing to close."""

    # --- queries ----------------------------------------------------------------------------------------------------------
    async def timeline(self, task_id: str) -> list[dictionary_tables.JournalLine]:
        """A session's journal, oldest first."""
        return [line for line in self.tables.journal.values() if line.task_id == task_id]

    async def sessions(self) -> tuple[list[model.Session], str]:
        """All sessions, newest first, as one page."""
        return sorted(self.tables.sessions.values(), key=lambda s: s.task_id, reverse=True), ""

    async def results(self, task_id: str) -> list[dict[str, Any]]:
        """The results of a session, oldest revision first."""
        return [json.loads(body) for (of, _), body in sorted(self.tables.results.items()) if of == task_id]
