"""The growing file of a bounded spool: a follower's output that releases the segments' bytes that are in it.

Rules:
- The file may end where a fragment of the MP4, or a frame of the MP3, begins. Up to the newest such end, its bytes are on the
  disk and the note says where the rest of the recording begins; then what precedes that in the segments is released.
- Only noted bytes may be sent to COS, and only confirmed ones are released from the file itself: by the node, which reads the
  note (assembly/piece_uploads.py).
- The beginning of the present segment stays: it holds the configurations of its tracks.
"""

from __future__ import annotations

import collections
import os
from dataclasses import dataclass
from pathlib import Path

from machine import alignment, failpoints, model
from media import (
    arrival_index,
    bounds,
    digest,
    flv,
    fragments,
    holes,
    mp3_frames,
    pieces,
    rest,
    survey,
    transcode,
    transcode_plan,
    verify,
)

_KEPT_BYTES = 64 << 10
# The node keeps the beginning of the file itself for its verification. The file has so many parts at least, or small ones.
KEPT_BYTES, _LEAST_PARTS = 2 << 20, 400
_DECODED_S, _LEAST_DECODED_S = 5.0, 0.2
# The last seconds of the file stay until its end is verified, from the fragment on in which they begin. A position in an MP3 is
# found less exactly.
_TAIL_MS = {".mp4": 4_000.0, ".mp3": 15_000.0}
# Some minutes of packets, and more fragments than one look finds.
_MOST_FED, _MOST_STARTS = 100_000, 64
# How far the position of a key frame may be from the one that the muxer gives it, and of sound: half a packet.
_NEAR_KEY_MS, _NEAR_SOUND_MS, _ROUNDED_MS = 500.0, 12.0, 1.0
# Of what may wait for COS: from then on the file may also end where nobody knows how a track goes on that pauses.
_PRESSING_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """A packet that ffmpeg was fed: where its segment has it, its position in the file, and when it was live."""

    kind: int
    is_key: bool
    segment: Path
    offset: int
    record: int
    at_ms: float
    live_ms: float


class BoundedFile:
    """One piece while it grows. `feed` it with what ffmpeg is fed, `look` now and then, and `settle` it at its end."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        """`limit_bytes` of the file may wait for COS before nothing more is fed. Creates the file (blocking). Raises OSError."""
        self.path = path
        self._limit_bytes = limit_bytes
        self._fed: collections.deque[Fed] = collections.deque(maxlen=_MOST_FED)
        self._starts: collections.deque[fragments.Start] = collections.deque(maxlen=_MOST_STARTS)
        self._is_mp4 = path.suffix == ".mp4"
        self._frames = fragments.GrowingFragments(path) if self._is_mp4 else mp3_frames.GrowingFrames(path)
        self._digest: digest.GrowingDigest | None = None
        self._segments: list[Path] = []
        self._ends: collections.deque[tuple[int, float]] = collections.deque()
        self.found: survey.Survey | None = None
        self.noted: pieces.Piece | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        # ffmpeg moves to the beginning of what it opens: this is how its output begins farther back.
        self.file = os.open(path, flags | os.O_APPEND if self._is_mp4 else flags, 0o600)
        if self._is_mp4:
            os.ftruncate(self.file, fragments.RESERVED_BYTES)

    def close(self) -> None:
        """Close the file, and remove it unless its note counts; safe to call twice."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
            if self.noted is None:
                self.path.unlink(missing_ok=True)

    def feed(self, tag: flv.Tag, segment: Path, record: int, at_ms: float, live_ms: float) -> None:
        """Note a packet that ffmpeg is about to be fed, in their order."""
        if segment not in self._segments:
            self._segments.append(segment)
        self._fed.append(
            Fed(
                kind=tag.kind,
                is_key=tag.is_key,
                segment=segment,
                offset=tag.offset,
                record=record,
                at_ms=at_ms,
                live_ms=live_ms,
            )
        )

    @property
    def full(self) -> bool:
        """Whether so much waits for COS that nothing more is to be fed (blocking). In a long file the parts are larger."""
        return self._fills(1.0)

    def _fills(self, share: float) -> bool:
        most_bytes = max(self._limit_bytes, KEPT_BYTES + self.path.stat().st_size // _LEAST_PARTS)
        tail_bytes = self.noted.size_bytes - self.noted.spare_bytes if self.noted else 0
        return holes.used_bytes(self.path) > share * most_bytes + tail_bytes

    def look(self) -> None:
        """Note how far the file has come, and release what is in it (blocking). Raises OSError and errors.TranscodeFailed."""
        self._starts += self._frames.look()
        for start in reversed(self._starts):
            if (begin := self._begin(start)) is not None:
                self._note(start, begin)
                while self._starts[0] is not start:
                    self._starts.popleft()
                self._starts.popleft()
                return

    def _begin(self, start: fragments.Start) -> rest.Begin | None:
        """Where the packets begin that do not precede this end of the file; None if not all are known yet, if they begin in
        several segments, or if the file cannot end there.

        A track that pauses may have none yet. Should its next picture be no key frame, a rest that begins here would show it from
        a later one on. So such an end counts only where waiting for a better one would soon stop the file.
        """
        if self.found is None or not start.clean or start.offset <= self._frames.first_bytes:
            return None
        firsts = {kind: self._first(kind, start) for kind in self.found.kinds}
        known = [each for each in firsts.values() if each is not None]
        if not known or len({each.segment for each in known}) > 1:
            return None
        if any(each.kind == flv.VIDEO and not each.is_key for each in known):
            return None
        if len(known) < len(firsts) and (
            (flv.VIDEO in start.at_ms and firsts[flv.VIDEO] is None) or not self._fills(_PRESSING_SHARE)
        ):
            return None
        first = min(known, key=lambda each: each.offset)
        return rest.Begin(
            epoch=pieces.epoch_of(first.segment),
            offset=first.offset,
            record=first.record,
            kinds={kind: each.offset if each else self._behind(kind, first) for kind, each in firsts.items()},
            live_ms=min(each.live_ms for each in known),
        )

    def _first(self, kind: int, start: fragments.Start) -> Fed | None:
        """The first packet of a track that does not precede an end of the file; None if none was fed, or no key frame is near."""
        at_ms, nearly_ms = start.at_ms.get(kind), _NEAR_SOUND_MS if kind == flv.AUDIO else _ROUNDED_MS
        if at_ms is None:  # its fragment has none of them
            from_ms = start.lasts_ms.get(kind, float("-inf")) + nearly_ms
        elif kind == flv.VIDEO:
            keys = [each for each in self._fed if each.is_key and abs(each.at_ms - at_ms) < _NEAR_KEY_MS]
            return min(keys, key=lambda each: abs(each.at_ms - at_ms), default=None)
        else:
            from_ms = at_ms - nearly_ms
        return next((each for each in self._fed if each.kind == kind and each.at_ms >= from_ms), None)

    def _behind(self, kind: int, first: Fed) -> int:
        """From which offset on packets of a track are in no piece, if all that were fed are."""
        fed = (each.offset for each in reversed(self._fed) if each.kind == kind and each.segment == first.segment)
        return max(first.offset, next(fed, -1) + 1)

    def _note(self, start: fragments.Start, begin: rest.Begin) -> None:
        if self._digest is None:
            self._digest = digest.GrowingDigest(self.path, self._frames.first_bytes)
            if isinstance(self._frames, fragments.GrowingFragments):
                self._write_head(self._frames.head())
        self._digest.look(start.offset)
        at_ms = min(start.at_ms.values())
        self.noted = pieces.Piece(
            number=pieces.number_of(self.path),
            path=self.path,
            size_bytes=start.offset,
            spare_bytes=self._spare(start, at_ms),
            head_bytes=self._frames.first_bytes,
            crc64=self._digest.crc,
            output=self._output(at_ms, begin.live_ms),
            begin=begin,
        )
        failpoints.hit("piece.note.before")
        self.noted.save()
        failpoints.hit("piece.note.after")
        self._release(begin)

    def _spare(self, start: fragments.Start, at_ms: float) -> int:
        """Before which offset no byte is needed to verify the end of the file. A player finds a time in a pause of pictures from
        the fragment on that has the last ones."""
        until_ms = at_ms - _TAIL_MS[self.path.suffix]
        if flv.VIDEO in start.at_ms or flv.VIDEO not in start.lasts_ms:
            self._ends.append((start.offset, at_ms))
        while len(self._ends) > 1 and self._ends[1][1] < until_ms:
            self._ends.popleft()
        return self._ends[0][0] if self._ends and self._ends[0][1] < until_ms else 0

    def _output(self, at_ms: float, live_ms: float) -> model.Output:
        """The description of the file if it ends there."""
        assert self.found is not None  # noqa: S101 - set before anything is fed
        found, until_ms = self.found, round(live_ms)
        gaps = ((round(gap.at_s * 1000), round(gap.duration_s * 1000)) for gap in bounds.gaps(found.gaps))
        return model.Output(
            duration_ms=round(at_ms),
            size_bytes=0,
            start_ms=found.start_ms,
            end_ms=until_ms,
            gaps=tuple(gap for gap in gaps if gap[0] < at_ms),
            anchors=alignment.Anchors(tuple(each for each in bounds.anchors(found.anchors)[0] if each[0] < at_ms)),
            error_ms=found.error_ms,
            live=tuple((a, min(b, until_ms)) for a, b in bounds.spans(found.live) if a < until_ms),
        )

    def _release(self, begin: rest.Begin) -> None:
        """Release what precedes the rest in the segments."""
        while self._fed and (pieces.epoch_of(self._fed[0].segment), self._fed[0].offset) < (begin.epoch, begin.offset):
            self._fed.popleft()
        for segment in self._segments:
            index, epoch = arrival_index.path_of(segment), pieces.epoch_of(segment)
            if epoch < begin.epoch:
                for path in (segment, index):
                    holes.punch(path, 0, path.stat().st_size)
            elif epoch == begin.epoch:  # a later one may be fed already, and all of it is still needed
                holes.punch(segment, _KEPT_BYTES, begin.offset)
                holes.punch(index, holes.BLOCK_BYTES, arrival_index.offset_of(begin.record))
        self._segments = [segment for segment in self._segments if pieces.epoch_of(segment) >= begin.epoch]

    def _kept_s(self, size_bytes: int) -> float:
        """How much of the beginning is on the disk for certain."""
        if size_bytes <= KEPT_BYTES or not isinstance(self._frames, fragments.GrowingFragments):
            return _DECODED_S
        # Half of it: ffmpeg decodes some packets behind the time at which it is to stop.
        return max(_LEAST_DECODED_S, min(_DECODED_S, self._frames.seen_ms(KEPT_BYTES) / 2_000))

    def _write_head(self, head: bytes) -> None:
        with self.path.open("r+b") as file:
            file.write(head)
            file.flush()
            os.fsync(file.fileno())

    async def settle(self, ffmpeg: str, found: survey.Survey, chosen: transcode_plan.Plan) -> transcode.TranscodeOutput:
        """Complete and verify the file, which ffmpeg has ended. Raises OSError and errors.TranscodeFailed."""
        self._frames.look()
        size_bytes = self.path.stat().st_size
        growing = self._digest or digest.GrowingDigest(self.path, self._frames.first_bytes)
        ends_ms = None
        if isinstance(self._frames, fragments.GrowingFragments):
            ends_ms = self._frames.ends_ms
            self._write_head(self._frames.head(end_bytes=size_bytes, duration_ms=found.duration_ms))
        seen = await verify.verify(
            ffmpeg, self.path, found, chosen, by_index=True, ends_ms=ends_ms, decoded_s=self._kept_s(size_bytes)
        )
        size_bytes, crc = growing.settle(0)
        made = transcode.output_of(bounds.bounded(found), seen, self.path, size_bytes, crc)
        self.noted = pieces.Piece(
            number=pieces.number_of(self.path),
            path=self.path,
            size_bytes=size_bytes,
            spare_bytes=0,
            head_bytes=self._frames.first_bytes,
            crc64=int(crc),
            output=made.stored(0),
            begin=None,
            settled=True,
        )
        self.noted.save()
        return made
