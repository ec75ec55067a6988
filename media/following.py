"""The following transcode: writes the finished file of one recording while its segments still grow.

Rules:
- A packet is joined once nothing that may still arrive can move it: LAG_MS after its arrival, and earlier in a recording whose
  packets have not moved for as long.
- A look places all packets again. Where the places of joined packets or the plan have changed, the file begins again. After
  MOST_RESTARTS `GaveUp` is raised, and also where nobody knows yet what an encoder has to hide: sound that is not AAC, and a
  second codec. The transcode from the segments then makes the file.
- Pictures that have to be encoded are, if an encoder is free. A larger canvas begins the file again; other sizes do not.
- Its output has the same bytes as that of the transcode from the segments. It is verified too, by its index.

It runs in a process without captures (follower_process.py), because it blocks the event loop while it reads.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from media import (
    agreement,
    black,
    bounded_file,
    bounds,
    file_threads,
    flv,
    followed_segment,
    growing_output,
    joiner,
    mp4_index,
    pieces,
    placement,
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
# An end waits for its encoder no longer than this: a process that does not answer in time costs other recordings too.
_MOST_LEFT_MS, _ENCODED_S = 240_000, 45.0
_MOST_SEGMENTS = 100
_MOST_STRETCHES = 5_000

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
        encoders: asyncio.Semaphore | None = None,
    ) -> None:
        """`bound_bytes`: of the file may wait for COS, which releases it and its segments; 0: both stay. `begin`: the file holds
        only what is left of the recording from here on. `decoder`: is shared with other recordings. `encoders`: so many of them
        encode their pictures at a time."""
        self._encoders = encoders or asyncio.Semaphore()
        self._has_encoder = False
        self._why = "the recording is short"  # there is no unfinished file
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
        self._writing: growing_output.GrowingOutput | None = None
        self.restarts = 0
        self._lag = _Lag()
        self._placed_ms = self._newest_ms = 0.0

    @property
    def lag_ms(self) -> float:
        """Packets are joined so long after their arrival."""
        return self._lag.ms

    @property
    def behind(self) -> bool:
        """Whether an encoder has more to take at once."""
        return self._writing is not None and self._writing.behind

    def add(self, path: Path) -> None:
        """Follow this segment too; its file may appear later."""
        if self._begin is None or pieces.epoch_of(path) >= self._begin.epoch:
            self._expected.append(path)

    async def look(self) -> bool:
        """Read the tags since the last look, and join those that can no longer move. Returns whether there were any. Raises
        GaveUp, errors.TranscodeFailed and OSError."""
        before_ms = self._newest_ms
        if self._writing is not None and self._writing.behind:
            await self._writing.go_on()
        while self._read(growing=True):
            await asyncio.sleep(0)  # others read too
            lasted_ms = self._lasted_ms
            if self.behind:
                continue
            if lasted_ms > LAG_MS / 2 and self._newest_ms - self._placed_ms >= self._place_every_ms(lasted_ms):
                self._placed_ms = self._newest_ms
                found, placed = self._survey([joiner.SegmentFile(path=segment.path) for segment in self._segments])
                self._lag.learn(placed, self._newest_ms)
                if lasted_ms > LAG_MS:
                    await self._write(found, placed, self._newest_ms - self.lag_ms)
        if self._writing is not None and self._writing.bounded is not None:
            await file_threads.BULK.run(self._writing.bounded.look)
        return self._newest_ms > before_ms

    @property
    def _lasted_ms(self) -> float:
        """The time between the first and the newest arrival. A segment may have no packet."""
        return self._newest_ms - next((each.begun_ms for each in self._segments if each.begun_ms), self._newest_ms)

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
        if any(segment.grown for segment in self._segments):
            raise GaveUp("a segment grew behind its end")
        if self._writing is None:
            raise GaveUp(self._why)
        found, placed = self._survey(segments)
        try:
            writing = await self._whole(found, placed)
        except TimeoutError:
            raise GaveUp("its encoder takes too long") from None
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

    async def _whole(self, found: survey.Survey, placed: growing_output.Placed) -> growing_output.GrowingOutput:
        """Join all that is left, and end the file. Raises TimeoutError too."""
        chosen = transcode_plan.plan(found, self._mode)
        encodes = flv.VIDEO in chosen.encoded
        kept = self._writing is not None and self._writing.keeps_plan(found, chosen)
        joined_ms = self._writing.joined_ms if kept and self._writing is not None else 0
        if encodes and found.duration_ms - joined_ms > _MOST_LEFT_MS:
            raise GaveUp("its encoder is far behind" if kept else "its plan changed at its end")
        async with asyncio.timeout(_ENCODED_S if encodes else None):
            await self._write(found, placed, float("inf"))
            if self._writing is None:
                raise GaveUp(self._why)
            await self._writing.end(found)
        return self._writing

    async def stop(self) -> None:
        """End ffmpeg and remove the unfinished file."""
        if self._has_encoder:
            self._encoders.release()
            self._has_encoder = False
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

    def _survey(self, files: Sequence[joiner.SegmentFile]) -> tuple[survey.Survey, growing_output.Placed]:
        """The survey by the tags so far, and from it the places in the followed segments."""
        known = {segment.path: segment for segment in self._segments}
        passes = [known[each.path].first.placed() if each.path in known else None for each in files]
        found = survey.assembled(copy.deepcopy(self._formats), files, self._kinds, passes)
        placed = [placed for each, placed in zip(files, found.placed, strict=True) if each.path in known]
        tracks = [track for each in placed if each is not None for track in each.live.tracks.values()]
        if any(sum(len(run.stretches) for run in track.runs) > _MOST_STRETCHES for track in tracks):
            raise GaveUp("a track has too many pauses")
        return found, placed

    async def _write(self, found: survey.Survey, placed: growing_output.Placed, until_ms: float) -> None:
        """Join the packets that arrived until then, if an encoder is free where one is needed."""
        chosen = transcode_plan.plan(found, self._mode)
        encodes = flv.VIDEO in chosen.encoded
        if (encodes and (self._bound_bytes or black.picture(found) is None)) or (
            flv.AUDIO in found.kinds and found.silences is None
        ):
            raise GaveUp("a track has to be encoded as a whole")
        if self._writing is not None:
            keeps_plan = self._writing.keeps_plan(found, chosen)
            if not keeps_plan or not self._writing.renew(found, placed):
                await self._begin_again(moved=keeps_plan)
        if self._writing is None:
            if encodes and not self._has_encoder:
                if self._encoders.locked():
                    self._why = "no encoder is free"
                    return
                self._has_encoder = await self._encoders.acquire()
            bounded = bounded_file.BoundedFile(self._part, self._bound_bytes) if self._bound_bytes else None
            self._writing = growing_output.GrowingOutput(self._ffmpeg, self._part, found, placed, chosen, bounded)
        if self._writing.bounded is not None:
            self._writing.bounded.found = found
        whole = until_ms == float("inf")
        await self._writing.join([(segment, segment.until(until_ms)) for segment in self._segments], whole=whole)
        if self._writing.bounded is None:
            await file_threads.BULK.run(self._writing.digest.look)

    async def _begin_again(self, *, moved: bool) -> None:
        """Drop the unfinished file: the plan has changed, or packets have `moved` that were joined."""
        assert self._writing is not None  # noqa: S101 - the caller has looked
        if self._writing.bounded is not None and self._writing.bounded.noted is not None:
            raise GaveUp("its plan changed, and its segments are released")
        await self._writing.stop()
        self._part.unlink(missing_ok=True)  # another file, so that nobody takes it for the one before
        self._writing = None
        if moved:
            self._lag.longest()
        self.restarts += 1
        if self.restarts > MOST_RESTARTS + self._lasted_ms // RESTART_EVERY_MS:
            raise GaveUp("its plan changed too often")


class _Lag:
    """How long packets of one recording may still move after their arrival."""

    def __init__(self) -> None:
        self._part = self._looks = 0
        self._before: tuple[growing_output.Placed, float] = (), 0.0

    @property
    def ms(self) -> float:
        """Join no packet that arrived later ago than this."""
        learnt = min(self._part + 1, len(_LAG_PARTS) - 1)
        return LAG_MS * _LAG_PARTS[learnt if self._looks > _LEARNING_LOOKS else -1]

    def learn(self, placed: growing_output.Placed, newest_ms: float) -> None:
        """Compare the places with those of the look before, whose latest packet arrived at `newest_ms` (Unix ms) of then."""
        (known, then_ms), self._before = self._before, (placed, newest_ms)
        self._looks += 1
        both = [*zip(known, placed, strict=False)]
        while self._part < len(_LAG_PARTS) - 1:
            until_ms = then_ms - LAG_MS * _LAG_PARTS[self._part]
            if all(_agree(one, other, until_ms) for one, other in both):
                break
            self._part += 1

    def longest(self) -> None:
        """Packets have moved that were joined."""
        self._part = len(_LAG_PARTS) - 1


def _agree(one: joiner.Placed | None, other: joiner.Placed | None, until_ms: float) -> bool:
    if one is None or other is None:
        return one is other  # a segment without packets
    return agreement.until(one, other, until_ms)
