"""What a lease changes beside its own row. Imports `machine`.

Rule: in the order of all locks, session, recording, and then the caller's job.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from machine import model
from store import statements


async def touch(connection: AsyncConnection, owner: str, epoch: int) -> None:
    """A lease changes what a decision would see: bump the owner's version, so that a concurrent decision is made again."""
    if "#" in owner and "/" not in owner:
        task_id, revision = owner.split("#")
        key = {"at_task_id": task_id, "at_revision": int(revision), "at_epoch": epoch}
        await connection.execute(statements.TOUCH_CALLBACK, key)
        return
    await connection.execute(statements.TOUCH_RECORDING, {"at_id": owner, "at_epoch": epoch})


async def note_media(connection: AsyncConnection, owner: str, epoch: int, last_packet_ms: int) -> None:
    """When media last came, to the recording and its session: they are not idle."""
    noted = {"at_idle_from_ms": last_packet_ms, "idle_from_ms": last_packet_ms}
    await connection.execute(statements.SESSION_NOT_IDLE, noted | {"at_task_id": model.split_id(owner)[0]})
    await connection.execute(statements.RECORDING_NOT_IDLE, noted | {"at_id": owner, "at_epoch": epoch})
