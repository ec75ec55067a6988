"""Rooms and their users, as application developers, tests and the control API drive them.

Rules:
- An integer room and a string room of the same digits are two rooms; a callback names a room in its own kind.
- The first user to enter a room causes 101, then 103, then 203 and 201 for published tracks. A leaving user causes only 104.
- A stream ends (EOF to its viewers) when its speaker leaves, is removed, or the room is dismissed; muting does not end it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from simulator import callbacks, content, live, speakers

HANDLE = re.compile(r"[A-Za-z0-9_-]{1,64}")

log = structlog.get_logger()


class NotHere(Exception):
    """There is no such room, or no such user in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """State shared by all rooms."""

    live: live.Live
    content: content.Content
    messenger: callbacks.Callbacks
    app: Callable[[int], callbacks.App]
    next_number: Callable[[], int]


class Room:
    """One room of one application. `room` is an int for an integer room, a str for a string room."""

    def __init__(self, house: House, handle: str, sdk_app_id: int, room: int | str) -> None:
        self.house = house
        self.handle = handle
        self.sdk_app_id = sdk_app_id
        self.room = room
        self.speakers: dict[str, speakers.Speaker] = {}
        self.exists = False
        self.ends_when_empty = False
        """Whether the room ends when its last speaker leaves, as one in live mode does."""
        self.dismissal_as_text = False
        """Whether the 102 of an integer room carries the number as a string, as TRTC's documented example does."""
        self.announces_leavers = False
        """Whether a dismissal gives a 104 for each speaker; whether TRTC's does is not documented."""

    async def join(
        self, user_id: str, *, audio: bool = True, video: bool = True, size: str = content.SIZES[0], number: int = -1
    ) -> speakers.Speaker:
        """Let a speaker enter: 101 if the room is empty, 103, and 203, 201 for published tracks.

        `number` is the one in the bar code; -1 takes the next of 0 … 15. Raises ValueError if the user is in the room already or
        the size unknown, ContentFailed.
        """
        if user_id in self.speakers:
            raise ValueError("this user is in the room already")
        number = self.house.next_number() if number < 0 else number
        sound, picture = await self.house.content.sound(), await self.house.content.picture(size, number)
        if user_id in self.speakers:
            raise ValueError("this user is in the room already")
        stream = live.Stream(sound, picture, started_s=self.house.live.clock())
        speaker = self.speakers[user_id] = speakers.Speaker(self, user_id, number, stream)
        self._enter(user_id)
        self.announce(callbacks.ENTERED, user_id, Role=speakers.ANCHOR, TerminalType=2, UserType=3, Reason=1)
        speaker.publish(audio=audio, video=video)
        self.house.live.add(stream)
        log.info("speaker.joined", room=self.handle, user_id=user_id, audio=audio, video=video, size=size)
        return speaker

    async def remove(self, user_id: str) -> None:
        """Remove a user like RemoveUser, a speaker or a viewer: their streams end, 104 with Reason 3. Of a user who is
        not in the room, nothing is reported."""
        if not self.holds(user_id):
            log.info("user.not_here", room=self.handle, user_id=user_id)
            return
        known = self.speakers.get(user_id)
        role = known.role if known else speakers.AUDIENCE
        if known:
            known.end()
        for speaker in self.speakers.values():
            speaker.stream.close(live.REMOVED, user_id=user_id)
        self.announce(callbacks.LEFT, user_id, Role=role, Reason=speakers.REMOVED)
        log.info("user.removed", room=self.handle, user_id=user_id)
        if known:
            await self.speaker_gone()

    def holds(self, user_id: str) -> bool:
        """Whether this user is in the room: as a speaker, or pulling."""
        pulling = (viewer.user_id for speaker in self.speakers.values() for viewer in speaker.stream.viewers)
        return user_id in self.speakers or user_id in pulling

    async def speaker_gone(self) -> None:
        """Dismiss the room if it ends with its last speaker, and that one has gone."""
        if self.ends_when_empty and not self.speakers:
            await self.dismiss()

    async def dismiss(self, *, announce_leavers: bool = False) -> None:
        """End the room: all streams end, 102; a later `join` reopens it. A second call does nothing.

        `announce_leavers` also reports each leaving user by a 104, like the room's own setting.
        """
        announce_leavers = announce_leavers or self.announces_leavers
        for speaker in list(self.speakers.values()):
            speaker.end()
            if announce_leavers:
                self.announce(callbacks.LEFT, speaker.user_id, Role=speaker.role, Reason=speakers.KILLED)
        if self.exists:
            self.exists = False
            self.announce(callbacks.DISMISSED, RoomId=str(self.room) if self.dismissal_as_text else self.room)
            log.info("room.dismissed", room=self.handle)

    def viewer_entered(self, user_id: str) -> None:
        """Report a viewer as an audience member: 103."""
        self._enter(user_id)
        self.announce(callbacks.ENTERED, user_id, Role=speakers.AUDIENCE, TerminalType=2, UserType=3, Reason=1)

    def viewer_left(self, user_id: str, reason: int = speakers.LEFT) -> None:
        """Report that a pull has ended: 104."""
        self.announce(callbacks.LEFT, user_id, Role=speakers.AUDIENCE, Reason=reason)

    def announce(self, event_type: int, user_id: str = "", *, forged: bool = False, **more: int | str) -> callbacks.Message:
        """Send one callback about this room, in order with its others; also for events that nobody caused.

        `more` are further fields of EventInfo, or others in place of RoomId, EventTs and EventMsTs. A `forged` one is signed with
        another key than the application's.
        """
        event_ms = self.house.messenger.next_event_ms()
        info: dict[str, Any] = {"RoomId": self.room, "EventTs": event_ms // 1000, "EventMsTs": event_ms}
        if user_id:
            info["UserId"] = user_id
        group = callbacks.ROOM if event_type < 200 else callbacks.MEDIA
        app = self.house.app(self.sdk_app_id)
        return self.house.messenger.send(app, group, event_type, info | more, room=self.handle, forged=forged)

    def describe(self) -> Mapping[str, Any]:
        """The room's view in the control API."""
        kind = {"RoomId": self.room} if isinstance(self.room, int) else {"StrRoomId": self.room}
        described = [speakers.describe(speaker) for speaker in self.speakers.values()]
        return {"Room": self.handle, "SdkAppId": self.sdk_app_id, **kind, "Exists": self.exists, "Speakers": described}

    def _enter(self, user_id: str) -> None:
        if not self.exists:
            self.exists = True
            self.announce(callbacks.CREATED, user_id)


class Rooms:
    """Every room of every application."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._rooms: dict[tuple[int, int | str], Room] = {}
        self._handles = itertools.count(1)

    def create(self, sdk_app_id: int, room: int | str, *, handle: str = "") -> Room:
        """The room of this application and id, created if unknown: int = integer room, str = string room.

        `handle` is its name in the control API, by default room-1, room-2 … Raises ValueError.
        """
        if isinstance(room, bool) or not room or (isinstance(room, int) and not 0 < room < 2**32):
            raise ValueError("a room id is an integer from 1 to 4294967295 or a string of 1 to 64 bytes")
        if isinstance(room, str) and len(room.encode()) > 64:
            raise ValueError("a string room id has at most 64 bytes")
        key = (sdk_app_id, room)
        known = self._rooms.get(key)
        if handle and handle != (known.handle if known else ""):
            self._check_handle(handle, known)
        if known is None:
            known = self._rooms[key] = Room(self.house, handle or self._next_handle(), sdk_app_id, room)
        return known

    def _check_handle(self, handle: str, known: Room | None) -> None:
        if known is not None:
            raise ValueError(f"this room is {known.handle} already")
        if not HANDLE.fullmatch(handle):
            raise ValueError("a room's name in the control API is 1 to 64 of A-Z, a-z, 0-9, _ and -")
        if any(room.handle == handle for room in self._rooms.values()):
            raise ValueError(f"another room is {handle} already")

    def _next_handle(self) -> str:
        taken = {room.handle for room in self._rooms.values()}
        return next(name for name in (f"room-{n}" for n in self._handles) if name not in taken)

    def find(self, sdk_app_id: int, room: int | str) -> Room | None:
        """The room of this application and id, if there is one."""
        return self._rooms.get((sdk_app_id, room))

    def clear(self) -> None:
        """Drop every room; all streams end, no callback is sent."""
        for room in self.all():
            for speaker in list(room.speakers.values()):
                speaker.end()
        self._rooms.clear()

    def by_handle(self, handle: str) -> Room:
        """The room of this handle. Raises NotHere."""
        for room in self._rooms.values():
            if room.handle == handle:
                return room
        raise NotHere(f"no room {handle}")

    def all(self) -> list[Room]:
        """All rooms, the oldest first."""
        return list(self._rooms.values())
