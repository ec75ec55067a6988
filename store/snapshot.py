"""Snapshots: the data that decisions read, loaded for many decisions with one step for each kind of data.

Rule: on PostgreSQL, rooms and sessions are locked in the order of their numbers and ids, so that two batches do not deadlock.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from events import requests
from machine import changes, encryption, job_key, model, ports, presence, states
from store import connections, encrypted_rows, rows, statements, unreadable_rows, unsaved
from store.sql import Row, Step, Steps

Loaded = dict[tuple[Any, ...], Any]


class LoadedSnapshot:
    """The loaded data of one decision (machine.ports.Snapshot). `values` is data that was loaded before, `made` the changes of
    earlier decisions in the transaction."""

    def __init__(self, now_ms: int, values: dict[ports.Need, Any] | None = None, made: changes.Changes | None = None) -> None:
        self.now_ms = now_ms
        self.values: dict[ports.Need, Any] = {} if values is None else values
        self._made = made

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """One reading of machine.ports.Snapshot. Raises NotLoaded, Unknown for data that the earlier changes may have moved, and
        RuntimeError for a row that cannot be read."""

        def read(*about: Any) -> Any:
            value = self._loaded(name, about)
            if isinstance(value, unreadable_rows.UnreadableRow):
                raise value.error()
            return value if self._made is None else unsaved.after((name, about), value, self._made, self.now_ms)

        return read

    def _loaded(self, name: str, about: tuple[Any, ...]) -> Any:
        if (name, about) in self.values:
            return self.values[name, about]
        if name == "recordings_of":
            # Those of all speakers are here: a decision that asks for one speaker after the other needs no step for each.
            of_session = self.values.get(("recordings", about[:1]))
            if isinstance(of_session, list):
                return sorted((r for r in of_session if r.speaker == about[1]), key=lambda r: r.n)
        raise ports.NotLoaded((name, about))

    @property
    def view(self) -> ports.Snapshot:
        """This snapshot as decisions see it."""
        return cast(ports.Snapshot, self)

    def touched(self) -> set[Any]:
        """The sessions, rooms and API keys that the decision has locked: one batch decides only once about each."""
        found: set[Any] = set()
        for name, about in self.values:
            if name in ("session", "sessions_in", "open_sessions_of"):
                found.add(about[0])
        return found


class Loader:
    """Loads snapshots of the time `now_ms`. `locks`: the engine locks rooms and rows (PostgreSQL)."""

    def __init__(self, keyring: encryption.Keyring, now_ms: int, *, locks: bool) -> None:
        self._keyring = keyring
        self._now_ms = now_ms
        self._locks = locks

    def load(self, wanted: Iterable[tuple[LoadedSnapshot, ports.Need]]) -> Steps[None]:
        """Load the data that snapshots need."""
        by_name: dict[str, dict[tuple[Any, ...], list[LoadedSnapshot]]] = defaultdict(lambda: defaultdict(list))
        for snapshot, need in wanted:
            for name, about in (need, *_alike(snapshot, need)):
                if (name, about) not in snapshot.values:
                    by_name[name][about].append(snapshot)
        if rooms := by_name.pop("sessions_in", None):
            yield from self._load_rooms(rooms, by_name["session"])
            if not by_name["session"]:
                del by_name["session"]
        for name in sorted(by_name, key=lambda each: each != "session"):
            load: Callable[[list[tuple[Any, ...]]], Steps[Loaded]] = getattr(self, f"_{name}")
            found = yield from load(list(by_name[name]))
            for about, snapshots in by_name[name].items():
                for snapshot in snapshots:
                    snapshot.values[name, about] = found[about]
        for (room,), snapshots in (rooms or {}).items():
            for snapshot in snapshots:
                found_there = [snapshot.values.get(("session", (id_,))) for id_ in snapshot.values.pop(("ids", (room,)))]
                snapshot.values["sessions_in", (room,)] = [
                    s for s in found_there if isinstance(s, model.Session) and s.state != states.FINISHED
                ]

    def _load_rooms(
        self,
        rooms: Mapping[tuple[Any, ...], Sequence[LoadedSnapshot]],
        sessions: dict[tuple[Any, ...], list[LoadedSnapshot]],
    ) -> Steps[None]:
        """Lock rooms, and add the sessions in them to those that are loaded next."""
        if self._locks:
            locks = sorted({connections.room_lock(room) for (room,) in rooms})
            yield Step(statements.LOCK, [{"lock": lock} for lock in locks])
        found = yield Step(statements.SESSIONS_IN, [at_room(room) for (room,) in rooms])
        there: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for row in found:
            there[row["sdk_app_id"], row["room_kind"], row["room"]].append(row["task_id"])
        for (room,), snapshots in rooms.items():
            ids = there[room.sdk_app_id, room.kind, room.name]
            for snapshot in snapshots:
                snapshot.values["ids", (room,)] = ids
                for id_ in ids:
                    if ("session", (id_,)) not in snapshot.values:
                        sessions[id_,].append(snapshot)

    # --- one method for each reading of a snapshot: the arguments of its needs → their values ------------------------------
    def _session(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.SESSION, [{"at_task_id": id_} for (id_,) in sorted(about)])
        return dict.fromkeys(about) | {(row["task_id"],): unreadable_rows.read("sessions", row, rows.session) for row in found}

    def _recordings(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.RECORDINGS, [{"at_task_id": id_} for (id_,) in about])
        return _lists(about, found, lambda row: (row["task_id"],), _recording)

    def _recordings_of(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.RECORDINGS_OF, [{"at_task_id": id_, "at_speaker": name} for id_, name in about])
        return _lists(about, found, lambda row: (row["task_id"], row["speaker"]), _recording)

    def _recording(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.RECORDING, [{"at_id": key.text} for (key,) in about])
        by_id = {row["id"]: unreadable_rows.read("recordings", row, rows.recording) for row in found}
        return {(key,): by_id.get(key.text) for (key,) in about}

    def _delivery(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.DELIVERY, [{"at_task_id": key.task_id, "at_revision": key.revision} for (key,) in about])
        made = [rows.delivery(row) for row in found]
        return dict.fromkeys(about) | {(each.key,): each for each in made}

    def _pending_deliveries(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.PENDING_DELIVERIES, [{"at_task_id": id_} for (id_,) in about])
        return _lists(about, found, lambda row: (row["task_id"],), rows.delivery)

    def _deadline(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.DEADLINE, [{"at_owner": owner.text, "at_kind": kind} for owner, kind in about])
        serials = {(row["owner"], row["kind"]): row["serial"] for row in found}
        return {(owner, kind): serials.get((owner.text, kind), "") for owner, kind in about}

    def _secrets(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        kind = encrypted_rows.CREDENTIALS
        found = yield Step(statements.SECRET, [{"at_task_id": id_, "at_kind": kind} for (id_,) in about])
        made = dict.fromkeys(about, requests.Secrets())
        for row in found:
            made[row["task_id"],] = requests.Secrets.from_json(json.loads(encrypted_rows.decrypt_row(self._keyring, row)))
        return made

    def _callback_url(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        kind = encrypted_rows.CALLBACK
        found = yield Step(statements.SECRET, [{"at_task_id": id_, "at_kind": kind} for (id_,) in about])
        return dict.fromkeys(about, "") | {(row["task_id"],): encrypted_rows.decrypt_row(self._keyring, row) for row in found}

    def _has_segments(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.HAS_SEGMENTS, [{"at_recording_id": key.text} for (key,) in about])
        there = {row["recording_id"] for row in found}
        return {(key,): key.text in there for (key,) in about}

    def _segment_nodes(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.SEGMENT_NODES, [{"at_recording_id": key.text} for (key,) in about])
        made: Loaded = {each: {} for each in about}
        for row in found:
            made[job_key.parse_recording(row["recording_id"]),][row["node"]] = int(row["media_ms"])
        return made

    def _node_seen_ms(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.NODE_SEEN, [{"at_node": node} for (node,) in about])
        return dict.fromkeys(about, 0) | {(row["node"],): int(row["seen_ms"]) for row in found}

    def _last_pull_ms(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        made: Loaded = {}
        for id_, until_ms in about:
            found = yield Step(statements.LAST_PULL, [{"at_task_id": id_, "at_until_ms": until_ms}])
            made[id_, until_ms] = int(found[0]["registered_ms"]) if found else 0
        return made

    def _evicted(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        made: Loaded = {}
        for key, ended_ms in about:
            at = {"at_task_id": key.task_id, "at_recording_id": key.text, "at_ended_ms": ended_ms}
            span = {"at_from_ms": ended_ms - statements.EVICTS_WITHIN_MS, "at_until_ms": ended_ms + statements.EVICTS_SLACK_MS}
            made[key, ended_ms] = bool((yield Step(statements.EVICTED, [at | span])))
        return made

    def _open_sessions_of(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        keys = [{"at_key_id": key_id} for (key_id,) in sorted(about)]
        if self._locks:
            yield Step(statements.LOCK_KEY, keys)
        found = yield Step(statements.OPEN_SESSIONS_OF, keys)
        return dict.fromkeys(about, 0) | {(row["key_id"],): int(row["open"]) for row in found}

    def _callback_ms(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.APPLICATION, [{"at_sdk_app_id": app} for (app,) in about])
        return dict.fromkeys(about, 0) | {(row["sdk_app_id"],): int(row["callback_ms"]) for row in found}

    def _presence(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        found = yield Step(statements.PRESENCE, [at_room(room) | {"at_user_id": user} for room, user in about])
        known: Loaded = {(room.sdk_app_id, room.kind, room.name, user): presence.ABSENT for room, user in about}
        for row in found:
            asked = row["sdk_app_id"], row["room_kind"], row["room"], row["asked_id"]
            known[asked] = presence.merged(known[asked], {name: row[name] for name in presence.ABSENT})
        return {(room, user): known[room.sdk_app_id, room.kind, room.name, user] for room, user in about}

    def _publishers(self, about: list[tuple[Any, ...]]) -> Steps[Loaded]:
        made: Loaded = {}
        for (room,) in about:
            found = yield Step(statements.PUBLISHERS, [at_room(room)])
            made[room,] = presence.publishers(found)
        return made


def _alike(snapshot: LoadedSnapshot, need: ports.Need) -> list[ports.Need]:
    """The same need of all recordings that were loaded as a list: a decision that asks it of one, such as a stop, asks it of
    all, and one step loads them."""
    if need[0] not in ("has_segments", "segment_nodes"):
        return []
    lists = [found for (name, _), found in snapshot.values.items() if name == "recordings" and isinstance(found, list)]
    return [(need[0], (recording.key,)) for found in lists for recording in found]


def _lists(
    about: list[tuple[Any, ...]], found: Sequence[Row], key: Callable[[Row], tuple[Any, ...]], make: Callable[[Row], Any]
) -> Loaded:
    """The values of rows by key. A list with a row that cannot be read is that row."""
    made: Loaded = {each: [] for each in about}
    for row in found:
        value = make(row)
        if isinstance(value, unreadable_rows.UnreadableRow):
            made[key(row)] = value
        elif isinstance(made[key(row)], list):
            made[key(row)].append(value)
    return made


def _recording(row: Row) -> model.Recording | unreadable_rows.UnreadableRow:
    return unreadable_rows.read("recordings", row, rows.recording)


def at_room(room: requests.Room) -> dict[str, Any]:
    """The parameters that a room's columns are compared with."""
    return {"at_sdk_app_id": room.sdk_app_id, "at_room_kind": room.kind, "at_room": room.name}
