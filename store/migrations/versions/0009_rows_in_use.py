"""Indexes of the few rows in use: sessions of a room, leased jobs, segments with media"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

PARTIAL = (
    ("ix_sessions_active_room", "sessions", ["sdk_app_id", "room"], "state <> 'Finished'"),
    ("ix_jobs_leased", "jobs", ["lease_until_ms"], "state = 'leased'"),
    ("ix_segments_media", "segments", ["recording_id"], "media_ms > 0"),
)


def upgrade() -> None:
    """Go up to this revision."""
    op.drop_index("ix_jobs_leased", "jobs")
    op.drop_index("ix_sessions_room", "sessions")
    op.create_index("ix_sessions_room", "sessions", ["sdk_app_id", "room", "task_id"])
    for name, table, columns, which in PARTIAL:
        op.create_index(name, table, columns, sqlite_where=sa.text(which), postgresql_where=sa.text(which))
