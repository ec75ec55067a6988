"""The API keys: made, listed, revoked, and read by the door. Imports `machine`.

Rule: a key's text never comes here, only its digest. A revoked key keeps its row: its id is never another key's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from sqlalchemy import exc, insert, select, update

from machine import api_keys, errors, model
from store import audit, connections, tables


class Keys:
    """The API keys of one database."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def all(self) -> list[api_keys.ApiKey]:
        """Every key, revoked ones too, oldest first. Raises Unavailable."""
        table = tables.api_keys
        with _answers():
            async with self._database.read() as connection:
                rows = (await connection.execute(select(table).order_by(table.c.created_ms, table.c.id))).mappings().all()
        return [_key(row) for row in rows]

    async def add(self, key: api_keys.ApiKey, by: model.Caller) -> api_keys.ApiKey:
        """Keep a new key, and who made it. Returns it with the time of its making."""
        row = asdict(key) | {"scopes": ",".join(key.scopes), "created_ms": self._clock()}
        async with self._database.write() as connection:
            await connection.execute(insert(tables.api_keys).values(row))
            await audit.write(connection, self._clock(), by, "keys-create", f"{key.id} {key.name}")
        return _key(row)

    async def revoke(self, id_: str, by: model.Caller) -> api_keys.ApiKey:
        """Take a key's rights for good; harmless to repeat. Raises NotFound."""
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
        """The key was used about now. Raises Unavailable."""
        table = tables.api_keys
        with _answers():
            async with self._database.write() as connection:
                await connection.execute(update(table).where(table.c.id == id_).values(used_ms=self._clock()))


@contextlib.contextmanager
def _answers() -> Iterator[None]:
    try:
        yield
    except (exc.SQLAlchemyError, OSError, TimeoutError) as error:
        raise errors.Unavailable(f"The database does not answer: {type(error).__name__}.") from error


def _key(row: Any) -> api_keys.ApiKey:
    return api_keys.ApiKey(**{**row, "scopes": tuple(row["scopes"].split(","))})
