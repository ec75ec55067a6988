"""The tables, declared once for both engines. Times are Unix ms.

Rule: only types that mean the same on SQLite and PostgreSQL; JSON is text.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from machine import states

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite generates numbers only for a column of type INTEGER.
_Serial = BigInteger().with_variant(Integer(), "sqlite")


def _partial(name: str, *columns: Column[Any], which: str) -> None:
    """An index of only some rows. SQLite uses it only for a query that repeats the condition word for word."""
    Index(name, *columns, sqlite_where=text(which), postgresql_where=text(which))


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


sessions = Table(
    "sessions",
    metadata,
    Column("task_id", String(26), primary_key=True),
    Column("sdk_app_id", BigInteger, nullable=False),
    Column("room_kind", String(8), nullable=False),
    Column("room", String(64), nullable=False),
    Column("user_id", String(64), nullable=False),
    Column("request", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("opened_ms", BigInteger, nullable=False),
    Column("closing_ms", BigInteger),
    Column("finished_ms", BigInteger),
    Column("end_reason", String(32), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("idle_from_ms", BigInteger, nullable=False),
    Column("published", Boolean, nullable=False),
    Column("warnings", Text, nullable=False),
    # Counts of its recordings: not final, in Uploading, with a speaker whom callbacks report as present; and of posted events.
    *(Column(name, Integer, nullable=False, server_default="0") for name in ("live", "uploading", "present", "events_posted")),
    Column("callback_events", Text, nullable=False, server_default="[]"),
    Column("user_data", Text, nullable=False, server_default=""),  # JSON; not in `request`, which release 0.1.0 reads too
    Column("user_pulls", String(128), nullable=False, server_default=""),  # the id of a recording
    # The API key that started it, for its quota; "" for any other caller.
    Column("key_id", String(16), nullable=False, server_default=""),
    CheckConstraint(_one_of("state", states.SESSION_STATES), name="state"),
)
_OPEN = text("state = 'Open'")
# One Open session per key: a repeated start finds it, and of two concurrent starts one fails.
Index(
    "uq_sessions_open_key",
    sessions.c.sdk_app_id,
    sessions.c.room_kind,
    sessions.c.room,
    sessions.c.user_id,
    unique=True,
    sqlite_where=_OPEN,
    postgresql_where=_OPEN,
)
Index("ix_sessions_open_of_key", sessions.c.key_id, sqlite_where=_OPEN, postgresql_where=_OPEN)
Index("ix_sessions_room", sessions.c.sdk_app_id, sessions.c.room, sessions.c.task_id)
# The list of sessions by one field, newest first.
Index("ix_sessions_opened", sessions.c.opened_ms)
for _name, _column in (("app", sessions.c.sdk_app_id), ("room", sessions.c.room), ("user", sessions.c.user_id)):
    Index(f"ix_sessions_of_{_name}", _column, sessions.c.task_id)
# Almost every session that ever was is Finished: lists read the others, retention reads by the time of the end.
FINISHED = "state = 'Finished'"
ACTIVE = "state <> 'Finished'"
_partial("ix_sessions_finished", sessions.c.finished_ms, which=FINISHED)
_partial("ix_sessions_active", sessions.c.task_id, which=ACTIVE)
_partial("ix_sessions_active_room", sessions.c.sdk_app_id, sessions.c.room, which=ACTIVE)  # a room has any number of others

secrets = Table(
    "secrets",
    metadata,
    Column("task_id", String(26), primary_key=True),
    # The kind of secret (encrypted_rows.py), and the id of the key that encrypts it.
    Column("kind", String(16), primary_key=True),
    Column("key_id", String(16), nullable=False),
    Column("body", Text, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
)

recordings = Table(
    "recordings",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("task_id", String(26), nullable=False, index=True),
    Column("speaker", String(64), nullable=False),
    Column("n", Integer, nullable=False),
    Column("mode", String(2), nullable=False),
    Column("state", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("stop_requested", Boolean, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("present", Boolean),
    Column("awaited", Boolean, nullable=False),
    Column("last_pull", Boolean, nullable=False),
    Column("called", Boolean, nullable=False, server_default=false()),
    Column("idle_from_ms", BigInteger, nullable=False),
    Column("step_from_ms", BigInteger, nullable=False),
    Column("opened_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    Column("first_packet_ms", BigInteger),
    Column("last_packet_ms", BigInteger),
    Column("media_ms", BigInteger, nullable=False),
    Column("code", String(32), nullable=False),
    Column("detail", Text, nullable=False),
    Column("output", Text),
    Column("output_node", String(64), nullable=False),
    Column("partial", Boolean, nullable=False),
    Column("url", Text, nullable=False),
    Column("files_removed", Boolean, nullable=False),
    Column("evicted", Integer, nullable=False, server_default="0"),
    Column("interrupted", Boolean, nullable=False, server_default=false()),
    # When the speaker was known to publish, as JSON; "" if unknown.
    Column("published", Text, nullable=False, server_default=""),
    # The number in the object key if it is not `n`, and the files that were delivered before a replay began.
    Column("object_n", Integer, nullable=False, server_default="0"),
    Column("delivered", Text, nullable=False, server_default=""),
    UniqueConstraint("task_id", "speaker", "n"),
    CheckConstraint(_one_of("state", states.RECORDING_STATES), name="state"),
)

# The list of sessions by a field of their recordings. Almost every recording succeeds.
Index("ix_recordings_of_speaker", recordings.c.speaker, recordings.c.task_id)
NOT_SUCCESS = "code NOT IN ('', 'Success')"
_partial("ix_recordings_of_code", recordings.c.code, recordings.c.task_id, which=NOT_SUCCESS)
# The janitor polls for these: few of all recordings still have files.
Index(
    "ix_recordings_kept",
    recordings.c.state,
    recordings.c.ended_ms,
    sqlite_where=text("files_removed IS 0"),
    postgresql_where=text("files_removed IS false"),
)
UNFINISHED = "state NOT IN ('Done', 'Failed')"
_partial("ix_recordings_active", recordings.c.task_id, which=UNFINISHED)
_partial("ix_recordings_output_node", recordings.c.output_node, which="output_node <> ''")

jobs = Table(
    "jobs",
    metadata,
    Column("owner", String(128), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("node", String(64), nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
    # When the end of the lease is published again; NULL: not published yet. Of a queued job: when its command is issued again.
    Column("again_ms", BigInteger),
    # When it was queued; NULL for other jobs, and for rows of an older version.
    Column("queued_ms", BigInteger),
    CheckConstraint(_one_of("state", (*states.CAPTURES[1:], states.ENDED)), name="state"),
)
LEASED = "state = 'leased'"
_partial("ix_jobs_leased", jobs.c.lease_until_ms, which=LEASED)
QUEUED = "state = 'queued'"
_partial("ix_jobs_queued", jobs.c.again_ms, which=QUEUED)

segments = Table(
    "segments",
    metadata,
    Column("recording_id", String(128), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("node", String(64), nullable=False),
    Column("registered_ms", BigInteger, nullable=False),
    Column("first_packet_ms", BigInteger),
    Column("last_packet_ms", BigInteger),
    Column("media_ms", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("task_id", String(26), nullable=False, server_default=""),
    # When its media was live, as JSON; "" if unknown.
    Column("anchors", Text, nullable=False, server_default=""),
)
# The pulls of a session in the order of their beginnings.
Index("ix_segments_pulls", segments.c.task_id, segments.c.registered_ms)
# A speaker who does not publish has thousands of pulls without media.
_partial("ix_segments_media", segments.c.recording_id, which="media_ms > 0")

uploads = Table(
    "uploads",
    metadata,
    Column("recording_id", String(128), primary_key=True),
    Column("body", Text, nullable=False),
)

callbacks = Table(
    "callbacks",
    metadata,
    Column("task_id", String(26), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("url", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    # All posts that ended, and when the last one did; `tries` counts the failed ones of the present schedule.
    Column("posts", Integer, nullable=False, server_default="0"),
    Column("tried_ms", BigInteger),
)
UNDELIVERED = "state IN ('pending', 'failed')"
_partial("ix_callbacks_undelivered", callbacks.c.task_id, which=UNDELIVERED)

results = Table(
    "results",
    metadata,
    Column("task_id", String(26), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
)

deadlines = Table(
    "deadlines",
    metadata,
    Column("owner", String(128), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("serial", String(64), nullable=False),
    # When a deadline that has passed is published again; NULL: not published yet.
    Column("again_ms", BigInteger),
)
_partial("ix_deadlines_unpublished", deadlines.c.at_ms, which="again_ms IS NULL")
_partial("ix_deadlines_published", deadlines.c.again_ms, which="again_ms IS NOT NULL")

inbox = Table(
    "inbox",
    metadata,
    Column("event_id", String(256), primary_key=True),
    Column("at_ms", BigInteger, nullable=False, index=True),
    Column("answer", Text, nullable=False),
    # Of a user's request (events/requests.py); "" for any other event.
    Column("fingerprint", String(32), nullable=False, server_default=""),
)

outbox = Table(
    "outbox",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("channel", String(16), nullable=False),
    Column("type", String(64), nullable=False),
    Column("task_id", String(26), nullable=False),
    Column("node", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("claimed_until_ms", BigInteger, nullable=False),
    Column("sent_ms", BigInteger),
    Column("parked", Text, nullable=False),
    # The place of a result in the order of reading (queries.py); NULL until the first reading.
    Column("place", BigInteger),
    # Numbers are never reused, because readers page by them.
    sqlite_autoincrement=True,
)
# A reader skips messages that wait for a retry or whose type is paused, in any number, without reading their rows.
_DUE = (outbox.c.seq, outbox.c.claimed_until_ms, outbox.c.type, outbox.c.task_id)
_partial("ix_outbox_unsent", *_DUE, which="sent_ms IS NULL")
# Retention deletes the messages of a session by its id.
Index("ix_outbox_task_id", outbox.c.task_id)
_partial("ix_outbox_unplaced", outbox.c.seq, which="channel = 'result' AND place IS NULL")
Index("uq_outbox_place", outbox.c.place, unique=True)
PARKED = "parked <> ''"
Index("ix_outbox_parked", outbox.c.seq, sqlite_where=text(PARKED), postgresql_where=text(PARKED))
# Retention deletes sent messages, and the refusals of starts, which belong to no session.
SENT = "channel <> 'result' AND parked = ''"
REFUSED = "channel = 'result' AND task_id = ''"
_partial("ix_outbox_sent", outbox.c.sent_ms, which=SENT)
_partial("ix_outbox_refused", outbox.c.sent_ms, which=REFUSED)

journal = Table(
    "journal",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("task_id", String(26), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("event_id", String(256), nullable=False),
    Column("event_type", String(64), nullable=False),
    Column("from_state", String(16), nullable=False),
    Column("to_state", String(16), nullable=False),
    Column("note", Text, nullable=False),
)
Index("ix_journal_timeline", journal.c.task_id, journal.c.seq)

presence = Table(
    "presence",
    metadata,
    Column("sdk_app_id", BigInteger, primary_key=True),
    Column("room_kind", String(8), primary_key=True),
    Column("room", String(64), primary_key=True),
    Column("user_id", String(64), primary_key=True),
    Column("audio", Boolean, nullable=False),
    Column("audio_ms", BigInteger, nullable=False),
    Column("video", Boolean, nullable=False),
    Column("video_ms", BigInteger, nullable=False),
    Column("left_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False, index=True),
)

applications = Table(
    "applications",
    metadata,
    Column("sdk_app_id", BigInteger, primary_key=True),
    Column("callback_ms", BigInteger, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("node", String(64), primary_key=True),
    Column("url", Text, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
    # Spare capacity of a worker; NULL for other nodes. Only free_bytes is NULL while the spool cannot be read.
    Column("free_bytes", BigInteger),
    Column("needed_bytes", BigInteger),
    Column("busy", Text),
    # The newest schema revision that the node's version knows; "" for release 0.1.0.
    Column("revision", String(8), nullable=False, server_default=""),
    # How far the node's clock is ahead of the database's; NULL: unknown.
    Column("skew_ms", BigInteger),
    # What it reports to operators (JSON; "": an earlier version), and what one asked of it, which no heartbeat writes.
    Column("report", Text, nullable=False, server_default=""),
    Column("cordon", String(16), nullable=False, server_default=""),
)

# One row: the oldest revision of a program that may write (side_by_side.py).
schema_range = Table(
    "schema_range", metadata, Column("id", Integer, primary_key=True), Column("oldest", String(8), nullable=False)
)

attempts = Table(
    "attempts",
    metadata,
    Column("message", String(64), primary_key=True),
    Column("tries", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False, index=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    # SHA-256 of the whole key, in hexadecimal. A key has 256 random bits, so it needs no salt and no stretching.
    Column("digest", String(64), nullable=False),
    Column("scopes", String(64), nullable=False),
    Column("quota", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("used_ms", BigInteger),
    Column("revoked_ms", BigInteger),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("at_ms", BigInteger, nullable=False, index=True),
    Column("who", String(128), nullable=False),
    Column("key_id", String(16), nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("outcome", String(64), nullable=False),
)
Index("ix_audit_key", audit.c.key_id, audit.c.action)
