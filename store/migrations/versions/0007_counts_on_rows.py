"""Counts and keys on the rows that decisions read, so that no decision counts other rows"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

OPEN = sa.text("state = 'Open'")
OF_SESSION = "(SELECT count(*) FROM recordings r WHERE r.task_id = sessions.task_id AND {which})"
LIVE = "r.state NOT IN ('Done', 'Failed')"


def upgrade() -> None:
    """Go up to this revision."""
    for column in ("live", "uploading", "present"):
        op.add_column("sessions", sa.Column(column, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("sessions", sa.Column("key_id", sa.String(16), nullable=False, server_default=""))
    op.add_column("recordings", sa.Column("evicted", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("segments", sa.Column("task_id", sa.String(26), nullable=False, server_default=""))
    op.execute(
        "UPDATE sessions SET"  # noqa: S608 - constants
        f" live = {OF_SESSION.format(which=LIVE)},"
        f""" uploading = {OF_SESSION.format(which="r.state = 'Uploading'")},"""
        f" present = {OF_SESSION.format(which=f'{LIVE} AND r.present')}"
        " WHERE task_id IN (SELECT task_id FROM recordings WHERE state NOT IN ('Done', 'Failed'))"
    )
    op.execute(
        "UPDATE sessions SET key_id = a.key_id FROM audit AS a"
        " WHERE a.subject = sessions.task_id AND a.action = 'start' AND sessions.state = 'Open'"
    )
    op.execute("UPDATE segments SET task_id = substr(recording_id, 1, 26)")
    op.create_index("ix_sessions_open_of_key", "sessions", ["key_id"], sqlite_where=OPEN, postgresql_where=OPEN)
    op.create_index("ix_segments_pulls", "segments", ["task_id", "registered_ms"])
