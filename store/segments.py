"""Segments of recordings: registered before the capture starts, updated while they grow.

Rule: nothing is written for a superseded epoch. The decision that closes a segment is written by store.saving.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, bindparam, literal_column, select
from sqlalchemy.dialects import postgresql, sqlite

from machine import capture_progress, job_key, segments
from store import connections, database_time, rows, sql, statements, tables


def _register() -> sql.Statement:
    table = tables.segments
    names = [c.name for c in table.c]
    values: dict[str, Any] = {name: bindparam(name, type_=table.c[name].type) for name in names}
    values["registered_ms"] = database_time.NOW_MS
    new = select(*values.values()).where(~statements.SUPERSEDED)
    return sql.Statement(
        {
            name: insert.insert(table).inline().from_select(names, new).on_conflict_do_nothing()
            for name, insert in (("sqlite", sqlite), ("postgresql", postgresql))
        }
    )


_REGISTER = _register()
# A concurrent decision may close the segment while this statement waits for the row; the condition on `reason` catches that.
_GROWING = statements.updating(tables.segments, "recording_id", "epoch").where(
    tables.segments.c.reason == literal_column("''"), ~statements.SUPERSEDED
)


def _active(table: Any, *key: str, where: ColumnElement[bool] | None = None) -> sql.Statement:
    idle = statements.updating(table, *key).where(table.c.idle_from_ms < statements.at("idle_from_ms"))
    idle = idle.where(where) if where is not None else idle
    return sql.Statement(idle.values(idle_from_ms=statements.at("idle_from_ms")))


_SESSION_ACTIVE = _active(tables.sessions, "task_id", where=~statements.SUPERSEDED)
_RECORDING_ACTIVE = _active(tables.recordings, "id", "epoch")
_PROGRESS = tuple(sorted(f.name for f in dataclasses.fields(capture_progress.CaptureProgress)))
_OF_RECORDING = sql.Statement(
    select(*(tables.segments.c[name] for name in rows.SEGMENT_FIELDS))
    .where(statements.matching(tables.segments, "recording_id"))
    .order_by(tables.segments.c.epoch)
)


@functools.cache
def _growing(columns: tuple[str, ...]) -> sql.Statement:
    return sql.Statement(_GROWING.values({column: bindparam(column) for column in columns}))


class Segments:
    """The segments of one database."""

    def __init__(self, database: connections.Connections, *, time: database_time.DatabaseTime) -> None:
        self._database = database
        self._time = time

    async def register(self, recording: job_key.RecordingKey, epoch: int, node: str) -> None:
        """Register a segment before its capture starts. Idempotent: a known segment keeps its values. A superseded epoch writes
        nothing."""
        row: dict[str, Any] = {"recording_id": recording.text, "epoch": epoch, "node": node} | self._time.parameters()
        row |= {"media_ms": 0, "size_bytes": 0, "reason": "", "task_id": recording.task_id}
        row |= {"first_packet_ms": None, "last_packet_ms": None, "anchors": ""}
        named = {"at_recording_id": recording.text, "at_epoch": epoch}
        await self._database.together(_REGISTER, row | named)

    async def update(self, recording: job_key.RecordingKey, epoch: int, values: Mapping[str, Any]) -> None:
        """Update a growing segment: first_packet_ms, last_packet_ms, media_ms, size_bytes. A superseded epoch, or a closed
        segment, writes nothing."""
        named = {"at_recording_id": recording.text, "at_epoch": epoch}
        await self._database.fetch(_growing(tuple(sorted(values))), named | dict(values))

    async def note_progress(self, growing: Mapping[tuple[job_key.RecordingKey, int], capture_progress.CaptureProgress]) -> None:
        """Update growing segments, given by recording and epoch, as `update` does. Their recordings and sessions are not idle,
        unless another epoch has superseded them. One transaction of three statements."""
        # In one order, or two nodes with captures in the same sessions could wait for each other.
        found = sorted(growing.items(), key=lambda each: (each[0][0].text, each[0][1]))
        columns, sessions, recordings = [], [], []
        for (recording, epoch), progress in found:
            active = {"at_idle_from_ms": progress.last_packet_ms}
            values = {name: getattr(progress, name) for name in _PROGRESS} | {"anchors": rows.anchors_text(progress.anchors)}
            columns.append({"at_recording_id": recording.text, "at_epoch": epoch, **values})
            superseded = {"at_recording_id": recording.text, "at_epoch": epoch}
            sessions.append(active | {"at_task_id": recording.task_id} | superseded)
            recordings.append(active | {"at_id": recording.text, "at_epoch": epoch})
        update = _growing(_PROGRESS)

        def steps() -> sql.Steps[None]:
            # In the order of all locks: session, recording, segment.
            for statement, changed in ((_SESSION_ACTIVE, sessions), (_RECORDING_ACTIVE, recordings), (update, columns)):
                yield sql.Step(statement, changed)

        await self._database.run(steps)

    async def of_recording(self, recording: job_key.RecordingKey) -> list[segments.Segment]:
        """The segments of a recording in the order of their epochs."""
        found = await self._database.fetch(_OF_RECORDING, {"at_recording_id": recording.text})
        return [rows.segment(row) for row in map(dict, found)]
