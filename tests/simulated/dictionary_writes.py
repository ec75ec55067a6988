"""Row writes of one transaction on the dictionary store's tables.

Rules: every write goes through `put` and `drop`, which save the previous value for `roll_back`. As in store/transaction.py, an
update is guarded by version and state and writes only changed columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from events import codec
from machine import errors, job_key, model, states
from tests.simulated import dictionary_tables

Row = TypeVar("Row", model.Session, model.Recording, model.Delivery)
Owner = model.Recording | model.Delivery
_GONE = object()
# Columns that lease renewals write concurrently.
_RENEWED = ("idle_from_ms",)
_STATES: dict[type, tuple[str, ...]] = {
    model.Session: states.SESSION_STATES,
    model.Recording: states.RECORDING_STATES,
    model.Delivery: ("pending", "delivered", "failed", "cancelled"),
}


class RowWrites:
    """The writes of one transaction, undone as a whole. `changes` has them as (table, key, previous value)."""

    __slots__ = ("_meddle", "changes", "tables")

    def __init__(self, tables: dictionary_tables.Tables, meddle: Callable[[str], bool] | None = None) -> None:
        self.tables = tables
        self.changes: list[tuple[dict[Any, Any], Any, Any]] = []
        self._meddle = meddle

    def put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Write a row."""
        self.changes.append((table, key, table.get(key, _GONE)))
        table[key] = value

    def drop(self, table: dict[Any, Any], key: Any) -> bool:
        """Delete a row; whether there was one."""
        if key not in table:
            return False
        self.changes.append((table, key, table.pop(key)))
        return True

    def roll_back(self) -> None:
        """Undo all writes."""
        for table, key, before in reversed(self.changes):
            if before is _GONE:
                del table[key]
            else:
                table[key] = before

    def put_job(self, owner: str, epoch: int, row: dictionary_tables.JobRow) -> None:
        """Write a job, and update the list of leases."""
        key = (owner, epoch)
        self.put(self.tables.jobs, key, row)
        if row.state == states.LEASED:
            if key not in self.tables.leased:
                self.put(self.tables.leased, key, True)
        else:
            self.drop(self.tables.leased, key)

    def touch(self, owner: str, epoch: int, job: model.Job) -> None:
        """A lease changes data that decisions read: raise the owner's version."""
        rows: dict[str, Any] = self.tables.recordings if owner in self.tables.recordings else self.tables.callbacks
        found = rows.get(owner)
        if found is not None and found.epoch == epoch:
            self.put(rows, owner, model.changed(found, version=found.version + 1, job=job))

    def note_media(self, owner: str, epoch: int, last_packet_ms: int) -> None:
        """Media arrived: idleness counts from there. It moves forwards only, and not by a superseded epoch."""
        task_id = job_key.parse(owner).task_id
        session, recording = self.tables.sessions.get(task_id), self.tables.recordings.get(owner)
        if recording is not None and recording.epoch > epoch:
            return
        if session is not None and session.idle_from_ms < last_packet_ms:
            self.put(self.tables.sessions, task_id, model.changed(session, idle_from_ms=last_packet_ms))
        if recording is not None and recording.epoch == epoch and recording.idle_from_ms < last_packet_ms:
            self.put(self.tables.recordings, owner, model.changed(recording, idle_from_ms=last_packet_ms))

    def send(self, channel: str, event: codec.Event, task_id: str = "", node: str = "") -> None:
        """Put a message into the outbox."""
        seq = self.next_seq()
        line = dictionary_tables.Line(seq, channel, event.type, task_id, node, codec.encode(event))
        self.put(self.tables.outbox, seq, line)
        self.put(self.tables.unsent, seq, True)

    def next_seq(self) -> int:
        """Numbers are never reused, not even those of a rolled-back transaction."""
        self.tables.last_seq += 1
        return self.tables.last_seq

    def update(self, table: dict[str, Any], key: str, old: Row, new: Row, *, state_guards: bool = True) -> Row:
        """Guarded update of the changed columns; returns the row with its new version. Raises Conflict."""
        if self._meddle is not None:
            self._meddled(key)
        found = table.get(key)
        moved = found is None or found.version != old.version or (state_guards and found.state != old.state)
        if moved:
            raise errors.Conflict("another transaction changed the row first")
        if new.state not in _STATES[type(new)]:
            raise errors.Conflict(f"there is no state {new.state!r}")
        kept: dict[str, Any] = {}
        if found is not old:  # a concurrent renewal recorded media: write only changed columns
            kept = {name: getattr(found, name) for name in _RENEWED if hasattr(found, name) and _same(old, new, name)}
            if isinstance(found, model.Session):
                kept["request"] = found.request
        saved = model.changed(new, version=old.version + 1, **kept)
        self.put(table, key, saved)
        return model.changed(new, version=saved.version) if kept else saved

    def save_job(self, owner: str, old: Owner | None, new: Owner, now_ms: int) -> None:
        """End the job of the old epoch, and write a changed job."""
        job, epoch = new.job, new.epoch
        old_epoch, old_job = (old.epoch, old.job) if old is not None else (0, None)
        if old_job is not None and (job is None or epoch != old_epoch):
            row = self.tables.jobs.get((owner, old_epoch))
            if row is not None:
                self.put_job(owner, old_epoch, row._replace(state=states.ENDED))
        if job is not None and not (epoch == old_epoch and job == old_job):
            self.put_job(owner, epoch, dictionary_tables.JobRow(job.kind, job.state, job.node, 0, now_ms))

    def _meddled(self, key: str) -> None:
        """Simulate a concurrent transaction: it changes the row before this one checks its guard, unless this one has changed the
        row already."""
        held = any(at == key or (isinstance(at, tuple) and at[0] == key) for _, at, _ in self.changes)
        if held or self._meddle is None:
            return
        self.tables.writing = False
        try:
            if self._meddle(key):
                raise errors.Conflict("another transaction changed the row first")
        finally:
            self.tables.writing = True


def _same(old: Any, new: Any, name: str) -> bool:
    return bool(getattr(old, name) == getattr(new, name))
