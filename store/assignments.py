"""Assignments: the data that a worker loads for a leased job, read in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from machine import due_work, model
from store import connections, transaction


class Assignments:
    """The assignments of one database. `begin` makes a transaction of a connection; nothing is written in it."""

    def __init__(self, database: connections.Connections, begin: Callable[[AsyncConnection], transaction.Transaction]) -> None:
        self._database = database
        self._begin = begin

    async def recording(self, recording_id: str) -> due_work.Assignment | None:
        """The assignment of a recording's job; None if there is no such recording. Raises DecryptionFailed."""
        async with self._database.read() as connection:
            tx = self._begin(connection)
            recording = await tx.recording(recording_id)
            session = await tx.session(recording.task_id) if recording else None
            if recording is None or session is None:
                return None
            return due_work.Assignment(session=session, recording=recording, secrets=await tx.secrets(recording.task_id))

    async def delivery(self, delivery_id: str) -> model.Delivery | None:
        """A delivery by its id, `TaskId#revision`, with its whole URL. Raises DecryptionFailed."""
        async with self._database.read() as connection:
            tx = self._begin(connection)
            found = [d for d in await tx.deliveries(delivery_id.split("#")[0]) if d.id == delivery_id]
            return replace(found[0], url=await tx.callback_url(found[0].task_id)) if found else None
