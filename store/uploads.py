"""Progress of interrupted uploads, so that the next attempt resumes with the parts that are already in the bucket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from machine import job_key
from store import connections, leases, sql, statements, tables

_DELETED = statements.deleting(tables.uploads, "recording_id")
_STATE = sql.Statement(select(tables.uploads.c.body).where(statements.matching(tables.uploads, "recording_id")))
_LOCK_LEASE = sql.Statement(leases.HELD.with_for_update())
_DELETE = sql.Statement(_DELETED)
_DELETE_UNLESS_SUPERSEDED = sql.Statement(_DELETED.where(~statements.SUPERSEDED))
_INSERT = statements.inserting(tables.uploads)


class Uploads:
    """The upload states of one database, at most one for each recording."""

    def __init__(self, database: connections.Connections) -> None:
        self._database = database

    async def state(self, recording: job_key.RecordingKey) -> dict[str, Any] | None:
        """The state of an interrupted upload, or None."""
        found = await self._database.fetch(_STATE, {"at_recording_id": recording.text})
        return json.loads(found[0]["body"]) if found else None

    async def save(self, recording: job_key.RecordingKey, epoch: int, node: str, body: Mapping[str, Any]) -> bool:
        """Save the state of a running upload. False: the lease was refused and nothing was written; stop the work."""
        row = {"recording_id": recording.text, "body": json.dumps(dict(body))}

        def steps() -> sql.Steps[bool]:
            if not (yield sql.Step(_LOCK_LEASE, [leases.held(recording, epoch, node)])):
                return False
            yield sql.Step(_DELETE, [{"at_recording_id": recording.text}])
            yield sql.Step(_INSERT, [row])
            return True

        return await self._database.run(steps)

    async def delete(self, recording: job_key.RecordingKey, epoch: int) -> None:
        """Delete the state of the upload of `epoch`, unless a newer epoch has started. Idempotent. The lease is not checked: it
        may have ended with the outcome that was just published."""
        await self._database.fetch(_DELETE_UNLESS_SUPERSEDED, {"at_recording_id": recording.text, "at_epoch": epoch})
