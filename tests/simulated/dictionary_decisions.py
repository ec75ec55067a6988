"""Decisions on the tables of the dictionary store: snapshot, changes and claims.

Rule: as in store/decisions.py, a decision that fails writes nothing, and an update that finds its row changed is decided again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from events import codec, requests
from machine import changes, errors, failpoints, internal_events, job_key, model, ports, presence, states
from tests.simulated import dictionary_connections, dictionary_tables, dictionary_writes

EVICTS_WITHIN_MS = 2 * model.SECOND
EVICTS_SLACK_MS = 200
MAX_DECISIONS = 20

Value = TypeVar("Value")


class Snapshot:
    """The tables as a decision reads them (machine.ports.Snapshot)."""

    __slots__ = ("now_ms", "tables")

    def __init__(self, tables: dictionary_tables.Tables, now_ms: int) -> None:
        self.tables = tables
        self.now_ms = now_ms

    def session(self, task_id: str) -> model.Session | None:
        return self.tables.sessions.get(task_id)

    def sessions_in(self, room: requests.Room) -> list[model.Session]:
        found = [s for s in self.tables.sessions.values() if s.state != states.FINISHED and s.request.room == room]
        return sorted(found, key=lambda s: s.task_id) if len(found) > 1 else found

    def recordings(self, task_id: str) -> list[model.Recording]:
        found = [r for r in self.tables.recordings.values() if r.task_id == task_id]
        return sorted(found, key=lambda r: (r.opened_ms, r.speaker, r.n)) if len(found) > 1 else found

    def recordings_of(self, task_id: str, speaker: str) -> list[model.Recording]:
        return [r for r in self.recordings(task_id) if r.speaker == speaker]

    def recording(self, key: job_key.RecordingKey) -> model.Recording | None:
        return self.tables.recordings.get(str(key))

    def delivery(self, key: job_key.DeliveryKey) -> model.Delivery | None:
        found = self.tables.callbacks.get(str(key))
        return model.changed(found, body="") if found is not None else None

    def pending_deliveries(self, task_id: str) -> list[model.Delivery]:
        found = [c for c in self.tables.callbacks.values() if c.task_id == task_id and c.state == "pending"]
        return [model.changed(c, body="") for c in sorted(found, key=lambda c: c.revision)]

    def deadline(self, owner: job_key.OwnerKey, kind: str) -> str:
        return self.tables.deadlines.get((str(owner), kind), (0, ""))[1]

    def secrets(self, task_id: str) -> requests.Secrets:
        return self.tables.secrets.get(task_id) or requests.Secrets()

    def callback_url(self, task_id: str) -> str:
        return self.tables.callback_urls.get(task_id, "")

    def has_segments(self, key: job_key.RecordingKey) -> bool:
        return any(row["media_ms"] > 0 for (owner, _), row in self.tables.segments.items() if owner == str(key))

    def segment_nodes(self, key: job_key.RecordingKey) -> dict[str, int]:
        nodes: dict[str, int] = {}
        for (owner, _), row in sorted(self.tables.segments.items()):
            if owner == str(key):
                nodes[row["node"]] = nodes.pop(row["node"], 0) + row["media_ms"]
        return nodes

    def node_seen_ms(self, node: str) -> int:
        return self.tables.nodes.get(node, (0, "", None))[0]

    def last_pull_ms(self, task_id: str, until_ms: int) -> int:
        pulls = [row["registered_ms"] for (owner, _), row in self.tables.segments.items() if owner.startswith(f"{task_id}/")]
        return max((ms for ms in pulls if ms <= until_ms), default=0)

    def evicted(self, key: job_key.RecordingKey, ended_ms: int) -> bool:
        of_session = [(k[0], row) for k, row in self.tables.segments.items() if k[0].startswith(f"{key.task_id}/")]
        return any(owner != str(key) and _evicts(row, ended_ms) for owner, row in of_session)

    def open_sessions_of(self, key_id: str) -> int:
        return sum(s.state == states.OPEN and s.key_id == key_id for s in self.tables.sessions.values())

    def callback_ms(self, sdk_app_id: int) -> int:
        return self.tables.applications.get(sdk_app_id, 0)

    def presence(self, room: requests.Room, user_id: str) -> dict[str, Any]:
        place = (room.sdk_app_id, room.kind, room.name)
        own, ended = (self.tables.presence.get((*place, user), presence.ABSENT) for user in (user_id, presence.ROOM))
        return dict(presence.merged(own, ended))

    def publishers(self, room: requests.Room) -> list[tuple[str, presence.Kinds]]:
        there = sorted((k[3], row) for k, row in in_room(self.tables, room))
        return presence.publishers({"user_id": user, **row} for user, row in there)


class Decisions:
    """Decisions on the dictionary store's tables (machine.ports.Decisions)."""

    def __init__(self, connections: dictionary_connections.Connections) -> None:
        self._connections = connections
        self._tables = connections.tables

    async def decide(self, event: codec.Event, plan: ports.Plan, decide: ports.Decide) -> ports.Answer:
        """Decide an event once. Raises Conflict after `MAX_DECISIONS` conflicts."""
        for attempt in range(1, MAX_DECISIONS + 1):
            try:
                answer = await self._decide(event, decide)
                failpoints.hit("decision.commit.after")
                return answer
            except errors.Conflict:
                if attempt == MAX_DECISIONS:
                    raise
        raise AssertionError("unreachable")

    async def _decide(self, event: codec.Event, decide: ports.Decide) -> ports.Answer:
        async with self._connections.decision() as writes:
            failpoints.hit("inbox.claim.before")
            known = self._tables.inbox.get(event.inbox_id)
            fingerprint = requests.fingerprint(event.type, event.inbox_id, event.data)
            if known is not None and known[2] != fingerprint:
                raise errors.KeyReused
            if known is not None:
                return json.loads(known[1]) if known[1] else {}
            now_ms = self._connections.now_ms()
            failpoints.hit("inbox.claim.after")
            answer, made = decide(Snapshot(self._tables, now_ms))
            text = json.dumps(answer, ensure_ascii=False) if answer else ""
            if made.moves or event.type not in internal_events.TYPES:
                writes.put(self._tables.inbox, event.inbox_id, (now_ms, text, fingerprint))
            apply(writes, made, now_ms)
            failpoints.hit("decision.commit.before")
        return answer

    async def answered(self, event_id: str, fingerprint: str = "") -> tuple[ports.Answer, int] | None:
        """The answer of an event and its time (Unix ms); None if the event was not decided yet."""
        row = self._tables.inbox.get(event_id)
        if row is not None and fingerprint not in ("", row[2]):
            raise errors.KeyReused
        return (json.loads(row[1]) if row[1] else {}, row[0]) if row is not None else None

    async def read(self, query: Callable[[ports.Snapshot], Value]) -> Value:
        """Read data as a decision would."""
        return query(Snapshot(self._tables, self._connections.now_ms()))

    async def write(self, written: changes.Changes) -> None:
        """Write changes that no event caused. Raises Conflict."""
        async with self._connections.decision() as writes:
            apply(writes, written, self._connections.now_ms())


class Presence(dictionary_connections.Concern):
    """Presence in rooms without an unfinished session (machine.ports.Presence)."""

    async def note(self, reports: Sequence[presence.Report]) -> list[bool]:
        """Merge what callbacks say; returns for each whether it is noted."""
        now_ms = self._connections.now_ms()
        there = {s.request.room for s in self._tables.sessions.values() if s.state != states.FINISHED}
        noted = [there.isdisjoint(each.rooms) for each in reports]
        async with self._connections.write() as writes:
            for each, taken in zip(reports, noted, strict=True):
                if taken:
                    said = {(each.rooms[-1], each.user_id): each.known} if each.known else {}
                    apply(writes, changes.Changes(presence=said, applications={each.rooms[-1].sdk_app_id}), now_ms)
        return noted


def apply(writes: dictionary_writes.RowWrites, made: changes.Changes, now_ms: int) -> None:
    """Write the changes of a decision."""
    tables = writes.tables
    for old_session, session in made.sessions.values():
        _put_session(writes, old_session, session)
    for old, recording in made.recordings.values():
        key = str(recording.key)
        if old is None:
            _insert(writes, tables.recordings, key, recording)
        else:
            writes.update(tables.recordings, key, old, recording)
        writes.save_job(key, old, recording, now_ms)
    for before, delivery in made.deliveries.values():
        _put_delivery(writes, before, delivery, now_ms)
    for owner, epoch, values in made.segments:
        _close_segment(writes, owner, epoch, values)
    for task_id, secrets in made.secrets.items():
        if secrets is None:
            writes.drop(tables.secrets, task_id)
        else:
            writes.put(tables.secrets, task_id, secrets)
    for task_id, revision, body in made.results:
        _insert(writes, tables.results, (task_id, revision), body)
    for (owner_key, kind), armed in made.deadlines.items():
        if armed is None:
            writes.drop(tables.deadlines, (str(owner_key), kind))
        elif not armed.once or (str(owner_key), kind) not in tables.deadlines:
            writes.put(tables.deadlines, (str(owner_key), kind), (armed.at_ms, armed.serial))
    for entry in made.journal:
        line = dictionary_tables.JournalLine(entry.owner.task_id, str(entry.owner), now_ms, *entry[1:])
        writes.put(tables.journal, writes.next_seq(), line)
    for channel, event, task_id, node in made.messages:
        writes.send(channel, event, task_id, node)
    _apply_presence(writes, made, now_ms)
    for by, action, subject, outcome in made.audit:
        writes.put(tables.audit, writes.next_seq(), (by.name, by.key_id, action, subject, outcome))


def _put_session(writes: dictionary_writes.RowWrites, old: model.Session | None, new: model.Session) -> None:
    tables = writes.tables
    if new.state == states.OPEN and (old is None or old.state != states.OPEN):
        for row in tables.sessions.values():
            same = row.request.room == new.request.room and row.request.user_id == new.request.user_id
            if row.state == states.OPEN and row.task_id != new.task_id and same:
                raise errors.Conflict("insert into sessions: the row exists already")
    if old is not None:
        writes.update(tables.sessions, old.task_id, old, new)
        return
    if url := new.request.callback:
        writes.put(tables.callback_urls, new.task_id, url)
        new = model.changed(new, request=dataclasses.replace(new.request, callback=requests.origin(url)))
    _insert(writes, tables.sessions, new.task_id, new)


def _put_delivery(writes: dictionary_writes.RowWrites, old: model.Delivery | None, new: model.Delivery, now_ms: int) -> None:
    key, tables = str(new.key), writes.tables
    if old is None:
        _insert(writes, tables.callbacks, key, model.changed(new, url=requests.origin(new.url)))
    else:
        body = tables.callbacks[key].body if key in tables.callbacks else ""
        writes.update(tables.callbacks, key, old, model.changed(new, body=body), state_guards=False)
    writes.save_job(key, old, new, now_ms)


def _insert(writes: dictionary_writes.RowWrites, table: dict[Any, Any], key: Any, row: Any) -> None:
    if key in table:
        raise errors.Conflict("the row exists already")
    writes.put(table, key, row)


def _close_segment(
    writes: dictionary_writes.RowWrites, recording: job_key.RecordingKey, epoch: int, values: Mapping[str, Any]
) -> None:
    known = writes.tables.segments.get((str(recording), epoch))
    if known is None:
        return
    first = [ms for ms in (known["first_packet_ms"], values.get("first_packet_ms")) if ms]
    grown = known | {
        "first_packet_ms": min(first, default=None),
        "last_packet_ms": max(known["last_packet_ms"] or 0, values.get("last_packet_ms") or 0) or None,
        "media_ms": max(known["media_ms"], values.get("media_ms", 0)),
        "size_bytes": max(known["size_bytes"], values.get("size_bytes", 0)),
        "reason": known["reason"] or values["reason"],
    }
    writes.put(writes.tables.segments, (str(recording), epoch), grown)


def _apply_presence(writes: dictionary_writes.RowWrites, made: changes.Changes, now_ms: int) -> None:
    tables = writes.tables
    for (room, user), known in made.presence.items():
        key = (room.sdk_app_id, room.kind, room.name, user)
        merged = presence.merged(tables.presence.get(key, presence.ABSENT), known)
        writes.put(tables.presence, key, {**merged, "updated_ms": now_ms})
    for app in made.applications:
        writes.put(tables.applications, app, now_ms)


def in_room(tables: dictionary_tables.Tables, room: requests.Room) -> list[tuple[tuple[int, str, str, str], dict[str, Any]]]:
    """The presence rows of a room."""
    where = (room.sdk_app_id, room.kind, room.name)
    return [(key, row) for key, row in tables.presence.items() if key[:3] == where]


def _evicts(begun: Mapping[str, Any], ended_ms: int) -> bool:
    went_on = begun["reason"] == "" or (begun["last_packet_ms"] or 0) > ended_ms + EVICTS_SLACK_MS
    return bool(-EVICTS_WITHIN_MS <= begun["registered_ms"] - ended_ms <= EVICTS_SLACK_MS and went_on)
