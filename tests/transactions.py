"""Transactions for tests: reads as a decision reads, and writes that are committed together at the end of a block."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from events import codec, requests
from machine import changes, job_key, model, ports
from tests import engines

_serials = engines.ids("05")


class Transaction:
    """One block: reads see the database, not the writes of the block."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.changes = changes.Changes()

    async def read(self, name: str, *about: Any) -> Any:
        """One reading of a snapshot."""
        return await self._store.decisions.read(lambda snapshot: getattr(snapshot, name)(*about))

    async def session(self, task_id: str) -> model.Session | None:
        found: model.Session | None = await self.read("session", task_id)
        return found

    async def recording(self, key: job_key.RecordingKey) -> model.Recording | None:
        found: model.Recording | None = await self.read("recording", key)
        return found

    def add_session(self, session: model.Session, secrets: requests.Secrets) -> None:
        self.changes.sessions[session.task_id] = (None, session)
        self.changes.secrets[session.task_id] = secrets

    def save_session(self, old: model.Session, new: model.Session) -> model.Session:
        saved = model.changed(new, version=old.version + 1)
        self.changes.sessions[old.task_id] = (old, saved)
        return saved

    def add_recording(self, value: model.Recording) -> None:
        self.changes.recordings[value.key] = (None, value)

    def save_recording(self, old: model.Recording, new: model.Recording) -> model.Recording:
        saved = model.changed(new, version=old.version + 1)
        self.changes.recordings[old.key] = (old, saved)
        return saved

    def add_delivery(self, value: model.Delivery) -> None:
        self.changes.deliveries[value.key] = (None, value)

    def save_delivery(self, old: model.Delivery, new: model.Delivery) -> None:
        self.changes.deliveries[old.key] = (old, model.changed(new, version=old.version + 1))

    def add_result(self, task_id: str, revision: int, body: str) -> None:
        self.changes.results.append((task_id, revision, body))

    def close_segment(self, key: job_key.RecordingKey, epoch: int, values: Mapping[str, Any]) -> None:
        self.changes.segments.append((key, epoch, values))

    def put_secrets(self, task_id: str, secrets: requests.Secrets) -> None:
        self.changes.secrets[task_id] = secrets

    def wipe_secrets(self, task_id: str) -> None:
        self.changes.secrets[task_id] = None

    def arm(self, owner: job_key.OwnerKey, kind: str, at_ms: int, *, once: bool = False) -> None:
        self.changes.deadlines[owner, kind] = changes.Armed(at_ms, _serials(), once)

    def disarm(self, owner: job_key.OwnerKey, kind: str) -> None:
        self.changes.deadlines[owner, kind] = None

    def journal(
        self, owner: job_key.OwnerKey, event: codec.Event, from_state: str = "", to_state: str = "", note: str = ""
    ) -> None:
        self.changes.journal.append(changes.JournalEntry(owner, event.id, event.type, from_state, to_state, note))

    def send(self, channel: str, event: codec.Event, task_id: str = "", node: str = "") -> None:
        self.changes.send(channel, event, task_id, node)

    def put_presence(self, room: requests.Room, user_id: str, known: Mapping[str, Any]) -> None:
        self.changes.presence[room, user_id] = known


@contextlib.asynccontextmanager
async def opened(store: Any) -> AsyncIterator[Transaction]:
    """A block whose writes are committed at its end, or dropped on an error. Raises Conflict."""
    tx = Transaction(store)
    yield tx
    for task_id, (old, session) in tx.changes.sessions.items():
        if old is None:
            own = [model.counted(new) for _, new in tx.changes.recordings.values() if new.task_id == task_id]
            counts = {name: sum(each) for name, each in zip(model.COUNTS, zip(*own, strict=True), strict=False)}
            tx.changes.sessions[task_id] = (None, model.changed(session, **counts))
    await store.decisions.write(tx.changes)


async def decide(store: Any, event: codec.Event, handler: Callable[[ports.Snapshot, Transaction], Any]) -> dict[str, Any]:
    """Have an event decided by `handler`, which gets the snapshot and a transaction to write to, and may return an answer."""

    def decided(snapshot: ports.Snapshot) -> tuple[ports.Answer, changes.Changes]:
        tx = Transaction(store)
        answer = handler(snapshot, tx)
        return answer or {}, tx.changes

    answered: dict[str, Any] = await store.decisions.decide(event, lambda _: iter(()), decided)
    return answered


async def claim(store: Any, event_id: str) -> None:
    """Have an event of this id decided."""
    event = codec.Event(id=event_id, type="stop", time_ms=engines.START_MS, data={"TaskId": ""})
    await store.decisions.decide(event, lambda _: iter(()), lambda _: ({}, changes.Changes()))
