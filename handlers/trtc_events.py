"""Handlers of TRTC's callbacks: presence of speakers, removal of the recording user, end of a room.

Rule: callbacks arrive late, repeated and out of order. An event older than the last one applied for the same user and track is
ignored. Presence is stored whether or not a session is Open, so that a later start finds the speakers who are there. Callbacks
about a room without an unfinished session change nothing else: callback_intake.py takes them in batches.
"""

from __future__ import annotations

from collections.abc import Callable

from events import codec, requests
from handlers import speakers, unit_of_work
from machine import model, presence, pull_users, states

NOTE_CALLBACK_EVERY_MS = model.MINUTE
OWN_PULL_MS = 5 * model.SECOND
REMOVED_REASONS = (3, 4, 5)
OLDER_THAN_OPENING = "ignored: the event is older than the session's opening"
OLDER_THAN_APPLIED = "ignored: older than the last event of this speaker that was applied"


def user_publishing(uow: unit_of_work.UnitOfWork) -> None:
    """A speaker switched a track on: each Open session that records this track and speaker pulls now."""
    data = uow.event.data
    room = _calling_room(uow)
    known = uow.snapshot.presence(room, data["UserId"])
    if data["EventMs"] < max(known[f"{data['Kind']}_ms"], known["left_ms"]):
        _note_speaker(uow, room, OLDER_THAN_APPLIED)
        return
    _note_presence(uow, room)
    for current in uow.snapshot.sessions_in(room):
        _publishing_in(uow, current)


def user_unpublished(uow: unit_of_work.UnitOfWork) -> None:
    """A speaker switched a track off: noted. The stream continues, or ends without our help. Without any recorded track the
    speaker publishes nothing, and nothing is missing."""
    room, data = _calling_room(uow), uow.event.data
    known = uow.snapshot.presence(room, data["UserId"])
    for current in uow.snapshot.sessions_in(room):
        _absent_in(uow, current, known)
    _note_presence(uow, room)
    _note_speaker(uow, room, f"noted: {uow.event.data['Kind']} off")


def user_entered(uow: unit_of_work.UnitOfWork) -> None:
    """An anchor entered: noted. If the speaker was believed to publish already, a leaving was never reported."""
    room, data = _calling_room(uow), uow.event.data
    for current in uow.snapshot.sessions_in(room):
        for value in uow.recordings_of(current.task_id, data["UserId"]):
            if value.state in states.CAPTURING:
                uow.note_published(value, value.published.entered(data["EventMs"]))
    _note_speaker(uow, room, "noted: an anchor entered")


def user_left(uow: unit_of_work.UnitOfWork) -> None:
    """A user left, or became audience. TRTC sends no separate end of the leaver's tracks."""
    data = uow.event.data
    room = _calling_room(uow)
    known = uow.snapshot.presence(room, data["UserId"])
    stale = data["EventMs"] < max(known["audio_ms"], known["video_ms"], known["left_ms"])
    _note_presence(uow, room)
    for current in uow.snapshot.sessions_in(room):
        if _pulls(uow, current, data["UserId"]):
            _recording_user_left(uow, current)
        elif stale:
            _absent_in(uow, current, known)
            _note(uow, current, OLDER_THAN_APPLIED)
        else:
            _left_in(uow, current)


def user_removed(uow: unit_of_work.UnitOfWork) -> None:
    """The recording user was removed: close its session."""
    room = _room(uow)
    for current in uow.snapshot.sessions_in(room):
        if _pulls(uow, current, uow.event.data["UserId"]):
            _recording_user_left(uow, current)


def room_destroyed(uow: unit_of_work.UnitOfWork) -> None:
    """The room is gone: close its sessions that are older than the event, and clear its presence."""
    data = uow.event.data
    room = _calling_room(uow)
    for current in uow.snapshot.sessions_in(room):
        if data["EventMs"] < current.opened_ms:
            _note(uow, current, OLDER_THAN_OPENING)
            continue
        for value in uow.recordings(current.task_id):
            if value.state in states.CAPTURING and value.published.first_ms:
                uow.note_published(value, value.published.left(data["EventMs"]))
        uow.advance_session(current.task_id, "room-destroyed")
    _note_presence(uow, room)


def _pulls(uow: unit_of_work.UnitOfWork, current: model.Session, user: str) -> bool:
    """Whether this is the recording user, or the user that pulls one of the speakers in its place."""
    if user == current.request.user_id or not pull_users.may_be(current, user):
        return user == current.request.user_id
    return any(pull_users.per_speaker(current.request.user_id, r.speaker) == user for r in uow.recordings(current.task_id))


def _recording_user_left(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    """TRTC reports that the recording user left. Reasons 3, 4 and 5 close the session, unless the recorder opened another pull
    under the same user in the 5 s before: in TRTC a second entry of a user evicts the first. All other reasons are the recorder's
    own joins and leaves."""
    data = uow.event.data
    reason = data.get("Reason", 3 if uow.event.type == "user-removed" else 0)
    if reason not in REMOVED_REASONS:
        _note(uow, current, f"noted: the recording user left with reason {reason}")
    elif data["EventMs"] < current.opened_ms:
        _note(uow, current, OLDER_THAN_OPENING)
    elif 0 <= data["EventMs"] - uow.snapshot.last_pull_ms(current.task_id, data["EventMs"]) < OWN_PULL_MS:
        note = f"noted: the recording user left with reason {reason} just after another pull of the recorder: mutual eviction"
        _note(uow, current, note)
    else:
        uow.advance_session(current.task_id, "user-removed")


def _publishing_in(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    data = uow.event.data
    speaker = data["UserId"]
    if data["Kind"] not in states.WANTED_KINDS[current.request.mode] or not speakers.is_recorded(current.request, speaker):
        _note(uow, current, f"noted: {data['Kind']} of {speaker!r} is not recorded by this session")
        return
    known = uow.recordings_of(current.task_id, speaker)
    capturing = [r for r in known if r.state in states.CAPTURING and not r.stop_requested]
    if capturing:
        speakers.mark_published(uow, current.task_id)
        for value in capturing:
            told = value.published.switched_on(data["EventMs"], current.opened_ms)
            uow.advance_recording(uow.note_published(value, told), "user-publishing")
    elif current.state == states.OPEN:
        n = uow.next_n(current.task_id, speaker)
        speakers.open_recording(uow, current, speaker, n=n, present=True, published_ms=data["EventMs"])
    else:
        _note(uow, current, f"ignored: {speaker!r} published while the session closes")


def _absent_in(uow: unit_of_work.UnitOfWork, current: model.Session, known: presence.Known) -> None:
    """A track went off, or all did: without any recorded track the speaker publishes nothing, and nothing is missing. `known` is
    the presence before this event; a track that went on later may be in it already."""
    data = uow.event.data
    at_ms, kinds = data["EventMs"], states.WANTED_KINDS[current.request.mode]
    others = [kind for kind in kinds if kind != data.get("Kind", kind)]
    if any(known[kind] for kind in others):
        return
    back_ms = min((known[f"{kind}_ms"] for kind in kinds if known[kind] and known[f"{kind}_ms"] > at_ms), default=0)
    for value in uow.recordings_of(current.task_id, data["UserId"]):
        if value.state in states.CAPTURING:
            told = value.published
            uow.note_published(value, told.absent(at_ms, back_ms) if back_ms else told.switched_off(at_ms))


def _left_in(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    for value in uow.recordings_of(current.task_id, uow.event.data["UserId"]):
        if value.state in states.CAPTURING:
            told = value.published.left(uow.event.data["EventMs"])
            uow.advance_recording(uow.note_published(value, told), "user-left")


def _calling_room(uow: unit_of_work.UnitOfWork) -> requests.Room:
    """The room of a callback; notes that the application's callbacks arrive."""
    app = uow.event.data["SdkAppId"]
    if uow.snapshot.callback_ms(app) < uow.now_ms - NOTE_CALLBACK_EVERY_MS:
        # Not for every callback: those of one application would queue for this row.
        uow.changes.applications.add(app)
    return _room(uow)


def _room(uow: unit_of_work.UnitOfWork) -> requests.Room:
    """The room of a TRTC event. If the event names both ids, the id has only digits: the string room if a session is Open there,
    else the integer room."""
    *others, last = rooms(uow.event.data)
    for room in others:
        if any(s.state == states.OPEN for s in uow.snapshot.sessions_in(room)):
            return room
    return last


def presence_report(event: codec.Event) -> presence.Report | None:
    """What a callback says of presence; None for an event that is no callback."""
    data, known = event.data, _PRESENCE.get(event.type)
    return presence.Report(tuple(rooms(data)), data.get("UserId", presence.ROOM), known(data)) if known else None


_PRESENCE: dict[str, Callable[[codec.Data], presence.Known]] = {
    "user-publishing": lambda data: presence.switched(data["Kind"], True, data["EventMs"]),
    "user-unpublished": lambda data: presence.switched(data["Kind"], False, data["EventMs"]),
    "user-entered": lambda data: {},
    "user-left": lambda data: presence.left(data["EventMs"]),
    "room-destroyed": lambda data: presence.left(data["EventMs"]),
}


def _note_presence(uow: unit_of_work.UnitOfWork, room: requests.Room) -> None:
    if report := presence_report(uow.event):
        uow.changes.presence[room, report.user_id] = report.known


def rooms(data: codec.Data) -> list[requests.Room]:
    """The rooms that a TRTC event may mean: the string room first."""
    app, named = data["SdkAppId"], []
    if "StrRoomId" in data:
        named.append(requests.Room(sdk_app_id=app, str_room_id=data["StrRoomId"]))
    if "RoomId" in data:
        named.append(requests.Room(sdk_app_id=app, room_id=data["RoomId"]))
    return named


def _note_speaker(uow: unit_of_work.UnitOfWork, room: requests.Room, note: str) -> None:
    for current in uow.snapshot.sessions_in(room):
        _note(uow, current, f"{note} ({uow.event.data['UserId']!r})")


def _note(uow: unit_of_work.UnitOfWork, current: model.Session, note: str) -> None:
    """A journal line for an event that changes nothing."""
    uow.journal(current.key, current.state, current.state, note)
