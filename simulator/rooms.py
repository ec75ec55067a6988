"""The rooms and who is in them: what an application developer, a test or the control API makes happen.

Imports content, live, callbacks. Rules:
- An integer room and a string room of the same digits are two rooms; a callback names a room in its own kind.
- The first one to enter a room gives 101, then 103, then 203 and 201 for what is published. A leaver gives only 104.
- A stream ends (EOF to its viewers) when its speaker leaves, is removed, or the room is dismissed; muting does not end it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from simulator import callbacks, content, live

ANCHOR, AUDIENCE = 20, 21
LEFT, TIMED_OUT, REMOVED, KILLED = 1, 2, 3, 5
"""Reasons of 104, after the current page of TRTC's documentation."""

log = structlog.get_logger()


class NotHere(Exception):
    """There is no such room, or no such user in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a pull of this speaker is answered with instead of a stream."""

    status: int
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What all rooms share."""

    live: live.Live
    content: content.Content
    messenger: callbacks.Callbacks
    app: Callable[[int], callbacks.App]
    next_number: Callable[[], int]


class Speaker:
    """One user who may publish, from entering to leaving."""

    def __init__(self, room: Room, user_id: str, number: int, stream: live.Stream) -> None:
        self.room = room
        self.user_id = user_id
        self.number = number
        self.stream = stream
        self.refusal: Refusal | None = None
        self.here = True

    @property
    def publishing(self) -> bool:
        """Whether sound or pictures are published now."""
        return self.here and (self.stream.audio or self.stream.video)

    @property
    def viewers(self) -> int:
        """How many connections get the stream."""
        return len(self.stream.viewers)

    async def mute_audio(self) -> None:
        """Stop the sound: 204."""
        self._audio(False)

    async def unmute_audio(self) -> None:
        """Publish sound: 203."""
        self._audio(True)

    async def mute_video(self) -> None:
        """Stop the pictures: 202."""
        self._video(False)

    async def unmute_video(self) -> None:
        """Publish pictures: 201; they come with the stream's next full second, at most 1 s later."""
        self._video(True)

    async def resize(self, size: str) -> None:
        """Go on in another size (one of content.SIZES) with the next full second. Raises ValueError, ContentFailed."""
        self.stream.set_picture(await self.room.house.content.picture(size, self.number))

    async def leave(self, reason: int = LEFT) -> None:
        """Leave the room: the stream ends, 104. A second call does nothing."""
        if self.here:
            self._end()
            self.room.announce(callbacks.LEFT, self.user_id, Role=ANCHOR, Reason=reason)
            log.info("speaker.left", room=self.room.handle, user_id=self.user_id, reason=reason)
            if self.room.ends_when_empty and not self.room.speakers:
                await self.room.dismiss()

    def stall(self, *, answer: bool = True) -> None:
        """Keep the connections open and send nothing; a new viewer gets the file header only, or not even an answer."""
        self.stream.set_stalled(True, answers=answer)

    def resume(self) -> None:
        """Send again, from the clock's present on."""
        self.stream.set_stalled(False)

    def close_viewers(self, *, abrupt: bool = False, user_id: str | None = None) -> int:
        """End the connections of all viewers or one user's: properly (EOF) or by a reset. The speaker goes on."""
        return self.stream.close(live.RESET if abrupt else live.ENDED, user_id=user_id)

    def refuse(self, status: int, body: str = "") -> None:
        """Answer every further pull with this status and text, until `accept`."""
        self.refusal = Refusal(status=status, body=body)

    def accept(self) -> None:
        """Answer pulls again."""
        self.refusal = None

    def declare(self, tracks: str) -> None:
        """What FLV headers say from now on: `actual`, `both` or `none`. Raises ValueError."""
        if tracks not in live.DECLARATIONS:
            raise ValueError(f"declares must be one of {', '.join(live.DECLARATIONS)}")
        self.stream.declares = tracks

    def jump(self, by_ms: int) -> None:
        """Shift all further timestamps, as a publisher's restarted clock does."""
        self.stream.jump(by_ms)

    def _audio(self, on: bool) -> None:
        if self.here and on != self.stream.audio:
            self.stream.set_audio(on)
            self.room.announce(callbacks.AUDIO_ON if on else callbacks.AUDIO_OFF, self.user_id, Reason=0)

    def _video(self, on: bool) -> None:
        if self.here and on != self.stream.video:
            self.stream.set_video(on)
            self.room.announce(callbacks.VIDEO_ON if on else callbacks.VIDEO_OFF, self.user_id, Reason=0)

    def _end(self) -> None:
        self.here = False
        self.room.house.live.remove(self.stream)
        self.room.speakers.pop(self.user_id, None)


class Room:
    """One room of one application. `room` is an int for an integer room, a str for a string room."""

    def __init__(self, house: House, handle: str, sdk_app_id: int, room: int | str) -> None:
        self.house = house
        self.handle = handle
        self.sdk_app_id = sdk_app_id
        self.room = room
        self.speakers: dict[str, Speaker] = {}
        self.exists = False
        self.ends_when_empty = False
        """Whether the room ends when its last speaker leaves, as one in live mode does."""
        self.dismissal_as_text = False
        """Whether the 102 of an integer room carries the number as a string, as TRTC's documented example does."""

    async def join(
        self, user_id: str, *, audio: bool = True, video: bool = True, size: str = content.SIZES[0], number: int = -1
    ) -> Speaker:
        """Let a speaker enter: 101 if the room is empty, 103, and 203, 201 for what is published.

        `number` is the one in the bar code; -1 takes the next of 0 … 15. Raises ValueError if the user is here already
        or the size unknown, ContentFailed.
        """
        if user_id in self.speakers:
            raise ValueError("this user is in the room already")
        number = self.house.next_number() if number < 0 else number
        sound, picture = await self.house.content.sound(), await self.house.content.picture(size, number)
        if user_id in self.speakers:
            raise ValueError("this user is in the room already")
        stream = live.Stream(sound, picture, started_s=self.house.live.clock())
        speaker = self.speakers[user_id] = Speaker(self, user_id, number, stream)
        self._enter(user_id)
        self.announce(callbacks.ENTERED, user_id, Role=ANCHOR, TerminalType=2, UserType=3, Reason=1)
        speaker._audio(audio)
        speaker._video(video)
        self.house.live.add(stream)
        log.info("speaker.joined", room=self.handle, user_id=user_id, audio=audio, video=video, size=size)
        return speaker

    async def remove(self, user_id: str) -> None:
        """Remove a user as RemoveUser does, a speaker or one who only pulls: their streams end, 104 with Reason 3."""
        role = ANCHOR if user_id in self.speakers else AUDIENCE
        if user_id in self.speakers:
            self.speakers[user_id]._end()
        for speaker in self.speakers.values():
            speaker.stream.close(live.REMOVED, user_id=user_id)
        self.announce(callbacks.LEFT, user_id, Role=role, Reason=REMOVED)
        log.info("user.removed", room=self.handle, user_id=user_id)

    async def dismiss(self, *, announce_leavers: bool = False) -> None:
        """End the room: all streams end, 102; a later `join` opens it anew. A second call does nothing.

        Whether TRTC also reports each leaver of a dismissed room is not documented: `announce_leavers` sends 104s too.
        """
        for speaker in list(self.speakers.values()):
            speaker._end()
            if announce_leavers:
                self.announce(callbacks.LEFT, speaker.user_id, Role=ANCHOR, Reason=KILLED)
        if self.exists:
            self.exists = False
            self.announce(callbacks.DISMISSED, RoomId=str(self.room) if self.dismissal_as_text else self.room)
            log.info("room.dismissed", room=self.handle)

    def viewer_entered(self, user_id: str) -> None:
        """Report one who only pulls as an audience member: 103."""
        self._enter(user_id)
        self.announce(callbacks.ENTERED, user_id, Role=AUDIENCE, TerminalType=2, UserType=3, Reason=1)

    def viewer_left(self, user_id: str, reason: int = LEFT) -> None:
        """Report that a pull has ended: 104."""
        self.announce(callbacks.LEFT, user_id, Role=AUDIENCE, Reason=reason)

    def announce(self, event_type: int, user_id: str = "", **more: int | str) -> callbacks.Message:
        """Send one callback about this room, in order with its others; also for events nobody caused.

        `more` are further fields of EventInfo, or others in place of RoomId, EventTs and EventMsTs.
        """
        event_ms = self.house.messenger.next_event_ms()
        info: dict[str, Any] = {"RoomId": self.room, "EventTs": event_ms // 1000, "EventMsTs": event_ms}
        if user_id:
            info["UserId"] = user_id
        group = callbacks.ROOM if event_type < 200 else callbacks.MEDIA
        app = self.house.app(self.sdk_app_id)
        return self.house.messenger.send(app, group, event_type, info | more, room=self.handle)

    def describe(self) -> Mapping[str, Any]:
        """The room as the control API shows it."""
        kind = {"RoomId": self.room} if isinstance(self.room, int) else {"StrRoomId": self.room}
        speakers = [describe(speaker) for speaker in self.speakers.values()]
        return {"Room": self.handle, "SdkAppId": self.sdk_app_id, **kind, "Exists": self.exists, "Speakers": speakers}

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

    def create(self, sdk_app_id: int, room: int | str) -> Room:
        """The room of this application and id, made if it is not known: int = integer room, str = string room."""
        if isinstance(room, bool) or not room or (isinstance(room, int) and not 0 < room < 2**32):
            raise ValueError("a room id is an integer from 1 to 4294967295 or a string of 1 to 64 bytes")
        if isinstance(room, str) and len(room.encode()) > 64:
            raise ValueError("a string room id has at most 64 bytes")
        key = (sdk_app_id, room)
        if key not in self._rooms:
            self._rooms[key] = Room(self.house, f"room-{next(self._handles)}", sdk_app_id, room)
        return self._rooms[key]

    def find(self, sdk_app_id: int, room: int | str) -> Room | None:
        """The room of this application and id, if there is one."""
        return self._rooms.get((sdk_app_id, room))

    def clear(self) -> None:
        """Forget every room; all streams end, nobody is told."""
        for room in self.all():
            for speaker in list(room.speakers.values()):
                speaker._end()
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


def describe(speaker: Speaker) -> Mapping[str, Any]:
    """A speaker as the control API shows them."""
    stream = speaker.stream
    return {
        "UserId": speaker.user_id,
        "Number": speaker.number,
        "Audio": stream.audio,
        "Video": stream.video,
        "Size": stream.size,
        "Stalled": stream.stalled,
        "Declares": stream.declares,
        "Refused": speaker.refusal.status if speaker.refusal else 0,
        "Viewers": speaker.viewers,
        "MediaMs": stream.last_ms,
    }
