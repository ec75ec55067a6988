"""Statements of the deciding transaction, each built once, and the parts that statements of other modules share.

Rule: values are parameters: named like the column that a value is written to, and `at_` with the column's name where a value is
compared. Building a statement costs SQLAlchemy more time than running it (`python -m bench.decisions`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    BindParameter,
    Delete,
    Insert,
    Select,
    String,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

from machine import delivery, model, presence, states
from store import database_time, jobs, tables
from store.sql import Statement

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


def listed(parameter: str, type_: TypeEngine[Any]) -> dict[str, Select[Any]]:
    """The values of a parameter that is a JSON array, as a subquery on each engine: one text for any number of values."""
    array: BindParameter[Any] = bindparam(parameter)
    each = {"sqlite": func.json_each(array), "postgresql": func.json_array_elements_text(cast(array, postgresql.JSON))}
    return {engine: select(cast(found.table_valued("value").c.value, type_)) for engine, found in each.items()}


INSERT: dict[Table, Insert] = {table: insert(table) for table in tables.metadata.sorted_tables}


def inserting(table: Table) -> Statement:
    """An insert of whole rows; the database numbers them."""
    return Statement(insert(table).inline(), *(c.name for c in table.c if c.name not in ("seq", "place")))


def _upsert(table: Table, *changing: str, once: bool = False) -> Statement:
    """An insert that replaces the columns `changing` of a row with the same key; `once` leaves such a row as it is."""
    made: dict[str, Any] = {}
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql)):
        put: Any = dialect.insert(table).inline()
        key = [c.name for c in table.primary_key]
        replaced = {column: put.excluded[column] for column in changing}
        made[name] = (
            put.on_conflict_do_nothing(index_elements=key)
            if once
            else put.on_conflict_do_update(index_elements=key, set_=replaced)
        )
    return Statement(made, *(c.name for c in table.c))


def _saving(table: Table, key: tuple[str, ...], *columns: str) -> Statement:
    """An update of `columns` in the rows that still have this key; counted. Idleness counts from the later time."""
    values: dict[str, Any] = {column: bindparam(column, type_=table.c[column].type) for column in columns}
    if "idle_from_ms" in values:
        values["idle_from_ms"] = _greater(table.c.idle_from_ms, values["idle_from_ms"])
    saved = updating(table, *key).values(values)
    return Statement({"sqlite": saved, "postgresql": saved.returning(literal(1))}, counted=True)


def _greater(column: Any, value: BindParameter[Any]) -> Any:
    return case((column.is_(None), value), (value > column, value), else_=column)


# --- inbox ----------------------------------------------------------------------------------------------------------------
_NEW_EVENT: dict[str, Any] = {"sqlite": sqlite.insert(tables.inbox), "postgresql": postgresql.insert(tables.inbox)}
# With the claim comes the range of revisions that may write: no round trip of its own.
_OLDEST = (
    select(tables.schema_range.c.oldest).where(tables.schema_range.c.id == literal_column("1")).scalar_subquery().label("oldest")
)
_CLAIMED: dict[str, Any] = {name: bindparam(name) for name in ("event_id", "fingerprint")} | {
    "at_ms": database_time.NOW_MS,
    "answer": literal_column("''"),
}
CLAIM = Statement(
    {
        name: new.values(_CLAIMED)
        .on_conflict_do_nothing(index_elements=["event_id"])
        .returning(tables.inbox.c.event_id, tables.inbox.c.at_ms, _OLDEST)
        for name, new in _NEW_EVENT.items()
    }
)
"""Claims an event, at the database's time."""
UNCLAIM = Statement(deleting(tables.inbox, "event_id"))
ANSWERED = Statement(select(tables.inbox).where(matching(tables.inbox, "event_id")))
SET_ANSWER = Statement(updating(tables.inbox, "event_id").values(answer=bindparam("answer")))

# --- sessions -------------------------------------------------------------------------------------------------------------
_ROOM = ("sdk_app_id", "room_kind", "room")
LOCK = Statement(
    {"sqlite": select(literal(1)), "postgresql": select(func.pg_advisory_xact_lock(bindparam("lock", type_=BigInteger)))}
)
SESSION = Statement(select(tables.sessions).where(matching(tables.sessions, "task_id")).with_for_update())
SESSIONS_IN = Statement(
    select(tables.sessions.c.task_id, *(tables.sessions.c[name] for name in _ROOM))
    .where(matching(tables.sessions, *_ROOM), text(tables.ACTIVE))
    .order_by(tables.sessions.c.task_id)
)
_SESSION_KEY = ("task_id", "state", "version")
_SESSION_COLUMNS = (
    "version", "closing_ms", "finished_ms", "end_reason", "revision", "idle_from_ms", "published", "live", "uploading", "present",
    "warnings", "user_pulls", "events_posted",
)  # fmt: skip
SAVE_SESSION = _saving(tables.sessions, _SESSION_KEY, *_SESSION_COLUMNS)
MOVE_SESSION = _saving(tables.sessions, _SESSION_KEY, *_SESSION_COLUMNS, "state")
ADD_SESSION = inserting(tables.sessions)
SECRET = Statement(select(tables.secrets).where(matching(tables.secrets, "task_id", "kind")))
PUT_SECRET = _upsert(tables.secrets, "key_id", "body", "updated_ms")
WIPE_SECRET = Statement(deleting(tables.secrets, "task_id", "kind"))
LOCK_KEY = Statement(select(tables.api_keys.c.id).where(tables.api_keys.c.id == at("key_id")).with_for_update())
OPEN_SESSIONS_OF = Statement(
    select(tables.sessions.c.key_id, func.count().label("open"))
    .where(matching(tables.sessions, "key_id"), tables.sessions.c.state == literal_column(f"'{states.OPEN}'"))
    .group_by(tables.sessions.c.key_id)
)

# --- recordings -----------------------------------------------------------------------------------------------------------
RECORDING = Statement(jobs.recordings().where(tables.recordings.c.id == at("id")))
RECORDINGS = Statement(
    jobs.recordings()
    .where(tables.recordings.c.task_id == at("task_id"))
    .order_by(tables.recordings.c.opened_ms, tables.recordings.c.speaker, tables.recordings.c.n)
)
RECORDINGS_OF = Statement(
    jobs.recordings().where(matching(tables.recordings, "task_id", "speaker")).order_by(tables.recordings.c.n)
)
_RECORDING_KEY = ("id", "state", "version")
_NEVER_CHANGED = ("id", "task_id", "speaker", "n", "mode", "opened_ms")
_INDEXED = ("state", "ended_ms", "files_removed", "output_node")
_RECORDING_COLUMNS = [c.name for c in tables.recordings.c if c.name not in (*_NEVER_CHANGED, *_INDEXED)]
SAVE_RECORDING = _saving(tables.recordings, _RECORDING_KEY, *_RECORDING_COLUMNS)
MOVE_RECORDING = _saving(tables.recordings, _RECORDING_KEY, *_RECORDING_COLUMNS, *_INDEXED)
ADD_RECORDING = inserting(tables.recordings)
END_JOB = Statement(updating(tables.jobs, "owner", "epoch").values(state=literal_column(f"'{states.ENDED}'")))
PUT_JOB = _upsert(tables.jobs, "kind", "state", "node", "lease_until_ms", "again_ms", "queued_ms")

# --- segments -------------------------------------------------------------------------------------------------------------
_SEGMENTS = tables.segments.c
# Values only grow: a late outcome with less media (of a worker that was reported lost) reduces nothing.
CLOSE_SEGMENT = Statement(
    updating(tables.segments, "recording_id", "epoch").values(
        media_ms=_greater(_SEGMENTS.media_ms, bindparam("media_ms", type_=BigInteger)),
        size_bytes=_greater(_SEGMENTS.size_bytes, bindparam("size_bytes", type_=BigInteger)),
        first_packet_ms=case(
            (
                _SEGMENTS.first_packet_ms > bindparam("first_packet_ms", type_=BigInteger),
                bindparam("first_packet_ms", type_=BigInteger),
            ),
            else_=func.coalesce(_SEGMENTS.first_packet_ms, bindparam("first_packet_ms", type_=BigInteger)),
        ),
        last_packet_ms=_greater(_SEGMENTS.last_packet_ms, bindparam("last_packet_ms", type_=BigInteger)),
        anchors=case(
            (bindparam("anchors", type_=Text) != literal_column("''"), bindparam("anchors", type_=Text)), else_=_SEGMENTS.anchors
        ),
        reason=case((_SEGMENTS.reason == literal_column("''"), bindparam("reason", type_=String)), else_=_SEGMENTS.reason),
    )
)
SEGMENT_NODES = Statement(
    select(_SEGMENTS.recording_id, _SEGMENTS.node, func.sum(_SEGMENTS.media_ms).label("media_ms"))
    .where(matching(tables.segments, "recording_id"))
    .group_by(_SEGMENTS.recording_id, _SEGMENTS.node)
    .order_by(func.max(_SEGMENTS.epoch))
)
# The first recording from this one on whose segments have media. By equality, PostgreSQL would expect a segment of a speaker who
# had thousands of pulls to have media soon, and would read the whole table for one that has none.
HAS_SEGMENTS = Statement(
    select(_SEGMENTS.recording_id)
    .where(_SEGMENTS.recording_id >= at("recording_id"), _SEGMENTS.media_ms > literal_column("0"))
    .order_by(_SEGMENTS.recording_id)
    .limit(literal_column("1"))
)
NODE_SEEN = Statement(select(tables.nodes.c.node, tables.nodes.c.seen_ms).where(matching(tables.nodes, "node")))
LAST_PULL = Statement(
    select(_SEGMENTS.registered_ms)
    .where(matching(tables.segments, "task_id"), _SEGMENTS.registered_ms <= at("until_ms"))
    .order_by(_SEGMENTS.registered_ms.desc())
    .limit(literal_column("1"))
)
EVICTED = Statement(
    select(_SEGMENTS.recording_id)
    .where(
        matching(tables.segments, "task_id"),
        _SEGMENTS.recording_id != at("recording_id"),
        _SEGMENTS.registered_ms.between(at("from_ms"), at("until_ms")),
        or_(_SEGMENTS.reason == literal_column("''"), _SEGMENTS.last_packet_ms > at("until_ms")),
    )
    .order_by(_SEGMENTS.registered_ms)  # along the index: none is found as a rule
    .limit(literal_column("1"))
)

# --- deliveries -----------------------------------------------------------------------------------------------------------
_BODILESS = jobs.bodiless_deliveries()
DELIVERY = Statement(_BODILESS.where(matching(tables.callbacks, "task_id", "revision")))
PENDING_DELIVERIES = Statement(
    _BODILESS.where(
        matching(tables.callbacks, "task_id"), tables.callbacks.c.state == literal_column(f"'{delivery.PENDING}'")
    ).order_by(tables.callbacks.c.revision)
)
WHOLE_DELIVERY = Statement(jobs.deliveries().where(matching(tables.callbacks, "task_id", "revision")))
SAVE_DELIVERY = _saving(
    tables.callbacks, ("task_id", "revision", "version"), "version", "state", "epoch", "tries", "posts", "tried_ms", "detail"
)
ADD_DELIVERY = inserting(tables.callbacks)
ADD_RESULT = inserting(tables.results)

# --- journal, outbox, deadlines -------------------------------------------------------------------------------------------
ADD_JOURNAL = inserting(tables.journal)
ADD_MESSAGE = inserting(tables.outbox)
ADD_AUDIT = inserting(tables.audit)
DEADLINE = Statement(select(tables.deadlines).where(matching(tables.deadlines, "owner", "kind")))
ARM = _upsert(tables.deadlines, "at_ms", "serial", "again_ms")
ARM_ONCE = _upsert(tables.deadlines, once=True)
DISARM = Statement(deleting(tables.deadlines, "owner", "kind"))

# --- presence ---------------------------------------------------------------------------------------------------------------
APPLICATION = Statement(select(tables.applications).where(matching(tables.applications, "sdk_app_id")))
NOTE_APPLICATION = _upsert(tables.applications, "callback_ms")
_ASKED = bindparam("at_user_id", type_=String)
# A user's row, and the one that has the time of the room's end.
PRESENCE = Statement(
    select(tables.presence, _ASKED.label("asked_id")).where(
        matching(tables.presence, *_ROOM), tables.presence.c.user_id.in_([_ASKED, literal_column(f"'{presence.ROOM}'")])
    )
)
PUBLISHERS = Statement(
    select(tables.presence)
    .where(matching(tables.presence, *_ROOM))
    # Not everybody who has ever left: those who publish, and the room's own row.
    .where(or_(tables.presence.c.audio, tables.presence.c.video, tables.presence.c.user_id == literal_column("''")))
    .order_by(tables.presence.c.user_id)
)


def _given(engine: str, *columns: Any) -> Any:
    """The rows of sql.packed, as a table with these columns."""
    if engine == "postgresql":
        read = func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
        return read.table_valued(*(column(c.name, c.type) for c in columns)).render_derived(with_types=True)
    each = func.json_each(bindparam("rows")).table_valued("value")
    return select(*(func.json_extract(each.c.value, f"$.{c.name}", type_=c.type).label(c.name) for c in columns)).subquery()


def _merging_presence(engine: str, put: Any) -> Any:
    """An insert of packed rows that merges each with the row of the same user, as presence.merged does."""
    old, new, given = tables.presence.c, put.excluded, _given(engine, *tables.presence.c)
    newest = {time: case((new[time] > old[time], new[time]), else_=old[time]) for time in ("audio_ms", "video_ms", "left_ms")}
    tracks = {
        kind: and_(
            or_(and_(new[kind], new[time] >= old[time]), and_(old[kind], old[time] >= new[time])),
            newest[time] > newest["left_ms"],
        )
        for kind, time in (("audio", "audio_ms"), ("video", "video_ms"))
    }
    # WHERE, because SQLite would take the ON of ON CONFLICT for that of a join.
    return put.from_select(list(old.keys()), select(given).where(true())).on_conflict_do_update(
        index_elements=[c.name for c in tables.presence.primary_key], set_=tracks | newest | {"updated_ms": new.updated_ms}
    )


def _active_rooms(engine: str) -> Any:
    """Which of the packed rooms have an unfinished session."""
    given = _given(engine, *(tables.sessions.c[name] for name in _ROOM))
    return select(given).where(exists().where(*(tables.sessions.c[name] == given.c[name] for name in _ROOM), text(tables.ACTIVE)))


_INSERTS = {"sqlite": sqlite.insert(tables.presence), "postgresql": postgresql.insert(tables.presence)}
MERGE_PRESENCE = Statement({engine: _merging_presence(engine, put) for engine, put in _INSERTS.items()})
ACTIVE_ROOMS = Statement({engine: _active_rooms(engine) for engine in _INSERTS})
_LOCKS = _given("postgresql", column("lock", BigInteger))
# Whether no decision about each room is in progress: it then waits until this transaction ends. PostgreSQL only.
TRY_ROOMS = Statement(select(_LOCKS.c.lock, func.pg_try_advisory_xact_lock_shared(_LOCKS.c.lock).label("taken")))

# --- workers --------------------------------------------------------------------------------------------------------------
SUPERSEDED = exists().where(tables.recordings.c.id == at("recording_id"), tables.recordings.c.epoch > at("epoch"))
"""Whether a newer epoch of the recording has started."""
