"""Advisory locks of PostgreSQL: they order transactions where no row exists to lock.

Rule: a lock is held until the transaction ends, and taken before the rows that it guards are read; a room's lock before the rows
of its sessions. SQLite needs none, because it has one writer at a time.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from events import requests

# Nodes that migrate at the same time do so in turn.
MIGRATION = 0x7265636F
# Downtime extends deadlines once.
RESUME = 0x61776179
# Results get their places in one order.
PLACES = 0x706C6163


async def hold(connection: AsyncConnection, lock: int) -> None:
    """Wait for a lock (a signed 64-bit number) and hold it."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(lock)))


def of_room(room: requests.Room) -> int:
    """The lock of a room: it guards presence and Open sessions. Rooms whose hashes collide only wait for each other."""
    name = f"{room.sdk_app_id}/{room.kind}/{room.name}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big", signed=True)
