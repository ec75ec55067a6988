"""Handlers of user requests: start, stop and replay.

Rules: no I/O. A start is decided under the unique index on its key. A refusal raises one of `machine.errors`, and nothing is
written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from events import errors as event_errors
from events import requests
from handlers import bus_replies, speakers, unit_of_work
from machine import errors, model, recording, states


async def start(uow: unit_of_work.UnitOfWork) -> dict[str, Any]:
    """Open a session, or return the Open one of the same key with fresh secrets. Returns TaskId, Repeated and Warnings."""
    tx = uow.tx
    try:
        request, secrets = requests.start(uow.event.data)
    except event_errors.InvalidEvent as error:
        raise errors.InvalidParameter(str(error), field=error.field) from None
    if not secrets.user_sig and not uow.context.mints(request.room.sdk_app_id):
        message = "UserSig: is required, because the service has no key of this application (TRTC_KEYS) to generate one"
        raise errors.InvalidParameter(message, field="UserSig")
    await tx.hold_room(request.room)
    current = await tx.open_session(request.room, request.user_id)
    if current is not None:
        return await _repeat(uow, current, secrets)
    if uow.no_capacity is not None:
        raise uow.no_capacity
    if uow.by is not None and uow.by.quota and await tx.open_sessions_of(uow.by.key_id) >= uow.by.quota:
        raise errors.QuotaReached
    callbacks_come = await tx.callbacks_come(request.room.sdk_app_id)
    opened = model.Session(
        task_id=uow.context.new_id(),
        request=request,
        opened_ms=tx.now_ms,
        idle_from_ms=tx.now_ms,
        warnings=(*_warnings(request, callbacks_come), *uow.warnings),
    )
    await uow.open_session(opened, secrets)
    await _open_known(uow, opened)
    return await _accepted(uow, opened, repeated=False)


async def stop(uow: unit_of_work.UnitOfWork) -> dict[str, Any]:
    """Close a session by its TaskId or by the key of its start. Returns TaskId and State. Raises NotFound, InvalidParameter."""
    data = uow.event.data
    current = await _named(uow, data["TaskId"]) if "TaskId" in data else await _by_key(uow)
    await uow.advance_session(current, "stop")
    return {"TaskId": current.task_id, "State": (await _named(uow, current.task_id)).state}


async def replay(uow: unit_of_work.UnitOfWork) -> dict[str, Any]:
    """Replay the failed and stuck recordings of a session, or the ones that the request names.

    Returns TaskId and the planned move of each recording. DryRun writes nothing. Raises NotFound, Refused."""
    tx, data = uow.tx, uow.event.data
    current = await _named(uow, data["TaskId"])
    chosen = _chosen(await tx.recordings(current.task_id), data)
    plans = [(r, await _planned(uow, current, r)) for r in chosen]
    answer = {"TaskId": current.task_id, "Recordings": [_plan(r, decided) for r, decided in plans]}
    rejoins = any(r.final and decided.recording.state == states.JOINING for r, decided in plans)
    if rejoins:
        await _check_free(uow, current)
    if data.get("DryRun"):
        return answer
    await tx.put_secrets(current.task_id, (await tx.secrets(current.task_id)).renewed_by(requests.secrets(data)))
    if rejoins:
        current = (await uow.advance_session(current, "reopen")).session
    ended = [(await uow.advance_recording(current, r, "replay")).recording.final and not r.final for r in chosen]
    if any(ended):
        await uow.settle(current.task_id)
    return answer


async def _repeat(uow: unit_of_work.UnitOfWork, current: model.Session, secrets: requests.Secrets) -> dict[str, Any]:
    by = uow.by
    if by is not None and not by.operates and not await uow.tx.began(by.key_id, current.task_id):
        # A repeated start replaces the secrets, and wrong secrets end a recording as surely as a stop.
        raise errors.Refused(
            "A session that another key began records this room for this UserId already. Repeat its start with that key or one"
            " of the scope operate, or record the room under another UserId."
        )
    known = await uow.tx.secrets(current.task_id)
    await uow.tx.put_secrets(current.task_id, known.renewed_by(secrets))
    note = "a repeated start: fresh secrets taken, everything else ignored"
    await uow.tx.journal(current.key, uow.event, current.state, current.state, note)
    return await _accepted(uow, current, repeated=True)


async def _accepted(uow: unit_of_work.UnitOfWork, current: model.Session, *, repeated: bool) -> dict[str, Any]:
    answer = {"TaskId": current.task_id, "Repeated": repeated, "Warnings": list(current.warnings)}
    await uow.tx.send("result", bus_replies.accepted(uow.event.id, answer, uow.tx.now_ms), current.task_id)
    return answer


async def _open_known(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    """Open recordings of the speakers who already publish, and of the subscribed ones."""
    known = dict(await uow.tx.publishers(current.request.room))
    for speaker in sorted({*known, *current.request.subscribe}):
        wanted = set(known.get(speaker, ())) & set(states.WANTED_KINDS[current.request.mode])
        if not speakers.is_recorded(current.request, speaker) or (not wanted and speaker not in current.request.subscribe):
            continue
        current = await speakers.open_recording(uow, current, speaker, present=True if wanted else None)


def _warnings(request: requests.StartRequest, callbacks_come: bool) -> Iterable[str]:
    if not callbacks_come and not request.subscribe:
        yield (
            f"No callback of application {request.room.sdk_app_id} was ever seen, and SubscribeUserIds is not given: no speaker"
            " can be known. In the TRTC console set the callback address to this service's /trtc/callbacks, with the key in"
            " TRTC_CALLBACK_KEYS, or name the speakers in SubscribeUserIds."
        )


async def _named(uow: unit_of_work.UnitOfWork, task_id: str) -> model.Session:
    current = await uow.tx.session(task_id)
    if current is None:
        raise errors.NotFound(f"There is no session {task_id}; `recorder sessions` lists what there is.")
    return current


async def _by_key(uow: unit_of_work.UnitOfWork) -> model.Session:
    try:
        room = requests.room(uow.event.data)
    except event_errors.InvalidEvent as error:
        raise errors.InvalidParameter(str(error), field=error.field) from None
    if room is None:
        raise errors.InvalidParameter("RoomId: one of RoomId and StrRoomId is required", field="RoomId")
    current = await uow.tx.open_session(room, uow.event.data["UserId"])
    if current is None:
        raise errors.NotFound(f"No session of this key is Open: {room.kind} room {room.name!r}.")
    return current


def _chosen(recordings: list[model.Recording], data: Any) -> list[model.Recording]:
    speaker, n = data.get("Speaker"), data.get("N")
    named = [r for r in recordings if speaker in (None, r.speaker) and n in (None, r.n)]
    if not named:
        raise errors.NotFound("There is no such recording; `recorder show` lists a session's.")
    explicit = speaker is not None or "From" in data
    chosen = [r for r in named if not r.never_seen and (explicit or r.state != states.DONE)]
    if not chosen:
        raise errors.Refused("Every recording is Done already; name a speaker and an earlier stage with From.")
    return chosen


async def _planned(uow: unit_of_work.UnitOfWork, current: model.Session, value: model.Recording) -> recording.RecordingDecision:
    """Decide a replay without writing it. Raises Refused if the table ignores it, or if the named stage has no files."""
    decided = recording.decide(value, "replay", await uow.facts(current, value))
    if decided.ignored:
        raise errors.Refused(f"{value.key} cannot be replayed: {decided.ignored}.")
    stage = uow.event.data.get("From")
    if value.final and decided.recording.state == states.JOINING and stage not in (None, "joining"):
        raise errors.Refused(f"{value.key} cannot be replayed from {stage}: its files are gone. Joining would capture again.")
    return decided


def _plan(value: model.Recording, decided: recording.RecordingDecision) -> dict[str, Any]:
    then = decided.recording
    return {"Speaker": value.speaker, "N": value.n, "State": value.state, "To": then.state, "Attempt": then.attempt}


async def _check_free(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    other = await uow.tx.open_session(current.request.room, current.request.user_id)
    if other is not None and other.task_id != current.task_id:
        raise errors.Refused(f"Joining needs this session Open, but {other.task_id} is Open for the same room and user.")
