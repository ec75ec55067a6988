"""API keys in the database: created, listed, revoked, and read for authentication.

Rule: the table holds digests, never a key's text. A revoked key keeps its row, so its id is never reused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sqlalchemy import insert, select, update

from machine import api_keys, errors, model
from store import audit, connections, tables


class Keys:
    """The API keys of one database."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def all(self) -> list[api_keys.ApiKey]:
        """All keys, including revoked ones, oldest first. Raises Unavailable."""
        table = tables.api_keys
        async with self._database.read() as connection:
            rows = (await connection.execute(select(table).order_by(table.c.created_ms, table.c.id))).mappings().all()
        return [_key(row) for row in rows]

    async def add(self, key: api_keys.ApiKey, by: model.Caller) -> api_keys.ApiKey:
        """Insert a new key and an audit row; returns the key with its creation time."""
        row = asdict(key) | {"scopes": ",".join(key.scopes), "created_ms": self._clock()}
        async with self._database.write() as connection:
            await connection.execute(insert(tables.api_keys).values(row))
            await audit.write(connection, self._clock(), by, "keys-create", f"{key.id} {key.name}")
        return _key(row)

    async def revoke(self, id_: str, by: model.Caller) -> api_keys.ApiKey:
        """Revoke a key for good. Idempotent. Raises NotFound."""
        table = tables.api_keys
        async with self._database.write() as connection:
            row = (await connection.execute(select(table).where(table.c.id == id_).with_for_update())).mappings().first()
            if row is None:
                raise errors.NotFound("There is no such key; `recorder keys list` shows them.")
            if row["revoked_ms"] is not None:
                return _key(row)
            now_ms = self._clock()
            await connection.execute(update(table).where(table.c.id == id_).values(revoked_ms=now_ms))
            await audit.write(connection, now_ms, by, "keys-revoke", f"{id_} {row['name']}")
        return _key(dict(row) | {"revoked_ms": now_ms})

    async def note_used(self, id_: str) -> None:
        """Record that the key was used now. Raises Unavailable."""
        table = tables.api_keys
        async with self._database.write() as connection:
            await connection.execute(update(table).where(table.c.id == id_).values(used_ms=self._clock()))


def _key(row: Any) -> api_keys.ApiKey:
    return api_keys.ApiKey(**{**row, "scopes": tuple(row["scopes"].split(","))})
