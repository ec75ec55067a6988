"""The fingerprint of a user's request beside its id"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("inbox", sa.Column("fingerprint", sa.String(32), nullable=False, server_default=""))
