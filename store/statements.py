"""Statements of the deciding transaction, each built once, and the parts that statements of other modules share.

Rule: values are parameters: named like the column that a value is written to, and `at_` with the column's name where a value is
compared. Building a statement costs SQLAlchemy more time than running it (`python -m bench.decisions`).
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

# A pull evicts another of its user while it connects. The slack covers the reading of clocks and files.
EVICTS_WITHIN_MS = 2 * model.SECOND
EVICTS_SLACK_MS = 200


def at(column: str) -> BindParameter[Any]:
    """The parameter that a column is compared with."""
    return bindparam(f"at_{column}")


def matching(table: Table, *columns: str) -> Any:
    """Whether columns equal their parameters."""
    return and_(*(table.c[column] == at(column) for column in columns))


def updating(table: Table, *columns: str) -> Update:
    """An update of the rows whose columns equal their parameters."""
    return update(table).where(matching(table, *columns))


def deleting(table: Table, *columns: str) -> Delete:
    """A deletion of the rows whose columns equal their parameters."""
    return delete(table).where(matching(table, *columns))


INSERT: dict[Table, Insert] = {table: insert(table) for table in tables.metadata.sorted_tables}

# --- inbox ----------------------------------------------------------------------------------------------------------------
CLAIM = {
    "sqlite": sqlite.insert(tables.inbox).on_conflict_do_nothing(index_elements=["event_id"]),
    "postgresql": postgresql.insert(tables.inbox).on_conflict_do_nothing(index_elements=["event_id"]),
}
ANSWERED = select(tables.inbox.c.answer, tables.inbox.c.at_ms).where(matching(tables.inbox, "event_id"))
SET_ANSWER = updating(tables.inbox, "event_id")

# --- sessions -------------------------------------------------------------------------------------------------------------
_ROOM = ("sdk_app_id", "room_kind", "room")
SESSION = select(tables.sessions).where(matching(tables.sessions, "task_id")).with_for_update()
OPEN_SESSION = select(tables.sessions).where(matching(tables.sessions, *_ROOM, "user_id", "state")).with_for_update()
SESSIONS_IN = (
    select(tables.sessions)
    .where(matching(tables.sessions, *_ROOM), tables.sessions.c.state != states.FINISHED)
    .order_by(tables.sessions.c.task_id)
    .with_for_update()
)
SAVE_SESSION = updating(tables.sessions, "task_id", "state", "version")
SECRET = select(tables.secrets.c.key_id, tables.secrets.c.body).where(matching(tables.secrets, "task_id", "kind"))
SET_SECRET = updating(tables.secrets, "task_id", "kind")
WIPE_SECRET = deleting(tables.secrets, "task_id", "kind")

# --- recordings -----------------------------------------------------------------------------------------------------------
RECORDING = jobs.recordings().where(tables.recordings.c.id == at("id"))
RECORDINGS = (
    jobs.recordings()
    .where(tables.recordings.c.task_id == at("task_id"))
    .order_by(tables.recordings.c.opened_ms, tables.recordings.c.speaker, tables.recordings.c.n)
)
SAVE_RECORDING = updating(tables.recordings, "id", "state", "version")
END_JOB = updating(tables.jobs, "owner", "epoch")


def _put_job(dialect: Any) -> Any:
    """Insert a job, or replace the one of the same epoch."""
    put = dialect.insert(tables.jobs)
    new = {name: put.excluded[name] for name in ("kind", "state", "node", "lease_until_ms")}
    return put.on_conflict_do_update(index_elements=["owner", "epoch"], set_=new)


PUT_JOB = {"sqlite": _put_job(sqlite), "postgresql": _put_job(postgresql)}

# --- segments -------------------------------------------------------------------------------------------------------------
SEGMENT = select(tables.segments).where(matching(tables.segments, "recording_id", "epoch")).with_for_update()
SAVE_SEGMENT = updating(tables.segments, "recording_id", "epoch")
SEGMENT_NODES = (
    select(tables.segments.c.node, func.sum(tables.segments.c.media_ms).label("media_ms"))
    .where(matching(tables.segments, "recording_id"))
    .group_by(tables.segments.c.node)
)
HAS_SEGMENTS = (
    select(tables.segments.c.epoch).where(matching(tables.segments, "recording_id"), tables.segments.c.media_ms > 0).limit(1)
)
NODE_SEEN = select(tables.nodes.c.seen_ms).where(matching(tables.nodes, "node"))


def _of_session(table: Any) -> Any:
    # Through the index of recordings: a pattern on the ids would read every segment.
    mine = select(tables.recordings.c.id).where(matching(tables.recordings, "task_id"))
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

# --- deliveries -----------------------------------------------------------------------------------------------------------
DELIVERIES = jobs.deliveries().where(tables.callbacks.c.task_id == at("task_id")).order_by(tables.callbacks.c.revision)
SAVE_DELIVERY = updating(tables.callbacks, "task_id", "revision", "version")

# --- deadlines ------------------------------------------------------------------------------------------------------------
SPEND_DEADLINE = deleting(tables.deadlines, "owner", "kind", "serial")

# --- API keys -----------------------------------------------------------------------------------------------------------
BEGAN = select(tables.audit.c.seq).where(matching(tables.audit, "key_id", "action", "subject")).limit(1)

# --- presence ---------------------------------------------------------------------------------------------------------------
APPLICATION = select(tables.applications.c.callback_ms).where(matching(tables.applications, "sdk_app_id"))
NOTE_APPLICATION = updating(tables.applications, "sdk_app_id")
PRESENCE = select(tables.presence).where(matching(tables.presence, *_ROOM, "user_id"))
SET_PRESENCE = updating(tables.presence, *_ROOM, "user_id")
PUBLISHERS = (
    select(tables.presence)
    .where(matching(tables.presence, *_ROOM), tables.presence.c.updated_ms > at("after_ms"))
    .order_by(tables.presence.c.user_id)
)

# --- workers --------------------------------------------------------------------------------------------------------------
SUPERSEDED = exists().where(tables.recordings.c.id == at("recording_id"), tables.recordings.c.epoch > at("epoch"))
"""Whether a newer epoch of the recording has started."""
