"""Saving: writes the changes of decisions, with one step for each kind of row.

Rules: rows are written in the order of all locks: session, recording, delivery, segment, job, deadline. An update that finds its
row changed raises Conflict. The time from which idleness counts only grows, because lease renewals write it concurrently.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from events import codec
from machine import alignment, changes, due_work, encryption, errors, model, presence, states
from store import encrypted_rows, rows, sql, statements
from store.sql import Row, Statement, Step, Steps


class Saver:
    """Writes changes at the time `now_ms`."""

    def __init__(self, keyring: encryption.Keyring, now_ms: int) -> None:
        self._keyring = keyring
        self._now_ms = now_ms

    def save(self, made: Sequence[changes.Changes]) -> Steps[None]:
        """Write the changes of decisions, each about sessions of its own. Raises Conflict."""
        yield from self._sessions(made)
        yield from self._recordings(made)
        yield from self._deliveries(made)
        segments = [
            {"at_recording_id": key.text, "at_epoch": epoch, "first_packet_ms": None, "last_packet_ms": None}
            | {"media_ms": 0, "size_bytes": 0}
            | dict(values)
            | {"anchors": rows.anchors_text(values.get("anchors", alignment.NO_ANCHORS))}
            for each in made
            for key, epoch, values in each.segments
        ]
        yield from _write(statements.CLOSE_SEGMENT, segments)
        yield from self._jobs(made)
        yield from self._secrets(made)
        yield from self._presence(made)
        yield from self._messages(made)
        yield from self._deadlines(made)

    def _sessions(self, made: Sequence[changes.Changes]) -> Steps[None]:
        pairs = sorted((pair for each in made for pair in each.sessions.values()), key=lambda pair: pair[1].task_id)
        yield from _write(statements.ADD_SESSION, [rows.session_row(new) for old, new in pairs if old is None])
        moved: list[Row] = []
        stayed: list[Row] = []
        for old, new in pairs:
            if old is not None:
                key = {"at_task_id": old.task_id, "at_state": old.state, "at_version": old.version}
                (stayed if old.state == new.state else moved).append(key | rows.session_columns(new))
        yield from _update(statements.MOVE_SESSION, moved)
        yield from _update(statements.SAVE_SESSION, stayed)

    def _recordings(self, made: Sequence[changes.Changes]) -> Steps[None]:
        pairs = sorted((pair for each in made for pair in each.recordings.values()), key=lambda pair: pair[1].key.text)
        yield from _write(statements.ADD_RECORDING, [rows.recording_row(new) for old, new in pairs if old is None])
        moved: list[Row] = []
        stayed: list[Row] = []
        for old, new in pairs:
            if old is not None:
                key = {"at_id": old.key.text, "at_state": old.state, "at_version": old.version}
                (stayed if _indexed(old) == _indexed(new) else moved).append(key | rows.recording_row(new))
        yield from _update(statements.MOVE_RECORDING, moved)
        yield from _update(statements.SAVE_RECORDING, stayed)

    def _deliveries(self, made: Sequence[changes.Changes]) -> Steps[None]:
        pairs = [pair for each in made for pair in each.deliveries.values()]
        yield from _write(statements.ADD_DELIVERY, [rows.delivery_row(new) for old, new in pairs if old is None])
        saved = [
            {"at_task_id": old.task_id, "at_revision": old.revision, "at_version": old.version} | rows.delivery_row(new)
            for old, new in pairs
            if old is not None
        ]
        yield from _update(statements.SAVE_DELIVERY, saved)

    def _jobs(self, made: Sequence[changes.Changes]) -> Steps[None]:
        ended, put = [], []
        for each in made:
            pairs: list[tuple[Any, Any]] = [*each.recordings.values(), *each.deliveries.values()]
            for old, new in pairs:
                owner = new.key.text
                if old is not None and old.job is not None and (new.job is None or new.epoch != old.epoch):
                    ended.append({"at_owner": owner, "at_epoch": old.epoch})
                if new.job is not None and (old is None or new.epoch != old.epoch or new.job != old.job):
                    put.append(_job_row(owner, new.epoch, new.job, self._now_ms))
        yield from _write(statements.END_JOB, ended)
        yield from _write(statements.PUT_JOB, put)

    def _secrets(self, made: Sequence[changes.Changes]) -> Steps[None]:
        put, wiped = [], []
        for each in made:
            for old, new in each.sessions.values():
                if old is None and new.request.callback:
                    put.append(self._secret(new.task_id, encrypted_rows.CALLBACK, new.request.callback))
            for task_id, secrets in each.secrets.items():
                if secrets is None:
                    wiped.append({"at_task_id": task_id, "at_kind": encrypted_rows.CREDENTIALS})
                else:
                    put.append(self._secret(task_id, encrypted_rows.CREDENTIALS, rows.dumps(secrets.to_json())))
        yield from _write(statements.PUT_SECRET, put)
        # The callback URL stays: a later revision may have to be posted.
        yield from _write(statements.WIPE_SECRET, wiped)

    def _secret(self, task_id: str, kind: str, clear: str) -> Row:
        made = encrypted_rows.encrypt(self._keyring, task_id, kind, clear)
        return {"task_id": task_id, "kind": kind, "updated_ms": self._now_ms, **made}

    def _presence(self, made: Sequence[changes.Changes]) -> Steps[None]:
        reports: changes.Presence = {}
        for about, known in (report for each in made for report in each.presence.items()):
            reports[about] = presence.merged(reports.get(about, presence.ABSENT), known)
        yield from save_presence(reports, {app for each in made for app in each.applications}, self._now_ms)

    def _messages(self, made: Sequence[changes.Changes]) -> Steps[None]:
        results = [(*result, self._now_ms) for each in made for result in each.results]
        names = ("task_id", "revision", "body", "at_ms")
        yield from _write(statements.ADD_RESULT, [dict(zip(names, result, strict=True)) for result in results])
        audited = [audit_row(note, self._now_ms) for each in made for note in each.audit]
        yield from _write(statements.ADD_AUDIT, audited)
        journal = [
            {"task_id": entry.owner.task_id, "at_ms": self._now_ms, **entry._asdict(), "owner": entry.owner.text}
            for each in made
            for entry in each.journal
        ]
        yield from _write(statements.ADD_JOURNAL, journal)
        yield from _write(statements.ADD_MESSAGE, [message_row(m, self._now_ms) for each in made for m in each.messages])

    def _deadlines(self, made: Sequence[changes.Changes]) -> Steps[None]:
        # In the same order in every transaction, so that two do not deadlock.
        found = sorted((owner.text, kind, armed) for each in made for (owner, kind), armed in _in_order(each))
        yield from _write(statements.DISARM, [{"at_owner": owner, "at_kind": kind} for owner, kind, armed in found if not armed])
        for statement, once in ((statements.ARM, False), (statements.ARM_ONCE, True)):
            armed_rows = [
                {"owner": owner, "kind": kind, "at_ms": armed[0].at_ms, "serial": armed[0].serial, "again_ms": None}
                for owner, kind, armed in found
                if armed and armed[0].once == once
            ]
            yield from _write(statement, armed_rows)


def message_row(message: changes.OutgoingMessage, now_ms: int) -> Row:
    """A row of the outbox."""
    channel, event, task_id, node = message
    body = codec.encode(event).decode()
    row = {"channel": channel, "type": event.type, "task_id": task_id, "node": node, "body": body, "parked": ""}
    return row | {"created_ms": now_ms, "claimed_until_ms": 0, "sent_ms": None}


def audit_row(note: changes.AuditNote, now_ms: int) -> Row:
    """A row of the audit."""
    row = {"at_ms": now_ms, "who": note.by.name[:128], "key_id": note.by.key_id, "action": note.action}
    return row | {"subject": note.subject[:128], "outcome": note.outcome}


def _in_order(made: changes.Changes) -> Iterable[tuple[Any, tuple[changes.Armed, ...]]]:
    return ((key, (armed,) if armed is not None else ()) for key, armed in made.deadlines.items())


def _job_row(owner: str, epoch: int, job: model.Job, now_ms: int) -> Row:
    queued_ms = now_ms if job.state == states.QUEUED else None
    again_ms = now_ms + due_work.REISSUE_MS if job.state == states.QUEUED else None
    row = {"owner": owner, "epoch": epoch, "kind": job.kind, "state": job.state, "node": job.node}
    return row | {"lease_until_ms": 0, "again_ms": again_ms, "queued_ms": queued_ms}


def save_presence(reports: changes.Presence, applications: Iterable[int], now_ms: int) -> Steps[None]:
    """Merge reports, and note the applications whose callbacks arrive; in the same order in every transaction, so that two do not
    deadlock."""
    places = {"sdk_app_id": 0, "room_kind": "", "room": "", "user_id": "", "updated_ms": now_ms}
    made = [
        places | {"sdk_app_id": room.sdk_app_id, "room_kind": room.kind, "room": room.name, "user_id": user, **known}
        for (room, user), known in reports.items()
    ]
    made.sort(key=operator.itemgetter("sdk_app_id", "room_kind", "room", "user_id"))
    yield from _write(statements.MERGE_PRESENCE, sql.packed(made))
    noted = [{"sdk_app_id": app, "callback_ms": now_ms} for app in sorted(applications)]
    yield from _write(statements.NOTE_APPLICATION, noted)


def _write(statement: Statement, written: Sequence[Row]) -> Steps[None]:
    if written:
        yield Step(statement, written)


def _update(statement: Statement, written: Sequence[Row]) -> Steps[None]:
    if written and len((yield Step(statement, written))) != len(written):
        raise errors.Conflict("another transaction changed the row first")


def _indexed(recording: model.Recording) -> tuple[Any, ...]:
    """The values whose change costs an index entry."""
    return recording.state, recording.ended_ms, recording.files_removed, recording.output_node
