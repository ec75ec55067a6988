"""Dead letters of the outbox are found by an index"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

PARKED = sa.text("parked <> ''")


def upgrade() -> None:
    """Go up to this revision."""
    op.create_index("ix_outbox_parked", "outbox", ["seq"], sqlite_where=PARKED, postgresql_where=PARKED)
