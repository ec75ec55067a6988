"""UserData of a start"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("sessions", sa.Column("user_data", sa.Text, nullable=False, server_default=""))
