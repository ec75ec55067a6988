"""What nodes report to operators, and which of them an operator cordoned"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("nodes", sa.Column("report", sa.Text(), nullable=False, server_default=""))
    op.add_column("nodes", sa.Column("cordon", sa.String(length=16), nullable=False, server_default=""))
