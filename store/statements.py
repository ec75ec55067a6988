"""The statements that run again and again, each built once. Imports `machine`.

Rule: values go in as parameters, under a column's name where it is set and under `at_` and the name where it is looked for. To
build a statement anew for each use costs SQLAlchemy more time than to run it does (`python -m bench.decisions`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BindParameter,
    Delete,
    Insert,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from machine import model, states
from machine.reasons import Reason
from store import jobs, tables

# A pull that evicts another of its user does so while it connects; the slack is that of reading clocks and files.
EVICTS_WITHIN_MS = 2 * model.SECOND
EVICTS_SLACK_MS = 200


def at(column: str) -> BindParameter[Any]:
    """The parameter that a column is compared with."""
    return bindparam(f"at_{column}")


def _where(table: Table, *columns: str) -> Any:
    return and_(*(table.c[column] == at(column) for column in columns))


def _updating(table: Table, *columns: str) -> Update:
    return update(table).where(_where(table, *columns))


def _deleting(table: Table, *columns: str) -> Delete:
    return delete(table).where(_where(table, *columns))


INSERT: dict[Table, Insert] = {table: insert(table) for table in tables.metadata.sorted_tables}

# --- inbox ----------------------------------------------------------------------------------------------------------------
CLAIM = {
    "sqlite": sqlite.insert(tables.inbox).on_conflict_do_nothing(index_elements=["event_id"]),
    "postgresql": postgresql.insert(tables.inbox).on_conflict_do_nothing(index_elements=["event_id"]),
}
ANSWERED = select(tables.inbox.c.answer, tables.inbox.c.at_ms).where(_where(tables.inbox, "event_id"))
SET_ANSWER = _updating(tables.inbox, "event_id")

# --- sessions -------------------------------------------------------------------------------------------------------------
_ROOM = ("sdk_app_id", "room_kind", "room")
SESSION = select(tables.sessions).where(_where(tables.sessions, "task_id")).with_for_update()
OPEN_SESSION = select(tables.sessions).where(_where(tables.sessions, *_ROOM, "user_id", "state")).with_for_update()
SESSIONS_IN = (
    select(tables.sessions)
    .where(_where(tables.sessions, *_ROOM), tables.sessions.c.state != states.FINISHED)
    .order_by(tables.sessions.c.task_id)
    .with_for_update()
)
SAVE_SESSION = _updating(tables.sessions, "task_id", "state", "version")
SECRET = select(tables.secrets.c.key_id, tables.secrets.c.body).where(_where(tables.secrets, "task_id", "kind"))
SET_SECRET = _updating(tables.secrets, "task_id", "kind")
WIPE_SECRET = _deleting(tables.secrets, "task_id", "kind")

# --- recordings -----------------------------------------------------------------------------------------------------------
RECORDING = jobs.recordings().where(tables.recordings.c.id == at("id"))
RECORDINGS = (
    jobs.recordings()
    .where(tables.recordings.c.task_id == at("task_id"))
    .order_by(tables.recordings.c.opened_ms, tables.recordings.c.speaker, tables.recordings.c.n)
)
SAVE_RECORDING = _updating(tables.recordings, "id", "state", "version")
END_JOB = _updating(tables.jobs, "owner", "epoch")


def _put_job(dialect: Any) -> Any:
    """A job, in place of one under the same epoch."""
    put = dialect.insert(tables.jobs)
    new = {name: put.excluded[name] for name in ("kind", "state", "node", "lease_until_ms")}
    return put.on_conflict_do_update(index_elements=["owner", "epoch"], set_=new)


PUT_JOB = {"sqlite": _put_job(sqlite), "postgresql": _put_job(postgresql)}

# --- segments -------------------------------------------------------------------------------------------------------------
SEGMENT = select(tables.segments).where(_where(tables.segments, "recording_id", "epoch")).with_for_update()
SAVE_SEGMENT = _updating(tables.segments, "recording_id", "epoch")
SEGMENT_NODES = (
    select(tables.segments.c.node, func.sum(tables.segments.c.media_ms).label("media_ms"))
    .where(_where(tables.segments, "recording_id"))
    .group_by(tables.segments.c.node)
)
HAS_SEGMENTS = (
    select(tables.segments.c.epoch).where(_where(tables.segments, "recording_id"), tables.segments.c.media_ms > 0).limit(1)
)
NODE_SEEN = select(tables.nodes.c.seen_ms).where(_where(tables.nodes, "node"))


def _of_session(table: Any) -> Any:
    # By way of the recordings' index: a pattern on the ids would read every segment there is.
    mine = select(tables.recordings.c.id).where(_where(tables.recordings, "task_id"))
    return table.c.recording_id.in_(mine)


LAST_PULL = (
    select(tables.segments.c.registered_ms)
    .where(_of_session(tables.segments), tables.segments.c.registered_ms <= at("until_ms"))
    .order_by(tables.segments.c.registered_ms.desc())
    .limit(1)
)


def _evictions() -> Select[Any]:
    ended, begun = tables.segments.alias(), tables.segments.alias()
    since_ms = begun.c.registered_ms - ended.c.last_packet_ms
    together = and_(
        _of_session(begun),
        begun.c.recording_id != at("recording_id"),
        since_ms.between(-EVICTS_WITHIN_MS, EVICTS_SLACK_MS),
        or_(begun.c.reason == "", begun.c.last_packet_ms > ended.c.last_packet_ms + EVICTS_SLACK_MS),
    )
    runs = select(ended.c.epoch).distinct().select_from(ended.join(begun, together))
    return runs.where(ended.c.recording_id == at("recording_id"), ended.c.reason == Reason.EOF)


EVICTIONS = _evictions()

# --- callbacks ------------------------------------------------------------------------------------------------------------
CALLBACKS = jobs.deliveries().where(tables.callbacks.c.task_id == at("task_id")).order_by(tables.callbacks.c.revision)
SAVE_CALLBACK = _updating(tables.callbacks, "task_id", "revision", "version")

# --- deadlines ------------------------------------------------------------------------------------------------------------
DISARM = _deleting(tables.deadlines, "owner", "kind")
SPEND_DEADLINE = _deleting(tables.deadlines, "owner", "kind", "serial")

# --- who asks -------------------------------------------------------------------------------------------------------------
BEGAN = select(tables.audit.c.seq).where(_where(tables.audit, "key_id", "action", "subject")).limit(1)

# --- what callbacks tell of rooms -----------------------------------------------------------------------------------------
APPLICATION = select(tables.applications.c.callback_ms).where(_where(tables.applications, "sdk_app_id"))
NOTE_APPLICATION = _updating(tables.applications, "sdk_app_id")
PRESENCE = select(tables.presence).where(_where(tables.presence, *_ROOM, "user_id"))
SET_PRESENCE = _updating(tables.presence, *_ROOM, "user_id")
PUBLISHERS = (
    select(tables.presence)
    .where(_where(tables.presence, *_ROOM), tables.presence.c.updated_ms > at("after_ms"))
    .order_by(tables.presence.c.user_id)
)

# --- outbox ---------------------------------------------------------------------------------------------------------------
MESSAGE = (tables.outbox.c.seq, tables.outbox.c.channel, tables.outbox.c.type, tables.outbox.c.node, tables.outbox.c.body)
UNSENT = select(*MESSAGE).where(tables.outbox.c.sent_ms.is_(None)).order_by(tables.outbox.c.seq).limit(bindparam("limit"))
_FREE = (
    select(tables.outbox.c.seq)
    .where(tables.outbox.c.sent_ms.is_(None), tables.outbox.c.claimed_until_ms < bindparam("now_ms"))
    .order_by(tables.outbox.c.seq)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
CLAIM_UNSENT = update(tables.outbox).where(tables.outbox.c.seq.in_(_FREE)).returning(*MESSAGE)
MARK_SENT = _updating(tables.outbox, "seq")

# --- leases ---------------------------------------------------------------------------------------------------------------
TOUCH_RECORDING = _updating(tables.recordings, "id", "epoch").values(version=tables.recordings.c.version + 1)
TOUCH_CALLBACK = _updating(tables.callbacks, "task_id", "revision", "epoch").values(version=tables.callbacks.c.version + 1)
TAKE_LEASE = _updating(tables.jobs, "owner", "epoch", "state")
HELD = _where(tables.jobs, "owner", "epoch", "node", "state")
RENEW_LEASE = update(tables.jobs).where(HELD)
HOLDS_LEASE = select(tables.jobs.c.epoch).where(HELD)
HOLD_LEASE = HOLDS_LEASE.with_for_update()
SESSION_NOT_IDLE = _updating(tables.sessions, "task_id").where(tables.sessions.c.idle_from_ms < at("idle_from_ms"))
RECORDING_NOT_IDLE = _updating(tables.recordings, "id", "epoch").where(tables.recordings.c.idle_from_ms < at("idle_from_ms"))
LEASES_OF = select(tables.jobs.c.owner, tables.jobs.c.epoch, tables.jobs.c.kind, tables.jobs.c.node).where(
    tables.jobs.c.state == states.LEASED
)

# --- what workers note ----------------------------------------------------------------------------------------------------
SUPERSEDED = exists().where(tables.recordings.c.id == at("recording_id"), tables.recordings.c.epoch > at("epoch"))
"""Whether another run of the recording's work was ordered since."""
REGISTERED = select(or_(exists().where(_where(tables.segments, "recording_id", "epoch")), SUPERSEDED))
# Its end may be written while this waits for the row: that it is superseded then would not be seen.
NOTE_SEGMENT = SAVE_SEGMENT.where(tables.segments.c.reason == "", ~SUPERSEDED)
FORGET_UPLOAD = _deleting(tables.uploads, "recording_id")
FORGET_UPLOAD_UNLESS_SUPERSEDED = FORGET_UPLOAD.where(~SUPERSEDED)

# --- time -----------------------------------------------------------------------------------------------------------------
DUE_DEADLINES = (
    select(tables.deadlines)
    .where(tables.deadlines.c.at_ms <= bindparam("now_ms"))
    .order_by(tables.deadlines.c.at_ms)
    .limit(bindparam("limit"))
)
LAST_SEEN = select(tables.nodes.c.seen_ms).order_by(tables.nodes.c.seen_ms.desc()).limit(1)
SIGN_OF_LIFE = _updating(tables.nodes, "node")
