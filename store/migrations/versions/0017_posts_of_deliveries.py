"""Deliveries know how often and when they were last posted"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("callbacks", sa.Column("posts", sa.Integer, nullable=False, server_default="0"))
    op.add_column("callbacks", sa.Column("tried_ms", sa.BigInteger))
