"""What lies sealed in the database: that it can be opened, that nothing in it is plain, and sealing it anew. Imports `machine`.

Rule: a row is replaced only while it is still the row that was read; a service may be at work on the same rows. Rows without a
key's id are plain, of a schema that did not seal.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Any

import structlog
from sqlalchemy import ColumnElement, and_, delete, select, text, update

from machine import encryption, errors, model
from store import audit, connections, tables

log = structlog.get_logger()

CREDENTIALS = "credentials"
CALLBACK = "callback"
PLAIN = ""
BATCH = 100


def encrypt(keyring: encryption.Keyring, task_id: str, kind: str, clear: str) -> dict[str, str]:
    """The columns of a sealed value of a session."""
    body = keyring.encrypt(clear.encode(), about(task_id, kind))
    return {"key_id": keyring.key_id, "body": base64.b64encode(body).decode()}


def decrypt(keyring: encryption.Keyring, task_id: str, kind: str, key_id: str, body: str) -> str:
    """A session's value from its columns. Raises DecryptionFailed."""
    if key_id == PLAIN:
        return body
    return keyring.decrypt(base64.b64decode(body), about(task_id, kind)).decode()


def about(task_id: str, kind: str) -> str:
    """What a sealed value says of itself."""
    return f"{kind} {task_id}"


class EncryptedRows:
    """The sealed values of one database; the service may run meanwhile."""

    def __init__(self, database: connections.Connections, keyring: encryption.Keyring) -> None:
        self._database = database
        self._keyring = keyring

    @property
    def key_id(self) -> str:
        """The id of the key that all is sealed under after a rotation."""
        return self._keyring.key_id

    async def key_ids(self) -> set[str]:
        """The ids of the keys that rows are sealed under, PLAIN among them if some are not."""
        async with self._database.read() as connection:
            return set((await connection.execute(select(tables.secrets.c.key_id).distinct())).scalars())

    async def check(self) -> None:
        """Raise Unavailable if there is a row that no key here opens."""
        lost = await self.key_ids() - {PLAIN, *self._keyring.key_ids}
        if lost:
            raise errors.Unavailable(locked(lost, self._keyring.key_ids))

    async def encrypt_plain(self) -> int:
        """Seal what is plain, and see that no file of the database keeps its old text; returns how many rows."""
        done, _ = await self._reencrypt(tables.secrets.c.key_id == PLAIN)
        if done:
            log.info("secrets.sealed", rows=done, key=self._keyring.key_id)
            await self._flush()
        return done

    async def rotate(self) -> int:
        """Seal everything under the first key; returns how many rows were not. Raises Unavailable, with all others done, if there
        are rows that no key opens, or that are damaged."""
        table = tables.secrets
        others = and_(table.c.key_id != self._keyring.key_id, table.c.key_id.in_([PLAIN, *self._keyring.key_ids]))
        done, damaged = await self._reencrypt(others)
        await self._flush()
        await self.check()
        if damaged:
            raise errors.Unavailable(
                f"What is sealed for {', '.join(damaged)} is damaged and was left; all else is sealed anew."
                " `recorder keys rotate --forget-lost` forgets it: these sessions need fresh credentials, by a replay."
            )
        return done

    async def forget_lost(self, by: model.Caller, now_ms: int) -> int:
        """Forget the rows that no key opens, and those that are damaged, and write down who did; returns how many."""
        table = tables.secrets
        known = table.c.key_id.in_([PLAIN, *self._keyring.key_ids])
        damaged: list[Any] = []
        after: tuple[str, str] = ("", "")
        while rows := await self._batch(known, after):
            damaged += [row for row in rows if self._clear(row) is None]
            after = (rows[-1].task_id, rows[-1].kind)
        # In one transaction: what is gone for good is gone under somebody's name.
        async with self._database.write() as connection:
            gone = int((await connection.execute(delete(table).where(~known))).rowcount)
            for row in damaged:
                gone += int((await connection.execute(delete(table).where(_same(row)))).rowcount)
            await audit.write(connection, now_ms, by, "keys-forget-lost", f"{gone} forgotten")
        return gone

    async def _reencrypt(self, which: ColumnElement[bool]) -> tuple[int, list[str]]:
        """How many rows were sealed anew, and the sessions of those that are damaged."""
        done, damaged = 0, []
        after: tuple[str, str] = ("", "")
        while rows := await self._batch(which, after):
            async with self._database.write() as connection:
                for row in rows:
                    clear = self._clear(row)
                    if clear is None:
                        damaged.append(row.task_id)
                    else:
                        values = encrypt(self._keyring, row.task_id, row.kind, clear)
                        done += int((await connection.execute(update(tables.secrets).where(_same(row)).values(values))).rowcount)
            after = (rows[-1].task_id, rows[-1].kind)
        return done, damaged

    async def _batch(self, which: ColumnElement[bool], after: tuple[str, str]) -> list[Any]:
        """The next rows, in the order of their keys: one that changes under our hands is not met again."""
        table = tables.secrets
        behind = (table.c.task_id > after[0]) | and_(table.c.task_id == after[0], table.c.kind > after[1])
        found = select(table).where(which, behind).order_by(table.c.task_id, table.c.kind).limit(BATCH)
        async with self._database.read() as connection:
            return list((await connection.execute(found)).all())

    def _clear(self, row: Any) -> str | None:
        """What a row holds; None if it is damaged: its key is here and does not open it."""
        try:
            return decrypt(self._keyring, row.task_id, row.kind, row.key_id, row.body)
        except (errors.DecryptionFailed, ValueError):
            log.exception("secrets.damaged", task_id=row.task_id, kind=row.kind)
            return None

    async def _flush(self) -> None:
        """SQLite's log still holds what was there before, until it is emptied; another connection may keep it from that."""
        if self._database.engine.dialect.name == "sqlite":
            async with self._database.read() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


def _same(row: Any) -> ColumnElement[bool]:
    table = tables.secrets
    return and_(table.c.task_id == row.task_id, table.c.kind == row.kind, table.c.body == row.body)


def locked(lost: Collection[str], known: Collection[str]) -> str:
    """The sentence for rows that no key opens: which setting, and what else there is to do."""
    needed, here = ", ".join(sorted(lost)), ", ".join(known) or "none"
    return (
        f"The database holds secrets sealed under key {needed}, and here is {here}: put the key they were sealed with into"
        " SECRET_KEYS (without that setting: bring back the file secret.keys in DATA_DIR). If it is lost,"
        " `recorder keys rotate --forget-lost` forgets them: their sessions need fresh credentials, by a replay."
    )
