"""Sessions are found by application, room, user, time, speaker and code"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

NOT_SUCCESS = sa.text("code NOT IN ('', 'Success')")


def upgrade() -> None:
    """Go up to this revision."""
    op.create_index("ix_sessions_opened", "sessions", ["opened_ms"])
    op.create_index("ix_sessions_of_app", "sessions", ["sdk_app_id", "task_id"])
    op.create_index("ix_sessions_of_room", "sessions", ["room", "task_id"])
    op.create_index("ix_sessions_of_user", "sessions", ["user_id", "task_id"])
    op.create_index("ix_recordings_of_speaker", "recordings", ["speaker", "task_id"])
    op.create_index(
        "ix_recordings_of_code", "recordings", ["code", "task_id"], sqlite_where=NOT_SUCCESS, postgresql_where=NOT_SUCCESS
    )
