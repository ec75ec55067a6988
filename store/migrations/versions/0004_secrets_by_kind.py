"""Secrets by kind, with the id of the key that encrypts them; callback URLs among them

Plain rows stay plain here and have no key id: the service, which has the keys, encrypts them before it does anything else.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SECRETS = sa.table(
    "secrets",
    *(sa.column(name, sa.String) for name in ("task_id", "kind", "key_id", "body")),
    sa.column("updated_ms", sa.BigInteger),
)
_SESSIONS = sa.table("sessions", *(sa.column(name, sa.String) for name in ("task_id", "request")))
_CALLBACKS = sa.table("callbacks", *(sa.column(name, sa.String) for name in ("task_id", "url")))


def upgrade() -> None:
    """Go up to this revision."""
    connection = op.get_bind()
    old = sa.select(_SECRETS.c.task_id, _SECRETS.c.body, _SECRETS.c.updated_ms)
    kept = [dict(row) for row in connection.execute(old).mappings()]
    op.drop_table("secrets")
    op.create_table(
        "secrets",
        sa.Column("task_id", sa.String(length=26), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "kind", name=op.f("pk_secrets")),
    )
    _keep(connection, [row | {"kind": "credentials"} for row in kept])
    _take_addresses(connection)


def _take_addresses(connection: sa.Connection) -> None:
    """From requests and deliveries, where only the origin stays."""
    found = connection.execute(sa.select(_SESSIONS).where(_SESSIONS.c.request.like('%"callback":"http%'))).all()
    for row in found:
        request = json.loads(row.request)
        url, request["callback"] = request["callback"], _origin(request["callback"])
        text = json.dumps(request, ensure_ascii=False, separators=(",", ":"))
        _keep(connection, [{"task_id": row.task_id, "kind": "callback", "body": url, "updated_ms": 0}])
        connection.execute(sa.update(_SESSIONS).where(_SESSIONS.c.task_id == row.task_id).values(request=text))
        connection.execute(sa.update(_CALLBACKS).where(_CALLBACKS.c.task_id == row.task_id).values(url=_origin(url)))


def _keep(connection: sa.Connection, found: list[dict[str, Any]]) -> None:
    if found:
        connection.execute(sa.insert(_SECRETS), [row | {"key_id": ""} for row in found])


def _origin(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…" if url else ""


def downgrade() -> None:
    """Encrypted rows cannot be decrypted here: restore a copy from before the upgrade."""
    raise RuntimeError("A migration cannot decrypt secrets: restore a copy of the database from before it.")
