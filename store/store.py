"""The store: deciding transactions, and what workers, relay and sweeper need beside them. Imports `machine` and `events`.

Rule: every write is short and its own transaction; no caller sees a connection, a table or SQL.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from events import codec
from machine import encryption, errors, model, states
from store import attempts, encrypted_rows, leases, nodes, retention, spool_files, statements, tables, transaction, values
from store import engine as engines

# PostgreSQL: serialization_failure, deadlock_detected.
TRY_AGAIN = ("40001", "40P01")


Message = values.Message
Deadline = values.Deadline
Lease = values.Lease
Assignment = values.Assignment
Segment = values.Segment
Files = values.Files
Remains = values.Remains


class Store:
    """One database. `changed` is set after each deciding commit: a hint for the relay, polling is the truth."""

    def __init__(
        self, engine: AsyncEngine, *, clock: Callable[[], int], new_id: Callable[[], str], keyring: encryption.Keyring
    ) -> None:
        self._engine = engine
        self._writing = engine.execution_options(**{engines.WRITE: True})
        self._clock = clock
        self._new_id = new_id
        self._keyring = keyring
        # SQLite takes one writer at a time; PostgreSQL sorts that out by its rows.
        self._one_writer = engine.dialect.name == "sqlite"
        self._writer = asyncio.Lock()
        self.changed = asyncio.Event()
        self.attempts = attempts.Attempts(reading=self._read, writing=self._write, clock=clock)

    async def start(self) -> None:
        """Bring the schema up to date, and seal what older schemas kept plain. Raises Unavailable, also for what no key opens."""
        await engines.migrate(self._engine)
        await self.check_encrypted()

    async def check_encrypted(self) -> None:
        """See that every secret is sealed and can be opened. Raises Unavailable."""
        kept = encrypted_rows.EncryptedRows(self._engine, self._keyring)
        await kept.check()
        await kept.encrypt_plain()

    async def stop(self) -> None:
        """Close the connections."""
        await self._engine.dispose()

    async def ping(self) -> None:
        """Raise Unavailable if the database does not answer."""
        await engines.ping(self._engine)

    def _transaction(self, connection: AsyncConnection) -> transaction.Transaction:
        return transaction.Transaction(connection, self._clock(), self._new_id, self._keyring)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[transaction.Transaction]:
        """One deciding transaction: commits at the end of the block, rolls back on any error. Raises Conflict."""
        async with self._write() as connection:
            tx = self._transaction(connection)
            yield tx
            await tx.write_down()
        self.changed.set()

    # --- outbox -----------------------------------------------------------------------------------------------------------
    async def unsent(self, limit: int = 100) -> list[Message]:
        """The oldest messages that were not sent, in the order they were written."""
        async with self._read() as connection:
            rows = (await connection.execute(statements.UNSENT, {"limit": limit})).all()
        return [_message(r) for r in rows]

    async def newest_seq(self) -> int:
        """The number of the message written last; 0 when there is none."""
        async with self._read() as connection:
            return int((await connection.execute(select(func.max(tables.outbox.c.seq)))).scalar() or 0)

    async def claim_unsent(self, limit: int, hold_ms: int) -> list[Message]:
        """Take the oldest unsent messages that no other relay holds, for `hold_ms`: who has not marked them sent by then has
        died, and they are taken again. In the order they were written."""
        now_ms = self._clock()
        taken = {"now_ms": now_ms, "limit": limit, "claimed_until_ms": now_ms + hold_ms}
        async with self._write() as connection:
            rows = (await connection.execute(statements.CLAIM_UNSENT, taken)).all()
        return [_message(r) for r in sorted(rows, key=lambda r: int(r.seq))]

    async def release(self, seqs: Sequence[int]) -> None:
        """Leave claimed messages that were not sent to whoever claims them next."""
        table = tables.outbox
        free = update(table).where(table.c.seq.in_(seqs), table.c.sent_ms.is_(None)).values(claimed_until_ms=0)
        async with self._write() as connection:
            await connection.execute(free)

    async def mark_all_sent(self, seqs: Sequence[int]) -> None:
        """These messages were handed on."""
        table = tables.outbox
        async with self._write() as connection:
            await connection.execute(update(table).where(table.c.seq.in_(seqs)).values(sent_ms=self._clock()))

    async def mark_sent(self, seq: int, parked: str = "") -> None:
        """The message was handled; or cannot be, for the reason `parked`."""
        async with self._write() as connection:
            sent = {"at_seq": seq, "sent_ms": self._clock(), "parked": parked}
            await connection.execute(statements.MARK_SENT, sent)

    async def send(self, channel: str, event: codec.Event, task_id: str = "") -> None:
        """Put a message in the outbox outside a decision: a worker's outcome, an event of a user."""
        async with self.transaction() as tx:
            await tx.send(channel, event, task_id)

    # --- leases -----------------------------------------------------------------------------------------------------------
    async def take_lease(self, owner: str, epoch: int, node: str, lease_ms: int) -> bool:
        """Take the queued job of `owner` under exactly this epoch. False: it is held, stopped or superseded; do nothing."""
        queued = {"at_owner": owner, "at_epoch": epoch, "at_state": states.QUEUED}
        taken = queued | {"state": states.LEASED, "node": node, "lease_until_ms": self._clock() + lease_ms}
        async with self._write() as connection:
            await leases.touch(connection, owner, epoch)
            if (await connection.execute(statements.TAKE_LEASE, taken)).rowcount:
                return True
            await connection.rollback()
        return False

    async def renew_lease(self, owner: str, epoch: int, node: str, lease_ms: int, last_packet_ms: int | None = None) -> bool:
        """Renew the lease, and note when media last came. False: it was refused; end the work and write nothing more."""
        async with self._write() as connection:
            if last_packet_ms is not None:
                await leases.note_media(connection, owner, epoch, last_packet_ms)
            renewed = _held(owner, epoch, node) | {"lease_until_ms": self._clock() + lease_ms}
            done = await connection.execute(statements.RENEW_LEASE, renewed)
            if not done.rowcount:
                await connection.rollback()
        return bool(done.rowcount)

    async def holds_lease(self, owner: str, epoch: int, node: str) -> bool:
        """Whether the lease is still ours: asked before a spawn."""
        async with self._read() as connection:
            return (await connection.execute(statements.HOLDS_LEASE, _held(owner, epoch, node))).first() is not None

    async def leases(self, *, node: str = "", until_ms: int | None = None) -> list[Lease]:
        """The leases of a node, or those that ended before `until_ms`."""
        found = statements.LEASES_OF
        if node:
            found = found.where(tables.jobs.c.node == node)
        if until_ms is not None:
            found = found.where(tables.jobs.c.lease_until_ms < until_ms)
        async with self._read() as connection:
            rows = (await connection.execute(found)).all()
        return [Lease(owner=r.owner, epoch=r.epoch, kind=r.kind, node=r.node) for r in rows]

    # --- segments and uploads ---------------------------------------------------------------------------------------------------
    async def register_segment(self, recording_id: str, epoch: int, node: str) -> None:
        """Write the segment down before ffmpeg is started; harmless to repeat, and takes nothing away that is known of it. For a
        run that was superseded nothing is written."""
        row = {"recording_id": recording_id, "epoch": epoch, "node": node, "registered_ms": self._clock()}
        row |= {"media_ms": 0, "size_bytes": 0, "reason": ""}
        async with self._write() as connection:
            if not (await connection.execute(statements.REGISTERED, _run(recording_id, epoch))).scalar():
                await connection.execute(statements.INSERT[tables.segments], row)

    async def note_segment(self, recording_id: str, epoch: int, values: Mapping[str, Any]) -> None:
        """Write down what is known of a segment while it grows: first_packet_ms, last_packet_ms, media_ms, size_bytes. Of a run
        that was superseded, or whose end is known, nothing is written."""
        async with self._write() as connection:
            await connection.execute(statements.NOTE_SEGMENT, _run(recording_id, epoch) | dict(values))

    async def segments(self, recording_id: str) -> list[Segment]:
        """The segments of a recording in the order they were written."""
        table = tables.segments
        async with self._read() as connection:
            rows = (
                await connection.execute(select(table).where(table.c.recording_id == recording_id).order_by(table.c.epoch))
            ).all()
        names = ("epoch", "node", "first_packet_ms", "last_packet_ms", "media_ms", "registered_ms", "reason")
        return [Segment(**{name: getattr(r, name) for name in names}) for r in rows]

    async def upload_state(self, recording_id: str) -> dict[str, Any] | None:
        """What the interrupted upload of a recording had reached, or None."""
        table = tables.uploads
        async with self._read() as connection:
            row = (await connection.execute(select(table.c.body).where(table.c.recording_id == recording_id))).first()
        return json.loads(row.body) if row else None

    async def save_upload_state(self, recording_id: str, epoch: int, node: str, body: Mapping[str, Any]) -> bool:
        """Keep what an upload has reached. False: the lease was refused; end the work, nothing was written."""
        kept = {"recording_id": recording_id, "body": json.dumps(dict(body))}
        async with self._write() as connection:
            if (await connection.execute(statements.HOLD_LEASE, _held(recording_id, epoch, node))).first() is None:
                return False
            await connection.execute(statements.FORGET_UPLOAD, {"at_recording_id": recording_id})
            await connection.execute(statements.INSERT[tables.uploads], kept)
        return True

    async def forget_upload_state(self, recording_id: str, epoch: int) -> None:
        """Forget what the upload of `epoch` had reached, but not what its successor has; harmless to repeat. Not asked for by the
        lease: with the outcome that was said just before, that may have ended."""
        async with self._write() as connection:
            await connection.execute(statements.FORGET_UPLOAD_UNLESS_SUPERSEDED, _run(recording_id, epoch))

    async def assignment(self, recording_id: str) -> Assignment | None:
        """What a worker needs to know of a recording's job; None if there is no such recording."""
        async with self._read() as connection:
            tx = self._transaction(connection)
            recording = await tx.recording(recording_id)
            session = await tx.session(recording.task_id) if recording else None
            if recording is None or session is None:
                return None
            return Assignment(session=session, recording=recording, secrets=await tx.secrets(recording.task_id))

    async def delivery(self, delivery_id: str) -> model.Delivery | None:
        """One delivery by its id, `TaskId#revision`, with its whole URL. Raises DecryptionFailed."""
        async with self._read() as connection:
            tx = self._transaction(connection)
            found = [c for c in await tx.deliveries(delivery_id.split("#")[0]) if c.id == delivery_id]
            return replace(found[0], url=await tx.callback_url(found[0].task_id)) if found else None

    # --- time ---------------------------------------------------------------------------------------------------------------
    async def due_deadlines(self, limit: int = 100) -> list[Deadline]:
        """Deadlines that are over, the oldest first."""
        async with self._read() as connection:
            rows = (await connection.execute(statements.DUE_DEADLINES, {"now_ms": self._clock(), "limit": limit})).all()
        return [Deadline(owner=r.owner, kind=r.kind, serial=r.serial) for r in rows]

    async def heartbeat(
        self, node: str, url: str = "", spare: model.SpareCapacity | None = None, *, over_ms: int | None = None
    ) -> int:
        """Say that this node is alive, where other nodes can fetch its files ("": nowhere), and, as a worker, how much room it
        has for captures. If no node at all said so for longer than `over_ms` (None: whatever the time), that time is forgiven,
        once, whoever else comes back too; returns it in ms, else 0."""
        async with self._write() as connection:
            return await nodes.heartbeat(connection, node, self._clock(), url, spare, over_ms=over_ms)

    async def node_url(self, node: str, alive_since_ms: int) -> str:
        """Where the files of a node can be fetched; "" if it gave no sign of life since then, or offers none."""
        async with self._read() as connection:
            return await nodes.url(connection, node, alive_since_ms)

    async def spare_capacities(self, alive_since_ms: int) -> list[model.SpareCapacity]:
        """What the workers that gave a sign of life since then (Unix ms) say of their room, in the order of their names."""
        async with self._read() as connection:
            return await nodes.spare_capacities(connection, alive_since_ms)

    # --- clean-up -------------------------------------------------------------------------------------------------------------
    async def removable(self, failed_before_ms: int) -> list[str]:
        """Recordings whose files are kept and not wanted any more: Done, and nothing was missing; or, of the others, those that
        ended before that time (Unix ms)."""
        async with self._read() as connection:
            return await spool_files.removable(connection, failed_before_ms)

    async def mark_removed(self, recording_id: str, failed_before_ms: int) -> bool:
        """Give the files of a recording up that is still `removable`, before they are deleted. False: a replay came first, and
        needs them, or has ended and left others."""
        async with self._write() as connection:
            return await spool_files.mark_removed(connection, recording_id, failed_before_ms)

    async def given_up(self, node: str) -> list[str]:
        """Recordings whose files were given up and still lie on the spool of `node` ("": a spool that all share)."""
        async with self._read() as connection:
            return await spool_files.given_up(connection, node)

    async def files_of(self, recording_id: str, node: str) -> Files | None:
        """What of a given-up recording lies on the spool of `node` ("": the one that all share); None if a replay has begun
        meanwhile: then nothing may be deleted."""
        async with self._read() as connection:
            return await spool_files.files_of(connection, recording_id, node)

    async def forget_files(self, recording_id: str, node: str, epochs: Sequence[int]) -> None:
        """Forget segments, and the finished file, that were deleted from the spool of `node`. Not before: what a crash or a
        failing disk keeps is listed by `given_up` until it is gone."""
        async with self._write() as connection:
            await spool_files.forget_files(connection, recording_id, node, epochs)

    async def remains(self, task_ids: Sequence[str]) -> list[Remains]:
        """What nothing can want any more of these sessions, wherever it lies. What this database does not know is nobody's to
        delete: another DATA_DIR, or a backup, may know it."""
        async with self._read() as connection:
            return await spool_files.remains(connection, task_ids)

    async def forget_inbox(self, before_ms: int) -> None:
        """Forget the ids of events, and sent commands and events, that are older than any repeat can be."""
        async with self._write() as connection:
            await retention.messages(connection, before_ms)

    async def forget_sessions(self, before_ms: int) -> int:
        """Forget sessions that finished before that time (Unix ms) and that nothing is kept of but rows; returns how many, which
        is forgetting.AT_ONCE as long as there may be more. And what is older and belongs to none: who was where, lost nodes."""
        now_ms = self._clock()
        async with self._write() as connection:
            gone = await retention.sessions(connection, before_ms)
            presence_ms = now_ms - transaction.PRESENCE_KEPT_MS
            await retention.loose(connection, presence_before_ms=presence_ms, before_ms=before_ms)
        return gone

    # --- the small steps they share ---------------------------------------------------------------------------------------
    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._writer if self._one_writer else nullcontext(), self._writing.begin() as connection:
                yield connection
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) in TRY_AGAIN:
                raise errors.Conflict("the database broke a tie between two transactions") from error
            raise

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.connect() as connection:
            yield connection


def _held(owner: str, epoch: int, node: str) -> dict[str, Any]:
    return {"at_owner": owner, "at_epoch": epoch, "at_node": node, "at_state": states.LEASED}


def _run(recording_id: str, epoch: int) -> dict[str, Any]:
    return {"at_recording_id": recording_id, "at_epoch": epoch}


def _message(row: Any) -> Message:
    return Message(seq=row.seq, channel=row.channel, type=row.type, node=row.node, body=row.body.encode())
