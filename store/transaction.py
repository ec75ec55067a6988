"""The deciding transaction: everything that a handler loads and writes for one event.

Rule: nothing here commits. An update that finds its row changed raises `Conflict`; the inbox then loads and decides again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Executable, Table, Update, and_, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from events import codec, requests
from machine import encryption, errors, job_key, model, states
from store import audit, connections, encrypted_rows, pending_writes, rows, statements, tables

PRESENCE_KEPT_MS = 24 * model.HOUR
NOTE_CALLBACK_EVERY_MS = model.MINUTE


class Transaction:
    """The reads and writes of one event. `now_ms` (Unix ms) is the time of the whole transaction."""

    def __init__(self, connection: AsyncConnection, now_ms: int, new_id: Callable[[], str], keyring: encryption.Keyring) -> None:
        self._connection = connection
        self.now_ms = now_ms
        self._new_id = new_id
        self._keyring = keyring
        self._pending = pending_writes.PendingWrites()
        self._with_callbacks: dict[int, bool] = {}

    async def write_pending(self) -> None:
        """Write journal, outbox and deadlines; the store calls it just before the commit. Raises Conflict."""
        try:
            await self._pending.write(self._connection)
        except IntegrityError as error:
            raise errors.Conflict("a concurrent decision armed a deadline of the same kind") from error

    # --- inbox ------------------------------------------------------------------------------------------------------------
    async def claim(self, event_id: str) -> str | None:
        """Claim the event's id. Returns None for a new event, or the answer of the decision that claimed it first."""
        ours = {"event_id": event_id, "at_ms": self.now_ms, "answer": ""}
        if (await self._connection.execute(statements.CLAIM[self._connection.dialect.name], ours)).rowcount:
            return None
        first = await self.answered(event_id)
        if first is None:
            raise errors.Conflict("another transaction claimed the event's id and rolled back")
        return first[0]

    async def answer(self, event_id: str, answer: str) -> None:
        """Save the answer of this event for its repeats."""
        await self._connection.execute(statements.SET_ANSWER, {"at_event_id": event_id, "answer": answer})

    async def answered(self, event_id: str) -> tuple[str, int] | None:
        """The answer of the event and its time (Unix ms); None if the event was not decided yet."""
        row = await self._one(statements.ANSWERED, {"at_event_id": event_id})
        return (str(row["answer"]), int(row["at_ms"])) if row is not None else None

    # --- sessions ---------------------------------------------------------------------------------------------------------
    async def session(self, task_id: str) -> model.Session | None:
        """The session, its row locked until the end of the transaction."""
        row = await self._one(statements.SESSION, {"at_task_id": task_id})
        return rows.session(row) if row else None

    async def hold_room(self, room: requests.Room) -> None:
        """Lock a room until the end of the transaction. Otherwise a start and the first event of a speaker, decided at the same
        time, would each miss the other."""
        await connections.hold_lock(self._connection, connections.room_lock(room))

    async def open_session(self, room: requests.Room, user_id: str) -> model.Session | None:
        """The Open session of this key, locked."""
        row = await self._one(statements.OPEN_SESSION, {**_room(room), "at_user_id": user_id, "at_state": states.OPEN})
        return rows.session(row) if row else None

    async def sessions_in(self, room: requests.Room) -> list[model.Session]:
        """The unfinished sessions of a room in the order of their ids, locked."""
        return [rows.session(row) for row in await self._all(statements.SESSIONS_IN, _room(room))]

    async def add_session(self, session: model.Session, secrets: requests.Secrets) -> None:
        """Insert a session and its secrets, including the callback URL. Raises Conflict if a session of its key is Open."""
        await self._insert(tables.sessions, rows.session_row(session))
        await self.put_secrets(session.task_id, secrets)
        if session.request.callback:
            await self._put_encrypted(session.task_id, encrypted_rows.CALLBACK, session.request.callback)

    async def save_session(self, old: model.Session, new: model.Session) -> model.Session:
        """Guarded update of the changed columns; returns the session with its new version. Raises Conflict, also if another
        session of its key is Open."""
        key = {"at_task_id": old.task_id, "at_state": old.state, "at_version": old.version}
        version = await self._guarded(statements.SAVE_SESSION, key, rows.session_row(old), rows.session_row(new))
        return model.changed(new, version=version)

    async def put_secrets(self, task_id: str, secrets: requests.Secrets) -> None:
        """Replace the secrets of a session; they are encrypted."""
        await self._put_encrypted(task_id, encrypted_rows.CREDENTIALS, rows.dumps(secrets.to_json()))

    async def secrets(self, task_id: str) -> requests.Secrets:
        """The secrets of a session; empty ones if they were wiped. Raises DecryptionFailed."""
        kept = await self._decrypted(task_id, encrypted_rows.CREDENTIALS)
        return requests.Secrets.from_json(json.loads(kept)) if kept else requests.Secrets()

    async def wipe_secrets(self, task_id: str) -> None:
        """Delete the secrets of a session. The callback URL stays: a later revision may have to be posted."""
        await self._connection.execute(statements.WIPE_SECRET, {"at_task_id": task_id, "at_kind": encrypted_rows.CREDENTIALS})

    async def callback_url(self, task_id: str) -> str:
        """The whole URL to which results are posted; "" if there is none. Raises DecryptionFailed."""
        return await self._decrypted(task_id, encrypted_rows.CALLBACK)

    async def _put_encrypted(self, task_id: str, kind: str, clear: str) -> None:
        values = {**encrypted_rows.encrypt(self._keyring, task_id, kind, clear), "updated_ms": self.now_ms}
        key = {"at_task_id": task_id, "at_kind": kind}
        if not (await self._connection.execute(statements.SET_SECRET, key | values)).rowcount:
            await self._insert(tables.secrets, {"task_id": task_id, "kind": kind} | values)

    async def _decrypted(self, task_id: str, kind: str) -> str:
        row = await self._one(statements.SECRET, {"at_task_id": task_id, "at_kind": kind})
        return encrypted_rows.decrypt(self._keyring, task_id, kind, row["key_id"], row["body"]) if row else ""

    # --- recordings -------------------------------------------------------------------------------------------------------
    async def recordings(self, task_id: str) -> list[model.Recording]:
        """All recordings of a session, oldest first."""
        return [rows.recording(row) for row in await self._all(statements.RECORDINGS, {"at_task_id": task_id})]

    async def recording(self, key: job_key.RecordingKey) -> model.Recording | None:
        """One recording with its present job."""
        row = await self._one(statements.RECORDING, {"at_id": key.text})
        return rows.recording(row) if row else None

    async def add_recording(self, recording: model.Recording) -> None:
        """Insert a recording and its job. Raises Conflict if it exists."""
        await self._insert(tables.recordings, rows.recording_row(recording))
        await self._save_job(recording.key.text, 0, None, recording.epoch, recording.job)

    async def save_recording(self, old: model.Recording, new: model.Recording) -> model.Recording:
        """Guarded update of the changed columns and of the job; returns the recording with its new version. Raises Conflict."""
        id_ = old.key.text
        key = {"at_id": id_, "at_state": old.state, "at_version": old.version}
        version = await self._guarded(statements.SAVE_RECORDING, key, rows.recording_row(old), rows.recording_row(new))
        await self._save_job(id_, old.epoch, old.job, new.epoch, new.job)
        return model.changed(new, version=version)

    async def segment_nodes(self, recording: job_key.RecordingKey) -> dict[str, int]:
        """The nodes that keep segments of a recording: node → media in ms."""
        found = await self._all(statements.SEGMENT_NODES, {"at_recording_id": recording.text})
        return {row["node"]: int(row["media_ms"]) for row in found}

    async def node_seen_ms(self, node: str) -> int:
        """The last heartbeat of a node, Unix ms; 0 for an unknown node."""
        row = await self._one(statements.NODE_SEEN, {"at_node": node})
        return int(row["seen_ms"]) if row else 0

    async def has_segments(self, recording: job_key.RecordingKey) -> bool:
        """Whether segments of the recording hold media."""
        return await self._one(statements.HAS_SEGMENTS, {"at_recording_id": recording.text}) is not None

    async def last_pull_ms(self, task_id: str, until_ms: int) -> int:
        """The start of the session's last pull that is not later than `until_ms`, Unix ms; 0 if there is none."""
        row = await self._one(statements.LAST_PULL, {"at_task_id": task_id, "at_until_ms": until_ms})
        return int(row["registered_ms"]) if row else 0

    async def evictions(self, recording: job_key.RecordingKey) -> int:
        """How many captures of a recording ended with the stream just as a pull for another recording of the session began."""
        return len(await self._all(statements.EVICTIONS, {"at_task_id": recording.task_id, "at_recording_id": recording.text}))

    async def close_segment(self, recording: job_key.RecordingKey, epoch: int, values: Mapping[str, Any]) -> None:
        """Close the segment of `epoch` with media_ms, size_bytes, first_packet_ms, last_packet_ms and reason.

        Values only grow: a late outcome with less media (of a worker that was reported lost) reduces nothing."""
        key = {"at_recording_id": recording.text, "at_epoch": epoch}
        known = await self._one(statements.SEGMENT, key)
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
        await self._connection.execute(statements.SAVE_SEGMENT, key | grown)

    # --- deliveries -------------------------------------------------------------------------------------------------------
    async def deliveries(self, task_id: str) -> list[model.Delivery]:
        """All deliveries of a session's results, oldest revision first."""
        return [rows.delivery(r) for r in await self._all(statements.DELIVERIES, {"at_task_id": task_id})]

    async def add_delivery(self, delivery: model.Delivery) -> None:
        """Insert a delivery and its job."""
        await self._insert(tables.callbacks, rows.delivery_row(delivery))
        await self._save_job(delivery.key.text, 0, None, delivery.epoch, delivery.job)

    async def save_delivery(self, old: model.Delivery, new: model.Delivery) -> None:
        """Guarded update of a delivery and its job. Raises Conflict."""
        changing = ("state", "epoch", "tries", "detail")
        before, after = ({column: rows.delivery_row(d)[column] for column in changing} for d in (old, new))
        key = {"at_task_id": old.task_id, "at_revision": old.revision, "at_version": old.version}
        await self._guarded(statements.SAVE_DELIVERY, key, before, after)
        await self._save_job(old.key.text, old.epoch, old.job, new.epoch, new.job)

    async def add_result(self, task_id: str, revision: int, body: str) -> None:
        """Insert one revision of a session's result. Raises Conflict if that revision exists."""
        await self._insert(tables.results, {"task_id": task_id, "revision": revision, "at_ms": self.now_ms, "body": body})

    # --- deadlines, journal, outbox -------------------------------------------------------------------------------------------
    async def arm(self, owner: job_key.OwnerKey, kind: str, at_ms: int) -> None:
        """Arm a deadline; replaces an earlier one of the same kind."""
        self._pending.arm(owner.text, kind, at_ms, self._new_id())

    async def disarm(self, owner: job_key.OwnerKey, kind: str) -> None:
        """Disarm a deadline, if it is armed."""
        self._pending.disarm(owner.text, kind)

    async def spend_deadline(self, owner: job_key.OwnerKey, kind: str, serial: str) -> bool:
        """Delete exactly this arming; False if the deadline was disarmed or armed again since."""
        spent = await self._connection.execute(
            statements.SPEND_DEADLINE, {"at_owner": owner.text, "at_kind": kind, "at_serial": serial}
        )
        return bool(spent.rowcount)

    async def journal(
        self, owner: job_key.OwnerKey, event: codec.Event, from_state: str = "", to_state: str = "", note: str = ""
    ) -> None:
        """Write one line of the timeline: the event, the change of state, a note."""
        entry = {"task_id": owner.task_id, "owner": owner.text, "at_ms": self.now_ms, "event_id": event.id}
        entry |= {"event_type": event.type, "from_state": from_state, "to_state": to_state, "note": note}
        self._pending.journal.append(entry)

    async def send(self, channel: str, event: codec.Event, task_id: str = "", node: str = "") -> None:
        """Write a message to the outbox: `channel` is event, command or result, `node` the only node it is for ("": any). The
        relay delivers it after the commit."""
        self._pending.send(channel, event, task_id, node, self.now_ms)

    # --- API keys ---------------------------------------------------------------------------------------------------------
    async def audit(self, by: model.Caller, action: str, subject: str, outcome: str = "ok") -> None:
        """Write an audit row; `outcome` is ok, or the Code of a refusal."""
        await audit.write(self._connection, self.now_ms, by, action, subject, outcome)

    async def open_sessions_of(self, key_id: str) -> int:
        """How many Open sessions a key has started. Locks the key's row, so that two concurrent starts cannot pass its quota."""
        table, begun = tables.sessions, tables.audit
        await self._one(select(tables.api_keys.c.id).where(tables.api_keys.c.id == key_id).with_for_update(), {})
        mine = and_(begun.c.subject == table.c.task_id, begun.c.key_id == key_id, begun.c.action == audit.START)
        found = select(func.count().label("open")).select_from(table.join(begun, mine)).where(table.c.state == states.OPEN)
        row = await self._one(found, {})
        return int(row["open"]) if row else 0

    async def began(self, key_id: str, task_id: str) -> bool:
        """Whether this key started the session."""
        return (
            await self._one(statements.BEGAN, {"at_key_id": key_id, "at_action": audit.START, "at_subject": task_id}) is not None
        )

    # --- presence by TRTC callbacks -----------------------------------------------------------------------------------------
    async def note_callback(self, sdk_app_id: int) -> None:
        """Record that a verified callback of this application arrived."""
        row = await self._one(statements.APPLICATION, {"at_sdk_app_id": sdk_app_id})
        self._with_callbacks[sdk_app_id] = True
        if row is None:
            await self._insert(tables.applications, {"sdk_app_id": sdk_app_id, "callback_ms": self.now_ms})
        elif row["callback_ms"] < self.now_ms - NOTE_CALLBACK_EVERY_MS:
            # Not for every callback: those of one application would queue for this row.
            noted = {"at_sdk_app_id": sdk_app_id, "callback_ms": self.now_ms}
            await self._connection.execute(statements.NOTE_APPLICATION, noted)

    async def callbacks_come(self, sdk_app_id: int) -> bool:
        """Whether a callback of this application ever arrived."""
        if sdk_app_id not in self._with_callbacks:
            self._with_callbacks[sdk_app_id] = await self._one(statements.APPLICATION, {"at_sdk_app_id": sdk_app_id}) is not None
        return self._with_callbacks[sdk_app_id]

    async def presence(self, room: requests.Room, user_id: str) -> dict[str, Any]:
        """Presence of a user in a room: audio, video (bool), audio_ms, video_ms, left_ms."""
        row = await self._one(statements.PRESENCE, {**_room(room), "at_user_id": user_id})
        blank = {"audio": False, "audio_ms": 0, "video": False, "video_ms": 0, "left_ms": 0}
        return blank if row is None else {name: row[name] for name in blank}

    async def put_presence(self, room: requests.Room, user_id: str, known: Mapping[str, Any]) -> None:
        """Save the presence of a user in a room."""
        values = dict(known) | {"updated_ms": self.now_ms}
        key = {**_room(room), "at_user_id": user_id}
        if not (await self._connection.execute(statements.SET_PRESENCE, key | values)).rowcount:
            new = {"sdk_app_id": room.sdk_app_id, "room_kind": room.kind, "room": room.name, "user_id": user_id}
            await self._insert(tables.presence, new | values)

    async def publishers(self, room: requests.Room) -> list[tuple[str, tuple[str, ...]]]:
        """Users who publish in a room, by the callbacks of the last 24 hours: (user, kinds), ordered by user."""
        found = await self._all(statements.PUBLISHERS, {**_room(room), "at_after_ms": self.now_ms - PRESENCE_KEPT_MS})
        known = [(r["user_id"], tuple(k for k in ("audio", "video") if r[k])) for r in found]
        return [(user, kinds) for user, kinds in known if kinds]

    async def clear_room(self, room: requests.Room, at_ms: int) -> None:
        """Mark everybody in a room as gone at `at_ms`; later presence stays, because rooms are reused."""
        table = tables.presence
        in_room = and_(table.c.sdk_app_id == room.sdk_app_id, table.c.room_kind == room.kind, table.c.room == room.name)
        for column, value, time in (("audio", False, "audio_ms"), ("video", False, "video_ms"), ("left_ms", at_ms, "left_ms")):
            older = and_(in_room, table.c[time] <= at_ms)
            await self._connection.execute(update(table).where(older).values({column: value}))

    # --- shared steps -----------------------------------------------------------------------------------------------------
    async def _one(self, query: Executable, parameters: Mapping[str, Any]) -> Mapping[str, Any] | None:
        row = (await self._connection.execute(query, parameters)).mappings().first()
        return dict(row) if row is not None else None

    async def _all(self, query: Executable, parameters: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        return [dict(row) for row in (await self._connection.execute(query, parameters)).mappings()]

    async def _insert(self, table: Table, values: Mapping[str, Any]) -> None:
        try:
            await self._connection.execute(statements.INSERT[table], values)
        except IntegrityError as error:
            raise errors.Conflict(f"insert into {table.name}: the row exists already") from error

    async def _guarded(self, save: Update, key: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
        """Write the changed columns of the row that still has this key, state and version; returns the new version."""
        version: int = key["at_version"] + 1
        changed = {name: value for name, value in after.items() if value != before[name] and name != "version"}
        try:
            done = await self._connection.execute(save, {**key, **changed, "version": version})
        except IntegrityError as error:
            # A replay reopens its session while a start, or another replay, opens one of the same key.
            raise errors.Conflict(
                f"update of {save.table} violates a unique constraint: a conflicting row was just inserted"
            ) from error
        if not done.rowcount:
            raise errors.Conflict(f"update of {save.table}: another transaction changed the row first")
        return version

    async def _save_job(self, owner: str, old_epoch: int, old: model.Job | None, epoch: int, job: model.Job | None) -> None:
        if old is not None and (job is None or epoch != old_epoch):
            ended = {"at_owner": owner, "at_epoch": old_epoch, "state": states.ENDED}
            await self._connection.execute(statements.END_JOB, ended)
        if job is None or (epoch == old_epoch and job == old):
            return
        row = {"owner": owner, "epoch": epoch, "kind": job.kind, "state": job.state, "node": job.node, "lease_until_ms": 0}
        await self._connection.execute(statements.PUT_JOB[self._connection.dialect.name], row)


def _room(room: requests.Room) -> dict[str, Any]:
    return {"at_sdk_app_id": room.sdk_app_id, "at_room_kind": room.kind, "at_room": room.name}
