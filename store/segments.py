"""Segments of recordings: registered before the capture starts, updated while they grow.

Rule: nothing is written for a superseded epoch. The decision that closes a segment is written by store.transaction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import exists, or_, select

from machine import capture_progress, job_key, segments
from store import connections, statements, tables

_REGISTERED = select(or_(exists().where(statements.matching(tables.segments, "recording_id", "epoch")), statements.SUPERSEDED))
# A concurrent decision may close the segment while this statement waits for the row; the condition on `reason` catches that.
_UPDATE = statements.SAVE_SEGMENT.where(tables.segments.c.reason == "", ~statements.SUPERSEDED)
_SESSION_ACTIVE = statements.updating(tables.sessions, "task_id").where(
    tables.sessions.c.idle_from_ms < statements.at("idle_from_ms")
)
_RECORDING_ACTIVE = statements.updating(tables.recordings, "id", "epoch").where(
    tables.recordings.c.idle_from_ms < statements.at("idle_from_ms")
)
_FIELDS = ("epoch", "node", "first_packet_ms", "last_packet_ms", "media_ms", "registered_ms", "reason")
_OF_RECORDING = (
    select(*(tables.segments.c[name] for name in _FIELDS))
    .where(statements.matching(tables.segments, "recording_id"))
    .order_by(tables.segments.c.epoch)
)


class Segments:
    """The segments of one database."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def register(self, recording: job_key.RecordingKey, epoch: int, node: str) -> None:
        """Register a segment before its capture starts. Idempotent: a known segment keeps its values. A superseded epoch writes
        nothing."""
        row = {"recording_id": recording.text, "epoch": epoch, "node": node, "registered_ms": self._clock()}
        row |= {"media_ms": 0, "size_bytes": 0, "reason": "", "task_id": recording.task_id}
        async with self._database.write() as connection:
            if not (await connection.execute(_REGISTERED, {"at_recording_id": recording.text, "at_epoch": epoch})).scalar():
                await connection.execute(statements.INSERT[tables.segments], row)

    async def update(self, recording: job_key.RecordingKey, epoch: int, values: Mapping[str, Any]) -> None:
        """Update a growing segment: first_packet_ms, last_packet_ms, media_ms, size_bytes. A superseded epoch, or a closed
        segment, writes nothing."""
        async with self._database.write() as connection:
            await connection.execute(_UPDATE, {"at_recording_id": recording.text, "at_epoch": epoch, **values})

    async def note_progress(self, growing: Mapping[tuple[job_key.RecordingKey, int], capture_progress.CaptureProgress]) -> None:
        """Update growing segments, given by recording and epoch, as `update` does. Their recordings and sessions are not idle.
        One transaction of three statements."""
        # In one order, or two nodes with captures in the same sessions could wait for each other.
        found = sorted(growing.items(), key=lambda each: (each[0][0].text, each[0][1]))
        columns, sessions, recordings = [], [], []
        for (recording, epoch), progress in found:
            active = {"at_idle_from_ms": progress.last_packet_ms, "idle_from_ms": progress.last_packet_ms}
            columns.append({"at_recording_id": recording.text, "at_epoch": epoch, **dataclasses.asdict(progress)})
            sessions.append(active | {"at_task_id": recording.task_id})
            recordings.append(active | {"at_id": recording.text, "at_epoch": epoch})
        async with self._database.write() as connection:
            for statement, rows in ((_UPDATE, columns), (_SESSION_ACTIVE, sessions), (_RECORDING_ACTIVE, recordings)):
                await connection.execute(statement, rows)

    async def of_recording(self, recording: job_key.RecordingKey) -> list[segments.Segment]:
        """The segments of a recording in the order of their epochs."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_OF_RECORDING, {"at_recording_id": recording.text})).mappings().all()
        return [segments.Segment(**r) for r in rows]
