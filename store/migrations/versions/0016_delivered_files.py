"""Files that were delivered before a replay began"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("recordings", sa.Column("object_n", sa.Integer, nullable=False, server_default="0"))
    op.add_column("recordings", sa.Column("delivered", sa.Text, nullable=False, server_default=""))
