"""One speaker's live stream, its viewers, and the clock that drives all streams.

Rules:
- Timestamps are the clock's milliseconds since the speaker's start; every viewer of a speaker gets the same bytes.
- A viewer begins with the latest full second (a key frame), never with anything older, and never with timestamp 0 unless the
  speaker has just begun.
- Video that starts or restarts (camera on, another size, after a stall) waits for the stream's next full second, at most 1 s, and
  then begins with its sequence header and a key frame. Sound starts immediately.
- A viewer that does not read is dropped when more than BUFFER_BYTES wait for it.

The second in the bar code follows the clock, not the stream: two speakers, or one who comes back, show the same second (to half a
second) at the same time. So a test can compute the time missing between two pictures.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import structlog

from simulator import content, flv

TICK_S = 0.025
BUFFER_BYTES = 256 * 1024
ACTUAL, BOTH, NONE = "actual", "both", "none"
DECLARATIONS = (ACTUAL, BOTH, NONE)
"""The tracks in an FLV header: the ones published now, always both, or none."""

ENDED, REMOVED, RESET, SLOW, GONE = "ended", "removed", "reset", "slow", "gone"
"""The end of a viewer's stream: the speaker ended it · the viewer was removed · aborted on purpose, or for not reading · closed
by the peer.
"""
PROPER = (ENDED, REMOVED)

log = structlog.get_logger()


class Viewer:
    """Bytes in flight to one connection. `is_gone` reports that the peer has closed; `abort` resets the connection."""

    def __init__(
        self, user_id: str, *, is_gone: Callable[[], bool] = lambda: False, abort: Callable[[], None] = lambda: None
    ) -> None:
        self.user_id = user_id
        self.reason = ""
        self._is_gone = is_gone
        self._abort = abort
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._woken = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether nothing more is accepted; `reason` then is one of the constants above."""
        return bool(self.reason)

    def offer(self, data: bytes) -> None:
        """Queue bytes; aborts if too many wait already."""
        if self.closed:
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > BUFFER_BYTES:
            self.close(SLOW)
        self._woken.set()

    def look(self) -> None:
        """Notice a connection that the peer has closed."""
        if not self.closed and self._is_gone():
            self.close(GONE)

    def close(self, reason: str) -> None:
        """End the stream: ENDED and REMOVED after the queued bytes, the others immediately. A second call does nothing."""
        if not self.closed:
            self.reason = reason
            self._woken.set()
            if reason in (RESET, SLOW):
                self._abort()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What to write, until the end."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            if self.closed and self.reason not in PROPER:
                return
            data, self._waiting, self._waiting_bytes = b"".join(self._waiting), [], 0
            if data:
                yield data
            if self.closed and not self._waiting:
                return


class Stream:
    """One speaker's FLV tags, made from the loop when they fall due."""

    def __init__(self, sound: content.Sound, picture: content.Picture, *, started_s: float) -> None:
        self.started_s = started_s
        self.audio = False
        self.video = False
        self.stalled = False
        self.answers = True
        self.declares = ACTUAL
        self.viewers: set[Viewer] = set()
        self.last_ms = 0
        self._unanswered: set[Viewer] = set()
        self._sound = sound
        self._picture = picture
        self._wanted_picture = picture
        self._first_frame = round(started_s) % content.LOOP_S * content.FRAMES_PER_SECOND
        self._next_frame = 0
        self._next_sound = 0
        self._offset_ms = 0
        self._audio_running = False
        self._video_running = False
        self._prologue: list[tuple[int, bytes]] = []
        self._cache: list[bytes] = []
        self._cache_ms = 0

    @property
    def size(self) -> str:
        """The current or next size, as 320x240."""
        return self._wanted_picture.size

    def set_audio(self, on: bool) -> None:
        """Send sound from now on, or stop."""
        self.audio, self._audio_running = on, self._audio_running and on

    def set_video(self, on: bool) -> None:
        """Send pictures from the next full second on, or stop at once."""
        self.video, self._video_running = on, self._video_running and on

    def set_picture(self, picture: content.Picture) -> None:
        """Send these pictures from the next full second on, after a new sequence header."""
        self._wanted_picture = picture

    def set_stalled(self, stalled: bool, *, answers: bool = True) -> None:
        """Keep every connection open and send nothing; afterwards continue at the clock's time and skip the past.

        With `answers` False a new viewer gets no response, and is aborted when the stall ends.
        """
        if stalled != self.stalled:
            self.stalled = stalled
            self._audio_running = self._video_running = False
            self._begin_cache(self._cache_ms)
        self.answers = answers or not stalled
        for viewer in self._unanswered if self.answers else ():
            viewer.close(RESET)

    def jump(self, by_ms: int) -> None:
        """Shift all further timestamps, forward or (not below 0) backward."""
        self._offset_ms = max(self._offset_ms + by_ms, -self.last_ms)

    def join(self, viewer: Viewer) -> None:
        """Send a viewer the file header, metadata, sequence headers and the latest second, then the live stream."""
        audio, video = self._declared()
        begin = [flv.header(audio=audio, video=video), flv.tag(flv.SCRIPT, 0, self._metadata(audio, video))]
        begin += [flv.tag(kind, self._cache_ms + self._offset_ms, payload) for kind, payload in self._prologue]
        viewer.offer(b"".join(begin + self._cache))
        self.viewers.add(viewer)

    def wait(self, viewer: Viewer) -> None:
        """Keep a viewer without sending it anything."""
        self._unanswered.add(viewer)
        self.viewers.add(viewer)

    def leave(self, viewer: Viewer) -> None:
        """Forget a viewer."""
        self.viewers.discard(viewer)
        self._unanswered.discard(viewer)

    def close(self, reason: str = ENDED, *, user_id: str | None = None) -> int:
        """End the stream of all viewers, or of one user's; returns the number."""
        chosen = [viewer for viewer in self.viewers if user_id is None or viewer.user_id == user_id]
        for viewer in chosen:
            viewer.close(reason)
        return len(chosen)

    def advance(self, now_s: float) -> None:
        """Send the tags that are due."""
        until_ms = int((now_s - self.started_s) * 1000)
        out: list[bytes] = []
        while True:
            sound_ms = self._next_sound * content.AAC_SAMPLES * 1000 // content.SAMPLE_RATE
            frame_ms = self._next_frame * 1000 // content.FRAMES_PER_SECOND
            if min(sound_ms, frame_ms) > until_ms:
                break
            if frame_ms <= sound_ms:
                self._frame_due(frame_ms, out)
            else:
                self._sound_due(sound_ms, out)
        for viewer in self.viewers:
            viewer.look()
            if out:
                viewer.offer(b"".join(out))

    def _frame_due(self, at_ms: int, out: list[bytes]) -> None:
        frame, self._next_frame = self._next_frame, self._next_frame + 1
        if frame % content.FRAMES_PER_SECOND == 0:
            self._second_begins(at_ms, out)
        if self._video_running:
            payload = self._picture.frames[(self._first_frame + frame) % content.LOOP_FRAMES]
            self._send(flv.VIDEO, at_ms, payload, out)

    def _second_begins(self, at_ms: int, out: list[bytes]) -> None:
        if self.video and not self.stalled and not (self._video_running and self._picture is self._wanted_picture):
            self._picture, self._video_running = self._wanted_picture, True
            out.append(flv.tag(flv.VIDEO, at_ms + self._offset_ms, self._picture.sequence_header))
        self._begin_cache(at_ms)

    def _sound_due(self, at_ms: int, out: list[bytes]) -> None:
        number, self._next_sound = self._next_sound, self._next_sound + 1
        if not self.audio or self.stalled:
            return
        if not self._audio_running:
            self._audio_running = True
            self._send(flv.AUDIO, at_ms, self._sound.sequence_header, out)
        self._send(flv.AUDIO, at_ms, self._sound.frames[number % content.SOUND_FRAMES], out)

    def _send(self, kind: int, at_ms: int, payload: bytes, out: list[bytes]) -> None:
        self.last_ms = at_ms
        data = flv.tag(kind, at_ms + self._offset_ms, payload)
        self._cache.append(data)
        out.append(data)

    def _begin_cache(self, at_ms: int) -> None:
        """The beginning for a new viewer: the running tracks' sequence headers, then the latest second."""
        self._cache, self._cache_ms = [], at_ms
        video = [(flv.VIDEO, self._picture.sequence_header)] if self._video_running else []
        audio = [(flv.AUDIO, self._sound.sequence_header)] if self._audio_running else []
        self._prologue = video + audio

    def _declared(self) -> tuple[bool, bool]:
        if self.declares == ACTUAL:
            return self.audio, self.video
        return self.declares == BOTH, self.declares == BOTH

    def _metadata(self, audio: bool, video: bool) -> bytes:
        values: dict[str, float | str] = {"encoder": "simulator"}
        if video:
            picture = self._picture
            values |= {"width": picture.width, "height": picture.height, "videocodecid": 7}
            values |= {"framerate": content.FRAMES_PER_SECOND}
        if audio:
            values |= {"audiocodecid": 10, "audiosamplerate": content.SAMPLE_RATE}
        return flv.metadata(values)


class Live:
    """The ticker: one task that moves every stream on, 40 times a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.streams: set[Stream] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tick. A second call does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._tick(), name="simulator.live")
            self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End every stream and the ticker. A second call does nothing; raises the ticker's own error, if any."""
        for stream in list(self.streams):
            self.remove(stream)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    def add(self, stream: Stream) -> None:
        """Move this stream on from now on."""
        self.streams.add(stream)

    def remove(self, stream: Stream) -> None:
        """Send the tags due up to now, then end the stream for all its viewers."""
        if stream in self.streams:
            stream.advance(self.clock())
            self.streams.discard(stream)
            stream.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A dead ticker must not look like a quiet room: abort every viewer and log it."""
        if not task.cancelled() and task.exception() is not None:
            log.error("simulator.ticker_died", error=repr(task.exception()))
            for stream in self.streams:
                stream.close(RESET)

    async def _tick(self) -> None:
        while True:
            now_s = self.clock()
            for stream in list(self.streams):
                stream.advance(now_s)
            await asyncio.sleep(TICK_S)
