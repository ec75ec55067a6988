"""Nodes tell how far their clock is off"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("nodes", sa.Column("skew_ms", sa.BigInteger))
