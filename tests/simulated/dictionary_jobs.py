"""Jobs of the dictionary store: leases, assignments, deadlines, and the nodes that work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from events import codec, requests
from machine import due_work, job_key, model, nodes, states
from store import deadlines
from tests.simulated import dictionary_connections, dictionary_tables


class Leases(dictionary_connections.Concern):
    """Which node works on which job."""

    async def take(self, owner: job_key.JobKey, epoch: int, node: str, lease_ms: int) -> bool:
        """Take the queued job of `owner` under exactly this epoch. False: it is leased, stopped or superseded; do nothing."""
        row = self._tables.jobs.get((str(owner), epoch))
        if row is None or row.state != states.QUEUED:
            return False
        async with self._connections.write() as writes:
            writes.put_job(
                str(owner), epoch, dictionary_tables.JobRow(row.kind, states.LEASED, node, self._connections.now_ms() + lease_ms)
            )
            writes.touch(str(owner), epoch, model.Job(kind=row.kind, state=states.LEASED, node=node))
        return True

    async def renew_all(
        self, jobs: Sequence[tuple[job_key.JobKey, int]], node: str, lease_ms: int
    ) -> set[tuple[job_key.JobKey, int]]:
        """Renew the leases of these jobs, given by owner and epoch. Returns the refused ones: stop their work and write nothing
        more."""
        held = [job for job in jobs if await self.is_held(*job, node)]
        async with self._connections.write() as writes:
            for owner, epoch in held:
                row = self._tables.jobs[str(owner), epoch]
                writes.put_job(str(owner), epoch, row._replace(lease_until_ms=self._connections.now_ms() + lease_ms))
        return set(jobs) - set(held)

    async def is_held(self, owner: job_key.JobKey, epoch: int, node: str) -> bool:
        """Whether this node still holds the lease."""
        row = self._tables.jobs.get((str(owner), epoch))
        return row is not None and row.node == node and row.state == states.LEASED

    async def to_stop(self, captures: Sequence[tuple[job_key.RecordingKey, int]]) -> set[tuple[job_key.RecordingKey, int]]:
        """Those of these captures, given by recording and epoch, that are asked to stop."""
        rows = {job: self._tables.recordings.get(job[0].text) for job in captures}
        return {job for job, row in rows.items() if row is not None and row.epoch == job[1] and row.stop_requested}

    async def of_node(self, node: str) -> list[due_work.Lease]:
        """The leases that a node holds."""
        return [lease for lease in self.all() if lease.node == node]

    def all(self) -> list[due_work.Lease]:
        """All leases."""
        found = ((owner, epoch, self._tables.jobs[owner, epoch]) for owner, epoch in self._tables.leased)
        return [
            due_work.Lease(
                owner=job_key.parse_job(owner),
                epoch=epoch,
                kind=row.kind,
                node=row.node,
                over_ms=row.lease_until_ms,
                published=(owner, epoch, row.lease_until_ms) in self._tables.again,
            )
            for owner, epoch, row in found
        ]


class Assignments(dictionary_connections.Concern):
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

    async def manifest(self, key: job_key.DeliveryKey) -> due_work.ManifestAssignment | None:
        """The assignment of a manifest's job; the simulated nodes need none."""
        raise AssertionError(f"nobody asks for {key}")

    async def receiver(self, key: job_key.DeliveryKey) -> str:
        """The host and port of a delivery's URL; "" if there is no such delivery."""
        found = self._tables.callbacks.get(str(key))
        return urlsplit(found.url).netloc if found is not None else ""


class Deadlines(dictionary_connections.Concern):
    """Deadlines that have passed and leases that have ended."""

    async def due(self, limit: int = 100, *, ahead_ms: int = 0) -> list[due_work.Deadline]:
        """Deadlines that have passed or pass within `ahead_ms`, oldest first, without those whose event is under way."""
        now_ms = self._connections.now_ms()
        until_ms = now_ms + ahead_ms
        due = [(at_ms, serial, key) for key, (at_ms, serial) in self._tables.deadlines.items() if at_ms <= until_ms]
        found = [
            due_work.Deadline(
                owner=job_key.parse(owner),
                kind=kind,
                serial=serial,
                over_ms=at_ms,
                left_ms=at_ms - now_ms,
                published=(owner, kind, serial) in self._tables.again,
            )
            for at_ms, serial, (owner, kind) in sorted(due)
        ]
        return [deadline for deadline in found if self._is_free(deadline)][:limit]

    async def expired(self, limit: int = 100, *, fresh_until_ms: int | None = None) -> list[due_work.Lease]:
        """Leases that have ended, without those whose event is under way. None if it is later than `fresh_until_ms`."""
        leases, now_ms = Leases(self._connections).all(), self._connections.now_ms()
        if fresh_until_ms is not None and now_ms > fresh_until_ms:
            return []
        return [lease for lease in leases if lease.over_ms < now_ms and self._is_free(lease)][:limit]

    async def queued(self, limit: int = 100) -> list[due_work.QueuedJob]:
        """Jobs that nobody has taken since their command was issued, for REISSUE_MS and longer."""
        before_ms = self._connections.now_ms() - due_work.REISSUE_MS
        waiting = [
            due_work.QueuedJob(owner=job_key.parse_job(owner), epoch=epoch, kind=row.kind, node=row.node, over_ms=row.queued_ms)
            for (owner, epoch), row in self._tables.jobs.items()
            if row.state == states.QUEUED and row.queued_ms <= before_ms
        ]
        return [item for item in waiting if self._is_free(item)][:limit]

    async def publish(self, events: Sequence[tuple[due_work.Overdue, codec.Event]], *, fresh_until_ms: int | None = None) -> int:
        """Write the messages of overdue rows to the outbox. After `fresh_until_ms`, only deadlines that no downtime extends."""
        now_ms = self._connections.now_ms()
        free = [(item, event) for item, event in events if self._is_free(item)]
        if fresh_until_ms is not None and now_ms > fresh_until_ms:
            free = [
                (item, event)
                for item, event in free
                if isinstance(item, due_work.Deadline) and item.kind not in model.EXTENDED_BY_DOWNTIME
            ]
        async with self._connections.decision() as writes:
            for item, event in free:
                queued = isinstance(item, due_work.QueuedJob)
                writes.send("command" if queued else "event", event, item.owner.task_id, item.node if queued else "")
        for item, _ in free:
            self._tables.again[_key(item)] = now_ms + deadlines.pause_ms(item, now_ms - item.over_ms)
        return len(free)

    def _is_free(self, item: due_work.Overdue) -> bool:
        return self._tables.again.get(_key(item), 0) <= self._connections.now_ms()


def _key(item: due_work.Overdue) -> tuple[str | int, ...]:
    match item:
        case due_work.Deadline():
            return (item.owner.text, item.kind, item.serial)
        case due_work.Lease():
            return (item.owner.text, item.epoch, item.over_ms)
        case due_work.QueuedJob():
            return (item.owner.text, item.epoch)


class Nodes(dictionary_connections.Concern):
    """Heartbeats and spare capacities of nodes."""

    older_alive = False

    async def now_ms(self) -> int:
        """The database's time."""
        return self._connections.now_ms()

    async def heartbeat(
        self,
        node: str,
        url: str = "",
        spare: model.SpareCapacity | None = None,
        *,
        over_ms: int | None = None,
        skew_ms: int | None = None,
        report: nodes.NodeReport | None = None,
    ) -> int:
        """Record that this node is alive, where other nodes fetch its files ("": nowhere), and a worker's spare capacity."""
        now_ms, downtime_ms = self._connections.now_ms(), 0
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
        async with self._connections.write() as writes:
            for key, (at_ms, serial) in list(self._tables.deadlines.items()):
                if key[1] in model.EXTENDED_BY_DOWNTIME:
                    writes.put(self._tables.deadlines, key, (at_ms + downtime_ms, serial))
            live = (states.OPEN, *states.CAPTURING)
            kept: tuple[dict[str, Any], ...] = (self._tables.sessions, self._tables.recordings)
            for rows in kept:
                for id_, row in list(rows.items()):
                    if row.state in live:
                        writes.put(rows, id_, model.changed(row, idle_from_ms=row.idle_from_ms + downtime_ms))
