"""The joiner: all segments of a recording as one finite stream of FLV bytes.

Rules: a segment begins where the media of the previous one ended, so gaps are cut. Inside a segment audio and video keep their
distance. Unwanted tracks are dropped. A segment ends at its last whole tag. Only one chunk is in memory.

A missing track is kept alive where the reader asks for it (filling.py): its nearest packet is repeated every half second. The
encoder hides these packets under black or silence. Without them ffmpeg would not know the track yet, or would buffer the other
track for as long as this one is silent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import alignment
from media import codecs, file_threads, filling, flv, layout, placement, rest, silence, sound, timeline, video_headers

CHUNK_BYTES = 1 << 20
_OVERLAP_MS = 300
# A packet this much behind the one before is one that was sent again, and no jitter of its tag.
_REPEATED_MS = 100
# The tags of one picture are no farther apart. A picture before a pause is not held until the camera is back.
_HELD_MS = 1_000
_LEARN, _LEAST_SPACING, _MOST_SPACED_MS = 0.1, 0.98, 80
# A segment's first packet may be this much older than its arrival: servers begin with the media since the last key frame.
BURST_MS = 3_000
_DRIFT = 1_000  # one in a thousand, more than any quartz drifts


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFile:
    """One segment with the arrival of its first and last packet (Unix ms; None: estimate from the file) and its media up to that
    last packet (None: unknown). The file may hold more by now. `registered_ms` is when its capture was about to start, `anchors`
    say when its media was live, `ahead_ms` how far the clock of the file's times is ahead. `begin`: what precedes it is in
    another file already."""

    path: Path
    first_packet_ms: int | None = None
    last_packet_ms: int | None = None
    media_ms: int | None = None
    registered_ms: int | None = None
    anchors: alignment.Anchors = alignment.NO_ANCHORS
    ahead_ms: int = 0
    begin: rest.Begin | None = None

    @property
    def burst_ms(self) -> int:
        """How much media may be older than the arrival of the first packet: repeated media is better than lost media."""
        if self.first_packet_ms is None or self.last_packet_ms is None or self.media_ms is None:
            return BURST_MS
        return min(max(0, self.media_ms - (self.last_packet_ms - self.first_packet_ms)), BURST_MS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A segment with an arrival index, after the survey: when its packets were live, and where the file shows that."""

    live: placement.Placement
    file: layout.SegmentLayout


class Walk:
    """The wanted packets of one segment with their positions; a configuration has the position None."""

    def __init__(self, path: Path, kinds: frozenset[int], limit_ms: int | None = None) -> None:
        """Packets at `limit_ms` or later are dropped. Raises OSError if the file cannot be opened."""
        self._reader = flv.TagReader(path)
        self._kinds = kinds
        self._limit_ms = limit_ms
        self._codec = ""
        self.timeline = timeline.Timeline(kinds)
        self.length_ms = 0
        self.superseded = False  # packets were dropped at the limit
        self.last_tag_ms = 0
        self.last_wanted_ms = 0

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._reader.close()

    def written_ms(self) -> int:
        """The wall time of the last wanted packet, derived from the file's modification time, in Unix ms."""
        behind = min(max(0, self.last_tag_ms - self.last_wanted_ms), timeline.JUMP_MS)
        return self._reader.stat().st_mtime_ns // 1_000_000 - behind

    def batch(self) -> list[tuple[flv.Tag, int | None]] | None:
        """The next packets, about a megabyte at most; None if there are no more yet."""
        tags = self._reader.read()
        if not tags:
            return None
        found: list[tuple[flv.Tag, int | None]] = []
        for tag in tags:
            if tag.after_damage:
                self.timeline.note_damage()
            if tag.kind not in self._kinds:
                self.last_tag_ms = tag.timestamp_ms
            elif tag.is_sequence_header:
                found.append((tag, None))
            else:
                self._add(tag, found)
        return found

    def _add(self, tag: flv.Tag, found: list[tuple[flv.Tag, int | None]]) -> None:
        codec = codecs.identity(tag.kind, tag.payload) if tag.kind == flv.VIDEO and tag.payload else self._codec
        if codec != self._codec and not tag.is_key:  # another codec shows nothing before its first key frame
            return
        place = self.timeline.place(tag)
        if place is None:
            return
        self._codec = codec
        if self._limit_ms is not None and place >= self._limit_ms:
            self.superseded = True
            return
        self.last_tag_ms = self.last_wanted_ms = tag.timestamp_ms
        self.length_ms = max(self.length_ms, self.timeline.track_end_ms(tag.kind))
        found.append((tag, place))


def limits_ms(segments: Sequence[SegmentFile]) -> list[int | None]:
    """The end of each segment that overlaps its successor: a superseded capture may have kept writing. The recorded time of the
    last packet may be older than the file (the worker was frozen, ffmpeg was not). So the file's own times count if they show
    that the capture continued for longer than clocks drift apart. A burst at the beginning of a segment is older media: it makes
    the file longer, and does not indicate an overlap."""
    limits: list[int | None] = []
    for segment, follower in zip(segments, [*segments[1:], None], strict=False):
        limit = None
        # If the worker never reported the segment, its beginning is about the time of the order.
        first, last = segment.first_packet_ms or segment.registered_ms, segment.last_packet_ms
        following = follower.first_packet_ms if follower is not None else None
        if first is not None and following is not None:
            known = last is not None and last > following + _OVERLAP_MS
            limit = max(0, following - first) + segment.burst_ms + (0 if known else tolerance_ms(following - first))
        limits.append(limit)
    return limits


def tolerance_ms(lasted_ms: int) -> int:
    """The tolerated difference between a publisher's clock and ours after this time."""
    return max(_OVERLAP_MS, lasted_ms // _DRIFT)


class Joiner:
    """Joins segments. `more` is called with a segment read to its end and returns whether it may have grown; without it none
    grows."""

    def __init__(
        self,
        segments: Sequence[SegmentFile],
        kinds: frozenset[int],
        *,
        fillings: Sequence[filling.Filling] = (),
        placed: Sequence[Placed | None] = (),
        silences: silence.SilenceFiller | None = None,
        more: Callable[[SegmentFile], Awaitable[bool]] | None = None,
    ) -> None:
        self._segments = tuple(segments)
        self._kinds = kinds
        self._more = more
        self._headers: dict[filling.Key, bytes] = {}
        self._pending: dict[filling.Key, bytes] = {}
        self._written_ms: dict[filling.Key, int] = {}
        self._filled: set[filling.Key] = set()
        self._due = filling.Schedule(fillings)
        self._limits = limits_ms(self._segments)
        self._placed = tuple(placed) or (None,) * len(self._segments)
        self._silences = silences
        self._held: tuple[filling.Key, int, float, bytes] | None = None  # a picture: its track, tag, place and payload
        self._picture_ms = 0
        self._spacing_ms: float | None = None
        self.end_ms = 0
        self.latest: tuple[float, float] | None = None  # the latest packet: its position, and when it was live

    def fill(self, fillings: Sequence[filling.Filling]) -> None:
        """Keep these tracks alive from here on, and no others."""
        self._due = filling.Schedule(fillings, self._written_ms)

    def packet(self, kind: int, at_ms: int, header: bytes, payload: bytes) -> Iterator[bytes]:
        """The bytes of a packet of its own."""
        key = kind, codecs.identity(kind, payload)
        yield from self._header(key, header, at_ms)
        yield self._packet(key, at_ms, payload)

    async def stream(self) -> AsyncIterator[bytes]:
        """The joined file in chunks of about a megabyte at most, read in a thread. Raises OSError if a segment cannot be read."""
        yield flv.header(audio=flv.AUDIO in self._kinds, video=flv.VIDEO in self._kinds)
        for segment, limit_ms, placed in zip(self._segments, self._limits, self._placed, strict=True):
            steps = self._join(segment, limit_ms) if placed is None else self._join_placed(segment, placed)
            grown: bool | None = None
            while (chunk := await file_threads.BULK.run(_step, steps, grown)) is not None:
                grown = None
                if chunk:
                    yield chunk
                elif self._more is not None:
                    grown = await self._more(segment)
        for chunk in _chunks(self.rest()):
            yield chunk

    def rest(self) -> Iterator[bytes]:
        """The bytes behind the last segment."""
        yield from self._fill_until(self.end_ms)
        if self._silences is not None:
            yield from self._sounds(self._silences.rest(self.end_ms))

    def chunks(self) -> Iterator[bytes]:
        """The same bytes without the header of the file, read in this thread (blocking)."""
        for segment, limit_ms, placed in zip(self._segments, self._limits, self._placed, strict=True):
            steps = self._join(segment, limit_ms) if placed is None else self._join_placed(segment, placed)
            yield from (chunk for chunk in steps if chunk)

    def _join(self, segment: SegmentFile, limit_ms: int | None) -> Generator[bytes, bool | None, None]:
        """The segment's bytes; an empty piece asks whether the file has grown."""
        try:
            walk = Walk(segment.path, self._kinds, limit_ms)
        except FileNotFoundError:
            return
        start_ms = self.end_ms
        try:
            while True:
                batch = walk.batch()
                if batch is None:
                    if not (yield b""):
                        return
                else:
                    self.end_ms = start_ms + walk.length_ms
                    yield from _chunks(piece for tag, place in batch for piece in self._pieces(tag, place, start_ms))
        finally:
            walk.close()

    def _join_placed(self, segment: SegmentFile, placed: Placed) -> Generator[bytes, bool | None, None]:
        """Like `_join`, with the positions that the survey found."""
        try:
            reader = rest.tags(segment.path, segment.begin)
        except FileNotFoundError:
            return
        places = self.enter(placed)
        try:
            while True:
                tags = reader.read()
                if not tags:
                    if not (yield b""):
                        break
                    continue
                yield from _chunks(piece for tag in tags for piece in self.placed_pieces(tag, places, placed.file))
        finally:
            reader.close()
        yield from _chunks(self.leave(placed))

    def enter(self, placed: Placed) -> placement.Places:
        """Begin a segment with an arrival index; returns the places of its packets."""
        self._spacing_ms = None
        return placement.Places(placed.live)

    def leave(self, placed: Placed) -> Iterator[bytes]:
        """End the segment."""
        yield from self._release()
        self.end_ms = round(placed.file.end_ms)

    def placed_pieces(self, tag: flv.Tag, places: placement.Places, file: layout.SegmentLayout) -> Iterator[bytes]:
        """The bytes that the next tag of the segment adds."""
        live_ms = places.place(tag)
        if tag.kind not in self._kinds:
            return
        if live_ms is None:
            return
        at_ms, payload = file.at(live_ms), tag.payload
        self.latest = at_ms, live_ms
        key = tag.kind, codecs.identity(tag.kind, payload)
        header = places.headers.get(tag.kind)
        if header is not None and codecs.identity(tag.kind, header) != key[1]:
            header = None
        if header is not None and header != self._headers.get(key):
            yield from self._release()
        if tag.kind == flv.VIDEO:
            payload = video_headers.without_empty_units(payload, places.headers.get(tag.kind))
        if self._held is not None and at_ms - self._held[2] > _HELD_MS:
            yield from self._release()
        self.end_ms = max(self.end_ms, round(at_ms))
        yield from self._fill_until(round(at_ms))
        yield from self._header(key, header, round(at_ms))  # filling may have brought another one
        if tag.kind == flv.AUDIO or tag.is_key:
            self._due.repeat(key, self._headers.get(key), payload)
        if tag.kind == flv.VIDEO:
            if self._spacing_ms is None:  # not earlier: the track of a segment that grows may begin late
                self._spacing_ms = min(places.frame_ms(tag.kind), _MOST_SPACED_MS)
            yield from self._picture(key, tag.timestamp_ms, at_ms, payload)
        elif self._silences is not None:
            yield from self._sounds(self._silences.place(self._headers.get(key), payload, at_ms))
        else:
            yield self._packet(key, round(at_ms), payload)

    def _picture(self, key: filling.Key, tag_ms: int, at_ms: float, payload: bytes) -> Iterator[bytes]:
        """A picture, once the next one begins: some publishers send its NAL units in several tags of one time."""
        if self._held is not None and self._held[:2] == (key, tag_ms):
            whole = video_headers.merged(self._held[3], payload, self._headers.get(key))
            if whole is not None:
                self._held = (key, tag_ms, self._held[2], whole)
                return
        yield from self._release()
        if self._written_ms.get(key, 0) - at_ms <= _REPEATED_MS:
            self._held = (key, tag_ms, at_ms, payload)

    def _release(self) -> Iterator[bytes]:
        if self._held is None:
            return
        (key, _, at_ms, payload), self._held = self._held, None
        if self._silences is not None:
            yield from self._sounds(self._silences.until(at_ms))
        yield self._packet(key, self._spaced(key, round(at_ms)), self._after_filling(key, payload))

    def _spaced(self, key: filling.Key, at_ms: int) -> int:
        """The place of a picture, no closer to the one before than pictures usually are: their tags jitter."""
        assert self._spacing_ms is not None  # noqa: S101 - set with the first picture
        distance_ms = at_ms - self._picture_ms
        self._picture_ms = at_ms
        if abs(distance_ms) <= _MOST_SPACED_MS:  # also a step back: jitter takes from one distance what it gives to another
            self._spacing_ms += _LEARN * (distance_ms - self._spacing_ms)
        if key not in self._written_ms or key in self._filled:
            return at_ms
        least_ms = self._written_ms[key] + round(_LEAST_SPACING * self._spacing_ms)
        return least_ms if 0 < least_ms - at_ms <= _MOST_SPACED_MS else at_ms

    def _sounds(self, packets: Iterable[tuple[float, bytes]]) -> Iterator[bytes]:
        """Packets of sound and silence, after their configuration."""
        for at_ms, payload in packets:
            key = flv.AUDIO, codecs.identity(flv.AUDIO, payload)
            if self._silences is not None and self._silences.header is not None and key not in self._headers:
                yield from self._header(key, self._silences.header, round(at_ms))
            yield self._packet(key, round(at_ms), payload)

    def _pieces(self, tag: flv.Tag, place: int | None, start_ms: int) -> Iterator[bytes]:
        key = tag.kind, codecs.identity(tag.kind, tag.payload)
        if place is None:
            self._pending[key] = tag.payload  # without a packet it would announce a stream that never comes
            return
        joined_ms = start_ms + place
        yield from self._fill_until(joined_ms)
        header = self._pending.get(key)
        if header is None and tag.is_key:  # ffmpeg reads no H.264 without one
            header = video_headers.inband_header(tag.payload, None)
        yield from self._header(key, header, joined_ms)
        if tag.kind == flv.AUDIO or tag.is_key:
            self._due.repeat(key, self._headers.get(key), tag.payload)
        yield self._packet(key, joined_ms, self._after_filling(key, tag.payload))

    def _header(self, key: filling.Key, header: bytes | None, at_ms: int) -> Iterator[bytes]:
        known = self._headers.get(key)
        if header is None or header == known:  # a repeated one would start a second sample description in the output
            return
        self._headers[key] = header
        if known is None or key[0] == flv.VIDEO or not sound.same_sound(known, header):
            yield flv.encode(key[0], max(at_ms, self._written_ms.get(key, 0)), header)

    def _packet(self, key: filling.Key, at_ms: int, payload: bytes) -> bytes:
        written_ms = self._written_ms.get(key)
        if written_ms is not None and at_ms <= written_ms:
            at_ms = written_ms + 1
        self._written_ms[key] = at_ms
        return flv.encode(key[0], at_ms, payload)

    def _after_filling(self, key: filling.Key, payload: bytes) -> bytes:
        """The first packet after filling: to the decoder, which has seen the repeats, it may be one more of them."""
        if key not in self._filled:
            return payload
        self._filled.remove(key)
        return video_headers.restarting(payload, self._headers.get(key)) if key[0] == flv.VIDEO else payload

    def _fill_until(self, joined_ms: int) -> Iterator[bytes]:
        for key, due_ms, header, payload in self._due.until(joined_ms):
            yield from self._header(key, header, due_ms)
            yield self._packet(key, due_ms, video_headers.restarting(payload, header))
            self._filled.add(key)


def _chunks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces in chunks of about a megabyte; filling between two reads may be many times larger."""
    waiting, size_bytes = list[bytes](), 0
    for piece in pieces:
        waiting.append(piece)
        size_bytes += len(piece)
        if size_bytes >= CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, size_bytes = [], 0
    if waiting:
        yield b"".join(waiting)


def _step(steps: Generator[bytes, bool | None, None], answer: bool | None) -> bytes | None:
    try:
        return steps.send(answer)
    except StopIteration:
        return None
