"""Key rotation: encrypts every secret of the database under the first encryption key.

Rule: every rotation is in the audit, also one that failed.
"""

from __future__ import annotations

from dataclasses import dataclass

import store.audit
import store.encrypted_rows
from assembly import database, encryption_keys, identity
from config import settings as settings_module
from machine import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """A finished rotation. `rows` were re-encrypted under the key `key_id`. `forgotten` rows had no key and were deleted.
    `dead_letters` of the broker still need another key."""

    rows: int
    forgotten: int
    key_id: str
    dead_letters: int


async def rotate(settings: settings_module.Settings, *, forget_lost: bool) -> Rotation:
    """Re-encrypt all rows under the first key. `forget_lost`: first delete the rows that no key decrypts. Raises Unavailable."""
    keyring = encryption_keys.keyring(settings, make=False)
    async with database.opened(settings) as connections:
        rows = store.encrypted_rows.EncryptedRows(connections, keyring)
        audit = store.audit.Audit(connections, clock=identity.clock)
        forgotten = await rows.forget_lost(identity.operator(), identity.clock()) if forget_lost else 0
        try:
            done = await rows.rotate()
        except errors.RecorderError as error:
            await audit.add(identity.operator(), "keys-rotate", keyring.key_id, error.code)
            raise
        await audit.add(identity.operator(), "keys-rotate", keyring.key_id, "ok")
    dead_letters = await dead_letters_under_other_keys(settings)
    return Rotation(rows=done, forgotten=forgotten, key_id=keyring.key_id, dead_letters=dead_letters)


async def dead_letters_under_other_keys(settings: settings_module.Settings) -> int:
    """Count the broker's oldest dead letters that another key than the first encrypts. Raises Unavailable."""
    url = settings.amqp_url.get_secret_value()
    if not url:
        return 0
    from bus import dead_letters  # the embedded engine loads no AMQP

    keyring = encryption_keys.keyring(settings)
    queue = dead_letters.DeadLetterQueue(url, keyring=keyring, prefix=settings.amqp_prefix)
    messages, _ = await queue.list(dead_letters.MAX_READ)
    return sum(message.key_id not in ("", keyring.key_id) for message in messages)
