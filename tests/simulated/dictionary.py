"""A store of dictionaries: the third engine behind the ports of SQLite and PostgreSQL, fast enough for thousands of histories.

Rule: finding, refusing, overwriting and rolling back follow `store/`; the same rows of the conformance suite
(tests/contract/test_store*.py) verify all engines. Nothing here waits, so `tests.simulated.coroutine_runner` can run a coroutine
to its end.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from events import codec, requests
from machine import due_work, job_key, model, segments, states
from tests.simulated import dictionary_transaction as transactions

Tables = transactions.Tables


class Store:
    """One database in memory.

    `watch`, if set, is called with each transaction just before its commit. `meddle`, if set, is called with the key of a row
    that an update is about to check, and returns whether another transaction changed it. `tables` outlive the store, so that a
    database can be opened again."""

    def __init__(self, *, clock: Callable[[], int], new_id: Callable[[], str], tables: transactions.Tables | None = None) -> None:
        self.tables = tables or transactions.Tables()
        self._clock = clock
        self._new_id = new_id
        self.changed = asyncio.Event()
        self.watch: Callable[[transactions.Transaction], None] | None = None
        self.meddle: Callable[[str], bool] | None = None
        self.connections = Connections()
        self.assignments = Assignments(self)
        self.attempts = Attempts()
        self.deadlines = Deadlines(self)
        self.leases = Leases(self)
        self.nodes = Nodes(self)
        self.outbox = Outbox(self)
        self.retention = Retention(self)
        self.segments = Segments(self)
        self.spool_files = SpoolFiles(self)
        self.uploads = Uploads(self)

    async def start(self) -> None:
        """There is no schema to migrate."""

    async def stop(self) -> None:
        """There is nothing to close."""

    def now_ms(self) -> int:
        """Unix ms."""
        return self._clock()

    def transaction(self) -> _Open:
        """One deciding transaction: commits at the end of the block, rolls back on any error. Raises Conflict."""
        return _Open(self, transactions.Transaction(self.tables, self._clock(), self._new_id, self.meddle))

    def write(self) -> _Open:
        """A transaction of a worker or relay: `changed` is not set, and `meddle` is not called."""
        return _Open(self, transactions.Transaction(self.tables, self._clock(), self._new_id), notify=False)

    def superseded(self, recording: job_key.RecordingKey, epoch: int) -> bool:
        """Whether a newer epoch of the recording has started."""
        found = self.tables.recordings.get(str(recording))
        return found is not None and found.epoch > epoch

    # --- queries ----------------------------------------------------------------------------------------------------------
    async def timeline(self, task_id: str) -> list[transactions.JournalLine]:
        """A session's journal, oldest first."""
        return [line for line in self.tables.journal.values() if line.task_id == task_id]

    async def sessions(self) -> list[model.Session]:
        """All sessions, newest first."""
        return sorted(self.tables.sessions.values(), key=lambda s: s.task_id, reverse=True)

    async def results(self, task_id: str) -> list[dict[str, Any]]:
        """The results of a session, oldest revision first."""
        return [json.loads(body) for (of, _), body in sorted(self.tables.results.items()) if of == task_id]


class Connections:
    """Connections to memory."""

    async def ping(self) -> None:
        """A dictionary always responds."""


class Attempts:
    """Attempt counts of messages."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    async def count(self, message: str) -> int:
        """The attempts counted so far."""
        return self._counts.get(message, 0)

    async def add(self, message: str) -> int:
        """Count one more attempt; returns the new count."""
        self._counts[message] = self._counts.get(message, 0) + 1
        return self._counts[message]

    async def take_back(self, message: str) -> None:
        """Count one attempt less: the failure was not the message's fault."""
        if self._counts.get(message):
            self._counts[message] -= 1

    async def forget(self, message: str) -> None:
        """Delete the count of a message."""
        self._counts.pop(message, None)


class _Part:
    """One concern of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables = store.tables


class Outbox(_Part):
    """The outbox."""

    async def unsent(self, limit: int = 100) -> list[due_work.OutboxMessage]:
        """The oldest unsent messages, oldest first."""
        outbox = self._tables.outbox
        return [_message(outbox[seq]) for seq in list(self._tables.unsent)[:limit]]

    async def claim(self, limit: int, hold_ms: int) -> list[due_work.OutboxMessage]:
        """Claim the oldest unsent messages that no other relay holds, oldest first."""
        now_ms = self._store.now_ms()
        free = [seq for seq in self._tables.unsent if self._tables.outbox[seq].claimed_until_ms < now_ms][:limit]
        async with self._store.write() as tx:
            for seq in free:
                tx.put(self._tables.outbox, seq, self._tables.outbox[seq]._replace(claimed_until_ms=now_ms + hold_ms))
        return [_message(self._tables.outbox[seq]) for seq in free]

    async def release(self, seqs: Sequence[int]) -> None:
        """Give up the claims on messages that were not sent."""
        async with self._store.write() as tx:
            for seq in set(seqs) & set(self._tables.unsent):
                tx.put(self._tables.outbox, seq, self._tables.outbox[seq]._replace(claimed_until_ms=0))

    async def mark_all_sent(self, seqs: Sequence[int]) -> None:
        """Mark messages as delivered."""
        for seq in seqs:
            await self.mark_sent(seq)

    async def mark_sent(self, seq: int, parked: str = "") -> None:
        """Mark a message as delivered, or as a dead letter for the reason `parked`."""
        async with self._store.write() as tx:
            tx.put(self._tables.outbox, seq, self._tables.outbox[seq]._replace(sent_ms=self._store.now_ms(), parked=parked))
            tx.drop(self._tables.unsent, seq)

    async def send(self, channel: str, event: codec.Event, task_id: str = "") -> None:
        """Write a message outside a decision: a worker's outcome, an event of the sweeper."""
        async with self._store.transaction() as tx:
            await tx.send(channel, event, task_id)

    async def newest_seq(self) -> int:
        """The number of the newest message; 0 when there is none."""
        return max(self._tables.outbox, default=0)


class Leases(_Part):
    """Which node works on which job."""

    async def take(self, owner: job_key.JobKey, epoch: int, node: str, lease_ms: int) -> bool:
        """Take the queued job of `owner` under exactly this epoch. False: it is leased, stopped or superseded; do nothing."""
        row = self._tables.jobs.get((str(owner), epoch))
        if row is None or row.state != states.QUEUED:
            return False
        async with self._store.write() as tx:
            tx.put_job(str(owner), epoch, transactions.JobRow(row.kind, states.LEASED, node, self._store.now_ms() + lease_ms))
            tx.touch(str(owner), epoch, model.Job(kind=row.kind, state=states.LEASED, node=node))
        return True

    async def renew(self, owner: job_key.JobKey, epoch: int, node: str, lease_ms: int, last_packet_ms: int | None = None) -> bool:
        """Renew a lease, and record the time of the last media. False: refused; stop the work and write nothing more."""
        if not await self.is_held(owner, epoch, node):
            return False
        row = self._tables.jobs[str(owner), epoch]
        async with self._store.write() as tx:
            if last_packet_ms is not None:
                tx.note_media(str(owner), epoch, last_packet_ms)
            tx.put_job(str(owner), epoch, row._replace(lease_until_ms=self._store.now_ms() + lease_ms))
        return True

    async def is_held(self, owner: job_key.JobKey, epoch: int, node: str) -> bool:
        """Whether this node still holds the lease."""
        row = self._tables.jobs.get((str(owner), epoch))
        return row is not None and row.node == node and row.state == states.LEASED

    async def of_node(self, node: str) -> list[due_work.Lease]:
        """The leases that a node holds."""
        return [lease for lease, row in self._all() if row.node == node]

    async def expired(self, before_ms: int) -> list[due_work.Lease]:
        """The leases that ended before that time (Unix ms)."""
        return [lease for lease, row in self._all() if row.lease_until_ms < before_ms]

    def _all(self) -> list[tuple[due_work.Lease, transactions.JobRow]]:
        found = ((owner, epoch, self._tables.jobs[owner, epoch]) for owner, epoch in self._tables.leased)
        return [
            (due_work.Lease(owner=job_key.parse_job(owner), epoch=epoch, kind=row.kind, node=row.node), row)
            for owner, epoch, row in found
        ]


class Segments(_Part):
    """Segments of recordings."""

    async def register(self, recording: job_key.RecordingKey, epoch: int, node: str) -> None:
        """Register a segment before its capture starts. Idempotent: a known segment keeps its values."""
        if (str(recording), epoch) not in self._tables.segments and not self._store.superseded(recording, epoch):
            async with self._store.write() as tx:
                blank = {"first_packet_ms": None, "last_packet_ms": None, "media_ms": 0, "size_bytes": 0, "reason": ""}
                row = {"node": node, "registered_ms": self._store.now_ms(), **blank}
                tx.put(self._tables.segments, (str(recording), epoch), row)

    async def update(self, recording: job_key.RecordingKey, epoch: int, values: Mapping[str, Any]) -> None:
        """Update a growing segment: first_packet_ms, last_packet_ms, media_ms, size_bytes."""
        row = self._tables.segments.get((str(recording), epoch))
        if row is not None and not row["reason"] and not self._store.superseded(recording, epoch):
            async with self._store.write() as tx:
                tx.put(self._tables.segments, (str(recording), epoch), row | dict(values))

    async def of_recording(self, recording: job_key.RecordingKey) -> list[segments.Segment]:
        """The segments of a recording in the order of their epochs."""
        names = ("node", "first_packet_ms", "last_packet_ms", "media_ms", "registered_ms", "reason")
        found = sorted((key[1], row) for key, row in self._tables.segments.items() if key[0] == str(recording))
        return [segments.Segment(epoch=epoch, **{name: row[name] for name in names}) for epoch, row in found]


class Uploads(_Part):
    """States of interrupted uploads."""

    async def state(self, recording: job_key.RecordingKey) -> dict[str, Any] | None:
        """The state of an interrupted upload, or None."""
        return copy.deepcopy(self._tables.uploads.get(str(recording)))

    async def save(self, recording: job_key.RecordingKey, epoch: int, node: str, body: Mapping[str, Any]) -> bool:
        """Save the state of a running upload. False: the lease was refused and nothing was written; stop the work."""
        if not await self._store.leases.is_held(recording, epoch, node):
            return False
        async with self._store.write() as tx:
            tx.put(self._tables.uploads, str(recording), copy.deepcopy(dict(body)))
        return True

    async def delete(self, recording: job_key.RecordingKey, epoch: int) -> None:
        """Delete the state of the upload of `epoch`, unless a newer epoch has started. Idempotent."""
        if not self._store.superseded(recording, epoch):
            async with self._store.write() as tx:
                tx.drop(self._tables.uploads, str(recording))


class Assignments(_Part):
    """The data of leased jobs."""

    async def recording(self, key: job_key.RecordingKey) -> due_work.Assignment | None:
        """The assignment of a recording's job; None if there is no such recording."""
        recording = self._tables.recordings.get(str(key))
        session = self._tables.sessions.get(recording.task_id) if recording else None
        if recording is None or session is None:
            return None
        secrets = self._tables.secrets.get(recording.task_id, requests.Secrets())
        return due_work.Assignment(session=session, recording=recording, secrets=secrets)

    async def delivery(self, key: job_key.DeliveryKey) -> model.Delivery | None:
        """A delivery with its whole URL."""
        found = self._tables.callbacks.get(str(key))
        return model.changed(found, url=self._tables.callback_urls.get(found.task_id, "")) if found is not None else None


class Deadlines(_Part):
    """Deadlines that have passed."""

    async def due(self, limit: int = 100) -> list[due_work.Deadline]:
        """Deadlines that have passed, oldest first."""
        now_ms = self._store.now_ms()
        due = [(at_ms, serial, key) for key, (at_ms, serial) in self._tables.deadlines.items() if at_ms <= now_ms]
        return [
            due_work.Deadline(owner=job_key.parse(owner), kind=kind, serial=serial)
            for _, serial, (owner, kind) in sorted(due)[:limit]
        ]


class Nodes(_Part):
    """Heartbeats and spare capacities of nodes."""

    async def heartbeat(
        self, node: str, url: str = "", spare: model.SpareCapacity | None = None, *, over_ms: int | None = None
    ) -> int:
        """Record that this node is alive, where other nodes fetch its files ("": nowhere), and a worker's spare capacity."""
        now_ms, downtime_ms = self._store.now_ms(), 0
        seen_ms = max((seen_ms for seen_ms, _, _ in self._tables.nodes.values()), default=None)
        if over_ms is not None and seen_ms is not None and now_ms > seen_ms + over_ms:
            downtime_ms = now_ms - seen_ms
            await self._extend_deadlines(downtime_ms)
        self._tables.nodes[node] = (now_ms, url, spare)
        return downtime_ms

    async def spare_capacities(self, alive_since_ms: int) -> list[model.SpareCapacity]:
        """The spare capacities of workers that sent a heartbeat since then (Unix ms), in the order of their names."""
        alive = [spare for _, (seen_ms, _, spare) in sorted(self._tables.nodes.items()) if seen_ms >= alive_since_ms]
        return [spare for spare in alive if spare is not None]

    async def url(self, node: str, alive_since_ms: int) -> str:
        """Where the files of a node can be fetched; "" if it sent no heartbeat since then (Unix ms), or offers none."""
        seen_ms, url, _ = self._tables.nodes.get(node, (-1, "", None))
        return url if seen_ms >= alive_since_ms else ""

    async def _extend_deadlines(self, downtime_ms: int) -> None:
        """Move join, idle and linger deadlines, and the times from which idleness counts, by the downtime."""
        async with self._store.write() as tx:
            for key, (at_ms, serial) in list(self._tables.deadlines.items()):
                if key[1] in model.EXTENDED_BY_DOWNTIME:
                    tx.put(self._tables.deadlines, key, (at_ms + downtime_ms, serial))
            live = (states.OPEN, *states.CAPTURING)
            kept: tuple[dict[str, Any], ...] = (self._tables.sessions, self._tables.recordings)
            for rows in kept:
                for id_, row in list(rows.items()):
                    if row.state in live:
                        tx.put(rows, id_, model.changed(row, idle_from_ms=row.idle_from_ms + downtime_ms))


class SpoolFiles(_Part):
    """Files on spools that nothing needs any more."""

    async def removable(self, failed_before_ms: int) -> list[job_key.RecordingKey]:
        """Recordings that keep files which nothing needs."""
        return [r.key for r in self._tables.recordings.values() if _unwanted(r, failed_before_ms)][:100]

    async def give_up(self, recording: job_key.RecordingKey, failed_before_ms: int) -> bool:
        """Give up the files of a `removable` recording, before they are deleted."""
        found = self._tables.recordings.get(str(recording))
        if found is None or not _unwanted(found, failed_before_ms):
            return False
        async with self._store.write() as tx:
            given_up = model.changed(found, files_removed=True, version=found.version + 1)
            tx.put(self._tables.recordings, str(recording), given_up)
        return True

    async def given_up(self, node: str) -> list[job_key.RecordingKey]:
        """Recordings that gave up files which are still on the spool of `node` ("": a spool that all nodes share)."""
        lying = {key[0] for key, row in self._tables.segments.items() if node in ("", row["node"])}
        held = [r for r in self._tables.recordings.values() if r.files_removed]
        return [r.key for r in held if str(r.key) in lying or (node and r.output_node == node)][:100]

    async def of_recording(self, recording: job_key.RecordingKey, node: str) -> segments.GivenUpFiles | None:
        """The given-up files of a recording on the spool of `node`; None if a replay has started since."""
        found = self._tables.recordings.get(str(recording))
        if found is None or not found.files_removed:
            return None
        there = [key[1] for key, row in self._tables.segments.items() if key[0] == str(recording) and node in ("", row["node"])]
        return segments.GivenUpFiles(until_epoch=found.epoch, segments=tuple(epoch for epoch in there if epoch <= found.epoch))

    async def forget(self, recording: job_key.RecordingKey, node: str, epochs: Sequence[int]) -> None:
        """Forget segments, and the finished file, after they were deleted from the spool of `node`."""
        found = self._tables.recordings.get(str(recording))
        async with self._store.write() as tx:
            for epoch in epochs:
                tx.drop(self._tables.segments, (str(recording), epoch))
            if node and found is not None and found.files_removed and found.output_node == node:
                tx.put(self._tables.recordings, str(recording), model.changed(found, output_node=""))

    async def leftovers(self, task_ids: Sequence[str]) -> list[segments.Leftovers]:
        """Files of these sessions that nothing can need, on whatever spool."""
        return [
            segments.Leftovers(
                recording=r.key,
                epoch=r.epoch,
                given_up=r.files_removed,
                output_epoch=r.output.epoch if r.output is not None else None,
            )
            for r in sorted(self._tables.recordings.values(), key=lambda r: str(r.key))
            if r.task_id in task_ids and (r.files_removed or r.output is not None)
        ]


class Retention(_Part):
    """Deletion of old rows."""

    async def delete_messages(self, before_ms: int) -> None:
        """Delete ids of events, and sent commands and events, from before that time."""
        async with self._store.write() as tx:
            for event_id, (at_ms, _) in list(self._tables.inbox.items()):
                if at_ms < before_ms:
                    tx.drop(self._tables.inbox, event_id)
            for seq, line in list(self._tables.outbox.items()):
                old = line.sent_ms is not None and line.sent_ms < before_ms and not line.parked
                if old and line.channel in ("command", "event"):
                    tx.drop(self._tables.outbox, seq)

    async def delete_sessions(self, before_ms: int) -> int:
        """Delete sessions that finished before that time and keep no file; returns their number."""
        wanted = {c.task_id for c in self._tables.callbacks.values() if c.state == "pending"}
        wanted |= {r.task_id for r in self._tables.recordings.values() if not r.files_removed or r.output_node}
        wanted |= {job_key.parse(owner).task_id for owner, _ in self._tables.segments}
        old = [s for s in self._tables.sessions.values() if s.state == states.FINISHED and (s.finished_ms or 0) < before_ms]
        gone = {s.task_id for s in old} - wanted
        async with self._store.write() as tx:
            for table in self._tables.of_sessions():
                for key in [k for k in table if (k if isinstance(k, str) else str(k[0]))[:26] in gone]:
                    tx.drop(table, key)
            for lines in (self._tables.journal, self._tables.outbox):
                for seq in [n for n, line in lines.items() if line.task_id in gone and n not in self._tables.unsent]:
                    tx.drop(lines, seq)
        return len(gone)


class _Open:
    """A transaction while it is open."""

    __slots__ = ("_notify", "_store", "_tx")

    def __init__(self, store: Store, tx: transactions.Transaction, *, notify: bool = True) -> None:
        self._store = store
        self._tx = tx
        self._notify = notify

    async def __aenter__(self) -> transactions.Transaction:
        if self._store.tables.writing:
            raise AssertionError("a transaction began inside another: something waited in the middle of one")
        self._store.tables.writing = True
        return self._tx

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._store.tables.writing = False
        if kind is not None:
            self._tx.roll_back()
            return
        if self._store.watch is not None:
            self._store.watch(self._tx)
        if self._notify:
            self._store.changed.set()


def _message(line: transactions.Line) -> due_work.OutboxMessage:
    return due_work.OutboxMessage(seq=line.seq, channel=line.channel, type=line.type, node=line.node, body=line.body)


def _unwanted(value: model.Recording, failed_before_ms: int) -> bool:
    whole = value.state == states.DONE and not (value.output and value.output.missing)
    over = value.final and value.ended_ms is not None and value.ended_ms < failed_before_ms
    return not value.files_removed and (whole or over)
