"""All segments of a recording as one stream of FLV bytes with an end. May import `media.flv` and `media.timeline`.

Rules: the segment that follows begins where the media of the one before it ended, so gaps are cut; inside a segment
sound and picture keep their distance; tracks that are not wanted are left out; a torn tail is where a segment ends.
Only one chunk is in memory.

A track that is missing for a while is kept alive where the reader asks for it (`Filling`): its nearest packet is
repeated every half second. The encoder hides them under black or silence; without them ffmpeg would not know the track
yet, or would buffer the other one for as long as this one is silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from media import flv, timeline

FILL_EVERY_MS = 500
CHUNK_BYTES = 1 << 20
_FILL_BYTES = 512 << 10
_FILL_MARGIN_MS = 50
_OVERLAP_MS = 300
# So much older than its arrival may a segment's first packet be: servers begin with what they have since the last key frame.
BURST_MS = 3_000
_DRIFT = 1_000  # one in a thousand, which no quartz reaches


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFile:
    """One segment, when its first and last packet came (Unix ms; None: reckon from the file), and how much media it had by that
    last one (None: not known). The file may hold more by now. `registered_ms` is when its capture was about to begin."""

    path: Path
    first_packet_ms: int | None = None
    last_packet_ms: int | None = None
    media_ms: int | None = None
    registered_ms: int | None = None

    @property
    def burst_ms(self) -> int:
        """How much of its media may be older than its first packet's arrival: shown twice is better than lost."""
        if self.first_packet_ms is None or self.last_packet_ms is None or self.media_ms is None:
            return BURST_MS
        return min(max(0, self.media_ms - (self.last_packet_ms - self.first_packet_ms)), BURST_MS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """Keeps the track `kind` alive in `spans_ms` (from, to) of the joined time, before its first packet by `header` and
    `packet`."""

    kind: int
    spans_ms: tuple[tuple[int, int], ...]
    header: bytes | None
    packet: bytes


class Walk:
    """The wanted packets of one segment with their places; configuration comes with the place None."""

    def __init__(self, path: Path, kinds: frozenset[int], limit_ms: int | None = None) -> None:
        """Packets placed at `limit_ms` or later are left out. Raises OSError when the file cannot be opened."""
        self._reader = flv.Reader(path)
        self._kinds = kinds
        self._limit_ms = limit_ms
        self.timeline = timeline.Timeline(kinds)
        self.length_ms = 0
        self.last_tag_ms = 0
        self.last_wanted_ms = 0

    def close(self) -> None:
        """Gives the file back; safe to call twice."""
        self._reader.close()

    def written_ms(self) -> int:
        """The wall time of the last wanted packet by the file's time of last writing, in Unix ms."""
        behind = min(max(0, self.last_tag_ms - self.last_wanted_ms), timeline.JUMP_MS)
        return self._reader.stat().st_mtime_ns // 1_000_000 - behind

    def batch(self) -> list[tuple[flv.Tag, int | None]] | None:
        """The next packets, at most about a megabyte; None when there are no more, for now."""
        tags = self._reader.read()
        if not tags:
            return None
        found: list[tuple[flv.Tag, int | None]] = []
        for tag in tags:
            if tag.kind not in self._kinds:
                self.last_tag_ms = tag.timestamp_ms
            elif tag.is_sequence_header:
                found.append((tag, None))
            else:
                self._add(tag, found)
        return found

    def _add(self, tag: flv.Tag, found: list[tuple[flv.Tag, int | None]]) -> None:
        place = self.timeline.place(tag)
        if place is None or (self._limit_ms is not None and place >= self._limit_ms):
            return
        self.last_tag_ms = self.last_wanted_ms = tag.timestamp_ms
        self.length_ms = max(self.length_ms, self.timeline.track_end_ms(tag.kind))
        found.append((tag, place))


def limits_ms(segments: Sequence[SegmentFile]) -> list[int | None]:
    """Where each segment ends because the next one had begun by then: a superseded capture may have written on beside
    its successor. What is known of its last packet may be older than the file (its worker was frozen, its ffmpeg was not), so the
    file's own times count where they say that it went on for longer than clocks drift apart. What came in a burst at its
    beginning is media that no clock of ours saw pass: it makes the file longer, and is no sign of an overlap."""
    limits: list[int | None] = []
    for segment, follower in zip(segments, [*segments[1:], None], strict=False):
        limit = None
        # Of one that its worker never told of, the beginning is about when it was ordered.
        first, last = segment.first_packet_ms or segment.registered_ms, segment.last_packet_ms
        following = follower.first_packet_ms if follower is not None else None
        if first is not None and following is not None:
            known = last is not None and last > following + _OVERLAP_MS
            limit = max(0, following - first) + segment.burst_ms + (0 if known else tolerance_ms(following - first))
        limits.append(limit)
    return limits


def tolerance_ms(lasted_ms: int) -> int:
    """How far a publisher's clock and ours may be apart after so long, and still say the same."""
    return max(_OVERLAP_MS, lasted_ms // _DRIFT)


class Joiner:
    """Joins segments. `more`, asked with a segment that is read to its end, says whether it may have grown; without it
    none grows."""

    def __init__(
        self,
        segments: Sequence[SegmentFile],
        kinds: frozenset[int],
        *,
        fillings: Sequence[Filling] = (),
        more: Callable[[SegmentFile], Awaitable[bool]] | None = None,
    ) -> None:
        self._segments = tuple(segments)
        self._kinds = kinds
        self._more = more
        self._fillings = {filling.kind: filling for filling in fillings}
        self._due = {filling.kind: _times(filling) for filling in fillings}
        self._next_ms = {kind: next(times, None) for kind, times in self._due.items()}
        self._headers: dict[int, bytes] = {}
        self._latest: dict[int, tuple[bytes | None, bytes]] = {f.kind: (f.header, f.packet) for f in fillings}
        self._written_ms: dict[int, int] = {}
        self._limits = limits_ms(self._segments)
        self.end_ms = 0

    async def stream(self) -> AsyncIterator[bytes]:
        """The joined file, in chunks of at most about a megabyte, read in a thread. Raises OSError when a segment
        cannot be read."""
        yield flv.header(audio=flv.AUDIO in self._kinds, video=flv.VIDEO in self._kinds)
        for segment, limit_ms in zip(self._segments, self._limits, strict=True):
            steps = self._join(segment, limit_ms)
            grown: bool | None = None
            while (chunk := await asyncio.to_thread(_step, steps, grown)) is not None:
                grown = None
                if chunk:
                    yield chunk
                elif self._more is not None:
                    grown = await self._more(segment)
        for rest in _chunks(self._fill_until(self.end_ms)):
            yield rest

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

    def _pieces(self, tag: flv.Tag, place: int | None, start_ms: int) -> Iterator[bytes]:
        if place is None:
            yield from self._header(tag.kind, tag.payload, max(start_ms, self._written_ms.get(tag.kind, 0)))
            return
        joined_ms = start_ms + place
        yield from self._fill_until(joined_ms)
        if tag.kind in self._fillings and (tag.kind == flv.AUDIO or tag.is_key):
            self._latest[tag.kind] = (self._headers.get(tag.kind), tag.payload)
        yield self._packet(tag.kind, joined_ms, tag.payload)

    def _header(self, kind: int, payload: bytes, at_ms: int) -> Iterator[bytes]:
        if self._headers.get(kind) != payload:  # repeated, it would start a second description in the output
            self._headers[kind] = payload
            yield flv.encode(kind, at_ms, payload)

    def _packet(self, kind: int, at_ms: int, payload: bytes) -> bytes:
        written_ms = self._written_ms.get(kind)
        if written_ms is not None and at_ms <= written_ms:
            at_ms = written_ms + 1
        self._written_ms[kind] = at_ms
        return flv.encode(kind, at_ms, payload)

    def _fill_until(self, joined_ms: int) -> Iterator[bytes]:
        for kind, times in self._due.items():
            while (due_ms := self._next_ms[kind]) is not None and due_ms < joined_ms:
                header, payload = self._latest[kind]
                if header is not None:
                    yield from self._header(kind, header, due_ms)
                yield self._packet(kind, due_ms, payload)
                # Large packets come more seldom: what is filled in must not be more than what was captured.
                again_ms = due_ms + FILL_EVERY_MS * (len(payload) // _FILL_BYTES)
                self._next_ms[kind] = next((at_ms for at_ms in times if at_ms >= again_ms), None)


def _chunks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces in chunks of about a megabyte; fillings may be many times what is read between two of them."""
    waiting, size_bytes = list[bytes](), 0
    for piece in pieces:
        waiting.append(piece)
        size_bytes += len(piece)
        if size_bytes >= CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, size_bytes = [], 0
    if waiting:
        yield b"".join(waiting)


def _times(filling: Filling) -> Iterator[int]:
    for from_ms, to_ms in filling.spans_ms:
        yield from_ms
        yield from range(from_ms + FILL_EVERY_MS, to_ms - 2 * _FILL_MARGIN_MS, FILL_EVERY_MS)
        if to_ms - from_ms > 2 * _FILL_MARGIN_MS:
            yield to_ms - _FILL_MARGIN_MS


def _step(steps: Generator[bytes, bool | None, None], answer: bool | None) -> bytes | None:
    try:
        return steps.send(answer)
    except StopIteration:
        return None
