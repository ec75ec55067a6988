"""Unsaved changes: what a decision reads after earlier decisions of its transaction, whose changes are not written yet.

Rule: a reading equals that of the database after these changes were written. A reading that only the database could answer then
raises Unknown, and its decision waits for the next transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from events import requests
from machine import changes, delivery, job_key, model, ports, presence, states
from store import statements

_ABSENT = object()


class Unknown(Exception):
    """An unsaved change may have moved this value."""


def after(need: ports.Need, value: Any, made: changes.Changes, now_ms: int) -> Any:
    """The loaded `value` of a reading, as the changes of the time `now_ms` leave it. Raises Unknown."""
    name, about = need
    if name not in _READINGS:
        raise Unknown(name)
    return _READINGS[name](value, made, now_ms, *about)


def _present(
    loaded: Sequence[Any], pairs: Mapping[Any, tuple[Any, Any]], key: Callable[[Any], Any], belongs: Callable[[Any], bool]
) -> Iterable[Any]:
    """Loaded values in their present versions, and those that were added."""
    for value in loaded:
        yield pairs[key(value)][1] if key(value) in pairs else value
    yield from (new for old, new in pairs.values() if old is None and belongs(new))


def _session(value: Any, made: changes.Changes, now_ms: int, task_id: str) -> model.Session | None:
    return made.sessions[task_id][1] if task_id in made.sessions else value


def _sessions_in(value: Any, made: changes.Changes, now_ms: int, room: requests.Room) -> list[model.Session]:
    found = _present(value, made.sessions, lambda s: s.task_id, lambda s: s.request.room == room)
    return sorted((s for s in found if s.state != states.FINISHED), key=lambda s: s.task_id)


def _recordings(value: Any, made: changes.Changes, now_ms: int, task_id: str) -> list[model.Recording]:
    found = _present(value, made.recordings, lambda r: r.key, lambda r: r.task_id == task_id)
    return sorted(found, key=lambda r: (r.opened_ms, r.speaker, r.n))


def _recordings_of(value: Any, made: changes.Changes, now_ms: int, task_id: str, speaker: str) -> list[model.Recording]:
    found = _present(value, made.recordings, lambda r: r.key, lambda r: (r.task_id, r.speaker) == (task_id, speaker))
    return sorted(found, key=lambda r: r.n)


def _recording(value: Any, made: changes.Changes, now_ms: int, key: job_key.RecordingKey) -> model.Recording | None:
    return made.recordings[key][1] if key in made.recordings else value


def _delivery(value: Any, made: changes.Changes, now_ms: int, key: job_key.DeliveryKey) -> model.Delivery | None:
    return made.deliveries[key][1] if key in made.deliveries else value


def _pending_deliveries(value: Any, made: changes.Changes, now_ms: int, task_id: str) -> list[model.Delivery]:
    # One that was loaded apart may have become pending again.
    found = {d.key: d for d in value} | {key: new for key, (_, new) in made.deliveries.items() if new.task_id == task_id}
    return sorted((d for d in found.values() if d.state == delivery.PENDING), key=lambda d: d.revision)


def _deadline(value: Any, made: changes.Changes, now_ms: int, owner: job_key.OwnerKey, kind: str) -> str:
    armed: Any = made.deadlines.get((owner, kind), _ABSENT)
    if armed is _ABSENT or (armed is not None and armed.once and value):
        return str(value)
    return armed.serial if armed is not None else ""


def _secrets(value: Any, made: changes.Changes, now_ms: int, task_id: str) -> requests.Secrets:
    return (made.secrets[task_id] or requests.Secrets()) if task_id in made.secrets else value


def _callback_url(value: Any, made: changes.Changes, now_ms: int, task_id: str) -> str:
    old, new = made.sessions.get(task_id, (_ABSENT, None))
    return new.request.callback if old is None and new is not None else value


def _has_segments(value: Any, made: changes.Changes, now_ms: int, key: job_key.RecordingKey) -> bool:
    # Closing a segment never takes media away. Only the database has the rows of those that it may add to.
    if not value and any(of == key for of, _, _ in made.segments):
        raise Unknown("has_segments")
    return bool(value)


def _segment_nodes(value: Any, made: changes.Changes, now_ms: int, key: job_key.RecordingKey) -> Any:
    if any(of == key for of, _, _ in made.segments):
        raise Unknown("segment_nodes")
    return value


def _evicted(value: Any, made: changes.Changes, now_ms: int, key: job_key.RecordingKey, ended_ms: int) -> bool:
    until_ms = ended_ms + statements.EVICTS_SLACK_MS
    others = [closed for of, _, closed in made.segments if of != key and of.task_id == key.task_id]
    # A pull that has ended by then evicted nobody, before its end was written and after.
    if others and (value or any((closed.get("last_packet_ms") or 0) > until_ms for closed in others)):
        raise Unknown("evicted")
    return bool(value)


def _open_sessions_of(value: Any, made: changes.Changes, now_ms: int, key_id: str) -> int:
    if made.sessions:
        raise Unknown("open_sessions_of")
    return int(value)


def _callback_ms(value: Any, made: changes.Changes, now_ms: int, sdk_app_id: int) -> int:
    return now_ms if sdk_app_id in made.applications else int(value)


def _presence(value: Any, made: changes.Changes, now_ms: int, room: requests.Room, user_id: str) -> presence.Known:
    known: presence.Known = value
    for user in (user_id, presence.ROOM):
        known = presence.merged(known, made.presence.get((room, user), presence.ABSENT))
    return known


def _publishers(value: Any, made: changes.Changes, now_ms: int, room: requests.Room) -> Any:
    if any(of == room for of, _ in made.presence):
        raise Unknown("publishers")
    return value


def _unchanged(value: Any, made: changes.Changes, now_ms: int, *about: Any) -> Any:
    """A reading of rows that no decision writes."""
    return value


_READINGS: dict[str, Callable[..., Any]] = {
    "session": _session,
    "sessions_in": _sessions_in,
    "recordings": _recordings,
    "recordings_of": _recordings_of,
    "recording": _recording,
    "delivery": _delivery,
    "pending_deliveries": _pending_deliveries,
    "deadline": _deadline,
    "secrets": _secrets,
    "callback_url": _callback_url,
    "has_segments": _has_segments,
    "segment_nodes": _segment_nodes,
    "node_seen_ms": _unchanged,
    "last_pull_ms": _unchanged,
    "evicted": _evicted,
    "open_sessions_of": _open_sessions_of,
    "callback_ms": _callback_ms,
    "presence": _presence,
    "publishers": _publishers,
}
