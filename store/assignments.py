"""Assignments: the data that a worker loads for a leased job, read in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import due_work, job_key, model
from store import connections, jobs, rows, statements, tables, transaction

_ONE = statements.matching(tables.callbacks, "task_id", "revision")
_DELIVERY = jobs.deliveries().where(_ONE)
_ORIGIN = select(tables.callbacks.c.url).where(_ONE)


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
            # Only this revision: the bodies of all others may be large.
            row = (
                (await connection.execute(_DELIVERY, {"at_task_id": key.task_id, "at_revision": key.revision})).mappings().first()
            )
            return replace(rows.delivery(row), url=await self._begin(connection).callback_url(key.task_id)) if row else None

    async def receiver(self, key: job_key.DeliveryKey) -> str:
        """The host and port of a delivery's URL; "" if there is no such delivery."""
        async with self._database.read() as connection:
            found = (await connection.execute(_ORIGIN, {"at_task_id": key.task_id, "at_revision": key.revision})).scalar()
        return urlsplit(found or "").netloc
