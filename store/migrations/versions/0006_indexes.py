"""Indexes for the frequent look-ups"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.create_index(op.f("ix_outbox_task_id"), "outbox", ["task_id"])
    op.create_index(
        "ix_recordings_kept",
        "recordings",
        ["state", "ended_ms"],
        sqlite_where=sa.text("files_removed IS 0"),
        postgresql_where=sa.text("files_removed IS false"),
    )
    on_a_node = sa.text("output_node <> ''")
    op.create_index(
        "ix_recordings_output_node", "recordings", ["output_node"], sqlite_where=on_a_node, postgresql_where=on_a_node
    )
