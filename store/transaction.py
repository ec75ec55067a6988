"""One deciding transaction: what a handler may load and write. Imports `machine` and `events`.

Rule: nothing here commits; an update that finds its row moved raises `Conflict`, and the template loads and decides again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, Table, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from events import codec, requests
from machine import errors, model, ports, states
from store import audit, jobs, locks, rows, sealed, tables

PRESENCE_KEPT_MS = 24 * model.HOUR
# A pull that evicts another of its user does so while it connects; the slack is that of reading clocks and files.
EVICTS_WITHIN_MS = 2 * model.SECOND
EVICTS_SLACK_MS = 200
NOTE_CALLBACK_EVERY_MS = model.MINUTE
Row = TypeVar("Row", model.Session, model.Recording)


class Transaction:
    """What happens between BEGIN and COMMIT of one event. `now_ms` is the time of the whole transaction."""

    def __init__(self, connection: AsyncConnection, now_ms: int, new_id: Callable[[], str], sealer: ports.Sealer) -> None:
        self._connection = connection
        self.now_ms = now_ms
        self._new_id = new_id
        self._sealer = sealer

    # --- inbox ------------------------------------------------------------------------------------------------------------
    async def claim(self, event_id: str) -> str | None:
        """Take the event's id. Returns None if it is ours now, or the answer that was given when it was first handled."""
        table = tables.inbox
        row = await self._one(select(table.c.answer).where(table.c.event_id == event_id))
        if row is not None:
            return str(row["answer"])
        await self._insert(table, {"event_id": event_id, "at_ms": self.now_ms, "answer": ""})
        return None

    async def answer(self, event_id: str, answer: str) -> None:
        """Keep what the event was answered, for its repeats."""
        table = tables.inbox
        await self._connection.execute(update(table).where(table.c.event_id == event_id).values(answer=answer))

    async def answered(self, event_id: str) -> tuple[str, int] | None:
        """What the event was answered, and when (Unix ms); None if it was not handled yet."""
        table = tables.inbox
        row = await self._one(select(table.c.answer, table.c.at_ms).where(table.c.event_id == event_id))
        return (str(row["answer"]), int(row["at_ms"])) if row is not None else None

    # --- sessions ---------------------------------------------------------------------------------------------------------
    async def session(self, task_id: str) -> model.Session | None:
        """The session, its row locked until the end of the transaction."""
        row = await self._one(select(tables.sessions).where(tables.sessions.c.task_id == task_id).with_for_update())
        return rows.session(row) if row else None

    async def hold_room(self, room: requests.Room) -> None:
        """No other transaction reads or changes who is in this room, and what records it, until the end of this one: a start and
        the first words of a speaker would each not see the other."""
        await locks.hold(self._connection, locks.of_room(room))

    async def open_session(self, room: requests.Room, user_id: str) -> model.Session | None:
        """The Open session of this key, locked."""
        table = tables.sessions
        found = select(table).where(_in_room(room), table.c.user_id == user_id, table.c.state == states.OPEN)
        row = await self._one(found.with_for_update())
        return rows.session(row) if row else None

    async def sessions_in(self, room: requests.Room) -> list[model.Session]:
        """The sessions of a room that are not Finished, in order of their ids, locked."""
        table = tables.sessions
        found = select(table).where(_in_room(room), table.c.state != states.FINISHED).order_by(table.c.task_id)
        return [rows.session(row) for row in await self._all(found.with_for_update())]

    async def add_session(self, session: model.Session, secrets: requests.Secrets) -> None:
        """A new session and its secrets, the callback's address among them. Raises Conflict if its key is Open already."""
        await self._insert(tables.sessions, rows.session_row(session))
        await self.put_secrets(session.task_id, secrets)
        if session.request.callback:
            await self._put_sealed(session.task_id, sealed.CALLBACK, session.request.callback)

    async def save_session(self, old: model.Session, new: model.Session) -> model.Session:
        """Guarded update of what changed; returns the session as it now stands. Raises Conflict, also if it would be the second
        Open one of its key."""
        where = (tables.sessions.c.task_id == old.task_id, tables.sessions.c.state == old.state)
        version = await self._guarded(tables.sessions, where, old.version, rows.session_row(old), rows.session_row(new))
        return _with_version(new, version)

    async def put_secrets(self, task_id: str, secrets: requests.Secrets) -> None:
        """Keep the secrets of a session, sealed, in place of older ones."""
        await self._put_sealed(task_id, sealed.CREDENTIALS, rows.dumps(secrets.to_json()))

    async def secrets(self, task_id: str) -> requests.Secrets:
        """The secrets of a session; empty ones if they were wiped. Raises Unsealable."""
        kept = await self._sealed(task_id, sealed.CREDENTIALS)
        return requests.Secrets.from_json(json.loads(kept)) if kept else requests.Secrets()

    async def wipe_secrets(self, task_id: str) -> None:
        """Forget the secrets of a session. The callback's address stays: a later revision may have to be posted."""
        table = tables.secrets
        where = and_(table.c.task_id == task_id, table.c.kind == sealed.CREDENTIALS)
        await self._connection.execute(delete(table).where(where))

    async def callback_url(self, task_id: str) -> str:
        """Where the results of a session are posted, whole; "" if nowhere, or it was forgotten. Raises Unsealable."""
        return await self._sealed(task_id, sealed.CALLBACK)

    async def _put_sealed(self, task_id: str, kind: str, clear: str) -> None:
        table = tables.secrets
        values = {**sealed.seal(self._sealer, task_id, kind, clear), "updated_ms": self.now_ms}
        where = and_(table.c.task_id == task_id, table.c.kind == kind)
        if not (await self._connection.execute(update(table).where(where).values(values))).rowcount:
            await self._insert(table, {"task_id": task_id, "kind": kind, **values})

    async def _sealed(self, task_id: str, kind: str) -> str:
        table = tables.secrets
        found = select(table.c.key_id, table.c.body).where(table.c.task_id == task_id, table.c.kind == kind)
        row = await self._one(found)
        return sealed.unseal(self._sealer, task_id, kind, row["key_id"], row["body"]) if row else ""

    # --- recordings -------------------------------------------------------------------------------------------------------
    async def recordings(self, task_id: str) -> list[model.Recording]:
        """All recordings of a session, oldest first."""
        table = tables.recordings
        found = jobs.recordings().where(table.c.task_id == task_id).order_by(table.c.opened_ms, table.c.speaker, table.c.n)
        return [_recording(row) for row in await self._all(found)]

    async def recording(self, recording_id: str) -> model.Recording | None:
        """One recording by its id, with its present job."""
        row = await self._one(jobs.recordings().where(tables.recordings.c.id == recording_id))
        return _recording(row) if row else None

    async def add_recording(self, recording: model.Recording) -> None:
        """A new recording and its job. Raises Conflict if it exists."""
        await self._insert(tables.recordings, rows.recording_row(recording))
        await self._save_job(recording.id, 0, None, recording.epoch, recording.job)

    async def save_recording(self, old: model.Recording, new: model.Recording) -> model.Recording:
        """Guarded update of what changed, and of the job; returns the recording as it now stands. Raises Conflict."""
        table = tables.recordings
        where = (table.c.id == old.id, table.c.state == old.state)
        version = await self._guarded(table, where, old.version, rows.recording_row(old), rows.recording_row(new))
        await self._save_job(old.id, old.epoch, old.job, new.epoch, new.job)
        return _with_version(new, version)

    async def segment_nodes(self, recording_id: str) -> dict[str, int]:
        """Where the segments of a recording lie: node → media in ms."""
        table = tables.segments
        media = func.sum(table.c.media_ms).label("media_ms")
        found = select(table.c.node, media).where(table.c.recording_id == recording_id).group_by(table.c.node)
        return {row["node"]: int(row["media_ms"]) for row in await self._all(found)}

    async def node_seen_ms(self, node: str) -> int:
        """When a node last gave a sign of life, Unix ms; 0 if it is not known."""
        row = await self._one(select(tables.nodes.c.seen_ms).where(tables.nodes.c.node == node))
        return int(row["seen_ms"]) if row else 0

    async def has_segments(self, recording_id: str) -> bool:
        """Whether media of the recording is kept in segments."""
        table = tables.segments
        found = select(table.c.epoch).where(table.c.recording_id == recording_id, table.c.media_ms > 0).limit(1)
        return await self._one(found) is not None

    async def last_pull_ms(self, task_id: str, until_ms: int) -> int:
        """When the last pull until `until_ms` was opened for the session, Unix ms; 0 if none was."""
        table = tables.segments
        of_session = table.c.recording_id.startswith(f"{task_id}/", autoescape=True)
        found = select(table.c.registered_ms).where(of_session, table.c.registered_ms <= until_ms)
        row = await self._one(found.order_by(table.c.registered_ms.desc()).limit(1))
        return int(row["registered_ms"]) if row else 0

    async def evictions(self, task_id: str, recording_id: str) -> int:
        """How many runs of a recording ended by themselves just as a pull for another of the session began that went on."""
        ended, begun = tables.segments.alias(), tables.segments.alias()
        since_ms = begun.c.registered_ms - ended.c.last_packet_ms
        together = and_(
            begun.c.recording_id.startswith(f"{task_id}/", autoescape=True),
            begun.c.recording_id != recording_id,
            since_ms.between(-EVICTS_WITHIN_MS, EVICTS_SLACK_MS),
            or_(begun.c.reason == "", begun.c.last_packet_ms > ended.c.last_packet_ms + EVICTS_SLACK_MS),
        )
        runs = select(ended.c.epoch).distinct().select_from(ended.join(begun, together))
        return len(await self._all(runs.where(ended.c.recording_id == recording_id, ended.c.reason == "eof")))

    async def close_segment(self, recording_id: str, epoch: int, values: Mapping[str, Any]) -> None:
        """Write down how the run of `epoch` ended: media_ms, size_bytes, first_packet_ms, last_packet_ms, reason.

        What is known only grows: a late word of less media (a worker found lost whose outcome was said all the same) takes
        nothing away."""
        table = tables.segments
        where = and_(table.c.recording_id == recording_id, table.c.epoch == epoch)
        known = await self._one(select(table).where(where).with_for_update())
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
        await self._connection.execute(update(table).where(where).values(grown))

    # --- callbacks --------------------------------------------------------------------------------------------------------
    async def callbacks(self, task_id: str) -> list[model.Callback]:
        """All deliveries of a session's results, oldest revision first."""
        table = tables.callbacks
        found = jobs.deliveries().where(table.c.task_id == task_id).order_by(table.c.revision)
        return [rows.callback(r, jobs.of(r)) for r in await self._all(found)]

    async def add_callback(self, callback: model.Callback) -> None:
        """A new delivery and its job."""
        names = ("task_id", "revision", "body", "state", "version", "epoch", "tries", "detail")
        row = {name: getattr(callback, name) for name in names} | {"url": requests.origin(callback.url)}
        await self._insert(tables.callbacks, row)
        await self._save_job(callback.id, 0, None, callback.epoch, callback.job)

    async def save_callback(self, old: model.Callback, new: model.Callback) -> None:
        """Guarded update of a delivery and its job. Raises Conflict."""
        table = tables.callbacks
        names = ("state", "epoch", "tries", "detail")
        before, after = ({name: getattr(c, name) for name in names} for c in (old, new))
        where = (table.c.task_id == old.task_id, table.c.revision == old.revision)
        await self._guarded(table, where, old.version, before, after)
        await self._save_job(old.id, old.epoch, old.job, new.epoch, new.job)

    async def add_result(self, task_id: str, revision: int, body: str) -> None:
        """Keep one revision of a session's result. Raises Conflict if that revision exists."""
        await self._insert(tables.results, {"task_id": task_id, "revision": revision, "at_ms": self.now_ms, "body": body})

    # --- deadlines, journal, outbox -------------------------------------------------------------------------------------------
    async def arm(self, owner: str, kind: str, at_ms: int) -> None:
        """Arm a deadline, in place of an earlier arming of the same kind."""
        await self.disarm(owner, kind)
        await self._insert(tables.deadlines, {"owner": owner, "kind": kind, "at_ms": at_ms, "serial": self._new_id()})

    async def disarm(self, owner: str, kind: str) -> None:
        """Take a deadline away, if it is armed."""
        table = tables.deadlines
        await self._connection.execute(delete(table).where(table.c.owner == owner, table.c.kind == kind))

    async def spend_deadline(self, owner: str, kind: str, serial: str) -> bool:
        """Take exactly this arming away; False if it was disarmed or armed anew meanwhile."""
        table = tables.deadlines
        where = and_(table.c.owner == owner, table.c.kind == kind, table.c.serial == serial)
        return bool((await self._connection.execute(delete(table).where(where))).rowcount)

    async def journal(
        self, task_id: str, owner: str, event: codec.Event, from_state: str = "", to_state: str = "", note: str = ""
    ) -> None:
        """One line of the timeline: what happened, and what became of it."""
        line = {"task_id": task_id, "owner": owner, "at_ms": self.now_ms, "event_id": event.id, "event_type": event.type}
        await self._insert(tables.journal, line | {"from_state": from_state, "to_state": to_state, "note": note})

    async def send(self, channel: str, event: codec.Event, task_id: str = "", node: str = "") -> None:
        """Put a message in the outbox: `channel` is event, command or result, `node` the only node it is for ("": any). The
        relay takes it from there after the commit."""
        body = codec.encode(event).decode()
        line = {"channel": channel, "type": event.type, "task_id": task_id, "node": node, "body": body, "parked": ""}
        await self._insert(tables.outbox, line | {"created_ms": self.now_ms, "claimed_until_ms": 0, "sent_ms": None})

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

    # --- what callbacks tell of rooms ---------------------------------------------------------------------------------------
    async def note_callback(self, sdk_app_id: int) -> None:
        """A genuine callback of this application came."""
        table = tables.applications
        row = await self._one(select(table.c.callback_ms).where(table.c.sdk_app_id == sdk_app_id))
        if row is None:
            await self._insert(table, {"sdk_app_id": sdk_app_id, "callback_ms": self.now_ms})
        elif row["callback_ms"] < self.now_ms - NOTE_CALLBACK_EVERY_MS:
            # Not at each callback: all of an application's would wait for one another at this row.
            where = table.c.sdk_app_id == sdk_app_id
            await self._connection.execute(update(table).where(where).values(callback_ms=self.now_ms))

    async def callbacks_come(self, sdk_app_id: int) -> bool:
        """Whether a callback of this application was ever seen."""
        return await self._one(select(tables.applications).where(tables.applications.c.sdk_app_id == sdk_app_id)) is not None

    async def presence(self, room: requests.Room, user_id: str) -> dict[str, Any]:
        """What is known of a user in a room: audio, video (bool), audio_ms, video_ms, left_ms."""
        row = await self._one(select(tables.presence).where(_present(room), tables.presence.c.user_id == user_id))
        blank = {"audio": False, "audio_ms": 0, "video": False, "video_ms": 0, "left_ms": 0}
        return blank if row is None else {name: row[name] for name in blank}

    async def put_presence(self, room: requests.Room, user_id: str, known: Mapping[str, Any]) -> None:
        """Keep what is known of a user in a room."""
        table = tables.presence
        values = dict(known) | {"updated_ms": self.now_ms}
        where = and_(_present(room), table.c.user_id == user_id)
        if not (await self._connection.execute(update(table).where(where).values(values))).rowcount:
            key = {"sdk_app_id": room.sdk_app_id, "room_kind": room.kind, "room": room.name, "user_id": user_id}
            await self._insert(table, key | values)

    async def publishers(self, room: requests.Room) -> list[tuple[str, tuple[str, ...]]]:
        """Who publishes what in a room, by the callbacks of the last 24 hours: (user, kinds), ordered by user."""
        table = tables.presence
        found = select(table).where(_present(room), table.c.updated_ms > self.now_ms - PRESENCE_KEPT_MS)
        known = [(r["user_id"], tuple(k for k in ("audio", "video") if r[k])) for r in await self._all(found.order_by("user_id"))]
        return [(user, kinds) for user, kinds in known if kinds]

    async def clear_room(self, room: requests.Room, at_ms: int) -> None:
        """The room was gone at `at_ms`, and everybody in it left then; what is younger stays (rooms are used again)."""
        table = tables.presence
        for column, value, time in (("audio", False, "audio_ms"), ("video", False, "video_ms"), ("left_ms", at_ms, "left_ms")):
            older = and_(_present(room), table.c[time] <= at_ms)
            await self._connection.execute(update(table).where(older).values({column: value}))

    # --- the small steps they share ---------------------------------------------------------------------------------------
    async def _one(self, query: Select[Any]) -> Mapping[str, Any] | None:
        row = (await self._connection.execute(query)).mappings().first()
        return dict(row) if row is not None else None

    async def _all(self, query: Select[Any]) -> Sequence[Mapping[str, Any]]:
        return [dict(row) for row in (await self._connection.execute(query)).mappings()]

    async def _insert(self, table: Table, values: Mapping[str, Any]) -> None:
        try:
            await self._connection.execute(insert(table).values(dict(values)))
        except IntegrityError as error:
            raise errors.Conflict(f"a row of {table.name} exists already") from error

    async def _guarded(
        self, table: Table, where: Sequence[Any], version: int, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> int:
        changed = {name: value for name, value in after.items() if value != before[name] and name != "version"}
        guard = and_(*where, table.c.version == version)
        try:
            done = await self._connection.execute(update(table).where(guard).values(changed | {"version": version + 1}))
        except IntegrityError as error:
            # A replay opens its session again while a start, or another replay, opens one of the same key.
            raise errors.Conflict(f"the row of {table.name} cannot be so beside another that is new") from error
        if not done.rowcount:
            raise errors.Conflict(f"the row of {table.name} was moved by somebody else")
        return version + 1

    async def _save_job(self, owner: str, old_epoch: int, old: model.Job | None, epoch: int, job: model.Job | None) -> None:
        table = tables.jobs
        if old is not None and (job is None or epoch != old_epoch):
            ended = update(table).where(table.c.owner == owner, table.c.epoch == old_epoch).values(state=states.ENDED)
            await self._connection.execute(ended)
        if job is None or (epoch == old_epoch and job == old):
            return
        values = {"kind": job.kind, "state": job.state, "node": job.node, "lease_until_ms": 0}
        where = and_(table.c.owner == owner, table.c.epoch == epoch)
        if not (await self._connection.execute(update(table).where(where).values(values))).rowcount:
            await self._insert(table, {"owner": owner, "epoch": epoch, **values})


def _in_room(room: requests.Room) -> Any:
    table = tables.sessions
    return and_(table.c.sdk_app_id == room.sdk_app_id, table.c.room_kind == room.kind, table.c.room == room.name)


def _present(room: requests.Room) -> Any:
    table = tables.presence
    return and_(table.c.sdk_app_id == room.sdk_app_id, table.c.room_kind == room.kind, table.c.room == room.name)


def _recording(row: Mapping[str, Any]) -> model.Recording:
    return rows.recording(row, jobs.of(row))


def _with_version(value: Row, version: int) -> Row:
    return model.changed(value, version=version)
