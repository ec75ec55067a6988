"""The database of the settings, opened for one command of the operator.

Rule: a command never creates a database that a running service would then not find; only the first API key may create one.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import store.connections
import store.encrypted_rows
import store.schema
from assembly import encryption_keys
from config import settings as settings_module
from machine import errors

# Connections to PostgreSQL that each role adds to the first one, and the fewest of a node.
CONNECTIONS = {"api": 1, "machine": 3, "worker": 1}
MIN_CONNECTIONS = 3


def pool_size(settings: settings_module.Settings) -> int:
    """Connections of a node to PostgreSQL: DATABASE_CONNECTIONS, or what its roles need. Decisions need most."""
    needed = 1 + sum(CONNECTIONS[role] for role in settings.roles)
    return settings.database_connections or max(needed, MIN_CONNECTIONS)


@contextlib.asynccontextmanager
async def opened(settings: settings_module.Settings, *, create: bool = False) -> AsyncIterator[store.connections.Connections]:
    """Connections to a database with this program's schema. `create`: create SQLite's file if it is missing. Raises
    Unavailable."""
    missing = not settings.amqp_url.get_secret_value() and not settings.database_file.exists()
    if missing and not create:
        file = settings.database_file
        raise errors.Unavailable(f"There is no database {file}: set DATABASE_URL or DATA_DIR as the service has it.")
    connections = store.connections.open_database(settings.database)
    try:
        if missing:
            settings.database_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            await store.schema.migrate(connections)
        await connections.ping()
        await store.schema.check(connections)
        yield connections
    finally:
        await connections.close()


async def migrate(settings: settings_module.Settings) -> tuple[str, bool]:
    """Migrate the schema to this program's revision and encrypt secrets that older versions stored plain. Returns the
    revision, and whether the contract is still to be done."""
    keyring = encryption_keys.keyring(settings)
    connections = store.connections.open_database(settings.database)
    try:
        revision = await store.schema.migrate(connections)
        rows = store.encrypted_rows.EncryptedRows(connections, keyring)
        await rows.check()
        await rows.encrypt_plain()
        return revision, await store.schema.contract_is_due(connections)
    finally:
        await connections.close()


async def contract(settings: settings_module.Settings) -> None:
    """End the time of two versions: older nodes decide nothing any more. Raises Refused while some live, Unavailable."""
    connections = store.connections.open_database(settings.database)
    try:
        await store.schema.contract(connections)
    finally:
        await connections.close()
