"""Deciding: what TRTC's callbacks say of speakers. Imports `machine` and `events`.

Rule: callbacks come late, doubled and out of order. What is older than the last that was applied for the same user (and track)
is ignored; presence is kept whether a session is Open or not, so that a start finds who is there.
"""

from __future__ import annotations

from typing import Any

from events import requests
from handlers import unit_of_work, user_requests
from machine import model, states


async def user_publishing(uow: unit_of_work.UnitOfWork) -> None:
    """A speaker switched a track on: each Open session of the room that records this track and speaker pulls at once."""
    data, tx = uow.event.data, uow.tx
    room = await _heard(uow)
    known = await tx.presence(room, data["UserId"])
    kind = data["Kind"]
    if data["EventMs"] < max(known[f"{kind}_ms"], known["left_ms"]):
        await _note(uow, room, "ignored: older than the last event of this speaker that was applied")
        return
    await tx.put_presence(room, data["UserId"], known | {kind: True, f"{kind}_ms": data["EventMs"]})
    for current in await tx.sessions_in(room):
        await _publishing_in(uow, current)


async def user_unpublished(uow: unit_of_work.UnitOfWork) -> None:
    """A speaker switched a track off: noted. The stream goes on, or ffmpeg ends by itself."""
    data, tx = uow.event.data, uow.tx
    room = await _heard(uow)
    known = await tx.presence(room, data["UserId"])
    kind = data["Kind"]
    if data["EventMs"] >= known[f"{kind}_ms"]:
        await tx.put_presence(room, data["UserId"], known | {kind: False, f"{kind}_ms": data["EventMs"]})
    await _note(uow, room, f"noted: {kind} off")


async def user_entered(uow: unit_of_work.UnitOfWork) -> None:
    """An anchor entered: noted."""
    room = await _heard(uow)
    await _note(uow, room, "noted: an anchor entered")


async def user_left(uow: unit_of_work.UnitOfWork) -> None:
    """A user left, or became audience. A leaver sends only this, never the end of its tracks."""
    data, tx = uow.event.data, uow.tx
    room = await _heard(uow)
    known = await tx.presence(room, data["UserId"])
    stale = data["EventMs"] < max(known["audio_ms"], known["video_ms"], known["left_ms"])
    if not stale:
        gone = {"audio": False, "video": False, "left_ms": data["EventMs"]}
        await tx.put_presence(room, data["UserId"], known | gone)
    for current in await tx.sessions_in(room):
        if current.request.user_id == data["UserId"]:
            await user_requests.recording_user_left(uow, current)
        elif stale:
            note = "ignored: older than the last event of this speaker that was applied"
            await tx.journal(current.task_id, current.task_id, uow.event, current.state, current.state, note)
        else:
            await _left_in(uow, current)


async def _publishing_in(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    data = uow.event.data
    speaker = data["UserId"]
    if data["Kind"] not in states.WANTED_KINDS[current.request.mode] or not user_requests.takes(current.request, speaker):
        note = f"noted: {data['Kind']} of {speaker!r} is not recorded by this session"
        await uow.tx.journal(current.task_id, current.task_id, uow.event, current.state, current.state, note)
        return
    running = [r for r in await _of(uow, current, speaker) if r.state in states.CAPTURING and not r.stop_requested]
    if running:
        current = await user_requests.published(uow, current)
        for value in running:
            await uow.to_recording(current, value, "user-publishing")
    elif current.state == states.OPEN:
        await user_requests.open_for(uow, current, speaker, present=True)
    else:
        note = f"ignored: {speaker!r} published while the session closes"
        await uow.tx.journal(current.task_id, current.task_id, uow.event, current.state, current.state, note)


async def _left_in(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    for value in await _of(uow, current, uow.event.data["UserId"]):
        if value.state in states.CAPTURING:
            await uow.to_recording(current, value, "user-left")


async def _of(uow: unit_of_work.UnitOfWork, current: model.Session, speaker: str) -> list[model.Recording]:
    return [r for r in await uow.tx.recordings(current.task_id) if r.speaker == speaker]


async def _heard(uow: unit_of_work.UnitOfWork) -> requests.Room:
    room = await user_requests.room_of(uow)
    await uow.tx.note_callback(uow.event.data["SdkAppId"])
    return room


async def _note(uow: unit_of_work.UnitOfWork, room: requests.Room, note: str) -> None:
    for current in await uow.tx.sessions_in(room):
        text: Any = f"{note} ({uow.event.data['UserId']!r})"
        await uow.tx.journal(current.task_id, current.task_id, uow.event, current.state, current.state, text)
