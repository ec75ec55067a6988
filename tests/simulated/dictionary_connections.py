"""Transactions on the dictionary store's tables, one at a time.

Rule: nothing waits inside a transaction. One that begins inside another raises AssertionError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from machine import job_key
from tests.simulated import dictionary_tables, dictionary_writes

Given = TypeVar("Given")


class Connections:
    """Opens transactions.

    `changed` is set after each commit of a decision. `watch`, if set, is called with the writes of each transaction just before
    its commit. `meddle`, if set, is called with the key of a row that a decision's update is about to check, and returns whether
    another transaction changed it."""

    def __init__(self, tables: dictionary_tables.Tables, *, clock: Callable[[], int]) -> None:
        self.tables = tables
        self.now_ms = clock
        self.changed = asyncio.Event()
        self.watch: Callable[[dictionary_writes.RowWrites], None] | None = None
        self.meddle: Callable[[str], bool] | None = None

    async def ping(self) -> None:
        """A dictionary always responds."""

    def decision(self) -> OpenTransaction[dictionary_writes.RowWrites]:
        """The transaction of a decision. Raises Conflict."""
        writes = dictionary_writes.RowWrites(self.tables, self.meddle)
        return OpenTransaction(self, writes, writes)

    def write(self) -> OpenTransaction[dictionary_writes.RowWrites]:
        """A transaction of a worker or relay: `changed` is not set, and `meddle` is not called."""
        writes = dictionary_writes.RowWrites(self.tables)
        return OpenTransaction(self, writes, writes, notify=False)

    def superseded(self, recording: job_key.RecordingKey, epoch: int) -> bool:
        """Whether a newer epoch of the recording has started."""
        found = self.tables.recordings.get(str(recording))
        return found is not None and found.epoch > epoch


class OpenTransaction(Generic[Given]):
    """A transaction while it is open: commits at the end of the block, rolls back on any error."""

    __slots__ = ("_connections", "_given", "_notify", "_writes")

    def __init__(
        self, connections: Connections, writes: dictionary_writes.RowWrites, given: Given, *, notify: bool = True
    ) -> None:
        self._connections = connections
        self._writes = writes
        self._given = given
        self._notify = notify

    async def __aenter__(self) -> Given:
        if self._connections.tables.writing:
            raise AssertionError("a transaction began inside another: something waited in the middle of one")
        self._connections.tables.writing = True
        return self._given

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._connections.tables.writing = False
        if kind is not None:
            self._writes.roll_back()
            return
        if self._connections.watch is not None:
            self._connections.watch(self._writes)
        if self._notify:
            self._connections.changed.set()


class Concern:
    """One concern of a store: reads the tables, and writes in transactions of its own."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._tables = connections.tables
