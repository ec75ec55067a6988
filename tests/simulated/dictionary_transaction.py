"""The deciding transaction on the tables of the dictionary store: the reads and writes of one event.

Rule: as in store/transaction.py, nothing here commits, and an update that finds its row changed raises `Conflict`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from events import codec, requests
from machine import errors, job_key, model, states
from tests.simulated import dictionary_tables, dictionary_writes

PRESENCE_KEPT_MS = 24 * model.HOUR
EVICTS_WITHIN_MS = 2 * model.SECOND
EVICTS_SLACK_MS = 200
NOTE_CALLBACK_EVERY_MS = model.MINUTE
BLANK: dict[str, Any] = {"audio": False, "audio_ms": 0, "video": False, "video_ms": 0, "left_ms": 0}


class Transaction:
    """The reads and writes of one event. `now_ms` is the time of the whole transaction."""

    __slots__ = ("_new_id", "_writes", "now_ms", "tables")

    def __init__(self, writes: dictionary_writes.RowWrites, now_ms: int, new_id: Callable[[], str]) -> None:
        self.tables = writes.tables
        self.now_ms = now_ms
        self._writes = writes
        self._new_id = new_id

    # --- inbox ------------------------------------------------------------------------------------------------------------
    async def claim(self, event_id: str) -> str | None:
        """Claim the event's id. Returns None for a new event, or the answer of the decision that claimed it first."""
        row = self.tables.inbox.get(event_id)
        if row is not None:
            return row[1]
        self._writes.put(self.tables.inbox, event_id, (self.now_ms, ""))
        return None

    async def answered(self, event_id: str) -> tuple[str, int] | None:
        """The answer of the event and its time (Unix ms); None if the event was not decided yet."""
        row = self.tables.inbox.get(event_id)
        return (row[1], row[0]) if row is not None else None

    async def answer(self, event_id: str, answer: str) -> None:
        """Save the answer of this event for its repeats."""
        self._writes.put(self.tables.inbox, event_id, (self.tables.inbox[event_id][0], answer))

    # --- sessions ---------------------------------------------------------------------------------------------------------
    async def session(self, task_id: str) -> model.Session | None:
        """The session."""
        return self.tables.sessions.get(task_id)

    async def hold_room(self, room: requests.Room) -> None:
        """Lock a room until the end of the transaction."""

    async def open_session(self, room: requests.Room, user_id: str) -> model.Session | None:
        """The Open session of this key."""
        for row in self.tables.sessions.values():
            if row.state == states.OPEN and row.request.room == room and row.request.user_id == user_id:
                return row
        return None

    async def sessions_in(self, room: requests.Room) -> list[model.Session]:
        """The unfinished sessions of a room in the order of their ids."""
        found = [s for s in self.tables.sessions.values() if s.state != states.FINISHED and s.request.room == room]
        return sorted(found, key=lambda s: s.task_id) if len(found) > 1 else found

    async def add_session(self, session: model.Session, secrets: requests.Secrets) -> None:
        """Insert a session and its secrets, including the callback URL. Raises Conflict if a session of its key is Open."""
        if session.task_id in self.tables.sessions:
            raise errors.Conflict("insert into sessions: the row exists already")
        await self._check_session(session)
        if url := session.request.callback:
            self._writes.put(self.tables.callback_urls, session.task_id, url)
            session = model.changed(session, request=dataclasses.replace(session.request, callback=requests.origin(url)))
        self._writes.put(self.tables.sessions, session.task_id, session)
        await self.put_secrets(session.task_id, secrets)

    async def save_session(self, old: model.Session, new: model.Session) -> model.Session:
        """Guarded update of the changed columns; returns the session with its new version."""
        if new.state == states.OPEN != old.state:
            await self._check_session(new)
        return self._writes.update(self.tables.sessions, old.task_id, old, new)

    async def put_secrets(self, task_id: str, secrets: requests.Secrets) -> None:
        """Replace the secrets of a session."""
        self._writes.put(self.tables.secrets, task_id, secrets)

    async def secrets(self, task_id: str) -> requests.Secrets:
        """The secrets of a session; empty ones if they were wiped."""
        return self.tables.secrets.get(task_id) or requests.Secrets()

    async def wipe_secrets(self, task_id: str) -> None:
        """Delete the secrets of a session. The callback URL stays: a later revision may have to be posted."""
        self._writes.drop(self.tables.secrets, task_id)

    # --- recordings -------------------------------------------------------------------------------------------------------
    async def recordings(self, task_id: str) -> list[model.Recording]:
        """All recordings of a session, oldest first."""
        found = [r for r in self.tables.recordings.values() if r.task_id == task_id]
        return sorted(found, key=lambda r: (r.opened_ms, r.speaker, r.n)) if len(found) > 1 else found

    async def recording(self, key: job_key.RecordingKey) -> model.Recording | None:
        """One recording with its present job."""
        return self.tables.recordings.get(str(key))

    async def add_recording(self, recording: model.Recording) -> None:
        """Insert a recording and its job. Raises Conflict if it exists."""
        key = str(recording.key)
        if key in self.tables.recordings:
            raise errors.Conflict("insert into recordings: the row exists already")
        self._writes.put(self.tables.recordings, key, recording)
        self._writes.save_job(key, 0, None, recording.epoch, recording.job)

    async def save_recording(self, old: model.Recording, new: model.Recording) -> model.Recording:
        """Guarded update of the changed columns and of the job; returns the recording with its new version."""
        key = str(old.key)
        saved = self._writes.update(self.tables.recordings, key, old, new)
        self._writes.save_job(key, old.epoch, old.job, new.epoch, new.job)
        return saved

    async def segment_nodes(self, recording: job_key.RecordingKey) -> dict[str, int]:
        """The nodes that keep segments of a recording: node → media in ms."""
        nodes: dict[str, int] = {}
        for (owner, _), row in self.tables.segments.items():
            if owner == str(recording):
                nodes[row["node"]] = nodes.get(row["node"], 0) + row["media_ms"]
        return nodes

    async def node_seen_ms(self, node: str) -> int:
        """The last heartbeat of a node, Unix ms; 0 for an unknown node."""
        return self.tables.nodes.get(node, (0, "", None))[0]

    async def has_segments(self, recording: job_key.RecordingKey) -> bool:
        """Whether segments of the recording hold media."""
        return any(row["media_ms"] > 0 for (owner, _), row in self.tables.segments.items() if owner == str(recording))

    async def last_pull_ms(self, task_id: str, until_ms: int) -> int:
        """The start of the session's last pull that is not later than `until_ms`, Unix ms; 0 if there is none."""
        pulls = [row["registered_ms"] for (owner, _), row in self.tables.segments.items() if owner.startswith(f"{task_id}/")]
        return max((ms for ms in pulls if ms <= until_ms), default=0)

    async def evictions(self, recording: job_key.RecordingKey) -> int:
        """How many captures of a recording ended with the stream just as a pull for another recording began."""
        of_session = [(key[0], row) for key, row in self.tables.segments.items() if key[0].startswith(f"{recording.task_id}/")]
        mine = str(recording)
        ended = [row for owner, row in of_session if owner == mine and row["reason"] == "eof"]
        begun = [row for owner, row in of_session if owner != mine]
        return sum(any(_evicts(run, other) for other in begun) for run in ended if run["last_packet_ms"])

    async def close_segment(self, recording: job_key.RecordingKey, epoch: int, values: Mapping[str, Any]) -> None:
        """Close the segment of `epoch` with media_ms, size_bytes, first_packet_ms, last_packet_ms and reason."""
        known = self.tables.segments.get((str(recording), epoch))
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
        self._writes.put(self.tables.segments, (str(recording), epoch), grown)

    # --- deliveries -------------------------------------------------------------------------------------------------------
    async def deliveries(self, task_id: str) -> list[model.Delivery]:
        """All deliveries of a session's results, oldest revision first."""
        return sorted((c for c in self.tables.callbacks.values() if c.task_id == task_id), key=lambda c: c.revision)

    async def add_delivery(self, delivery: model.Delivery) -> None:
        """Insert a delivery and its job."""
        key = str(delivery.key)
        if key in self.tables.callbacks:
            raise errors.Conflict("insert into callbacks: the row exists already")
        self._writes.put(self.tables.callbacks, key, model.changed(delivery, url=requests.origin(delivery.url)))
        self._writes.save_job(key, 0, None, delivery.epoch, delivery.job)

    async def save_delivery(self, old: model.Delivery, new: model.Delivery) -> None:
        """Guarded update of a delivery and its job. Raises Conflict."""
        key = str(old.key)
        self._writes.update(self.tables.callbacks, key, old, new, state_guards=False)
        self._writes.save_job(key, old.epoch, old.job, new.epoch, new.job)

    async def add_result(self, task_id: str, revision: int, body: str) -> None:
        """Insert one revision of a session's result. Raises Conflict if that revision exists."""
        if (task_id, revision) in self.tables.results:
            raise errors.Conflict("insert into results: the row exists already")
        self._writes.put(self.tables.results, (task_id, revision), body)

    # --- deadlines, journal, outbox ---------------------------------------------------------------------------------------
    async def arm(self, owner: job_key.OwnerKey, kind: str, at_ms: int) -> None:
        """Arm a deadline; replaces an earlier one of the same kind."""
        self._writes.put(self.tables.deadlines, (str(owner), kind), (at_ms, self._new_id()))

    async def disarm(self, owner: job_key.OwnerKey, kind: str) -> None:
        """Disarm a deadline, if it is armed."""
        self._writes.drop(self.tables.deadlines, (str(owner), kind))

    async def spend_deadline(self, owner: job_key.OwnerKey, kind: str, serial: str) -> bool:
        """Delete exactly this arming; False if the deadline was disarmed or armed again since."""
        armed = self.tables.deadlines.get((str(owner), kind))
        return armed is not None and armed[1] == serial and self._writes.drop(self.tables.deadlines, (str(owner), kind))

    async def journal(
        self, owner: job_key.OwnerKey, event: codec.Event, from_state: str = "", to_state: str = "", note: str = ""
    ) -> None:
        """Write one line of the timeline: the event, the change of state, a note."""
        line = dictionary_tables.JournalLine(
            owner.task_id, str(owner), self.now_ms, event.id, event.type, from_state, to_state, note
        )
        self._writes.put(self.tables.journal, self._writes.next_seq(), line)

    async def send(self, channel: str, event: codec.Event, task_id: str = "", node: str = "") -> None:
        """Write a message to the outbox: `channel` is event, command or result, `node` the only node it is for ("": any)."""
        seq = self._writes.next_seq()
        self._writes.put(
            self.tables.outbox, seq, dictionary_tables.Line(seq, channel, event.type, task_id, node, codec.encode(event))
        )
        self._writes.put(self.tables.unsent, seq, True)

    # --- API keys ---------------------------------------------------------------------------------------------------------
    async def audit(self, by: model.Caller, action: str, subject: str, outcome: str = "ok") -> None:
        """Write an audit row; `outcome` is ok, or the Code of a refusal."""
        self._writes.put(self.tables.audit, self._writes.next_seq(), (by.name, by.key_id, action, subject, outcome))

    async def open_sessions_of(self, key_id: str) -> int:
        """How many Open sessions a key has started."""
        begun = {subject for _, by, action, subject, _ in self.tables.audit.values() if by == key_id and action == "start"}
        return sum(s.state == states.OPEN and s.task_id in begun for s in self.tables.sessions.values())

    async def began(self, key_id: str, task_id: str) -> bool:
        """Whether this key started the session."""
        return any((by, act, on) == (key_id, "start", task_id) for _, by, act, on, _ in self.tables.audit.values())

    # --- presence by TRTC callbacks ---------------------------------------------------------------------------------------
    async def note_callback(self, sdk_app_id: int) -> None:
        """Record that a verified callback of this application arrived."""
        seen_ms = self.tables.applications.get(sdk_app_id)
        if seen_ms is None or seen_ms < self.now_ms - NOTE_CALLBACK_EVERY_MS:
            self._writes.put(self.tables.applications, sdk_app_id, self.now_ms)

    async def callbacks_come(self, sdk_app_id: int) -> bool:
        """Whether a callback of this application ever arrived."""
        return sdk_app_id in self.tables.applications

    async def presence(self, room: requests.Room, user_id: str) -> dict[str, Any]:
        """Presence of a user in a room: audio, video (bool), audio_ms, video_ms, left_ms."""
        row = self.tables.presence.get((room.sdk_app_id, room.kind, room.name, user_id), BLANK)
        return {name: row[name] for name in BLANK}

    async def put_presence(self, room: requests.Room, user_id: str, known: Mapping[str, Any]) -> None:
        """Save the presence of a user in a room."""
        key = (room.sdk_app_id, room.kind, room.name, user_id)
        self._writes.put(self.tables.presence, key, {**known, "updated_ms": self.now_ms})

    async def publishers(self, room: requests.Room) -> list[tuple[str, tuple[str, ...]]]:
        """Users who publish in a room, by the callbacks of the last 24 hours: (user, kinds), ordered by user."""
        since_ms = self.now_ms - PRESENCE_KEPT_MS
        there = sorted((k[3], row) for k, row in self._in(room) if row["updated_ms"] > since_ms)
        known = [(user, tuple(kind for kind in ("audio", "video") if row[kind])) for user, row in there]
        return [(user, kinds) for user, kinds in known if kinds]

    async def clear_room(self, room: requests.Room, at_ms: int) -> None:
        """Mark everybody in a room as gone at `at_ms`; later presence stays, because rooms are reused."""
        for key, row in self._in(room):
            gone = {kind: False for kind in ("audio", "video") if row[f"{kind}_ms"] <= at_ms}
            left = {"left_ms": at_ms} if row["left_ms"] <= at_ms else {}
            self._writes.put(self.tables.presence, key, row | gone | left)

    # --- shared steps -----------------------------------------------------------------------------------------------------
    def _in(self, room: requests.Room) -> list[tuple[tuple[int, str, str, str], dict[str, Any]]]:
        where = (room.sdk_app_id, room.kind, room.name)
        return [(key, row) for key, row in self.tables.presence.items() if key[:3] == where]

    async def _check_session(self, session: model.Session) -> None:
        found = await self.open_session(session.request.room, session.request.user_id) if session.state == states.OPEN else None
        if found is not None and found.task_id != session.task_id:
            raise errors.Conflict("insert into sessions: the row exists already")


def _evicts(ended: Mapping[str, Any], begun: Mapping[str, Any]) -> bool:
    since_ms = begun["registered_ms"] - ended["last_packet_ms"]
    went_on = begun["reason"] == "" or (begun["last_packet_ms"] or 0) > ended["last_packet_ms"] + EVICTS_SLACK_MS
    return bool(-EVICTS_WITHIN_MS <= since_ms <= EVICTS_SLACK_MS and went_on)
