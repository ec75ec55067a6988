"""One deciding transaction: what a handler may load and write. Imports `machine` and `events`.

Rule: nothing here commits; an update that finds its row moved raises `Conflict`, and the template loads and decides again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Executable, Table, Update, and_, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from events import codec, requests
from machine import encryption, errors, model, states
from store import audit, encrypted_rows, jobs, locks, rows, statements, tables
from store import pending_writes as waiting

PRESENCE_KEPT_MS = 24 * model.HOUR
NOTE_CALLBACK_EVERY_MS = model.MINUTE
Row = TypeVar("Row", model.Session, model.Recording)


class Transaction:
    """What happens between BEGIN and COMMIT of one event. `now_ms` is the time of the whole transaction."""

    def __init__(self, connection: AsyncConnection, now_ms: int, new_id: Callable[[], str], keyring: encryption.Keyring) -> None:
        self._connection = connection
        self.now_ms = now_ms
        self._new_id = new_id
        self._keyring = keyring
        self._pending = waiting.Pending()
        self._with_callbacks: dict[int, bool] = {}

    async def write_down(self) -> None:
        """Write what waits for the end; the store calls it just before the commit. Raises Conflict."""
        try:
            await self._pending.write(self._connection)
        except IntegrityError as error:
            raise errors.Conflict("a deadline of the same kind was armed beside this decision") from error

    # --- inbox ------------------------------------------------------------------------------------------------------------
    async def claim(self, event_id: str) -> str | None:
        """Take the event's id. Returns None if it is ours now, or the answer that was given when it was first handled."""
        ours = {"event_id": event_id, "at_ms": self.now_ms, "answer": ""}
        if (await self._connection.execute(statements.CLAIM[self._connection.dialect.name], ours)).rowcount:
            return None
        first = await self.answered(event_id)
        if first is None:
            raise errors.Conflict("the event's id was claimed by somebody else and given up")
        return first[0]

    async def answer(self, event_id: str, answer: str) -> None:
        """Keep what the event was answered, for its repeats."""
        await self._connection.execute(statements.SET_ANSWER, {"at_event_id": event_id, "answer": answer})

    async def answered(self, event_id: str) -> tuple[str, int] | None:
        """What the event was answered, and when (Unix ms); None if it was not handled yet."""
        row = await self._one(statements.ANSWERED, event_id=event_id)
        return (str(row["answer"]), int(row["at_ms"])) if row is not None else None

    # --- sessions ---------------------------------------------------------------------------------------------------------
    async def session(self, task_id: str) -> model.Session | None:
        """The session, its row locked until the end of the transaction."""
        row = await self._one(statements.SESSION, task_id=task_id)
        return rows.session(row) if row else None

    async def hold_room(self, room: requests.Room) -> None:
        """No other transaction reads or changes who is in this room, and what records it, until the end of this one: a start and
        the first words of a speaker would each not see the other."""
        await locks.hold(self._connection, locks.of_room(room))

    async def open_session(self, room: requests.Room, user_id: str) -> model.Session | None:
        """The Open session of this key, locked."""
        row = await self._one(statements.OPEN_SESSION, **_room(room), user_id=user_id, state=states.OPEN)
        return rows.session(row) if row else None

    async def sessions_in(self, room: requests.Room) -> list[model.Session]:
        """The sessions of a room that are not Finished, in order of their ids, locked."""
        return [rows.session(row) for row in await self._all(statements.SESSIONS_IN, **_room(room))]

    async def add_session(self, session: model.Session, secrets: requests.Secrets) -> None:
        """A new session and its secrets, the callback's address among them. Raises Conflict if its key is Open already."""
        await self._insert(tables.sessions, rows.session_row(session))
        await self.put_secrets(session.task_id, secrets)
        if session.request.callback:
            await self._put_encrypted(session.task_id, encrypted_rows.CALLBACK, session.request.callback)

    async def save_session(self, old: model.Session, new: model.Session) -> model.Session:
        """Guarded update of what changed; returns the session as it now stands. Raises Conflict, also if it would be the second
        Open one of its key."""
        key = {"task_id": old.task_id, "state": old.state, "version": old.version}
        version = await self._guarded(statements.SAVE_SESSION, key, rows.session_row(old), rows.session_row(new))
        return _with_version(new, version)

    async def put_secrets(self, task_id: str, secrets: requests.Secrets) -> None:
        """Keep the secrets of a session, sealed, in place of older ones."""
        await self._put_encrypted(task_id, encrypted_rows.CREDENTIALS, rows.dumps(secrets.to_json()))

    async def secrets(self, task_id: str) -> requests.Secrets:
        """The secrets of a session; empty ones if they were wiped. Raises DecryptionFailed."""
        kept = await self._decrypted(task_id, encrypted_rows.CREDENTIALS)
        return requests.Secrets.from_json(json.loads(kept)) if kept else requests.Secrets()

    async def wipe_secrets(self, task_id: str) -> None:
        """Forget the secrets of a session. The callback's address stays: a later revision may have to be posted."""
        await self._connection.execute(statements.WIPE_SECRET, _at(task_id=task_id, kind=encrypted_rows.CREDENTIALS))

    async def callback_url(self, task_id: str) -> str:
        """Where the results of a session are posted, whole; "" if nowhere, or it was forgotten. Raises DecryptionFailed."""
        return await self._decrypted(task_id, encrypted_rows.CALLBACK)

    async def _put_encrypted(self, task_id: str, kind: str, clear: str) -> None:
        values = {**encrypted_rows.encrypt(self._keyring, task_id, kind, clear), "updated_ms": self.now_ms}
        key = {"task_id": task_id, "kind": kind}
        if not (await self._connection.execute(statements.SET_SECRET, _at(**key) | values)).rowcount:
            await self._insert(tables.secrets, key | values)

    async def _decrypted(self, task_id: str, kind: str) -> str:
        row = await self._one(statements.SECRET, task_id=task_id, kind=kind)
        return encrypted_rows.decrypt(self._keyring, task_id, kind, row["key_id"], row["body"]) if row else ""

    # --- recordings -------------------------------------------------------------------------------------------------------
    async def recordings(self, task_id: str) -> list[model.Recording]:
        """All recordings of a session, oldest first."""
        return [_recording(row) for row in await self._all(statements.RECORDINGS, task_id=task_id)]

    async def recording(self, recording_id: str) -> model.Recording | None:
        """One recording by its id, with its present job."""
        row = await self._one(statements.RECORDING, id=recording_id)
        return _recording(row) if row else None

    async def add_recording(self, recording: model.Recording) -> None:
        """A new recording and its job. Raises Conflict if it exists."""
        await self._insert(tables.recordings, rows.recording_row(recording))
        await self._save_job(recording.id, 0, None, recording.epoch, recording.job)

    async def save_recording(self, old: model.Recording, new: model.Recording) -> model.Recording:
        """Guarded update of what changed, and of the job; returns the recording as it now stands. Raises Conflict."""
        key = {"id": old.id, "state": old.state, "version": old.version}
        version = await self._guarded(statements.SAVE_RECORDING, key, rows.recording_row(old), rows.recording_row(new))
        await self._save_job(old.id, old.epoch, old.job, new.epoch, new.job)
        return _with_version(new, version)

    async def segment_nodes(self, recording_id: str) -> dict[str, int]:
        """Where the segments of a recording lie: node → media in ms."""
        found = await self._all(statements.SEGMENT_NODES, recording_id=recording_id)
        return {row["node"]: int(row["media_ms"]) for row in found}

    async def node_seen_ms(self, node: str) -> int:
        """When a node last gave a sign of life, Unix ms; 0 if it is not known."""
        row = await self._one(statements.NODE_SEEN, node=node)
        return int(row["seen_ms"]) if row else 0

    async def has_segments(self, recording_id: str) -> bool:
        """Whether media of the recording is kept in segments."""
        return await self._one(statements.HAS_SEGMENTS, recording_id=recording_id) is not None

    async def last_pull_ms(self, task_id: str, until_ms: int) -> int:
        """When the last pull until `until_ms` was opened for the session, Unix ms; 0 if none was."""
        row = await self._one(statements.LAST_PULL, task_id=task_id, until_ms=until_ms)
        return int(row["registered_ms"]) if row else 0

    async def evictions(self, task_id: str, recording_id: str) -> int:
        """How many runs of a recording ended by themselves just as a pull for another of the session began that went on."""
        return len(await self._all(statements.EVICTIONS, task_id=task_id, recording_id=recording_id))

    async def close_segment(self, recording_id: str, epoch: int, values: Mapping[str, Any]) -> None:
        """Write down how the run of `epoch` ended: media_ms, size_bytes, first_packet_ms, last_packet_ms, reason.

        What is known only grows: a late word of less media (a worker found lost whose outcome was said all the same) takes
        nothing away."""
        key = {"recording_id": recording_id, "epoch": epoch}
        known = await self._one(statements.SEGMENT, **key)
        if known is None:
            return
        first = [ms for ms in (known["first_packet_ms"], values.get("first_packet_ms")) if ms]
        grown = {
            "first_packet_ms": min(first, default=None),
            "last_packet_ms": max(known["last_packet_ms"] or 0, values.get("last_packet_ms") or 0) or None,
            "media_ms": max(known["media_ms"], values.get("media_ms", 0)),
            "size_bytes": max(known["size_bytes"], values.get("size_bytes", 0)),
            "reason": known["reason"] or values["reason"],
        }
        await self._connection.execute(statements.SAVE_SEGMENT, _at(**key) | grown)

    # --- callbacks --------------------------------------------------------------------------------------------------------
    async def deliveries(self, task_id: str) -> list[model.Delivery]:
        """All deliveries of a session's results, oldest revision first."""
        return [rows.delivery(r, jobs.of(r)) for r in await self._all(statements.CALLBACKS, task_id=task_id)]

    async def add_delivery(self, callback: model.Delivery) -> None:
        """A new delivery and its job."""
        await self._insert(tables.callbacks, rows.delivery_row(callback))
        await self._save_job(callback.id, 0, None, callback.epoch, callback.job)

    async def save_delivery(self, old: model.Delivery, new: model.Delivery) -> None:
        """Guarded update of a delivery and its job. Raises Conflict."""
        changing = ("state", "epoch", "tries", "detail")
        before, after = ({column: rows.delivery_row(d)[column] for column in changing} for d in (old, new))
        key = {"task_id": old.task_id, "revision": old.revision, "version": old.version}
        await self._guarded(statements.SAVE_CALLBACK, key, before, after)
        await self._save_job(old.id, old.epoch, old.job, new.epoch, new.job)

    async def add_result(self, task_id: str, revision: int, body: str) -> None:
        """Keep one revision of a session's result. Raises Conflict if that revision exists."""
        await self._insert(tables.results, {"task_id": task_id, "revision": revision, "at_ms": self.now_ms, "body": body})

    # --- deadlines, journal, outbox -------------------------------------------------------------------------------------------
    async def arm(self, owner: str, kind: str, at_ms: int) -> None:
        """Arm a deadline, in place of an earlier arming of the same kind."""
        self._pending.arm(owner, kind, at_ms, self._new_id())

    async def disarm(self, owner: str, kind: str) -> None:
        """Take a deadline away, if it is armed."""
        self._pending.disarm(owner, kind)

    async def spend_deadline(self, owner: str, kind: str, serial: str) -> bool:
        """Take exactly this arming away; False if it was disarmed or armed anew meanwhile."""
        spent = await self._connection.execute(statements.SPEND_DEADLINE, _at(owner=owner, kind=kind, serial=serial))
        return bool(spent.rowcount)

    async def journal(
        self, task_id: str, owner: str, event: codec.Event, from_state: str = "", to_state: str = "", note: str = ""
    ) -> None:
        """One line of the timeline: what happened, and what became of it."""
        line = {"task_id": task_id, "owner": owner, "at_ms": self.now_ms, "event_id": event.id, "event_type": event.type}
        self._pending.journal.append(line | {"from_state": from_state, "to_state": to_state, "note": note})

    async def send(self, channel: str, event: codec.Event, task_id: str = "", node: str = "") -> None:
        """Put a message in the outbox: `channel` is event, command or result, `node` the only node it is for ("": any). The
        relay takes it from there after the commit."""
        body = codec.encode(event).decode()
        line = {"channel": channel, "type": event.type, "task_id": task_id, "node": node, "body": body, "parked": ""}
        self._pending.outbox.append(line | {"created_ms": self.now_ms, "claimed_until_ms": 0, "sent_ms": None})

    # --- who asks ---------------------------------------------------------------------------------------------------------
    async def audit(self, by: model.Caller, action: str, subject: str, outcome: str = "ok") -> None:
        """Write down who did this; or what it was refused for, the Code."""
        await audit.write(self._connection, self.now_ms, by, action, subject, outcome)

    async def open_sessions_of(self, key_id: str) -> int:
        """How many Open sessions a key has begun. Its row is locked, so that two starts at once do not both find room."""
        table, begun = tables.sessions, tables.audit
        await self._one(select(tables.api_keys.c.id).where(tables.api_keys.c.id == key_id).with_for_update())
        mine = and_(begun.c.subject == table.c.task_id, begun.c.key_id == key_id, begun.c.action == audit.START)
        found = select(func.count().label("open")).select_from(table.join(begun, mine)).where(table.c.state == states.OPEN)
        row = await self._one(found)
        return int(row["open"]) if row else 0

    async def began(self, key_id: str, task_id: str) -> bool:
        """Whether this key opened the session."""
        return await self._one(statements.BEGAN, key_id=key_id, action=audit.START, subject=task_id) is not None

    # --- what callbacks tell of rooms ---------------------------------------------------------------------------------------
    async def note_callback(self, sdk_app_id: int) -> None:
        """A genuine callback of this application came."""
        row = await self._one(statements.APPLICATION, sdk_app_id=sdk_app_id)
        self._with_callbacks[sdk_app_id] = True
        if row is None:
            await self._insert(tables.applications, {"sdk_app_id": sdk_app_id, "callback_ms": self.now_ms})
        elif row["callback_ms"] < self.now_ms - NOTE_CALLBACK_EVERY_MS:
            # Not at each callback: all of an application's would wait for one another at this row.
            noted = _at(sdk_app_id=sdk_app_id) | {"callback_ms": self.now_ms}
            await self._connection.execute(statements.NOTE_APPLICATION, noted)

    async def callbacks_come(self, sdk_app_id: int) -> bool:
        """Whether a callback of this application was ever seen."""
        if sdk_app_id not in self._with_callbacks:
            self._with_callbacks[sdk_app_id] = await self._one(statements.APPLICATION, sdk_app_id=sdk_app_id) is not None
        return self._with_callbacks[sdk_app_id]

    async def presence(self, room: requests.Room, user_id: str) -> dict[str, Any]:
        """What is known of a user in a room: audio, video (bool), audio_ms, video_ms, left_ms."""
        row = await self._one(statements.PRESENCE, **_room(room), user_id=user_id)
        blank = {"audio": False, "audio_ms": 0, "video": False, "video_ms": 0, "left_ms": 0}
        return blank if row is None else {name: row[name] for name in blank}

    async def put_presence(self, room: requests.Room, user_id: str, known: Mapping[str, Any]) -> None:
        """Keep what is known of a user in a room."""
        values = dict(known) | {"updated_ms": self.now_ms}
        key = _room(room) | {"user_id": user_id}
        if not (await self._connection.execute(statements.SET_PRESENCE, _at(**key) | values)).rowcount:
            await self._insert(tables.presence, key | values)

    async def publishers(self, room: requests.Room) -> list[tuple[str, tuple[str, ...]]]:
        """Who publishes what in a room, by the callbacks of the last 24 hours: (user, kinds), ordered by user."""
        found = await self._all(statements.PUBLISHERS, **_room(room), after_ms=self.now_ms - PRESENCE_KEPT_MS)
        known = [(r["user_id"], tuple(k for k in ("audio", "video") if r[k])) for r in found]
        return [(user, kinds) for user, kinds in known if kinds]

    async def clear_room(self, room: requests.Room, at_ms: int) -> None:
        """The room was gone at `at_ms`, and everybody in it left then; what is younger stays (rooms are used again)."""
        table = tables.presence
        for column, value, time in (("audio", False, "audio_ms"), ("video", False, "video_ms"), ("left_ms", at_ms, "left_ms")):
            older = and_(_present(room), table.c[time] <= at_ms)
            await self._connection.execute(update(table).where(older).values({column: value}))

    # --- the small steps they share ---------------------------------------------------------------------------------------
    async def _one(self, query: Executable, **looked_for: Any) -> Mapping[str, Any] | None:
        row = (await self._connection.execute(query, _at(**looked_for))).mappings().first()
        return dict(row) if row is not None else None

    async def _all(self, query: Executable, **looked_for: Any) -> Sequence[Mapping[str, Any]]:
        return [dict(row) for row in (await self._connection.execute(query, _at(**looked_for))).mappings()]

    async def _insert(self, table: Table, values: Mapping[str, Any]) -> None:
        try:
            await self._connection.execute(statements.INSERT[table], values)
        except IntegrityError as error:
            raise errors.Conflict(f"a row of {table.name} exists already") from error

    async def _guarded(self, save: Update, key: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
        version: int = key["version"] + 1
        changed = {name: value for name, value in after.items() if value != before[name] and name != "version"}
        try:
            done = await self._connection.execute(save, _at(**key) | changed | {"version": version})
        except IntegrityError as error:
            # A replay opens its session again while a start, or another replay, opens one of the same key.
            raise errors.Conflict(f"the row of {save.table} cannot be so beside another that is new") from error
        if not done.rowcount:
            raise errors.Conflict(f"the row of {save.table} was moved by somebody else")
        return version

    async def _save_job(self, owner: str, old_epoch: int, old: model.Job | None, epoch: int, job: model.Job | None) -> None:
        if old is not None and (job is None or epoch != old_epoch):
            ended = _at(owner=owner, epoch=old_epoch) | {"state": states.ENDED}
            await self._connection.execute(statements.END_JOB, ended)
        if job is None or (epoch == old_epoch and job == old):
            return
        row = {"owner": owner, "epoch": epoch, "kind": job.kind, "state": job.state, "node": job.node, "lease_until_ms": 0}
        await self._connection.execute(statements.PUT_JOB[self._connection.dialect.name], row)


def _at(**looked_for: Any) -> dict[str, Any]:
    return {f"at_{name}": value for name, value in looked_for.items()}


def _room(room: requests.Room) -> dict[str, Any]:
    return {"sdk_app_id": room.sdk_app_id, "room_kind": room.kind, "room": room.name}


def _present(room: requests.Room) -> Any:
    table = tables.presence
    return and_(table.c.sdk_app_id == room.sdk_app_id, table.c.room_kind == room.kind, table.c.room == room.name)


def _recording(row: Mapping[str, Any]) -> model.Recording:
    return rows.recording(row, jobs.of(row))


def _with_version(value: Row, version: int) -> Row:
    return model.changed(value, version=version)
