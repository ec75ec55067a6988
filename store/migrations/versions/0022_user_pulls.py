"""The recording that the session's own UserId pulls"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("sessions", sa.Column("user_pulls", sa.String(128), nullable=False, server_default=""))
