"""The following transcode: writes the finished file of one recording while its segments still grow.

Rules:
- A packet is joined once nothing that may still arrive can move it: LAG_MS after its arrival, and earlier in a recording whose
  packets have not moved for as long.
- A look places all packets again. Where the places of joined packets or the plan have changed, the file begins again; after
  MOST_RESTARTS, and for a recording that has to be encoded as a whole, `GaveUp` is raised. The transcode from the segments
  then makes the file.
- Its output has the same bytes as that of the transcode from the segments. It is verified too, by its index.

It runs in a process without captures (follower_process.py), because it blocks the event loop while it reads.
"""

from __future__ import annotations

import asyncio
import collections
import copy
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from media import (
    agreement,
    bounded_file,
    bounds,
    digest,
    file_threads,
    flv,
    followed_segment,
    joiner,
    mp4_index,
    pieces,
    placement,
    resource_limits,
    rest,
    survey,
    timeline,
    track_clock,
    transcode,
    transcode_plan,
    verify,
)

# Whether a stretch of packets belongs to the clock before it is known about half a minute of media later.
LAG_MS = track_clock.ENVELOPE_MS + 90_000
# Packets of most recordings move by no more than some seconds. Each look shows how soon those of the look before could have been
# joined; after so many looks that counts, with the next longer part of LAG_MS.
_LAG_PARTS, _LEARNING_LOOKS = (0.025, 0.05, 0.1, 0.2, 0.5, 1.0), 10
# A placement takes as long as the recording, a hundredth of a second per hour and track.
PLACE_EVERY_MS, _PLACES = 10_000, 400
_BOUNDED_PLACE_MS = 30_000  # on a bounded spool, where nothing is released before it is placed
# So many restarts at once, and another one now and then: a long recording has more of everything.
MOST_RESTARTS, RESTART_EVERY_MS = 3, 3_600_000
_MOST_SEGMENTS = 100
_MOST_STRETCHES = 5_000
_JOINED_BYTES = 1 << 20
_RELEASED_BYTES = 1 << 18  # of a bounded spool, which holds them twice
_INPUT_BYTES = 1 << 36  # how long the recording becomes is not known
_NEVER_STUCK_S = 1e6  # a live stream may pause; the node limits the end
_QUEUED_CHUNKS = 4
# The places in each segment; None for one that has no media yet.
_Placed = Sequence[joiner.Placed | None]


GaveUp = followed_segment.GaveUp


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The finished file. All bytes of the unfinished one but its first are in it, `moved_bytes` farther back."""

    made: transcode.TranscodeOutput
    moved_bytes: int


class Following:
    """Follows one recording. `add` its segments in their order, `look` again and again, then `finish` or `stop`."""

    def __init__(
        self,
        ffmpeg: str,
        mode: str,
        part: Path,
        *,
        bound_bytes: int = 0,
        begin: rest.Begin | None = None,
        decoder: verify.Decoder | None = None,
    ) -> None:
        """`bound_bytes`: of the file may wait for COS, which releases it and its segments; 0: both stay. `begin`: the file holds
        only what is left of the recording from here on. `decoder`: is shared with other recordings."""
        self._decoder = decoder
        self._bound_bytes = bound_bytes
        self._begin = begin
        self._ffmpeg = ffmpeg
        self._mode = mode
        self._part = part
        self._kinds = timeline.wanted(mode)
        self._formats = survey.Survey()
        self._expected: list[Path] = []
        self._segments: list[followed_segment.FollowedSegment] = []
        self._writing: _Writing | None = None
        self.restarts = 0
        self._lag = _Lag()
        self._placed_ms = self._newest_ms = 0.0

    @property
    def lag_ms(self) -> float:
        """Packets are joined so long after their arrival."""
        return self._lag.ms

    def add(self, path: Path) -> None:
        """Follow this segment too; its file may appear later."""
        if self._begin is None or pieces.epoch_of(path) >= self._begin.epoch:
            self._expected.append(path)

    async def look(self) -> bool:
        """Read the tags since the last look, and join those that can no longer move. Returns whether there were any. Raises
        GaveUp, errors.TranscodeFailed and OSError."""
        before_ms = self._newest_ms
        while self._read(growing=True):
            await asyncio.sleep(0)  # others read too
            lasted_ms = self._newest_ms - self._segments[0].begun_ms
            if lasted_ms > LAG_MS / 2 and self._newest_ms - self._placed_ms >= self._place_every_ms(lasted_ms):
                self._placed_ms = self._newest_ms
                found, placed = self._survey([joiner.SegmentFile(path=segment.path) for segment in self._segments])
                self._lag.learn(placed, self._newest_ms)
                if lasted_ms > LAG_MS:
                    await self._write(found, placed, self._newest_ms - self.lag_ms)
        if self._writing is not None and self._writing.bounded is not None:
            await file_threads.BULK.run(self._writing.bounded.look)
        return self._newest_ms > before_ms

    def _place_every_ms(self, lasted_ms: float) -> float:
        every_ms = max(PLACE_EVERY_MS, lasted_ms / _PLACES)
        return min(every_ms, _BOUNDED_PLACE_MS) if self._bound_bytes else every_ms

    async def finish(self, segments: Sequence[joiner.SegmentFile], output: Path) -> Finished:
        """Join the rest, verify the file and give it its name. Raises GaveUp, errors.TranscodeFailed and OSError."""
        while self._read(growing=False):
            pass
        segments = pieces.left(segments, self._begin)
        if [each.path for each in segments if each.path.exists()] != [segment.path for segment in self._segments]:
            raise GaveUp("the recording has other segments")
        if self._writing is None:
            raise GaveUp("the recording is short")
        found, placed = self._survey(segments)
        writing = await self._write(found, placed, float("inf"))
        await writing.end()
        if writing.bounded is not None:
            return Finished(made=await writing.bounded.settle(self._ffmpeg, found, writing.chosen), moved_bytes=0)
        moved_bytes = 0
        if writing.chosen.extension == "mp4":
            moved_bytes = await file_threads.BULK.run(mp4_index.to_front, self._part)
        seen = await verify.verify(self._ffmpeg, self._part, found, writing.chosen, by_index=True, decoder=self._decoder)
        size_bytes, crc64 = await file_threads.BULK.run(writing.digest.settle, moved_bytes)
        await file_threads.BULK.run(transcode.give_name, self._part, output)
        made = transcode.output_of(bounds.bounded(found), seen, output, size_bytes, crc64)
        return Finished(made=made, moved_bytes=moved_bytes)

    async def stop(self) -> None:
        """End ffmpeg and remove the unfinished file."""
        if self._writing is not None:
            await self._writing.stop()
        for segment in self._segments:
            segment.close()
        if not self._bound_bytes:
            self._part.unlink(missing_ok=True)

    def _read(self, *, growing: bool) -> bool:
        """Take some of the tags that were written since; returns whether more may follow at once. A segment is complete once the
        next one has begun."""
        begun = next((path for path in self._expected if placement.has_index(path) and path.exists()), None)
        more = bool(self._segments) and self._segments[-1].read(self._formats, growing=growing and begun is None)
        if not more and begun is not None:
            del self._expected[: self._expected.index(begun) + 1]
            self._segments.append(followed_segment.FollowedSegment(begun, self._kinds, pieces.begin_of(self._begin, begun)))
            more = True
        if len(self._segments) > _MOST_SEGMENTS:
            raise GaveUp("the recording has too many segments")
        if any(self._formats.changes(kind) for kind in self._kinds) or self._formats.reshapes:
            raise GaveUp("a track changes its format")
        if self._segments:
            self._newest_ms = max(self._newest_ms, self._segments[-1].arrived_ms)
        return more

    def _survey(self, files: Sequence[joiner.SegmentFile]) -> tuple[survey.Survey, _Placed]:
        """The survey by the tags so far, and from it the places in the followed segments."""
        known = {segment.path: segment for segment in self._segments}
        passes = [known[each.path].first.placed() if each.path in known else None for each in files]
        found = survey.assembled(copy.deepcopy(self._formats), files, self._kinds, passes)
        placed = [placed for each, placed in zip(files, found.placed, strict=True) if each.path in known]
        tracks = [track for each in placed if each is not None for track in each.live.tracks.values()]
        if any(sum(len(run.stretches) for run in track.runs) > _MOST_STRETCHES for track in tracks):
            raise GaveUp("a track has too many pauses")
        return found, placed

    async def _write(self, found: survey.Survey, placed: _Placed, until_ms: float) -> _Writing:
        """Join the packets that arrived until then."""
        chosen = transcode_plan.plan(found, self._mode)
        if flv.VIDEO in chosen.encoded or (flv.AUDIO in found.kinds and found.silences is None):
            raise GaveUp("a track has to be encoded as a whole")
        if self._writing is not None and not self._writing.renew(found, placed, chosen):
            if self._writing.bounded is not None and self._writing.bounded.noted is not None:
                raise GaveUp("its plan changed, and its segments are released")
            await self._writing.stop()
            self._part.unlink(missing_ok=True)  # another file, so that nobody takes it for the one before
            self._writing = None
            self._lag.longest()
            self.restarts += 1
            lasted_ms = self._newest_ms - self._segments[0].begun_ms
            if self.restarts > MOST_RESTARTS + lasted_ms // RESTART_EVERY_MS:
                raise GaveUp("its plan changed too often")
        if self._writing is None:
            bounded = bounded_file.BoundedFile(self._part, self._bound_bytes) if self._bound_bytes else None
            self._writing = _Writing(self._ffmpeg, self._part, found, placed, chosen, bounded)
        if self._writing.bounded is not None:
            self._writing.bounded.found = found
        whole = until_ms == float("inf")
        await self._writing.join([(segment, segment.until(until_ms)) for segment in self._segments], whole=whole)
        if self._writing.bounded is None:
            await file_threads.BULK.run(self._writing.digest.look)
        return self._writing


class _Lag:
    """How long packets of one recording may still move after their arrival."""

    def __init__(self) -> None:
        self._part = self._looks = 0
        self._before: tuple[_Placed, float] = (), 0.0

    @property
    def ms(self) -> float:
        """Join no packet that arrived later ago than this."""
        learnt = min(self._part + 1, len(_LAG_PARTS) - 1)
        return LAG_MS * _LAG_PARTS[learnt if self._looks > _LEARNING_LOOKS else -1]

    def learn(self, placed: _Placed, newest_ms: float) -> None:
        """Compare the places with those of the look before, whose latest packet arrived at `newest_ms` (Unix ms) of then."""
        (known, then_ms), self._before = self._before, (placed, newest_ms)
        self._looks += 1
        both = [*zip(known, placed, strict=False)]
        while self._part < len(_LAG_PARTS) - 1:
            until_ms = then_ms - LAG_MS * _LAG_PARTS[self._part]
            if all(one is not None and other is not None and agreement.until(one, other, until_ms) for one, other in both):
                break
            self._part += 1

    def longest(self) -> None:
        """Packets have moved that were joined."""
        self._part = len(_LAG_PARTS) - 1


class _Writing:
    """One run of ffmpeg, and the joiner that feeds it."""

    def __init__(
        self,
        ffmpeg: str,
        part: Path,
        found: survey.Survey,
        placed: _Placed,
        chosen: transcode_plan.Plan,
        bounded: bounded_file.BoundedFile | None,
    ) -> None:
        self.bounded = bounded
        self.chosen = chosen
        self.digest = digest.GrowingDigest(part)
        self._headers = found.headers
        self._placed = placed
        self._silences = found.silences
        self._joined = joiner.Joiner((), found.kinds, silences=self._silences)
        self._kinds = found.kinds
        self._at = -1  # the segment that is being joined
        self._places: placement.Places | None = None
        self._reader: flv.TagReader | None = None
        self._record = 0  # the number of the next tag in its segment
        self._tags: collections.deque[flv.Tag] = collections.deque()
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED_CHUNKS)
        files = [bounded.file] if bounded else []
        argv = transcode_plan.transcode_args(
            ffmpeg, found, chosen, str(part), appended_to=files[0] if files else -1, watched=False
        )
        self._run = transcode.FfmpegRun(argv, resource_limits.transcode(_INPUT_BYTES), inherit=files)
        self._ended = asyncio.create_task(self._run.to_end(self._stream(), part, _NEVER_STUCK_S))

    def renew(self, found: survey.Survey, placed: _Placed, chosen: transcode_plan.Plan) -> bool:
        """Continue with a later survey; False if it disagrees with what was joined."""
        if chosen != self.chosen or found.headers != self._headers or found.kinds != self._kinds:
            return False
        for index in range(self._at + 1):
            one, other = self._placed[index], placed[index]
            if one is None or other is None:
                return False
            if index < self._at and not agreement.whole(one, other):
                return False
            if index == self._at and not agreement.until_position(one, other, self._joined.end_ms + 1):
                return False
            if index == self._at and self._places is not None:
                self._places.renew(other.live)
        self._placed = placed
        if self._silences is not None and found.silences is not None:
            self._silences.renew(found.silences)
        return True

    async def join(self, segments: Sequence[tuple[followed_segment.FollowedSegment, int]], *, whole: bool) -> None:
        """Feed the bytes of the segments before these offsets; unless `whole`, as many as the spool may hold for COS."""
        if self._waits and not whole:
            return
        waiting: list[bytes] = []
        size_bytes = 0
        for found in self._pieces(segments):
            waiting += found
            size_bytes += sum(map(len, found))
            if size_bytes >= (_JOINED_BYTES if self.bounded is None else _RELEASED_BYTES):
                await self._put(b"".join(waiting))
                waiting, size_bytes = [], 0
                if self.bounded is not None:
                    await file_threads.BULK.run(self.bounded.look)
                if self._waits and not whole:
                    break
        if waiting:
            await self._put(b"".join(waiting))

    @property
    def _waits(self) -> bool:
        return self.bounded is not None and self.bounded.full

    async def end(self) -> None:
        """Feed the end, and wait for ffmpeg. Raises errors.TranscodeFailed."""
        await self._put(b"".join((*self._leave(), *self._joined.rest())))
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
            raise GaveUp("a segment has no media")
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
                self._tags.extend(self._reader.read(min(offset - self._reader.read_bytes, _JOINED_BYTES)))
            if not self._tags or self._tags[0].offset >= offset:
                return
            yield self._tags.popleft()

    async def _put(self, chunk: bytes | None) -> None:
        """Feed a chunk when ffmpeg takes it. Raises errors.TranscodeFailed if it has ended."""
        putting = asyncio.create_task(self._queue.put(chunk))
        await asyncio.wait((putting, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            putting.cancel()
            raise self._run.failure(await self._ended)

    async def _stream(self) -> AsyncIterator[bytes]:
        yield flv.header(audio=flv.AUDIO in self._kinds, video=flv.VIDEO in self._kinds)
        while (chunk := await self._queue.get()) is not None:
            yield chunk
