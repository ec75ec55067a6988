"""Messages of the dictionary store: the outbox, attempt counts, and the deletion of old rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from events import codec
from machine import due_work, job_key, states
from tests.simulated import dictionary_connections, dictionary_tables


class Outbox(dictionary_connections.Concern):
    """The outbox."""

    async def unsent(self, limit: int = 100) -> list[due_work.OutboxMessage]:
        """The oldest unsent messages, oldest first."""
        outbox = self._tables.outbox
        return [_message(outbox[seq]) for seq in list(self._tables.unsent)[:limit]]

    async def due(
        self,
        limit: int,
        *,
        ripe: Collection[int] = (),
        except_seqs: Collection[int] = (),
        except_types: Collection[str] = (),
        except_tasks: Collection[str] = (),
    ) -> list[due_work.OutboxMessage]:
        """The oldest unsent messages that are due, oldest first. `ripe` are due in any case."""
        now_ms, unsent = self._connections.now_ms(), [self._tables.outbox[seq] for seq in self._tables.unsent]
        ready = [line for line in unsent if line.claimed_until_ms <= now_ms or line.seq in ripe]
        free = [line for line in ready if line.seq not in except_seqs and line.type not in except_types]
        due = [line for line in free if line.task_id not in except_tasks][:limit]
        return [replace(_message(line), task_id=line.task_id, retried=line.claimed_until_ms > 0) for line in due]

    async def release_all(self) -> None:
        """Make all unsent messages due, whatever claimed or postponed them: this process alone delivers them."""
        await self.release(list(self._tables.unsent))

    async def postpone(self, pauses_ms: Mapping[int, int]) -> None:
        """Make unsent messages due after a pause, by their numbers."""
        async with self._connections.write() as writes:
            for seq in set(pauses_ms) & set(self._tables.unsent):
                due_ms = self._connections.now_ms() + pauses_ms[seq]
                writes.put(self._tables.outbox, seq, self._tables.outbox[seq]._replace(claimed_until_ms=due_ms))

    async def claim(self, limit: int, hold_ms: int) -> list[due_work.OutboxMessage]:
        """Claim the oldest unsent messages that no other relay holds, oldest first."""
        now_ms = self._connections.now_ms()
        free = [seq for seq in self._tables.unsent if self._tables.outbox[seq].claimed_until_ms < now_ms][:limit]
        async with self._connections.write() as writes:
            for seq in free:
                writes.put(self._tables.outbox, seq, self._tables.outbox[seq]._replace(claimed_until_ms=now_ms + hold_ms))
        return [_message(self._tables.outbox[seq]) for seq in free]

    async def release(self, seqs: Sequence[int]) -> None:
        """Give up the claims on messages that were not sent."""
        async with self._connections.write() as writes:
            for seq in set(seqs) & set(self._tables.unsent):
                writes.put(self._tables.outbox, seq, self._tables.outbox[seq]._replace(claimed_until_ms=0))

    async def mark_all_sent(self, seqs: Sequence[int]) -> None:
        """Mark messages as delivered."""
        for seq in seqs:
            await self.mark_sent(seq)

    async def mark_sent(self, seq: int, parked: str = "") -> None:
        """Mark a message as delivered, or as a dead letter for the reason `parked`."""
        async with self._connections.write() as writes:
            writes.put(
                self._tables.outbox, seq, self._tables.outbox[seq]._replace(sent_ms=self._connections.now_ms(), parked=parked)
            )
            writes.drop(self._tables.unsent, seq)

    async def send(self, channel: str, event: codec.Event, task_id: str = "") -> None:
        """Write a message outside a decision: a worker's outcome, an event of the sweeper."""
        async with self._connections.decision() as writes:
            writes.send(channel, event, task_id)

    async def newest_seq(self) -> int:
        """The number of the newest message; 0 when there is none."""
        return max(self._tables.outbox, default=0)


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


class Retention(dictionary_connections.Concern):
    """Deletion of old rows."""

    async def delete_messages(self, before_ms: int) -> bool:
        """Delete ids of events, and sent commands and events, from before that time."""
        async with self._connections.write() as writes:
            for event_id, (at_ms, *_) in list(self._tables.inbox.items()):
                if at_ms < before_ms:
                    writes.drop(self._tables.inbox, event_id)
            for seq, line in list(self._tables.outbox.items()):
                old = line.sent_ms is not None and line.sent_ms < before_ms and not line.parked
                if old and line.channel in ("command", "event"):
                    writes.drop(self._tables.outbox, seq)
        return True

    async def delete_sessions(self, before_ms: int, presence_before_ms: int = 0) -> int:
        """Delete sessions that finished before that time and keep no file; returns their number."""
        wanted = {c.task_id for c in self._tables.callbacks.values() if c.state == "pending"}
        wanted |= {r.task_id for r in self._tables.recordings.values() if not r.files_removed or r.output_node}
        wanted |= {job_key.parse(owner).task_id for owner, _ in self._tables.segments}
        old = [s for s in self._tables.sessions.values() if s.state == states.FINISHED and (s.finished_ms or 0) < before_ms]
        gone = {s.task_id for s in old} - wanted
        async with self._connections.write() as writes:
            for table in self._tables.of_sessions():
                for key in [k for k in table if (k if isinstance(k, str) else str(k[0]))[:26] in gone]:
                    writes.drop(table, key)
            for lines in (self._tables.journal, self._tables.outbox):
                for seq in [n for n, line in lines.items() if line.task_id in gone and n not in self._tables.unsent]:
                    writes.drop(lines, seq)
        return len(gone)


def _message(line: dictionary_tables.Line) -> due_work.OutboxMessage:
    return due_work.OutboxMessage(seq=line.seq, channel=line.channel, type=line.type, node=line.node, body=line.body)
