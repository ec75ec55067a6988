"""PostgreSQL's advisory locks: what one transaction at a time may do although no row is there to hold it at. Imports `events`.

Rule: held until the transaction ends, and taken before the rows that it guards are read; a room's before those of its sessions.
SQLite needs none of them: it lets one writer in at a time.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from events import requests

# Two nodes that migrate at once do it one after the other.
MIGRATION = 0x7265636F
# Downtime is forgiven once.
RESUME = 0x61776179
# Results are given their places in one order.
PLACES = 0x706C6163


async def hold(connection: AsyncConnection, lock: int) -> None:
    """Wait for a lock (a signed 64-bit number) and hold it."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(lock)))


def of_room(room: requests.Room) -> int:
    """The lock of a room: who is there and which sessions are Open there are read and written under it. Two rooms that share one
    wait for each other, and nothing else."""
    name = f"{room.sdk_app_id}/{room.kind}/{room.name}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big", signed=True)
