"""Jobs know since when they are queued, and when their command is issued again"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

QUEUED = sa.text("state = 'queued'")


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("jobs", sa.Column("queued_ms", sa.BigInteger))
    op.create_index("ix_jobs_queued", "jobs", ["again_ms"], sqlite_where=QUEUED, postgresql_where=QUEUED)
