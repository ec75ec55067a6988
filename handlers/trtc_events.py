"""Handlers of TRTC's callbacks: presence of speakers, removal of the recording user, end of a room.

Rule: callbacks arrive late, repeated and out of order. An event older than the last one applied for the same user and track is
ignored. Presence is stored whether or not a session is Open, so that a later start finds the speakers who are there.
"""

from __future__ import annotations

from events import requests
from handlers import speakers, unit_of_work
from machine import model, states

OWN_PULL_MS = 5 * model.SECOND
REMOVED_REASONS = (3, 4, 5)
OLDER_THAN_OPENING = "ignored: the event is older than the session's opening"
OLDER_THAN_APPLIED = "ignored: older than the last event of this speaker that was applied"


async def user_publishing(uow: unit_of_work.UnitOfWork) -> None:
    """A speaker switched a track on: each Open session that records this track and speaker pulls now."""
    data, tx = uow.event.data, uow.tx
    room = await _calling_room(uow)
    known = await tx.presence(room, data["UserId"])
    kind = data["Kind"]
    if data["EventMs"] < max(known[f"{kind}_ms"], known["left_ms"]):
        await _note_speaker(uow, room, OLDER_THAN_APPLIED)
        return
    await tx.put_presence(room, data["UserId"], known | {kind: True, f"{kind}_ms": data["EventMs"]})
    for current in await tx.sessions_in(room):
        await _publishing_in(uow, current)


async def user_unpublished(uow: unit_of_work.UnitOfWork) -> None:
    """A speaker switched a track off: noted. The stream continues, or ends without our help."""
    data, tx = uow.event.data, uow.tx
    room = await _calling_room(uow)
    known = await tx.presence(room, data["UserId"])
    kind = data["Kind"]
    if data["EventMs"] >= known[f"{kind}_ms"]:
        await tx.put_presence(room, data["UserId"], known | {kind: False, f"{kind}_ms": data["EventMs"]})
    await _note_speaker(uow, room, f"noted: {kind} off")


async def user_entered(uow: unit_of_work.UnitOfWork) -> None:
    """An anchor entered: noted."""
    room = await _calling_room(uow)
    await _note_speaker(uow, room, "noted: an anchor entered")


async def user_left(uow: unit_of_work.UnitOfWork) -> None:
    """A user left, or became audience. TRTC sends no separate end of the leaver's tracks."""
    data, tx = uow.event.data, uow.tx
    room = await _calling_room(uow)
    known = await tx.presence(room, data["UserId"])
    stale = data["EventMs"] < max(known["audio_ms"], known["video_ms"], known["left_ms"])
    if not stale:
        gone = {"audio": False, "video": False, "left_ms": data["EventMs"]}
        await tx.put_presence(room, data["UserId"], known | gone)
    for current in await tx.sessions_in(room):
        if current.request.user_id == data["UserId"]:
            await _recording_user_left(uow, current)
        elif stale:
            await _note(uow, current, OLDER_THAN_APPLIED)
        else:
            await _left_in(uow, current)


async def user_removed(uow: unit_of_work.UnitOfWork) -> None:
    """The recording user was removed: close its session."""
    room = await _room(uow)
    for current in await uow.tx.sessions_in(room):
        if current.request.user_id == uow.event.data["UserId"]:
            await _recording_user_left(uow, current)


async def room_destroyed(uow: unit_of_work.UnitOfWork) -> None:
    """The room is gone: close its sessions that are older than the event, and clear its presence."""
    data, tx = uow.event.data, uow.tx
    room = await _calling_room(uow)
    for current in await tx.sessions_in(room):
        if data["EventMs"] < current.opened_ms:
            await _note(uow, current, OLDER_THAN_OPENING)
            continue
        await uow.advance_session(current, "room-destroyed")
    await tx.clear_room(room, data["EventMs"])


async def _recording_user_left(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    """TRTC reports that the recording user left. Reasons 3, 4 and 5 close the session, unless the recorder opened another pull
    under the same user in the 5 s before: in TRTC a second entry of a user evicts the first. All other reasons are the recorder's
    own joins and leaves."""
    data, tx = uow.event.data, uow.tx
    reason = data.get("Reason", 3 if uow.event.type == "user-removed" else 0)
    if reason not in REMOVED_REASONS:
        await _note(uow, current, f"noted: the recording user left with reason {reason}")
    elif data["EventMs"] < current.opened_ms:
        await _note(uow, current, OLDER_THAN_OPENING)
    elif 0 <= data["EventMs"] - await tx.last_pull_ms(current.task_id, data["EventMs"]) < OWN_PULL_MS:
        note = f"noted: the recording user left with reason {reason} just after another pull of the recorder: mutual eviction"
        await _note(uow, current, note)
    else:
        await uow.advance_session(current, "user-removed")


async def _publishing_in(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    data = uow.event.data
    speaker = data["UserId"]
    if data["Kind"] not in states.WANTED_KINDS[current.request.mode] or not speakers.is_recorded(current.request, speaker):
        await _note(uow, current, f"noted: {data['Kind']} of {speaker!r} is not recorded by this session")
        return
    capturing = [r for r in await _of(uow, current, speaker) if r.state in states.CAPTURING and not r.stop_requested]
    if capturing:
        current = await speakers.mark_published(uow, current)
        for value in capturing:
            await uow.advance_recording(current, value, "user-publishing")
    elif current.state == states.OPEN:
        await speakers.open_recording(uow, current, speaker, present=True)
    else:
        await _note(uow, current, f"ignored: {speaker!r} published while the session closes")


async def _left_in(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    for value in await _of(uow, current, uow.event.data["UserId"]):
        if value.state in states.CAPTURING:
            await uow.advance_recording(current, value, "user-left")


async def _of(uow: unit_of_work.UnitOfWork, current: model.Session, speaker: str) -> list[model.Recording]:
    return [r for r in await uow.tx.recordings(current.task_id) if r.speaker == speaker]


async def _calling_room(uow: unit_of_work.UnitOfWork) -> requests.Room:
    """The room of a callback; notes that the application's callbacks arrive."""
    room = await _room(uow)
    await uow.tx.note_callback(uow.event.data["SdkAppId"])
    return room


async def _room(uow: unit_of_work.UnitOfWork) -> requests.Room:
    """The room of a TRTC event, locked. If the event names both ids, the id has only digits: the string room if a session is Open
    there, else the integer room."""
    data = uow.event.data
    string = requests.Room(sdk_app_id=data["SdkAppId"], str_room_id=data.get("StrRoomId", ""))
    integer = requests.Room(sdk_app_id=data["SdkAppId"], room_id=data.get("RoomId", 0))
    for named in (string, integer):
        if named.name:
            await uow.tx.hold_room(named)
    if "RoomId" not in data:
        return string
    if "StrRoomId" not in data:
        return integer
    open_there = any(s.state == states.OPEN for s in await uow.tx.sessions_in(string))
    return string if open_there else integer


async def _note_speaker(uow: unit_of_work.UnitOfWork, room: requests.Room, note: str) -> None:
    for current in await uow.tx.sessions_in(room):
        await _note(uow, current, f"{note} ({uow.event.data['UserId']!r})")


async def _note(uow: unit_of_work.UnitOfWork, current: model.Session, note: str) -> None:
    """A journal line for an event that changes nothing."""
    await uow.tx.journal(current.key, uow.event, current.state, current.state, note)
