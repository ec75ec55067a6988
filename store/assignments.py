"""Assignments: the data that a worker loads for a leased job, read in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from machine import due_work, job_key, model
from store import connections, transaction


class Assignments:
    """The assignments of one database. `begin` makes a transaction of a connection; nothing is written in it."""

    def __init__(self, database: connections.Connections, begin: Callable[[AsyncConnection], transaction.Transaction]) -> None:
        self._database = database
        self._begin = begin

    async def recording(self, key: job_key.RecordingKey) -> due_work.Assignment | None:
        """The assignment of a recording's job; None if there is no such recording. Raises DecryptionFailed."""
        async with self._database.read() as connection:
            tx = self._begin(connection)
            recording, session = await tx.recording(key), await tx.session(key.task_id)
            if recording is None or session is None:
                return None
            return due_work.Assignment(session=session, recording=recording, secrets=await tx.secrets(key.task_id))

    async def delivery(self, key: job_key.DeliveryKey) -> model.Delivery | None:
        """A delivery with its whole URL. Raises DecryptionFailed."""
        async with self._database.read() as connection:
            tx = self._begin(connection)
            found = [d for d in await tx.deliveries(key.task_id) if d.revision == key.revision]
            return replace(found[0], url=await tx.callback_url(key.task_id)) if found else None
