"""When media was live, and when a speaker was known to publish"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.add_column("segments", sa.Column("anchors", sa.Text(), nullable=False, server_default=""))
    op.add_column("recordings", sa.Column("published", sa.Text(), nullable=False, server_default=""))
