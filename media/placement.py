"""Placement: when each packet of a segment with an arrival index was live.

A segment is read twice. `Placement` collects its tracks and their clocks (track_clock.py); `Places` then gives the live time of
each packet, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from media import arrival_index, flv, packets, rest, track_clock, video_headers

# A pause of at most this long inside a segment is filled: the stream was connected. A longer one is cut.
BRIDGED_MS = 10_000.0
# Lost bytes shorter than a packet or two.
_DAMAGE_MS = 100.0
_NEVER = float("inf")
_STEP_MS = 500.0
# A track without any configuration must not cost a reading of the whole segment: these are some minutes.
_LATEST_HEADER_BYTES, _SCAN_BYTES = 16 << 20, 1 << 16


@dataclass(slots=True, kw_only=True)
class Span:
    """Live time (Unix ms) without a break."""

    from_ms: float
    to_ms: float


@dataclass(slots=True, kw_only=True)
class Track:
    """One track of a segment: its runs, the spans of live time that it covers, and the usual distance of its pictures."""

    runs: list[track_clock.Run]
    frame_ms: float
    spans: list[Span] = field(default_factory=list)

    @property
    def packets(self) -> int:
        """How many packets it has."""
        return sum(run.packets for run in self.runs)


class Placement:
    """The first reading of a segment."""

    def __init__(self, path: Path, kinds: frozenset[int], begin: rest.Begin | None = None) -> None:
        self._clocks = {kind: track_clock.TrackClock() for kind in kinds}
        self._arrivals = _Arrivals(path, begin)
        self.packets = packets.Packets(kinds, _first_headers(path, kinds), begin)
        self.tracks: dict[int, Track] = {}
        # Tracks whose packets an earlier segment has.
        self.repeated: dict[int, Track] = {}
        # What follows the segment begins here, and replaces what this one has behind it.
        self.until_ms = _NEVER

    def add(self, tag: flv.Tag) -> bool:
        """Take the next tag; returns whether it is a packet."""
        if not self.packets.is_packet(tag):
            return False
        damaged = self.packets.take_damage()
        arrived_ms = self._arrivals.of(tag)
        self._clocks[tag.kind].add(tag.timestamp_ms, arrived_ms, self.packets.duration_ms(tag), damaged=damaged)
        return True

    def covers(self, tag: flv.Tag) -> bool:
        """Whether the arrival of the next tag is known already."""
        return self._arrivals.covers(tag)

    @property
    def arrived_ms(self) -> float | None:
        """When the latest packet arrived (Unix ms)."""
        return self._arrivals.latest_ms

    def close(self) -> None:
        """Close the arrival index; safe to call twice."""
        self._arrivals.close()

    def finish(self) -> None:
        """Place the tracks, after the last tag."""
        self.close()
        self._place()

    def placed(self) -> Placement:
        """The tracks placed by the tags so far, as a value of its own: more tags may follow here."""
        found = copy.copy(self)
        found._clocks = {kind: clock.copied() for kind, clock in self._clocks.items()}
        found.tracks, found.repeated = {}, {}
        found._place()
        return found

    def _place(self) -> None:
        for kind, clock in self._clocks.items():
            runs = clock.runs()
            if runs:
                self.tracks[kind] = Track(runs=runs, frame_ms=clock.settled_ms, spans=_spans(runs))
        self._put_in_step()

    def _put_in_step(self) -> None:
        """A track whose packets all come seconds after those of the other one with the same tags is delayed, and not late: by its
        tags it begins and ends with the other one."""
        if len(self.tracks) < 2:
            return
        ends = {kind: (t.spans[0].from_ms, t.spans[-1].to_ms, *self._clocks[kind].tags_ms) for kind, t in self.tracks.items()}
        begin_ms, end_ms, first_tag_ms, last_tag_ms = (a - b for a, b in zip(ends[flv.AUDIO], ends[flv.VIDEO], strict=True))
        constant = abs(begin_ms - end_ms) <= _STEP_MS and abs(begin_ms) > 2 * _STEP_MS
        if constant and abs(first_tag_ms) <= _STEP_MS and abs(last_tag_ms) <= _STEP_MS:
            late = self.tracks[flv.AUDIO if begin_ms > 0 else flv.VIDEO]
            for run in late.runs:
                run.points = [(at_ms, live_ms - abs(begin_ms)) for at_ms, live_ms in run.points]
            late.spans = _spans(late.runs)

    def leave_out_repeats(self, earlier: Placement) -> None:
        """A server may hand each pull its last group of pictures, also while nobody publishes. Then its arrival tells nothing.
        Packets of an earlier segment are left out. If another track goes on, they are put where they were live."""
        again = {kind: track for kind, track in self.tracks.items() if self._repeats(kind, track.runs[0], earlier)}
        begins_ms = min((track.spans[0].from_ms for kind, track in self.tracks.items() if kind not in again), default=None)
        for kind, track in again.items():
            run, was_ms = track.runs[0], earlier._live_ms(kind, self.packets.first[kind][0][0])
            if begins_ms is None:
                run.repeated = True
            elif was_ms is not None and was_ms >= begins_ms - _STEP_MS:  # else it would replace more than is there
                run.points = [(at_ms, live_ms + was_ms - run.points[0][1]) for at_ms, live_ms in run.points]
            track.spans = _spans(track.runs)
            if not track.spans:
                self.repeated[kind] = self.tracks.pop(kind)

    def _repeats(self, kind: int, run: track_clock.Run, earlier: Placement) -> bool:
        """Whether it came in a burst, so that its arrival is no clock, and the earlier segment has it."""
        burst = run.stretches[-1].latest_ms - run.stretches[0].begin_ms < run.stretches[-1].ends_ms / 2
        return burst and self.packets.repeat(earlier.packets, kind, run.packets)

    def _live_ms(self, kind: int, tag_ms: int) -> float | None:
        """When the latest packet with this tag was live."""
        for run in reversed(self.tracks[kind].runs if kind in self.tracks else ()):
            for stretch in reversed(run.stretches):
                at_ms = track_clock.unwrapped(stretch.tag_ms, tag_ms) - stretch.tag_ms
                if not run.repeated and 0 <= at_ms <= stretch.length_ms:
                    return run.live_ms(stretch.at_ms + at_ms)
        return None

    @property
    def begins_ms(self) -> float:
        """When its first media was live; infinite without media."""
        return min((track.spans[0].from_ms for track in self.tracks.values()), default=_NEVER)

    def cut(self, until_ms: float) -> None:
        """End the segment where its successor begins."""
        self.until_ms = until_ms
        for kind in list(self.tracks):
            kept = [
                Span(from_ms=s.from_ms, to_ms=min(s.to_ms, until_ms)) for s in self.tracks[kind].spans if s.from_ms < until_ms
            ]
            if kept:
                self.tracks[kind].spans = kept
            else:
                del self.tracks[kind]


class Places:
    """The second reading: the live time of each packet."""

    def __init__(self, placement: Placement) -> None:
        self._packets = packets.PacketsAgain(placement.packets)
        self.headers = self._packets.headers
        self._tracks = {kind: _TrackPlaces(track) for kind, track in (placement.tracks | placement.repeated).items()}
        self._pictures = _Pictures()
        self._until_ms = placement.until_ms

    def renew(self, placement: Placement) -> None:
        """Continue with a later placement of the same segment, whose tracks agree with the one before as far as this has come. A
        track may have begun meanwhile."""
        self._until_ms = placement.until_ms
        for kind, track in (placement.tracks | placement.repeated).items():
            if kind in self._tracks:
                self._tracks[kind].renew(track)
            else:
                self._tracks[kind] = _TrackPlaces(track)

    def frame_ms(self, kind: int) -> float:
        """The usual distance of the pictures of a track that has begun."""
        return self._tracks[kind].frame_ms

    def place(self, tag: flv.Tag) -> float | None:
        """When the packet was live (Unix ms); None for a tag that is no packet, or that the successor replaces."""
        if not self._packets.is_packet(tag) or tag.kind not in self._tracks:
            return None
        stood = self._pictures.stood(tag, self.headers.get(tag.kind)) if tag.kind == flv.VIDEO else 0
        live_ms = self._tracks[tag.kind].next(tag.timestamp_ms, self._packets.duration_ms(tag), stood)
        return live_ms if live_ms < self._until_ms else None


class _Pictures:
    """Counts pictures whose tags stand. Tags of one time may also be the parts of one picture."""

    def __init__(self) -> None:
        self._tag_ms: int | None = None
        self._payload = b""
        self._begun = False  # the packets of this time hold a slice of the present picture
        self._stood = 0

    def stood(self, tag: flv.Tag, header: bytes | None) -> int:
        """How many pictures before the one of this packet have its tag's time."""
        if tag.timestamp_ms != self._tag_ms:
            self._tag_ms, self._payload, self._begun, self._stood = tag.timestamp_ms, tag.payload, False, 0
            return 0
        self._begun = self._begun or video_headers.holds_slice(self._payload, header)
        if self._begun and not video_headers.continues_picture(tag.payload, header):
            self._begun = False
            self._stood += 1
        self._payload = tag.payload
        return self._stood


class _TrackPlaces:
    def __init__(self, track: Track) -> None:
        self._index = 0
        self.renew(track)
        self._taken = 0
        self._counted_ms = 0.0
        self._tag_ms = self._stretch.tag_ms

    def renew(self, track: Track) -> None:
        self.frame_ms = track.frame_ms
        self._stretches = [(run, stretch) for run in track.runs for stretch in run.stretches]
        self._run, self._stretch = self._stretches[self._index]

    def next(self, tag_ms: int, packet_ms: float | None, stood: int) -> float:
        if self._taken == self._stretch.packets and self._index + 1 < len(self._stretches):
            self._index += 1
            self._run, self._stretch = self._stretches[self._index]
            self._taken, self._counted_ms, self._tag_ms = 0, 0.0, self._stretch.tag_ms
        self._tag_ms = track_clock.unwrapped(self._tag_ms, tag_ms)
        at_ms = float(self._tag_ms - self._stretch.tag_ms)
        if self._stretch.counted and packet_ms is not None:
            at_ms = self._counted_ms
            self._counted_ms += packet_ms
        elif not self._stretch.standing:  # there the arrival has placed it
            at_ms += min(stood * self.frame_ms, track_clock.STOOD_MS)
        self._taken += 1
        return self._run.live_ms(self._stretch.at_ms + at_ms)


class _Arrivals:
    """The arrivals of a segment's tags, asked in file order."""

    def __init__(self, path: Path, begin: rest.Begin | None) -> None:
        self._reader = arrival_index.ArrivalReader(path, *((begin.record, begin.offset) if begin else ()))
        self._read: list[arrival_index.Arrival] = []
        self._at = 0
        self._known: tuple[int, int] | None = None  # the last arrival and its tag's time

    def close(self) -> None:
        self._reader.close()

    @property
    def latest_ms(self) -> float | None:
        return float(self._known[0]) if self._known is not None else None

    def covers(self, tag: flv.Tag) -> bool:
        while not self._read or self._read[-1].offset < tag.offset:
            more = self._reader.read()
            if not more:
                return False
            self._read, self._at = self._read[self._at :] + more, 0  # tags before this one may still be asked for
        return True

    def of(self, tag: flv.Tag) -> float:
        """A tag without a record arrived with the one before, as far as its time tells."""
        while True:
            if self._at == len(self._read):
                self._read, self._at = self._reader.read(), 0
                if not self._read:
                    break
            found = self._read[self._at]
            if found.offset > tag.offset:
                break
            self._at += 1
            if found.offset == tag.offset:
                self._known = found.arrival_ms, tag.timestamp_ms
                return float(found.arrival_ms)
        if self._known is None:
            return float(self._reader.base_ms or 0)
        arrived_ms, tag_ms = self._known
        return arrived_ms + max(0.0, float(track_clock.unwrapped(tag_ms, tag.timestamp_ms) - tag_ms))


def _first_headers(path: Path, kinds: frozenset[int]) -> dict[int, bytes]:
    """The first configuration of each track: some servers send it seconds after the first packets. Raises OSError."""
    found: dict[int, bytes] = {}
    reader = flv.TagReader(path)
    try:
        while len(found) < len(kinds) and reader.position_bytes < _LATEST_HEADER_BYTES and (tags := reader.read(_SCAN_BYTES)):
            for tag in tags:
                if tag.kind in kinds and tag.is_sequence_header:
                    found.setdefault(tag.kind, tag.payload)
    finally:
        reader.close()
    return found


def has_index(path: Path) -> bool:
    """Whether a segment has an arrival index whose header can be read. Raises OSError."""
    try:
        reader = arrival_index.ArrivalReader(path)
    except FileNotFoundError:
        return False
    try:
        return bool(reader.read())
    finally:
        reader.close()


def _spans(runs: Sequence[track_clock.Run]) -> list[Span]:
    """The live time of a track. Short pauses count, unless bytes were lost there."""
    found: list[Span] = []
    pieces = sorted(
        (
            (run.live_ms(s.at_ms), run.live_ms(s.at_ms + s.length_ms), s.damaged)
            for run in runs
            if not run.repeated
            for s in run.stretches
        ),
        key=lambda piece: piece[0],
    )
    for from_ms, to_ms, damaged in pieces:
        missing_ms = from_ms - found[-1].to_ms if found else _NEVER
        if missing_ms <= (_DAMAGE_MS if damaged else BRIDGED_MS):
            found[-1].to_ms = max(found[-1].to_ms, to_ms)
        else:
            found.append(Span(from_ms=from_ms, to_ms=to_ms))
    return found
