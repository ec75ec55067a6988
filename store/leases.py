"""Leases: which node works on which job, and until when.

Rules: a lease belongs to exactly one epoch of a job; the database's rows decide who holds it. Rows are locked in the order of all
locks: session, recording, job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Executable, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import due_work, job_key, states
from store import connections, statements, tables

_TOUCH_RECORDING = statements.updating(tables.recordings, "id", "epoch").values(version=tables.recordings.c.version + 1)
_TOUCH_DELIVERY = statements.updating(tables.callbacks, "task_id", "revision", "epoch").values(
    version=tables.callbacks.c.version + 1
)
_TAKE = statements.updating(tables.jobs, "owner", "epoch", "state")
_HELD = statements.matching(tables.jobs, "owner", "epoch", "node", "state")
_RENEW = update(tables.jobs).where(_HELD)
HOLDS = select(tables.jobs.c.epoch).where(_HELD)
_SESSION_ACTIVE = statements.updating(tables.sessions, "task_id").where(
    tables.sessions.c.idle_from_ms < statements.at("idle_from_ms")
)
_RECORDING_ACTIVE = statements.updating(tables.recordings, "id", "epoch").where(
    tables.recordings.c.idle_from_ms < statements.at("idle_from_ms")
)
_LEASES = select(tables.jobs.c.owner, tables.jobs.c.epoch, tables.jobs.c.kind, tables.jobs.c.node).where(
    tables.jobs.c.state == states.LEASED
)


class Leases:
    """The leases of one database."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def take(self, owner: job_key.JobKey, epoch: int, node: str, lease_ms: int) -> bool:
        """Take the queued job of `owner` under exactly this epoch. False: it is leased, stopped or superseded; do nothing."""
        queued = {"at_owner": owner.text, "at_epoch": epoch, "at_state": states.QUEUED}
        leased = queued | {"state": states.LEASED, "node": node, "lease_until_ms": self._clock() + lease_ms}
        async with self._database.write() as connection:
            await _touch(connection, owner, epoch)
            if (await connection.execute(_TAKE, leased)).rowcount:
                return True
            await connection.rollback()
        return False

    async def renew(self, owner: job_key.JobKey, epoch: int, node: str, lease_ms: int, last_packet_ms: int | None = None) -> bool:
        """Renew a lease, and record the time of the last media. False: refused; stop the work and write nothing more."""
        async with self._database.write() as connection:
            if last_packet_ms is not None:
                await _record_media(connection, owner, epoch, last_packet_ms)
            renewed = held(owner, epoch, node) | {"lease_until_ms": self._clock() + lease_ms}
            done = await connection.execute(_RENEW, renewed)
            if not done.rowcount:
                await connection.rollback()
        return bool(done.rowcount)

    async def is_held(self, owner: job_key.JobKey, epoch: int, node: str) -> bool:
        """Whether this node still holds the lease."""
        async with self._database.read() as connection:
            return (await connection.execute(HOLDS, held(owner, epoch, node))).first() is not None

    async def of_node(self, node: str) -> list[due_work.Lease]:
        """The leases that a node holds."""
        return await self._all(_LEASES.where(tables.jobs.c.node == node))

    async def expired(self, before_ms: int) -> list[due_work.Lease]:
        """The leases that ended before that time (Unix ms)."""
        return await self._all(_LEASES.where(tables.jobs.c.lease_until_ms < before_ms))

    async def _all(self, query: Executable) -> list[due_work.Lease]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [due_work.Lease(owner=job_key.parse_job(r.owner), epoch=r.epoch, kind=r.kind, node=r.node) for r in rows]


def held(owner: job_key.JobKey, epoch: int, node: str) -> dict[str, Any]:
    """The parameters of HOLDS."""
    return {"at_owner": owner.text, "at_epoch": epoch, "at_node": node, "at_state": states.LEASED}


async def _touch(connection: AsyncConnection, owner: job_key.JobKey, epoch: int) -> None:
    """A lease changes data that decisions read: raise the owner's version, so that a concurrent decision is repeated."""
    if isinstance(owner, job_key.DeliveryKey):
        key = {"at_task_id": owner.task_id, "at_revision": owner.revision, "at_epoch": epoch}
        await connection.execute(_TOUCH_DELIVERY, key)
        return
    await connection.execute(_TOUCH_RECORDING, {"at_id": owner.text, "at_epoch": epoch})


async def _record_media(connection: AsyncConnection, owner: job_key.JobKey, epoch: int, last_packet_ms: int) -> None:
    """Media arrived: the recording and its session are not idle."""
    active = {"at_idle_from_ms": last_packet_ms, "idle_from_ms": last_packet_ms}
    await connection.execute(_SESSION_ACTIVE, active | {"at_task_id": owner.task_id})
    await connection.execute(_RECORDING_ACTIVE, active | {"at_id": owner.text, "at_epoch": epoch})
