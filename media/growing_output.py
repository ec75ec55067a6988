"""The unfinished file of a recording that is followed: one run of ffmpeg, fed with the packets of segments that still grow.

Rules: a packet is fed once, in order. A later survey may continue the file only if it places all that was fed where it was fed,
and keeps the plan. Pictures that are encoded may change their size, as long as they need no larger canvas and no higher frame
rate. Feeding an encoder takes as long as it encodes, so that is done in turns of FED_S.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path

from media import (
    agreement,
    black,
    bounded_file,
    digest,
    file_threads,
    flv,
    followed_segment,
    joiner,
    placement,
    resource_limits,
    rest,
    survey,
    transcode,
    transcode_plan,
)

FED_S = 2.0
# An encoder that takes no chunk for so long has no CPU: nobody waits for it, and the transcode makes the file.
STARVED_S = 20.0
_ENCODER_NICENESS = 10
JOINED_BYTES = 1 << 20
_RELEASED_BYTES = 1 << 18  # of a bounded spool, which holds them twice
_ENCODED_BYTES = 1 << 18  # a second or two of media, so that a turn ends in time
_INPUT_BYTES = 1 << 36  # how long the recording becomes is not known
_NEVER_STUCK_S = 1e6  # a live stream may pause; the node limits the end
_QUEUED_CHUNKS = 4
Placed = Sequence[joiner.Placed | None]
"""The places in each segment; None for one that has no media yet."""


class GrowingOutput:
    """One run of ffmpeg, and the joiner that feeds it."""

    def __init__(
        self,
        ffmpeg: str,
        part: Path,
        found: survey.Survey,
        placed: Placed,
        chosen: transcode_plan.Plan,
        bounded: bounded_file.BoundedFile | None,
    ) -> None:
        self.bounded = bounded
        self.chosen = chosen
        self.digest = digest.GrowingDigest(part)
        self.behind = False
        self._described = _described(found, chosen)
        self._rate = found.rate
        self._placed = placed
        self._silences = found.silences
        self._joined = joiner.Joiner((), found.kinds, silences=self._silences)
        self._black = black.picture(found) if self.encodes else None
        self._fill(found)
        self._given: Sequence[tuple[followed_segment.FollowedSegment, int]] = ()
        self._kinds = found.kinds
        self._at = -1  # the segment that is being joined
        self._places: placement.Places | None = None
        self._reader: flv.TagReader | None = None
        self._record = 0  # the number of the next tag in its segment
        self._tags: collections.deque[flv.Tag] = collections.deque()
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED_CHUNKS)
        files = [bounded.file] if bounded else []
        argv = transcode_plan.transcode_args(
            ffmpeg, found, chosen, str(part), appended_to=files[0] if files else -1, watched=False, growing=True
        )
        if self.encodes:  # everything else on the node comes first, other followers too
            argv = resource_limits.polite(argv, _ENCODER_NICENESS)
        self._run = transcode.FfmpegRun(argv, resource_limits.transcode(_INPUT_BYTES), inherit=files)
        self._ended = asyncio.create_task(self._run.to_end(self._stream(), part, _NEVER_STUCK_S))

    @property
    def encodes(self) -> bool:
        """Whether the pictures are encoded."""
        return flv.VIDEO in self.chosen.encoded

    @property
    def joined_ms(self) -> int:
        """So much of the file was fed."""
        return self._joined.end_ms

    def keeps_plan(self, found: survey.Survey, chosen: transcode_plan.Plan) -> bool:
        """Whether a later survey asks for the same treatment of the same tracks."""
        return chosen == self.chosen and found.kinds == self._kinds and _described(found, chosen) == self._described

    def renew(self, found: survey.Survey, placed: Placed) -> bool:
        """Continue with a later survey of the same plan; False if it disagrees with what was joined."""
        for index in range(self._at + 1):
            one, other = self._placed[index], placed[index]
            if one is None and other is None:
                continue
            if one is None or other is None:
                return False
            if index < self._at and not agreement.whole(one, other):
                return False
            # What is released cannot be joined again for a rounded millisecond.
            nearly = self.bounded is not None
            if index == self._at and not agreement.until_position(one, other, self._joined.end_ms + 1, nearly=nearly):
                return False
            if index == self._at and self._places is not None:
                self._places.renew(other.live)
        self._placed = placed
        if self._silences is not None and found.silences is not None:
            self._silences.renew(found.silences)
        self._fill(found)
        return True

    def _fill(self, found: survey.Survey) -> None:
        if self._black is not None:
            self._joined.fill(black.fillings(found, self._black, self.joined_ms))

    async def join(self, segments: Sequence[tuple[followed_segment.FollowedSegment, int]], *, whole: bool) -> None:
        """Feed the bytes of the segments before these offsets; unless `whole`, as many as the spool may hold for COS, and as many
        as an encoder takes in FED_S. It is `behind` if it did not take them all."""
        self._given, self.behind = segments, False
        if self._waits and not whole:
            return
        until_s = time.monotonic() + FED_S
        waiting: list[bytes] = []
        size_bytes = 0
        for found in self._pieces(segments):
            waiting += found
            size_bytes += sum(map(len, found))
            if size_bytes >= self._fed_bytes:
                await self._put(b"".join(waiting))
                waiting, size_bytes = [], 0
                if self.bounded is not None:
                    await file_threads.BULK.run(self.bounded.look)
                self.behind = self.encodes and not whole and time.monotonic() > until_s
                if self.behind or (self._waits and not whole):
                    break
        if waiting:
            await self._put(b"".join(waiting))

    async def go_on(self) -> None:
        """Feed what an encoder has not taken yet."""
        await self.join(self._given, whole=False)

    @property
    def _fed_bytes(self) -> int:
        if self.encodes:
            return _ENCODED_BYTES
        return JOINED_BYTES if self.bounded is None else _RELEASED_BYTES

    @property
    def _waits(self) -> bool:
        return self.bounded is not None and self.bounded.full

    async def end(self, found: survey.Survey) -> None:
        """Feed the end, and wait for ffmpeg. Raises errors.TranscodeFailed."""
        last = [*self._leave(), *self._joined.rest()]
        if self._black is not None:  # not shown: it tells how long the last one is
            last += self._joined.packet(flv.VIDEO, black.after_ms(found.duration_ms, self._rate), *self._black)
        await self._put(b"".join(last))
        await self._put(None)
        code = await self._ended
        if code != 0:
            raise self._run.failure(code)

    async def stop(self) -> None:
        """Kill ffmpeg."""
        self._ended.cancel()
        await asyncio.gather(self._ended, return_exceptions=True)
        if self._reader is not None:
            self._reader.close()
        if self.bounded is not None:
            self.bounded.close()

    def _pieces(self, segments: Sequence[tuple[followed_segment.FollowedSegment, int]]) -> Iterator[Iterable[bytes]]:
        for index, (segment, until) in enumerate(segments):
            if index < self._at or not until:
                continue
            if index > self._at:
                yield self._enter(index, segment)
            placed, places = self._placed[index], self._places
            assert placed is not None and places is not None  # noqa: S101, PT018 - _enter has checked and set them
            for tag in self._tags_until(until):
                self._joined.latest = None
                found = list(self._joined.placed_pieces(tag, places, placed.file))
                if self.bounded is not None and self._joined.latest is not None:
                    self.bounded.feed(tag, segment.path, self._record, *self._joined.latest)
                self._record += 1
                yield found

    def _enter(self, index: int, segment: followed_segment.FollowedSegment) -> list[bytes]:
        left = list(self._leave())
        placed = self._placed[index]
        if placed is None:
            raise followed_segment.GaveUp("a segment has no media")
        self._at = index
        self._places = self._joined.enter(placed)
        if self._reader is not None:
            self._reader.close()
        self._reader = rest.tags(segment.path, segment.begin)
        self._record = segment.begin.record if segment.begin else 0
        return left

    def _leave(self) -> Iterable[bytes]:
        placed = self._placed[self._at] if self._at >= 0 else None
        return self._joined.leave(placed) if placed is not None else ()

    def _tags_until(self, offset: int) -> Iterator[flv.Tag]:
        assert self._reader is not None  # noqa: S101 - _enter has opened it
        while True:
            if not self._tags and self._reader.read_bytes < offset:
                self._tags.extend(self._reader.read(min(offset - self._reader.read_bytes, JOINED_BYTES)))
            if not self._tags or self._tags[0].offset >= offset:
                return
            yield self._tags.popleft()

    async def _put(self, chunk: bytes | None) -> None:
        """Feed a chunk when ffmpeg takes it. Raises errors.TranscodeFailed if it has ended, and GaveUp for a starved encoder."""
        putting = asyncio.create_task(self._queue.put(chunk))
        limit_s = STARVED_S if self.encodes else None
        await asyncio.wait((putting, self._ended), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            putting.cancel()
            if not self._ended.done():
                raise followed_segment.GaveUp("its encoder takes too long")
            raise self._run.failure(await self._ended)

    async def _stream(self) -> AsyncIterator[bytes]:
        yield flv.header(audio=flv.AUDIO in self._kinds, video=flv.VIDEO in self._kinds)
        while (chunk := await self._queue.get()) is not None:
            yield chunk


def _described(found: survey.Survey, chosen: transcode_plan.Plan) -> object:
    """What ffmpeg knows of the tracks: their configurations, and of pictures that it encodes the canvas and the frame rate."""
    if flv.VIDEO not in chosen.encoded:
        return found.headers
    return [found.canvas, found.rate, found.codecs[flv.VIDEO], found.headers.get(flv.AUDIO)]
