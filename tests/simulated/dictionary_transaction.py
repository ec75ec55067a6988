"""One deciding transaction on dictionaries, and the dictionaries. Imports `machine` and `events`.

Rule: every write goes through `put` and `drop`, which note what was there; `roll_back` puts it back. An update is guarded by
version and state and writes only what changed, as in store/transaction.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from events import codec, requests
from machine import errors, job_key, model, states

PRESENCE_KEPT_MS = 24 * model.HOUR
EVICTS_WITHIN_MS = 2 * model.SECOND
EVICTS_SLACK_MS = 200
NOTE_CALLBACK_EVERY_MS = model.MINUTE
BLANK: dict[str, Any] = {"audio": False, "audio_ms": 0, "video": False, "video_ms": 0, "left_ms": 0}
_GONE = object()
Row = TypeVar("Row", model.Session, model.Recording, model.Delivery)


class JobRow(NamedTuple):
    """A job as its table holds it."""

    kind: str
    state: str
    node: str
    lease_until_ms: int


class Line(NamedTuple):
    """A message of the outbox."""

    seq: int
    channel: str
    type: str
    task_id: str
    node: str
    body: bytes
    claimed_until_ms: int = 0
    sent_ms: int | None = None
    parked: str = ""


class JournalLine(NamedTuple):
    """A line of the timeline."""

    task_id: str
    owner: str
    at_ms: int
    event_id: str
    event_type: str
    from_state: str
    to_state: str
    note: str


@dataclass(slots=True)
class Tables:
    """What the database holds. A recording and a callback carry their present job; `jobs` holds all there ever were."""

    inbox: dict[str, tuple[int, str]] = field(default_factory=dict)
    sessions: dict[str, model.Session] = field(default_factory=dict)
    secrets: dict[str, requests.Secrets] = field(default_factory=dict)
    recordings: dict[str, model.Recording] = field(default_factory=dict)
    jobs: dict[tuple[str, int], JobRow] = field(default_factory=dict)
    leased: dict[tuple[str, int], bool] = field(default_factory=dict)
    segments: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    callbacks: dict[str, model.Delivery] = field(default_factory=dict)
    callback_urls: dict[str, str] = field(default_factory=dict)
    results: dict[tuple[str, int], str] = field(default_factory=dict)
    deadlines: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    outbox: dict[int, Line] = field(default_factory=dict)
    unsent: dict[int, bool] = field(default_factory=dict)
    journal: dict[int, JournalLine] = field(default_factory=dict)
    presence: dict[tuple[int, str, str, str], dict[str, Any]] = field(default_factory=dict)
    applications: dict[int, int] = field(default_factory=dict)
    audit: dict[int, tuple[str, str, str, str, str]] = field(default_factory=dict)
    nodes: dict[str, tuple[int, str, model.SpareCapacity | None]] = field(default_factory=dict)
    last_seq: int = 0
    writing: bool = False

    def of_sessions(self) -> tuple[dict[Any, Any], ...]:
        """The tables whose keys begin with a TaskId."""
        named = (
            self.sessions,
            self.secrets,
            self.callback_urls,
            self.recordings,
            self.jobs,
            self.uploads,
            self.callbacks,
            self.results,
        )
        return (*named, self.deadlines)


class Transaction:
    """What happens between begin and commit of one event. `now_ms` is the time of the whole transaction; `changes` what was
    written, as (table, key, what was there)."""

    __slots__ = ("_meddle", "_new_id", "changes", "now_ms", "tables")

    def __init__(
        self, tables: Tables, now_ms: int, new_id: Callable[[], str], meddle: Callable[[str], bool] | None = None
    ) -> None:
        self.tables = tables
        self.now_ms = now_ms
        self.changes: list[tuple[dict[Any, Any], Any, Any]] = []
        self._new_id = new_id
        self._meddle = meddle

    # --- writing ----------------------------------------------------------------------------------------------------------
    def put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Write a row."""
        self.changes.append((table, key, table.get(key, _GONE)))
        table[key] = value

    def drop(self, table: dict[Any, Any], key: Any) -> bool:
        """Delete a row; whether there was one."""
        if key not in table:
            return False
        self.changes.append((table, key, table.pop(key)))
        return True

    def roll_back(self) -> None:
        """Put everything back as it was."""
        for table, key, before in reversed(self.changes):
            if before is _GONE:
                del table[key]
            else:
                table[key] = before

    def put_job(self, owner: str, epoch: int, row: JobRow) -> None:
        """Write a job, and keep the list of leases in step."""
        key = (owner, epoch)
        self.put(self.tables.jobs, key, row)
        if row.state == states.LEASED:
            if key not in self.tables.leased:
                self.put(self.tables.leased, key, True)
        else:
            self.drop(self.tables.leased, key)

    def touch(self, owner: str, epoch: int, job: model.Job) -> None:
        """A lease changes what a decision would see: the owner's version is raised."""
        rows: dict[str, Any] = self.tables.recordings if owner in self.tables.recordings else self.tables.callbacks
        found = rows.get(owner)
        if found is not None and found.epoch == epoch:
            self.put(rows, owner, model.changed(found, version=found.version + 1, job=job))

    def note_media(self, owner: str, epoch: int, last_packet_ms: int) -> None:
        """Media came: idleness counts from there, forwards only."""
        task_id = job_key.parse(owner).task_id
        session, recording = self.tables.sessions.get(task_id), self.tables.recordings.get(owner)
        if session is not None and session.idle_from_ms < last_packet_ms:
            self.put(self.tables.sessions, task_id, model.changed(session, idle_from_ms=last_packet_ms))
        if recording is not None and recording.epoch == epoch and recording.idle_from_ms < last_packet_ms:
            self.put(self.tables.recordings, owner, model.changed(recording, idle_from_ms=last_packet_ms))

    # --- inbox ------------------------------------------------------------------------------------------------------------
    async def claim(self, event_id: str) -> str | None:
        """Take the event's id. None if it is ours now, else the answer that was given when it was first handled."""
        row = self.tables.inbox.get(event_id)
        if row is not None:
            return row[1]
        self.put(self.tables.inbox, event_id, (self.now_ms, ""))
        return None

    async def answered(self, event_id: str) -> tuple[str, int] | None:
        """What the event was answered, and when (Unix ms); None if it was not handled yet."""
        row = self.tables.inbox.get(event_id)
        return (row[1], row[0]) if row is not None else None

    async def answer(self, event_id: str, answer: str) -> None:
        """Keep what the event was answered, for its repeats."""
        self.put(self.tables.inbox, event_id, (self.tables.inbox[event_id][0], answer))

    # --- sessions ---------------------------------------------------------------------------------------------------------
    async def session(self, task_id: str) -> model.Session | None:
        """The session."""
        return self.tables.sessions.get(task_id)

    async def hold_room(self, room: requests.Room) -> None:
        """Transactions run one after another here."""

    async def open_session(self, room: requests.Room, user_id: str) -> model.Session | None:
        """The Open session of this key."""
        for row in self.tables.sessions.values():
            if row.state == states.OPEN and row.request.room == room and row.request.user_id == user_id:
                return row
        return None

    async def sessions_in(self, room: requests.Room) -> list[model.Session]:
        """The sessions of a room that are not Finished, in order of their ids."""
        found = [s for s in self.tables.sessions.values() if s.state != states.FINISHED and s.request.room == room]
        return sorted(found, key=lambda s: s.task_id) if len(found) > 1 else found

    async def add_session(self, session: model.Session, secrets: requests.Secrets) -> None:
        """A new session and its secrets. Raises Conflict if its key is Open already."""
        if session.task_id in self.tables.sessions:
            raise errors.Conflict("a row of sessions exists already")
        await self._check_session(session)
        if url := session.request.callback:
            self.put(self.tables.callback_urls, session.task_id, url)
            session = model.changed(session, request=dataclasses.replace(session.request, callback=requests.origin(url)))
        self.put(self.tables.sessions, session.task_id, session)
        await self.put_secrets(session.task_id, secrets)

    async def save_session(self, old: model.Session, new: model.Session) -> model.Session:
        """Guarded update of what changed; returns the session as it now stands. Raises Conflict."""
        if new.state == states.OPEN != old.state:
            await self._check_session(new)
        return self._guarded(self.tables.sessions, old.task_id, old, new)

    async def put_secrets(self, task_id: str, secrets: requests.Secrets) -> None:
        """Keep the secrets of a session, in place of older ones."""
        self.put(self.tables.secrets, task_id, secrets)

    async def secrets(self, task_id: str) -> requests.Secrets:
        """The secrets of a session; empty ones if they were wiped."""
        return self.tables.secrets.get(task_id) or requests.Secrets()

    async def wipe_secrets(self, task_id: str) -> None:
        """Forget the secrets of a session."""
        self.drop(self.tables.secrets, task_id)

    # --- recordings -------------------------------------------------------------------------------------------------------
    async def recordings(self, task_id: str) -> list[model.Recording]:
        """All recordings of a session, oldest first."""
        found = [r for r in self.tables.recordings.values() if r.task_id == task_id]
        return sorted(found, key=lambda r: (r.opened_ms, r.speaker, r.n)) if len(found) > 1 else found

    async def recording(self, key: job_key.RecordingKey) -> model.Recording | None:
        """One recording by its id, with its present job."""
        return self.tables.recordings.get(str(key))

    async def add_recording(self, recording: model.Recording) -> None:
        """A new recording and its job. Raises Conflict if it exists."""
        key = str(recording.key)
        if key in self.tables.recordings:
            raise errors.Conflict("a row of recordings exists already")
        self.put(self.tables.recordings, key, recording)
        self._save_job(key, 0, None, recording.epoch, recording.job)

    async def save_recording(self, old: model.Recording, new: model.Recording) -> model.Recording:
        """Guarded update of what changed, and of the job; returns the recording as it now stands. Raises Conflict."""
        key = str(old.key)
        saved = self._guarded(self.tables.recordings, key, old, new)
        self._save_job(key, old.epoch, old.job, new.epoch, new.job)
        return saved

    async def segment_nodes(self, recording: job_key.RecordingKey) -> dict[str, int]:
        """Where the segments of a recording lie: node → media in ms."""
        nodes: dict[str, int] = {}
        for (owner, _), row in self.tables.segments.items():
            if owner == str(recording):
                nodes[row["node"]] = nodes.get(row["node"], 0) + row["media_ms"]
        return nodes

    async def node_seen_ms(self, node: str) -> int:
        """When a node last gave a sign of life, Unix ms; 0 if it is not known."""
        return self.tables.nodes.get(node, (0, "", None))[0]

    async def has_segments(self, recording: job_key.RecordingKey) -> bool:
        """Whether media of the recording is kept in segments."""
        return any(row["media_ms"] > 0 for (owner, _), row in self.tables.segments.items() if owner == str(recording))

    async def last_pull_ms(self, task_id: str, until_ms: int) -> int:
        """When the last pull until `until_ms` was opened for the session, Unix ms; 0 if none was."""
        pulls = [row["registered_ms"] for (owner, _), row in self.tables.segments.items() if owner.startswith(f"{task_id}/")]
        return max((ms for ms in pulls if ms <= until_ms), default=0)

    async def evictions(self, recording: job_key.RecordingKey) -> int:
        """How many runs of a recording ended by themselves just as a pull for another of the session began that went on."""
        of_session = [(key[0], row) for key, row in self.tables.segments.items() if key[0].startswith(f"{recording.task_id}/")]
        mine = str(recording)
        ended = [row for owner, row in of_session if owner == mine and row["reason"] == "eof"]
        begun = [row for owner, row in of_session if owner != mine]
        return sum(any(_evicts(run, other) for other in begun) for run in ended if run["last_packet_ms"])

    async def close_segment(self, recording: job_key.RecordingKey, epoch: int, values: Mapping[str, Any]) -> None:
        """Write down how the run of `epoch` ended; what is known only grows."""
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
        self.put(self.tables.segments, (str(recording), epoch), grown)

    # --- callbacks --------------------------------------------------------------------------------------------------------
    async def deliveries(self, task_id: str) -> list[model.Delivery]:
        """All deliveries of a session's results, oldest revision first."""
        return sorted((c for c in self.tables.callbacks.values() if c.task_id == task_id), key=lambda c: c.revision)

    async def add_delivery(self, delivery: model.Delivery) -> None:
        """A new delivery and its job."""
        key = str(delivery.key)
        if key in self.tables.callbacks:
            raise errors.Conflict("a row of callbacks exists already")
        self.put(self.tables.callbacks, key, model.changed(delivery, url=requests.origin(delivery.url)))
        self._save_job(key, 0, None, delivery.epoch, delivery.job)

    async def save_delivery(self, old: model.Delivery, new: model.Delivery) -> None:
        """Guarded update of a delivery and its job. Raises Conflict."""
        key = str(old.key)
        self._guarded(self.tables.callbacks, key, old, new, state_guards=False)
        self._save_job(key, old.epoch, old.job, new.epoch, new.job)

    async def add_result(self, task_id: str, revision: int, body: str) -> None:
        """Keep one revision of a session's result. Raises Conflict if that revision exists."""
        if (task_id, revision) in self.tables.results:
            raise errors.Conflict("a row of results exists already")
        self.put(self.tables.results, (task_id, revision), body)

    # --- deadlines, journal, outbox ---------------------------------------------------------------------------------------
    async def arm(self, owner: job_key.OwnerKey, kind: str, at_ms: int) -> None:
        """Arm a deadline, in place of an earlier arming of the same kind."""
        self.put(self.tables.deadlines, (str(owner), kind), (at_ms, self._new_id()))

    async def disarm(self, owner: job_key.OwnerKey, kind: str) -> None:
        """Take a deadline away, if it is armed."""
        self.drop(self.tables.deadlines, (str(owner), kind))

    async def spend_deadline(self, owner: job_key.OwnerKey, kind: str, serial: str) -> bool:
        """Take exactly this arming away; False if it was disarmed or armed anew meanwhile."""
        armed = self.tables.deadlines.get((str(owner), kind))
        return armed is not None and armed[1] == serial and self.drop(self.tables.deadlines, (str(owner), kind))

    async def journal(
        self, owner: job_key.OwnerKey, event: codec.Event, from_state: str = "", to_state: str = "", note: str = ""
    ) -> None:
        """One line of the timeline: what happened, and what became of it."""
        line = JournalLine(owner.task_id, str(owner), self.now_ms, event.id, event.type, from_state, to_state, note)
        self.put(self.tables.journal, self._next_seq(), line)

    async def send(self, channel: str, event: codec.Event, task_id: str = "", node: str = "") -> None:
        """Put a message in the outbox."""
        seq = self._next_seq()
        self.put(self.tables.outbox, seq, Line(seq, channel, event.type, task_id, node, codec.encode(event)))
        self.put(self.tables.unsent, seq, True)

    # --- who asks ---------------------------------------------------------------------------------------------------------
    async def audit(self, by: model.Caller, action: str, subject: str, outcome: str = "ok") -> None:
        """Write down who did this; or what it was refused for, the Code."""
        self.put(self.tables.audit, self._next_seq(), (by.name, by.key_id, action, subject, outcome))

    async def open_sessions_of(self, key_id: str) -> int:
        """How many Open sessions a key has begun."""
        begun = {subject for _, by, action, subject, _ in self.tables.audit.values() if by == key_id and action == "start"}
        return sum(s.state == states.OPEN and s.task_id in begun for s in self.tables.sessions.values())

    async def began(self, key_id: str, task_id: str) -> bool:
        """Whether this key opened the session."""
        return any((by, act, on) == (key_id, "start", task_id) for _, by, act, on, _ in self.tables.audit.values())

    # --- what callbacks tell of rooms -------------------------------------------------------------------------------------
    async def note_callback(self, sdk_app_id: int) -> None:
        """A genuine callback of this application came."""
        seen_ms = self.tables.applications.get(sdk_app_id)
        if seen_ms is None or seen_ms < self.now_ms - NOTE_CALLBACK_EVERY_MS:
            self.put(self.tables.applications, sdk_app_id, self.now_ms)

    async def callbacks_come(self, sdk_app_id: int) -> bool:
        """Whether a callback of this application was ever seen."""
        return sdk_app_id in self.tables.applications

    async def presence(self, room: requests.Room, user_id: str) -> dict[str, Any]:
        """What is known of a user in a room: audio, video (bool), audio_ms, video_ms, left_ms."""
        row = self.tables.presence.get((room.sdk_app_id, room.kind, room.name, user_id), BLANK)
        return {name: row[name] for name in BLANK}

    async def put_presence(self, room: requests.Room, user_id: str, known: Mapping[str, Any]) -> None:
        """Keep what is known of a user in a room."""
        key = (room.sdk_app_id, room.kind, room.name, user_id)
        self.put(self.tables.presence, key, {**known, "updated_ms": self.now_ms})

    async def publishers(self, room: requests.Room) -> list[tuple[str, tuple[str, ...]]]:
        """Who publishes what in a room, by the callbacks of the last 24 hours: (user, kinds), ordered by user."""
        since_ms = self.now_ms - PRESENCE_KEPT_MS
        there = sorted((k[3], row) for k, row in self._in(room) if row["updated_ms"] > since_ms)
        known = [(user, tuple(kind for kind in ("audio", "video") if row[kind])) for user, row in there]
        return [(user, kinds) for user, kinds in known if kinds]

    async def clear_room(self, room: requests.Room, at_ms: int) -> None:
        """The room was gone at `at_ms`, and everybody in it left then; what is younger stays."""
        for key, row in self._in(room):
            gone = {kind: False for kind in ("audio", "video") if row[f"{kind}_ms"] <= at_ms}
            left = {"left_ms": at_ms} if row["left_ms"] <= at_ms else {}
            self.put(self.tables.presence, key, row | gone | left)

    # --- the small steps they share ---------------------------------------------------------------------------------------
    def _in(self, room: requests.Room) -> list[tuple[tuple[int, str, str, str], dict[str, Any]]]:
        where = (room.sdk_app_id, room.kind, room.name)
        return [(key, row) for key, row in self.tables.presence.items() if key[:3] == where]

    def _next_seq(self) -> int:
        """Numbers are never used again, not even those of a transaction that was rolled back."""
        self.tables.last_seq += 1
        return self.tables.last_seq

    async def _check_session(self, session: model.Session) -> None:
        found = await self.open_session(session.request.room, session.request.user_id) if session.state == states.OPEN else None
        if found is not None and found.task_id != session.task_id:
            raise errors.Conflict("a row of sessions exists already")

    def _guarded(self, table: dict[str, Any], key: str, old: Row, new: Row, *, state_guards: bool = True) -> Row:
        if self._meddle is not None:
            self._meet(key)
        found = table.get(key)
        moved = found is None or found.version != old.version or (state_guards and found.state != old.state)
        if moved:
            raise errors.Conflict("the row was moved by somebody else")
        if new.state not in _STATES[type(new)]:
            raise errors.Conflict(f"there is no state {new.state!r}")
        kept: dict[str, Any] = {}
        if found is not old:  # a renewal noted media beside this decision: only what changed is written
            kept = {name: getattr(found, name) for name in _BESIDE if hasattr(found, name) and _same(old, new, name)}
            if isinstance(found, model.Session):
                kept["request"] = found.request
        saved = model.changed(new, version=old.version + 1, **kept)
        self.put(table, key, saved)
        return model.changed(new, version=saved.version) if kept else saved

    def _meet(self, key: str) -> None:
        """Somebody else is at work just now: the row is moved before this transaction's guard looks at it, unless this
        transaction holds it already."""
        held = any(at == key or (isinstance(at, tuple) and at[0] == key) for _, at, _ in self.changes)
        if held or self._meddle is None:
            return
        self.tables.writing = False
        try:
            if self._meddle(key):
                raise errors.Conflict("the row was moved by somebody else")
        finally:
            self.tables.writing = True

    def _save_job(self, owner: str, old_epoch: int, old: model.Job | None, epoch: int, job: model.Job | None) -> None:
        if old is not None and (job is None or epoch != old_epoch):
            row = self.tables.jobs.get((owner, old_epoch))
            if row is not None:
                self.put_job(owner, old_epoch, row._replace(state=states.ENDED))
        if job is not None and not (epoch == old_epoch and job == old):
            self.put_job(owner, epoch, JobRow(job.kind, job.state, job.node, 0))


# What is written beside decisions, by renewals.
_BESIDE = ("idle_from_ms",)
_STATES: dict[type, tuple[str, ...]] = {
    model.Session: states.SESSION_STATES,
    model.Recording: states.RECORDING_STATES,
    model.Delivery: ("pending", "delivered", "failed", "cancelled"),
}


def _same(old: Any, new: Any, name: str) -> bool:
    return bool(getattr(old, name) == getattr(new, name))


def _evicts(ended: Mapping[str, Any], begun: Mapping[str, Any]) -> bool:
    since_ms = begun["registered_ms"] - ended["last_packet_ms"]
    went_on = begun["reason"] == "" or (begun["last_packet_ms"] or 0) > ended["last_packet_ms"] + EVICTS_SLACK_MS
    return bool(-EVICTS_WITHIN_MS <= since_ms <= EVICTS_SLACK_MS and went_on)
