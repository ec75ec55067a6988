"""Progress of recordings that a session's callback receives"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("sessions", sa.Column("callback_events", sa.Text, nullable=False, server_default="[]"))
    op.add_column("sessions", sa.Column("events_posted", sa.Integer, nullable=False, server_default="0"))
