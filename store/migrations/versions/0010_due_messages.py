"""The index of unsent messages covers what a reader skips: messages that wait for a retry, or whose type is paused"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

UNSENT = sa.text("sent_ms IS NULL")


def upgrade() -> None:
    """Go up to this revision."""
    op.drop_index("ix_outbox_unsent", "outbox")
    op.create_index(
        "ix_outbox_unsent",
        "outbox",
        ["seq", "claimed_until_ms", "type", "task_id"],
        sqlite_where=UNSENT,
        postgresql_where=UNSENT,
    )
