"""Indexes with which cleanup, timelines and lists read only the rows they need; the time to publish an overdue row again"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

PARTIAL = (
    ("ix_deadlines_unpublished", "deadlines", "at_ms", "again_ms IS NULL"),
    ("ix_deadlines_published", "deadlines", "again_ms", "again_ms IS NOT NULL"),
    ("ix_outbox_sent", "outbox", "sent_ms", "channel <> 'result' AND parked = ''"),
    ("ix_outbox_refused", "outbox", "sent_ms", "channel = 'result' AND task_id = ''"),
    ("ix_sessions_finished", "sessions", "finished_ms", "state = 'Finished'"),
    ("ix_sessions_active", "sessions", "task_id", "state <> 'Finished'"),
    ("ix_recordings_active", "recordings", "task_id", "state NOT IN ('Done', 'Failed')"),
    ("ix_callbacks_undelivered", "callbacks", "task_id", "state IN ('pending', 'failed')"),
)


def upgrade() -> None:
    """Go up to this revision."""
    for table in ("deadlines", "jobs"):
        op.add_column(table, sa.Column("again_ms", sa.BigInteger()))
    op.drop_index("ix_deadlines_at_ms", "deadlines")
    for name, table, column, which in PARTIAL:
        op.create_index(name, table, [column], sqlite_where=sa.text(which), postgresql_where=sa.text(which))
    op.create_index("ix_journal_timeline", "journal", ["task_id", "seq"])
    op.drop_index("ix_journal_task_id", "journal")
