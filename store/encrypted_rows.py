"""Encrypted rows: verify that each can be decrypted, encrypt leftovers in plain text, re-encrypt on key rotation.

Rules: a row is replaced only if it is unchanged since it was read, because a service may be writing the same rows. Rows without a
key id are plain text, from a schema that did not encrypt.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
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
    """The columns of an encrypted value of a session."""
    body = keyring.encrypt(clear.encode(), about(task_id, kind))
    return {"key_id": keyring.key_id, "body": base64.b64encode(body).decode()}


def decrypt(keyring: encryption.Keyring, task_id: str, kind: str, key_id: str, body: str) -> str:
    """A session's value from its columns. Raises DecryptionFailed."""
    if key_id == PLAIN:
        return body
    return keyring.decrypt(base64.b64decode(body), about(task_id, kind)).decode()


def decrypt_row(keyring: encryption.Keyring, row: Mapping[str, Any]) -> str:
    """A session's value from its row. Raises DecryptionFailed."""
    return decrypt(keyring, row["task_id"], row["kind"], row["key_id"], row["body"])


def about(task_id: str, kind: str) -> str:
    """The owner that the ciphertext includes."""
    return f"{kind} {task_id}"


class EncryptedRows:
    """The encrypted rows of one database. The service may run at the same time."""

    def __init__(self, database: connections.Connections, keyring: encryption.Keyring) -> None:
        self._database = database
        self._keyring = keyring

    @property
    def key_id(self) -> str:
        """The id of the key that encrypts all rows after a rotation."""
        return self._keyring.key_id

    async def key_ids(self) -> set[str]:
        """The ids of the keys that rows are encrypted with; PLAIN among them if a row is plain text."""
        async with self._database.read() as connection:
            return set((await connection.execute(select(tables.secrets.c.key_id).distinct())).scalars())

    async def check(self) -> None:
        """Raise Unavailable if no key here decrypts one of the rows."""
        lost = await self.key_ids() - {PLAIN, *self._keyring.key_ids}
        if lost:
            raise errors.Unavailable(locked(lost, self._keyring.key_ids))

    async def encrypt_plain(self) -> int:
        """Encrypt rows in plain text, and remove their old text from the database's files; returns the number of rows."""
        done, _ = await self._reencrypt(tables.secrets.c.key_id == PLAIN)
        if done:
            log.info("secrets.encrypted", rows=done, key=self._keyring.key_id)
            await self._flush()
        return done

    async def rotate(self) -> int:
        """Re-encrypt all rows with the first key; returns how many used another. Raises Unavailable, after the others are done,
        if rows are damaged or no key decrypts them."""
        table = tables.secrets
        others = and_(table.c.key_id != self._keyring.key_id, table.c.key_id.in_([PLAIN, *self._keyring.key_ids]))
        done, damaged = await self._reencrypt(others)
        await self._flush()
        await self.check()
        if damaged:
            raise errors.Unavailable(
                f"The secrets of {', '.join(damaged)} are damaged and were left; all others are encrypted with the first key."
                " `recorder keys rotate --forget-lost` deletes them: these sessions need fresh credentials, by a replay."
            )
        return done

    async def forget_lost(self, by: model.Caller, now_ms: int) -> int:
        """Delete the rows that no key decrypts and the damaged ones, with an audit row; returns their number."""
        table = tables.secrets
        known = table.c.key_id.in_([PLAIN, *self._keyring.key_ids])
        damaged: list[Any] = []
        after: tuple[str, str] = ("", "")
        while rows := await self._batch(known, after):
            damaged += [row for row in rows if self._clear(row) is None]
            after = (rows[-1].task_id, rows[-1].kind)
        # In one transaction: no secret is deleted without its audit row.
        async with self._database.write() as connection:
            gone = int((await connection.execute(delete(table).where(~known))).rowcount)
            for row in damaged:
                gone += int((await connection.execute(delete(table).where(_same(row)))).rowcount)
            await audit.write(connection, now_ms, by, "keys-forget-lost", f"{gone} forgotten")
        return gone

    async def _reencrypt(self, which: ColumnElement[bool]) -> tuple[int, list[str]]:
        """The number of re-encrypted rows, and the sessions of damaged rows."""
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
        """The next rows in the order of their keys, so that a row that changes meanwhile is not read twice."""
        table = tables.secrets
        behind = (table.c.task_id > after[0]) | and_(table.c.task_id == after[0], table.c.kind > after[1])
        found = select(table).where(which, behind).order_by(table.c.task_id, table.c.kind).limit(BATCH)
        async with self._database.read() as connection:
            return list((await connection.execute(found)).all())

    def _clear(self, row: Any) -> str | None:
        """The plaintext of a row; None if it is damaged: its key is here and does not decrypt it."""
        try:
            return decrypt(self._keyring, row.task_id, row.kind, row.key_id, row.body)
        except (errors.DecryptionFailed, ValueError):
            log.exception("secrets.damaged", task_id=row.task_id, kind=row.kind)
            return None

    async def _flush(self) -> None:
        """Empty SQLite's write-ahead log, which still holds the old text. Another connection may prevent that."""
        if self._database.engine.dialect.name == "sqlite":
            async with self._database.read(limited=False) as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


def _same(row: Any) -> ColumnElement[bool]:
    table = tables.secrets
    return and_(table.c.task_id == row.task_id, table.c.kind == row.kind, table.c.body == row.body)


def locked(lost: Collection[str], known: Collection[str]) -> str:
    """The message for rows that no key decrypts, with the remedies."""
    needed, here = ", ".join(sorted(lost)), ", ".join(known) or "none"
    return (
        f"The database holds secrets encrypted with key {needed}, and only {here} is here: add the missing key to SECRET_KEYS"
        " (without that setting: restore the file secret.keys in DATA_DIR). If it is lost,"
        " `recorder keys rotate --forget-lost` deletes these secrets: their sessions need fresh credentials, by a replay."
    )
