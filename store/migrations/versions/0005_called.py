"""Whether a track was switched on while a run was on its way"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("recordings", sa.Column("called", sa.Boolean(), nullable=False, server_default=sa.false()))
