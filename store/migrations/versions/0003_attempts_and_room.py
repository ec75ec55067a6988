"""How often a message was tried, and how much room a worker has"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up to this revision."""
    op.create_table(
        "attempts",
        sa.Column("message", sa.String(length=64), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("message", name=op.f("pk_attempts")),
    )
    op.create_index(op.f("ix_attempts_at_ms"), "attempts", ["at_ms"])
    op.add_column("nodes", sa.Column("free_bytes", sa.BigInteger(), nullable=True))
    op.add_column("nodes", sa.Column("needed_bytes", sa.BigInteger(), nullable=True))
    op.add_column("nodes", sa.Column("busy", sa.Text(), nullable=True))
