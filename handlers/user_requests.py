"""Handlers of user requests: start and stop; those that act on recorded files are in replays.py.

Rules: no I/O. A start is decided under the lock of its room. A refusal raises one of `machine.errors`, and nothing is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from events import errors as event_errors
from events import requests
from handlers import bus_replies, speakers, unit_of_work
from machine import errors, model, presence, start_warnings, states

# Speakers that a warning names.
MAX_NAMED = 5


def start(uow: unit_of_work.UnitOfWork) -> dict[str, Any]:
    """Open a session, or return the Open one of the same key and settings with fresh secrets. Returns TaskId, Repeated and
    Warnings. Raises InvalidParameter, AlreadyRecording, Refused, QuotaReached."""
    try:
        request, secrets = requests.start(uow.event.data)
    except event_errors.InvalidEvent as error:
        raise errors.InvalidParameter(str(error), field=error.field) from None
    if not secrets.user_sig and not uow.context.mints(request.room.sdk_app_id):
        message = "UserSig: is required, because the service has no key of this application (TRTC_KEYS) to generate one"
        raise errors.InvalidParameter(message, field="UserSig")
    current = _open_session(uow, request.room, request.user_id)
    if current is not None:
        return _repeat(uow, current, request, secrets)
    if uow.no_capacity is not None:
        raise uow.no_capacity
    by = uow.by
    if by is not None and by.quota and uow.snapshot.open_sessions_of(by.key_id) >= by.quota:
        raise errors.QuotaReached
    expired = _expired(uow, request)
    opened = model.Session(
        task_id=uow.context.new_id(),
        request=request,
        opened_ms=uow.now_ms,
        idle_from_ms=uow.now_ms,
        key_id=by.key_id if by is not None else "",
        warnings=_warnings(uow, request, expired),
    )
    uow.open_session(opened, secrets)
    _open_known(uow, opened, expired)
    return _accepted(uow, opened, repeated=False)


def stop(uow: unit_of_work.UnitOfWork) -> dict[str, Any]:
    """Close a session by its TaskId or by the key of its start. Returns TaskId and State. Raises NotFound, InvalidParameter."""
    data = uow.event.data
    current = named(uow, data["TaskId"]) if "TaskId" in data else _by_key(uow)
    uow.advance_session(current.task_id, "stop")
    return {"TaskId": current.task_id, "State": named(uow, current.task_id).state}


def _repeat(
    uow: unit_of_work.UnitOfWork, current: model.Session, request: requests.StartRequest, secrets: requests.Secrets
) -> dict[str, Any]:
    """Take the fresh secrets of a start of an Open session. Raises Refused, AlreadyRecording."""
    by = uow.by
    if by is not None and not by.operates and current.key_id != by.key_id:
        # A repeated start replaces the secrets, and wrong secrets end a recording as surely as a stop.
        raise errors.Refused(
            "A session that another key began records this room for this UserId already. Repeat its start with that key or one"
            " of the scope operate, or record the room under another UserId."
        )
    url = uow.snapshot.callback_url(current.task_id)
    if not url and requests.origin(request.callback) == current.request.callback:
        # `keys rotate --forget-lost` deleted the URL; only its origin is left to compare.
        url = request.callback
    known = dataclasses.replace(current.request, callback=url)
    if fields := requests.differing(known, request):
        raise errors.AlreadyRecording(current.task_id, fields)
    if uow.no_capacity is None:  # else the checks ended before the others
        warned = model.changed(current, warnings=_warnings(uow, request, _expired(uow, request)))
        if warned.warnings != current.warnings:
            uow.save_session(warned)
    before = uow.snapshot.secrets(current.task_id)
    uow.changes.secrets[current.task_id] = before.renewed_by(secrets)
    uow.journal(current.key, current.state, current.state, "a repeated start: fresh secrets taken")
    if secrets.user_sig not in ("", before.user_sig):
        speakers.retry_failed(uow, current)
    return _accepted(uow, uow.held(current.task_id), repeated=True)


def _accepted(uow: unit_of_work.UnitOfWork, current: model.Session, *, repeated: bool) -> dict[str, Any]:
    answer = {"TaskId": current.task_id, "Repeated": repeated, "Warnings": list(current.warnings)}
    uow.changes.send("result", bus_replies.accepted(uow.event.id, answer, uow.now_ms), current.task_id)
    return answer


def _open_known(uow: unit_of_work.UnitOfWork, current: model.Session, expired: Mapping[str, int]) -> None:
    """Open recordings of the speakers who already publish, except the expired ones, and of the subscribed ones."""
    known = {user: kinds for user, kinds in uow.snapshot.publishers(current.request.room) if user not in expired}
    for speaker in sorted({*known, *current.request.subscribe}):
        kinds = known.get(speaker, presence.Kinds())
        wanted = set(kinds) & set(states.WANTED_KINDS[current.request.mode])
        if not speakers.is_recorded(current.request, speaker) or (not wanted and speaker not in current.request.subscribe):
            continue
        since_ms = min((kinds.since_ms[kind] for kind in wanted), default=0)
        speakers.open_recording(uow, current, speaker, n=1, present=True if wanted else None, published_ms=since_ms)


def _expired(uow: unit_of_work.UnitOfWork, request: requests.StartRequest) -> dict[str, int]:
    """The speakers to record whom a callback showed too long ago, and when they were last heard of."""
    after_ms, wanted = uow.now_ms - uow.context.policy.presence_kept_ms, set(states.WANTED_KINDS[request.mode])
    return {
        user: kinds.heard_ms
        for user, kinds in uow.snapshot.publishers(request.room)
        if kinds.heard_ms <= after_ms and wanted & set(kinds) and speakers.is_recorded(request, user)
    }


def _left_out(uow: unit_of_work.UnitOfWork, request: requests.StartRequest, expired: Mapping[str, int]) -> Iterable[str]:
    users = [user for user in expired if user not in request.subscribe]
    if users:
        names = ", ".join(map(repr, users[:MAX_NAMED])) + (" …" if len(users) > MAX_NAMED else "")
        hours = (uow.now_ms - max(expired[user] for user in users)) // model.HOUR
        yield (
            f"Not recorded, because TRTC's last callback is {hours} h old: {names}. If they still publish, name them in"
            " SubscribeUserIds."
        )


def _warnings(uow: unit_of_work.UnitOfWork, request: requests.StartRequest, expired: Mapping[str, int]) -> tuple[str, ...]:
    """The warnings of a start: of its speakers, and of the checks before it."""
    callbacks_come = uow.callbacks_come(request.room.sdk_app_id)
    return (*_no_callbacks(request, callbacks_come), *_left_out(uow, request, expired), *uow.warnings)


def _no_callbacks(request: requests.StartRequest, callbacks_come: bool) -> Iterable[str]:
    if not callbacks_come and not request.subscribe:
        yield (
            f"{start_warnings.NO_CALLBACKS} {request.room.sdk_app_id} was ever seen, and SubscribeUserIds is not given: no"
            " speaker can be known. In the TRTC console set the callback address to this service's /trtc/callbacks, with the key"
            " in TRTC_CALLBACK_KEYS, or name the speakers in SubscribeUserIds."
        )


def named(uow: unit_of_work.UnitOfWork, task_id: str) -> model.Session:
    """The session of this id. Raises NotFound."""
    current = uow.find_session(task_id)
    if current is None:
        raise errors.NotFound(f"There is no session {task_id}; `recorder sessions` lists what there is.")
    return current


def _by_key(uow: unit_of_work.UnitOfWork) -> model.Session:
    try:
        room = requests.room(uow.event.data)
    except event_errors.InvalidEvent as error:
        raise errors.InvalidParameter(str(error), field=error.field) from None
    if room is None:
        raise errors.InvalidParameter("RoomId: one of RoomId and StrRoomId is required", field="RoomId")
    current = _open_session(uow, room, uow.event.data["UserId"])
    if current is None:
        raise errors.NotFound(f"No session of this key is Open: {room.kind} room {room.name!r}.")
    return current


def _open_session(uow: unit_of_work.UnitOfWork, room: requests.Room, user_id: str) -> model.Session | None:
    """The Open session of this key."""
    for found in uow.snapshot.sessions_in(room):
        if found.state == states.OPEN and found.request.user_id == user_id:
            return found
    return None
