"""One user who may publish, from entering a room to leaving it.

Rules:
- A leaving user causes only 104, and one who becomes audience only 105, without a preceding 202 or 204.
- Sharing a screen causes 205 and 206; no stream carries it, as the recorder does not record it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from simulator import callbacks, live

if TYPE_CHECKING:
    from simulator import rooms

ANCHOR, AUDIENCE = 20, 21
LEFT, TIMED_OUT, REMOVED, KILLED = 1, 2, 3, 5
"""Reasons of 104, after the current page of TRTC's documentation."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The response to a pull of this speaker in place of a stream."""

    status: int
    body: str


class Speaker:
    """One user who may publish, from entering to leaving."""

    def __init__(self, room: rooms.Room, user_id: str, number: int, stream: live.Stream) -> None:
        self.room = room
        self.user_id = user_id
        self.number = number
        self.stream = stream
        self.refusal: Refusal | None = None
        self.here = True
        self.role = ANCHOR
        self.sharing = False
        self._published = (False, False)

    @property
    def publishing(self) -> bool:
        """Whether sound or pictures are published now."""
        return self.here and (self.stream.audio or self.stream.video)

    @property
    def viewers(self) -> int:
        """How many connections get the stream."""
        return len(self.stream.viewers)

    def publish(self, *, audio: bool | None = None, video: bool | None = None) -> None:
        """Publish sound (203) or pictures (201; with the stream's next full second), or stop (204, 202); None leaves it.

        Raises ValueError for an audience member.
        """
        if self.role == AUDIENCE and (audio or video):
            raise ValueError("an audience member publishes nothing; become an anchor first")
        if audio is not None:
            self._audio(audio)
        if video is not None:
            self._video(video)

    async def mute_audio(self) -> None:
        """Stop the sound: 204."""
        self.publish(audio=False)

    async def unmute_audio(self) -> None:
        """Publish sound: 203."""
        self.publish(audio=True)

    async def mute_video(self) -> None:
        """Stop the pictures: 202."""
        self.publish(video=False)

    async def unmute_video(self) -> None:
        """Publish pictures: 201; they come with the stream's next full second, at most 1 s later."""
        self.publish(video=True)

    async def share_screen(self, on: bool = True) -> None:
        """Begin or end sharing the screen: 205, 206. No stream carries it."""
        if self.here and on != self.sharing:
            self.sharing = on
            self.room.announce(callbacks.SCREEN_ON if on else callbacks.SCREEN_OFF, self.user_id, Reason=0)

    async def become_audience(self) -> None:
        """Stay in the room and stop publishing: 105 with Role 21; the stream ends for its viewers."""
        if self.here and self.role == ANCHOR:
            self.role, self._published = AUDIENCE, (self.stream.audio, self.stream.video)
            self.stream.set_audio(False)
            self.stream.set_video(False)
            self.stream.close()
            self.room.announce(callbacks.ROLE_CHANGED, self.user_id, Role=AUDIENCE)

    async def become_anchor(self) -> None:
        """Resume publishing the earlier tracks: 105 with Role 20, then 203, 201."""
        if self.here and self.role == AUDIENCE:
            self.role = ANCHOR
            self.room.announce(callbacks.ROLE_CHANGED, self.user_id, Role=ANCHOR)
            self.publish(audio=self._published[0], video=self._published[1])

    async def resize(self, size: str) -> None:
        """Continue in another size (one of content.SIZES) from the next full second. Raises ValueError, ContentFailed."""
        self.stream.set_picture(await self.room.house.content.picture(size, self.number))

    async def leave(self, reason: int = LEFT) -> None:
        """Leave the room: the stream ends, 104. A second call does nothing."""
        if self.here:
            self.end()
            self.room.announce(callbacks.LEFT, self.user_id, Role=self.role, Reason=reason)
            log.info("speaker.left", room=self.room.handle, user_id=self.user_id, reason=reason)
            await self.room.speaker_gone()

    def stall(self, *, answer: bool = True) -> None:
        """Keep the connections open and send nothing; a new viewer gets the file header only, or not even an answer."""
        self.stream.set_stalled(True, answers=answer)

    def resume(self) -> None:
        """Send again, from the clock's present time."""
        self.stream.set_stalled(False)

    def close_viewers(self, *, abrupt: bool = False, user_id: str | None = None) -> int:
        """End the connections of all viewers or one user's, orderly (EOF) or by a reset. The speaker stays live."""
        return self.stream.close(live.RESET if abrupt else live.ENDED, user_id=user_id)

    def refuse(self, status: int, body: str = "") -> None:
        """Answer every further pull with this status and text, until `accept`."""
        self.refusal = Refusal(status=status, body=body)

    def accept(self) -> None:
        """Answer pulls again."""
        self.refusal = None

    def declare(self, tracks: str) -> None:
        """Set the tracks in further FLV headers: `actual`, `both` or `none`. Raises ValueError."""
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

    def end(self) -> None:
        """End the stream and disappear without a callback."""
        self.here = False
        self.room.house.live.remove(self.stream)
        self.room.speakers.pop(self.user_id, None)


def describe(speaker: Speaker) -> Mapping[str, Any]:
    """The speaker's view in the control API."""
    stream = speaker.stream
    return {
        "UserId": speaker.user_id,
        "Role": speaker.role,
        "Number": speaker.number,
        "Audio": stream.audio,
        "Video": stream.video,
        "Screen": speaker.sharing,
        "Size": stream.size,
        "Stalled": stream.stalled,
        "Declares": stream.declares,
        "Refused": speaker.refusal.status if speaker.refusal else 0,
        "Viewers": speaker.viewers,
        "MediaMs": stream.last_ms,
    }
