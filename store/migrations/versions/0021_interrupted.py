"""Recordings whose stream is interrupted"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("recordings", sa.Column("interrupted", sa.Boolean, nullable=False, server_default=sa.false()))
