"""A store that is a few dictionaries: the third engine, behind the same port as SQLite and PostgreSQL, thousands of times a
second.

Imports `machine`, `events` and the values that a store hands out. Rule: what an update finds, refuses, overwrites and rolls
back is what `store/` does, held by the same rows of the conformance suite (tests/contract/test_store*.py). Nothing here ever
waits, so that a coroutine on it can be driven to its end by hand (`tests.simulated.coroutine_runner`).
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from events import codec, requests
from machine import model, states
from store import values
from tests.simulated import dictionary_transaction as transactions

Tables = transactions.Tables


class Store:
    """One database in memory. `watch`, if set, is called with each transaction just before its commit, `meddle` with the row that
    an update is about to look at: whether somebody else has moved it. `tables` outlive it, so that a database can be opened
    again."""

    def __init__(self, *, clock: Callable[[], int], new_id: Callable[[], str], tables: transactions.Tables | None = None) -> None:
        self.tables = tables or transactions.Tables()
        self._clock = clock
        self._new_id = new_id
        self.changed = asyncio.Event()
        self.watch: Callable[[transactions.Transaction], None] | None = None
        self.meddle: Callable[[str], bool] | None = None

    async def start(self) -> None:
        """There is no schema to bring up to date."""

    async def stop(self) -> None:
        """There is nothing to close."""

    async def ping(self) -> None:
        """A dictionary always answers."""

    def transaction(self) -> _Open:
        """One deciding transaction: commits at the end of the block, rolls back on any error. Raises Conflict."""
        return _Open(self, transactions.Transaction(self.tables, self._clock(), self._new_id, self.meddle))

    def _write(self) -> _Open:
        """A transaction of a worker's or relay's own: no bell, and nobody meddles."""
        return _Open(self, transactions.Transaction(self.tables, self._clock(), self._new_id), bell=False)

    # --- outbox -----------------------------------------------------------------------------------------------------------
    async def unsent(self, limit: int = 100) -> list[values.Message]:
        """The oldest messages that were not sent, in the order they were written."""
        outbox = self.tables.outbox
        return [_message(outbox[seq]) for seq in list(self.tables.unsent)[:limit]]

    async def claim_unsent(self, limit: int, hold_ms: int) -> list[values.Message]:
        """Take the oldest unsent messages that no other relay holds, for `hold_ms`."""
        now_ms = self._clock()
        free = [seq for seq in self.tables.unsent if self.tables.outbox[seq].claimed_until_ms < now_ms][:limit]
        async with self._write() as tx:
            for seq in free:
                tx.put(self.tables.outbox, seq, self.tables.outbox[seq]._replace(claimed_until_ms=now_ms + hold_ms))
        return [_message(self.tables.outbox[seq]) for seq in free]

    async def release(self, seqs: Sequence[int]) -> None:
        """Leave claimed messages that were not sent to whoever claims them next."""
        async with self._write() as tx:
            for seq in set(seqs) & set(self.tables.unsent):
                tx.put(self.tables.outbox, seq, self.tables.outbox[seq]._replace(claimed_until_ms=0))

    async def mark_all_sent(self, seqs: Sequence[int]) -> None:
        """These messages were handed on."""
        for seq in seqs:
            await self.mark_sent(seq)

    async def mark_sent(self, seq: int, parked: str = "") -> None:
        """The message was handled; or cannot be, for the reason `parked`."""
        async with self._write() as tx:
            tx.put(self.tables.outbox, seq, self.tables.outbox[seq]._replace(sent_ms=self._clock(), parked=parked))
            tx.drop(self.tables.unsent, seq)

    async def send(self, channel: str, event: codec.Event, task_id: str = "") -> None:
        """Put a message in the outbox outside a decision: a worker's outcome, an event of a user."""
        async with self.transaction() as tx:
            await tx.send(channel, event, task_id)

    async def audit(self, by: model.Caller, action: str, subject: str, outcome: str) -> None:
        """Write down what was refused."""
        async with self.transaction() as tx:
            await tx.audit(by, action, subject, outcome)

    # --- leases -----------------------------------------------------------------------------------------------------------
    async def take_lease(self, owner: str, epoch: int, node: str, lease_ms: int) -> bool:
        """Take the queued job of `owner` under exactly this epoch."""
        row = self.tables.jobs.get((owner, epoch))
        if row is None or row.state != states.QUEUED:
            return False
        async with self._write() as tx:
            tx.put_job(owner, epoch, transactions.JobRow(row.kind, states.LEASED, node, self._clock() + lease_ms))
            tx.touch(owner, epoch, model.Job(kind=row.kind, state=states.LEASED, node=node))
        return True

    async def renew_lease(self, owner: str, epoch: int, node: str, lease_ms: int, last_packet_ms: int | None = None) -> bool:
        """Renew the lease, and note when media last came."""
        if not await self.holds_lease(owner, epoch, node):
            return False
        row = self.tables.jobs[owner, epoch]
        async with self._write() as tx:
            if last_packet_ms is not None:
                tx.note_media(owner, epoch, last_packet_ms)
            tx.put_job(owner, epoch, row._replace(lease_until_ms=self._clock() + lease_ms))
        return True

    async def holds_lease(self, owner: str, epoch: int, node: str) -> bool:
        """Whether the lease is still ours."""
        row = self.tables.jobs.get((owner, epoch))
        return row is not None and row.node == node and row.state == states.LEASED

    async def leases(self, *, node: str = "", until_ms: int | None = None) -> list[values.Lease]:
        """The leases of a node, or those that ended before `until_ms`."""
        return [
            values.Lease(owner=owner, epoch=epoch, kind=row.kind, node=row.node)
            for owner, epoch in self.tables.leased
            for row in (self.tables.jobs[owner, epoch],)
            if (not node or row.node == node) and (until_ms is None or row.lease_until_ms < until_ms)
        ]

    # --- segments and uploads ---------------------------------------------------------------------------------------------
    async def register_segment(self, recording_id: str, epoch: int, node: str) -> None:
        """Write the segment down before ffmpeg is started; harmless to repeat."""
        if (recording_id, epoch) not in self.tables.segments and not self._superseded(recording_id, epoch):
            async with self._write() as tx:
                blank = {"first_packet_ms": None, "last_packet_ms": None, "media_ms": 0, "size_bytes": 0, "reason": ""}
                row = {"node": node, "registered_ms": self._clock(), **blank}
                tx.put(self.tables.segments, (recording_id, epoch), row)

    async def note_segment(self, recording_id: str, epoch: int, values: Mapping[str, Any]) -> None:
        """Write down what is known of a segment while it grows."""
        row = self.tables.segments.get((recording_id, epoch))
        if row is not None and not row["reason"] and not self._superseded(recording_id, epoch):
            async with self._write() as tx:
                tx.put(self.tables.segments, (recording_id, epoch), row | dict(values))

    def _superseded(self, recording_id: str, epoch: int) -> bool:
        """Whether another run of the recording's work was ordered since."""
        found = self.tables.recordings.get(recording_id)
        return found is not None and found.epoch > epoch

    async def segments(self, recording_id: str) -> list[values.Segment]:
        """The segments of a recording in the order they were written."""
        names = ("node", "first_packet_ms", "last_packet_ms", "media_ms", "registered_ms", "reason")
        found = sorted((key[1], row) for key, row in self.tables.segments.items() if key[0] == recording_id)
        return [values.Segment(epoch=epoch, **{name: row[name] for name in names}) for epoch, row in found]

    async def upload_state(self, recording_id: str) -> dict[str, Any] | None:
        """What the interrupted upload of a recording had reached, or None."""
        return copy.deepcopy(self.tables.uploads.get(recording_id))

    async def save_upload_state(self, recording_id: str, epoch: int, node: str, body: Mapping[str, Any]) -> bool:
        """Keep what an upload has reached, for as long as its lease is held; False: it was refused."""
        if not await self.holds_lease(recording_id, epoch, node):
            return False
        async with self._write() as tx:
            tx.put(self.tables.uploads, recording_id, copy.deepcopy(dict(body)))
        return True

    async def forget_upload_state(self, recording_id: str, epoch: int) -> None:
        """Forget what the upload of `epoch` had reached, but not what its successor has."""
        if not self._superseded(recording_id, epoch):
            async with self._write() as tx:
                tx.drop(self.tables.uploads, recording_id)

    async def assignment(self, recording_id: str) -> values.Assignment | None:
        """What a worker needs to know of a recording's job; None if there is no such recording."""
        recording = self.tables.recordings.get(recording_id)
        session = self.tables.sessions.get(recording.task_id) if recording else None
        if recording is None or session is None:
            return None
        secrets = self.tables.secrets.get(recording.task_id, requests.Secrets())
        return values.Assignment(session=session, recording=recording, secrets=secrets)

    async def delivery(self, delivery_id: str) -> model.Delivery | None:
        """One delivery by its id, `TaskId#revision`, with its whole URL."""
        found = self.tables.callbacks.get(delivery_id)
        return model.changed(found, url=self.tables.callback_urls.get(found.task_id, "")) if found is not None else None

    # --- time -------------------------------------------------------------------------------------------------------------
    async def due_deadlines(self, limit: int = 100) -> list[values.Deadline]:
        """Deadlines that are over, the oldest first."""
        now_ms = self._clock()
        due = [(at_ms, serial, key) for key, (at_ms, serial) in self.tables.deadlines.items() if at_ms <= now_ms]
        return [values.Deadline(owner=owner, kind=kind, serial=serial) for _, serial, (owner, kind) in sorted(due)[:limit]]

    async def heartbeat(
        self, node: str, url: str = "", spare: model.SpareCapacity | None = None, *, over_ms: int | None = None
    ) -> int:
        """Say that this node is alive, where other nodes can fetch its files ("": nowhere), and how much spare it has. If no node
        said so for longer than `over_ms` (None: whatever the time), that time is forgiven; returns it in ms, else 0."""
        now_ms, away_ms = self._clock(), 0
        seen_ms = max((seen_ms for seen_ms, _, _ in self.tables.nodes.values()), default=None)
        if over_ms is not None and seen_ms is not None and now_ms > seen_ms + over_ms:
            away_ms = now_ms - seen_ms
            await self._forgive(away_ms)
        self.tables.nodes[node] = (now_ms, url, spare)
        return away_ms

    async def spare_capacities(self, alive_since_ms: int) -> list[model.SpareCapacity]:
        """What the workers that gave a sign of life since then say of their spare, in the order of their names."""
        alive = [spare for _, (seen_ms, _, spare) in sorted(self.tables.nodes.items()) if seen_ms >= alive_since_ms]
        return [spare for spare in alive if spare is not None]

    async def node_url(self, node: str, alive_since_ms: int) -> str:
        """Where the files of a node can be fetched; "" if it gave no sign of life since then, or offers none."""
        seen_ms, url, _ = self.tables.nodes.get(node, (-1, "", None))
        return url if seen_ms >= alive_since_ms else ""

    async def _forgive(self, away_ms: int) -> None:
        """Move join, idle and linger deadlines, and what idleness counts from, by the time in which no node could have tried."""
        async with self._write() as tx:
            for key, (at_ms, serial) in list(self.tables.deadlines.items()):
                if key[1] in model.EXTENDED_BY_DOWNTIME:
                    tx.put(self.tables.deadlines, key, (at_ms + away_ms, serial))
            live = (states.OPEN, *states.CAPTURING)
            kept: tuple[dict[str, Any], ...] = (self.tables.sessions, self.tables.recordings)
            for rows in kept:
                for id_, row in list(rows.items()):
                    if row.state in live:
                        tx.put(rows, id_, model.changed(row, idle_from_ms=row.idle_from_ms + away_ms))

    # --- reading ----------------------------------------------------------------------------------------------------------
    async def timeline(self, task_id: str) -> list[transactions.JournalLine]:
        """A session's journal, oldest first."""
        return [line for line in self.tables.journal.values() if line.task_id == task_id]

    async def sessions(self) -> list[model.Session]:
        """All sessions, newest first."""
        return sorted(self.tables.sessions.values(), key=lambda s: s.task_id, reverse=True)

    async def results(self, task_id: str) -> list[dict[str, Any]]:
        """The results of a session, oldest revision first."""
        return [json.loads(body) for (of, _), body in sorted(self.tables.results.items()) if of == task_id]

    # --- clean-up ---------------------------------------------------------------------------------------------------------
    async def removable(self, failed_before_ms: int) -> list[str]:
        """Recordings whose files are kept and not wanted any more."""
        return [r.id for r in self.tables.recordings.values() if _unwanted(r, failed_before_ms)][:100]

    async def mark_removed(self, recording_id: str, failed_before_ms: int) -> bool:
        """Give the files of a recording up that is still `removable`, before they are deleted. False: a replay came first, and
        needs them, or has ended and left others."""
        found = self.tables.recordings.get(recording_id)
        if found is None or not _unwanted(found, failed_before_ms):
            return False
        async with self._write() as tx:
            given_up = model.changed(found, files_removed=True, version=found.version + 1)
            tx.put(self.tables.recordings, recording_id, given_up)
        return True

    async def given_up(self, node: str) -> list[str]:
        """Recordings whose files were given up and still lie on the spool of `node` ("": a spool that all share)."""
        lying = {key[0] for key, row in self.tables.segments.items() if node in ("", row["node"])}
        held = [r for r in self.tables.recordings.values() if r.files_removed]
        return [r.id for r in held if r.id in lying or (node and r.output_node == node)][:100]

    async def files_of(self, recording_id: str, node: str) -> values.Files | None:
        """What of a given-up recording lies on the spool of `node`; None if a replay has begun meanwhile."""
        found = self.tables.recordings.get(recording_id)
        if found is None or not found.files_removed:
            return None
        there = [key[1] for key, row in self.tables.segments.items() if key[0] == recording_id and node in ("", row["node"])]
        return values.Files(until_epoch=found.epoch, segments=tuple(epoch for epoch in there if epoch <= found.epoch))

    async def forget_files(self, recording_id: str, node: str, epochs: Sequence[int]) -> None:
        """Forget segments, and the finished file, that were deleted from the spool of `node`."""
        found = self.tables.recordings.get(recording_id)
        async with self._write() as tx:
            for epoch in epochs:
                tx.drop(self.tables.segments, (recording_id, epoch))
            if node and found is not None and found.files_removed and found.output_node == node:
                tx.put(self.tables.recordings, recording_id, model.changed(found, output_node=""))

    async def remains(self, task_ids: Sequence[str]) -> list[values.Remains]:
        """What nothing can want any more of these sessions, wherever it lies."""
        return [
            values.Remains(
                recording_id=r.id,
                epoch=r.epoch,
                given_up=r.files_removed,
                output_epoch=r.output.epoch if r.output is not None else None,
            )
            for r in sorted(self.tables.recordings.values(), key=lambda r: r.id)
            if r.task_id in task_ids and (r.files_removed or r.output is not None)
        ]

    async def forget_inbox(self, before_ms: int) -> None:
        """Forget the ids of events, and sent commands and events, that are older than any repeat can be."""
        async with self._write() as tx:
            for event_id, (at_ms, _) in list(self.tables.inbox.items()):
                if at_ms < before_ms:
                    tx.drop(self.tables.inbox, event_id)
            for seq, line in list(self.tables.outbox.items()):
                old = line.sent_ms is not None and line.sent_ms < before_ms and not line.parked
                if old and line.channel in ("command", "event"):
                    tx.drop(self.tables.outbox, seq)

    async def forget_sessions(self, before_ms: int) -> int:
        """Forget sessions that finished before that time and that nothing is kept of but rows; how many."""
        wanted = {c.task_id for c in self.tables.callbacks.values() if c.state == "pending"}
        wanted |= {r.task_id for r in self.tables.recordings.values() if not r.files_removed or r.output_node}
        wanted |= {owner[:26] for owner, _ in self.tables.segments}
        old = [s for s in self.tables.sessions.values() if s.state == states.FINISHED and (s.finished_ms or 0) < before_ms]
        gone = {s.task_id for s in old} - wanted
        async with self._write() as tx:
            for table in self.tables.of_sessions():
                for key in [k for k in table if (k if isinstance(k, str) else str(k[0]))[:26] in gone]:
                    tx.drop(table, key)
            for lines in (self.tables.journal, self.tables.outbox):
                for seq in [n for n, line in lines.items() if line.task_id in gone and n not in self.tables.unsent]:
                    tx.drop(lines, seq)
        return len(gone)


class _Open:
    """A transaction while it is open."""

    __slots__ = ("_bell", "_store", "_tx")

    def __init__(self, store: Store, tx: transactions.Transaction, *, bell: bool = True) -> None:
        self._store = store
        self._tx = tx
        self._bell = bell

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
        if self._bell:
            self._store.changed.set()


def _message(line: transactions.Line) -> values.Message:
    return values.Message(seq=line.seq, channel=line.channel, type=line.type, node=line.node, body=line.body)


def _unwanted(value: model.Recording, failed_before_ms: int) -> bool:
    whole = value.state == states.DONE and not (value.output and value.output.missing)
    over = value.final and value.ended_ms is not None and value.ended_ms < failed_before_ms
    return not value.files_removed and (whole or over)
