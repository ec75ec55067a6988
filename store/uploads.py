"""Progress of interrupted uploads, so that the next attempt resumes with the parts that are already in the bucket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from machine import job_key
from store import connections, leases, statements, tables

_STATE = select(tables.uploads.c.body).where(statements.matching(tables.uploads, "recording_id"))
_LOCK_LEASE = leases.HOLDS.with_for_update()
_DELETE = statements.deleting(tables.uploads, "recording_id")
_DELETE_UNLESS_SUPERSEDED = _DELETE.where(~statements.SUPERSEDED)


class Uploads:
    """The upload states of one database, at most one for each recording."""

    def __init__(self, database: connections.Connections) -> None:
        self._database = database

    async def state(self, recording: job_key.RecordingKey) -> dict[str, Any] | None:
        """The state of an interrupted upload, or None."""
        async with self._database.read() as connection:
            row = (await connection.execute(_STATE, {"at_recording_id": recording.text})).first()
        return json.loads(row.body) if row else None

    async def save(self, recording: job_key.RecordingKey, epoch: int, node: str, body: Mapping[str, Any]) -> bool:
        """Save the state of a running upload. False: the lease was refused and nothing was written; stop the work."""
        row = {"recording_id": recording.text, "body": json.dumps(dict(body))}
        async with self._database.write() as connection:
            if (await connection.execute(_LOCK_LEASE, leases.held(recording, epoch, node))).first() is None:
                return False
            await connection.execute(_DELETE, {"at_recording_id": recording.text})
            await connection.execute(statements.INSERT[tables.uploads], row)
        return True

    async def delete(self, recording: job_key.RecordingKey, epoch: int) -> None:
        """Delete the state of the upload of `epoch`, unless a newer epoch has started. Idempotent. The lease is not checked: it
        may have ended with the outcome that was just published."""
        async with self._database.write() as connection:
            await connection.execute(_DELETE_UNLESS_SUPERSEDED, {"at_recording_id": recording.text, "at_epoch": epoch})
