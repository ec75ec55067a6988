"""The survey: tracks, lengths, holes and gaps of all segments of a recording, collected in one pass before the transcode.

Rules: it reads the segments exactly as the joiner does, so its lengths, holes and gaps are those of the joined stream. Its memory
is bounded for any input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from machine import alignment
from media import (
    codecs,
    filling,
    flv,
    formats,
    joiner,
    layout,
    live_times,
    placed_pass,
    placement,
    presence,
    silence,
    sound,
    timeline,
    video_headers,
)

_HOLE_MS = {flv.AUDIO: 1_000, flv.VIDEO: 3_000}
_STALE_MS = 1_000
# Media that the capture noted and the file lacks: less is the rounding of packets.
_LOST_MS = 100
# Arrivals of so many packets give their envelope this exactly.
_MANY_PACKETS, _INDEXED_ERROR_MS = 50, 40
# Far more than a publisher's pauses; an untrusted stream may pause with every packet.
_MOST_HOLES = 20_000
_BEYOND_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Missing media: cut at `at_s` seconds of the finished file, `duration_s` seconds of wall time."""

    at_s: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """A part of the joined time in which one track has no packets while another continues; `leading`: at the beginning of its
    segment."""

    kind: int
    from_ms: int
    to_ms: int
    leading: bool


@dataclass(kw_only=True)
class Survey(formats.Formats):
    """The joined stream. `kinds`: the wanted tracks that have packets. `anchors`, `live` and `error_ms`: when the media was live,
    as in live_times.LiveTimes. `placed`: the segments with an arrival index. `lost_ms`: media that the captures noted and the
    files no longer have, in `lost_segments` segments. `unindexed`: some segment is joined without an arrival index."""

    duration_ms: int = 0
    kinds: frozenset[int] = frozenset()
    begins_ms: dict[int, int] = field(default_factory=dict)
    ends_ms: dict[int, int] = field(default_factory=dict)
    holes: list[Hole] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    anchors: list[alignment.Anchor] = field(default_factory=list)
    live: list[tuple[int, int]] = field(default_factory=list)
    error_ms: int = 0
    unreadable: dict[int, str] = field(default_factory=dict)
    lost_ms: int = 0
    lost_segments: int = 0
    start_ms: int | None = None
    end_ms: int | None = None
    placed: list[joiner.Placed | None] = field(default_factory=list)
    unindexed: bool = False

    def agrees(self, kind: int) -> bool:
        """Whether a track can be copied: one configuration, a codec that MP4 players support, and no holes where it is needed."""
        filled = kind == flv.AUDIO and self.silences is not None
        holes = [hole for hole in self.holes if hole.kind == kind and not filled and (hole.leading or kind == flv.AUDIO)]
        return self.is_uniform(kind) and not holes

    def filled_end_ms(self, kind: int) -> int:
        """The end of a track after its holes are filled."""
        return max([self.ends_ms[kind], *(hole.to_ms for hole in self.holes if hole.kind == kind)])

    def lose(self, lost_ms: int) -> None:
        """Count a segment that lost media."""
        self.lost_ms += lost_ms
        self.lost_segments += 1

    def note_holes(self, kind: int, file: layout.SegmentLayout, spans: Sequence[placement.Span]) -> None:
        """Note where a track of a placed segment has media, and its holes."""
        at_ms, leading = file.begin_ms, True
        for span in spans:
            from_ms = file.at(span.from_ms)
            self._note_hole(kind, at_ms, from_ms, leading=leading)
            self.begins_ms.setdefault(kind, round(from_ms))
            at_ms, leading = file.at(span.to_ms), False
            self.ends_ms[kind] = round(at_ms)
        self._note_hole(kind, at_ms, file.end_ms, leading=leading)

    def _note_hole(self, kind: int, from_ms: float, to_ms: float, *, leading: bool) -> None:
        if to_ms - from_ms > _HOLE_MS[kind] and len(self.holes) < _MOST_HOLES:
            self.holes.append(Hole(kind=kind, from_ms=round(from_ms), to_ms=round(to_ms), leading=leading))

    @property
    def silences(self) -> silence.SilenceFiller | None:
        """What fills the audio sample by sample; None where only an encoder can."""
        headers = self.headers.get(flv.AUDIO, ())
        if not headers or self.changes(flv.AUDIO) or self.unindexed:
            return None
        if not all(sound.silent_packet(header) for header in headers):
            return None
        holes = [(float(hole.from_ms), float(hole.to_ms)) for hole in self.holes if hole.kind == flv.AUDIO]
        return silence.SilenceFiller(holes, self.first[flv.AUDIO][0])

    def add_gap(self, at_ms: int, missing_ms: int) -> None:
        """Note missing media. Gaps at one position are one."""
        if missing_ms <= 0:  # a seam, or a clock set back, is no gap unless media is known to be missing
            return
        gap = Gap(at_s=at_ms / 1000, duration_s=missing_ms / 1000)
        if self.gaps and self.gaps[-1].at_s == gap.at_s:
            gap = Gap(at_s=gap.at_s, duration_s=(round(self.gaps.pop().duration_s * 1000) + missing_ms) / 1000)
        self.gaps.append(gap)

    def hidden_ms(self, kind: int) -> list[list[tuple[int, int]]]:
        """For each codec of a track, when it is not to be heard or seen: in holes, or while the track has another codec. A camera
        that pauses inside a segment keeps its last picture, as in a copied file."""
        if not self.changes(kind):
            holes = [hole for hole in self.holes if hole.kind == kind and (hole.leading or kind == flv.AUDIO)]
            return [[(hole.from_ms, hole.to_ms) for hole in holes]]
        bridge_ms = _HOLE_MS[kind] if kind == flv.VIDEO else 0
        every = self.presence.of(kind)
        hidden = [self.presence.hidden_ms(kind, codec.name, self.duration_ms, bridge_ms) for codec in every]
        # The last packets of filling are hidden to their end.
        return [[(a, b + _BEYOND_MS if b == self.duration_ms else b) for a, b in spans] for spans in hidden]

    def _absent_ms(self, kind: int, codec: presence.Codec) -> list[tuple[int, int]]:
        return self.presence.absent_ms(kind, codec.name, self.duration_ms, _HOLE_MS[kind] if kind == flv.VIDEO else 0)

    def aspects(self, index: int) -> list[tuple[int, float]]:
        """From when on the pixels of the picture's codec with this number have which ratio of width to height; empty if the ratio
        never changes."""
        return self.presence.of(flv.VIDEO)[index].aspects if self.reshapes else []

    def fillings(self, kind: int) -> list[filling.Filling]:
        """How the joiner keeps each codec of a track alive while it has no packets; video only where its next packet is a key
        frame.

        Video that begins a little later than audio is shown from the start, so that no file opens with a black frame.
        """
        codecs_of = self.presence.of(kind) if self.changes(kind) else []
        spans = [] if codecs_of else self.hidden_ms(kind)[0]
        made = [(codec.name, self._absent_ms(kind, codec), codec.header, codec.packet) for codec in codecs_of] or [
            (next(iter(self.codecs[kind])), spans, *self.first[kind])
        ]
        begins_ms = self.begins_ms[kind]
        if kind == flv.VIDEO and begins_ms > 0 and not any(from_ms == 0 for from_ms, _ in made[0][1]):
            made[0][1].insert(0, (0, begins_ms))
        return [
            filling.Filling(kind=kind, codec=codec, spans_ms=tuple(spans), header=header, packet=packet)
            for codec, spans, header, packet in made
        ]


def survey(segments: Sequence[joiner.SegmentFile], mode: str) -> Survey:
    """Read all segments (blocking: some seconds per hour of video). A missing file is empty, and lost if its capture noted media.
    Raises OSError if one cannot be read."""
    found, kinds = Survey(), timeline.wanted(mode)
    passes = [placed_pass.read(found, segment.path, kinds, segment.begin) for segment in segments]
    return assembled(found, segments, kinds, passes)


def assembled(
    found: Survey,
    segments: Sequence[joiner.SegmentFile],
    kinds: frozenset[int],
    passes: Sequence[placed_pass.PlacedPass | None],
) -> Survey:
    """Complete a survey that has the formats of `passes`, the first readings of the segments with an arrival index."""
    _leave_out_repeats(passes)
    _cut(segments, passes)
    last_ms: int | None = None
    # Media of segments that have none left. Between two others the time between these tells of it.
    vanished_ms = 0
    for segment, limit_ms, placed in zip(segments, joiner.limits_ms(segments), passes, strict=True):
        found.placed.append(None)
        if placed is not None:
            found.unreadable |= placed.placement.packets.unreadable
            if placed.placement.tracks:
                last_ms = _lay_out(found, placed, segment, last_ms, vanished_ms)
                vanished_ms = 0
                continue
            if placed.placement.repeated:
                at_ms = float(found.duration_ms)
                empty = layout.SegmentLayout(points=[(float(last_ms or 0), at_ms)], begin_ms=at_ms, end_ms=at_ms)
                found.placed[-1] = joiner.Placed(live=placed.placement, file=empty)
                continue
            found.unindexed |= placed.superseded  # one without packets is joined as nothing
            if not placed.superseded:
                vanished_ms += _vanished(found, segment)
            continue
        try:
            walk = joiner.Walk(segment.path, kinds, limit_ms)
        except FileNotFoundError:
            vanished_ms += _vanished(found, segment)
            continue
        found.unindexed = True
        try:
            last_ms = _Pass(found, walk, segment, last_ms, vanished_ms).run()
            found.unreadable |= walk.timeline.unreadable
            if walk.length_ms:
                vanished_ms = 0
            elif not walk.superseded:
                vanished_ms += _vanished(found, segment)
        finally:
            walk.close()
    found.add_gap(found.duration_ms, vanished_ms)
    found.kinds = frozenset(found.ends_ms)
    found.holes = [hole for hole in found.holes if hole.kind in found.kinds]
    if flv.AUDIO in found.kinds and found.silences is not None:
        found.ends_ms[flv.AUDIO] = found.duration_ms
    if any(found.changes(kind) for kind in found.kinds) or found.reshapes:
        for chunk in joiner.Joiner(segments, found.kinds, placed=found.placed).chunks():
            found.presence.read(flv.tags(chunk))
    found.end_ms = last_ms
    return found


def _leave_out_repeats(passes: Sequence[placed_pass.PlacedPass | None]) -> None:
    """Compare each segment with the one before that has media of its own."""
    earlier: placement.Placement | None = None
    for each in passes:
        if earlier is not None and each is not None:
            each.placement.leave_out_repeats(earlier)
        if each is None or each.placement.tracks:
            earlier = each.placement if each is not None else None


def _cut(segments: Sequence[joiner.SegmentFile], passes: Sequence[placed_pass.PlacedPass | None]) -> None:
    """End each segment with an arrival index where one behind it begins."""
    begins_ms = float("inf")
    for each, segment in zip(reversed(passes), reversed(segments), strict=True):
        if each is not None:
            own_ms = each.placement.begins_ms
            each.placement.cut(begins_ms)
            begins_ms = min(begins_ms, own_ms)
        elif segment.first_packet_ms is not None:
            begins_ms = min(begins_ms, float(segment.first_packet_ms))


def _lay_out(
    found: Survey, placed: placed_pass.PlacedPass, segment: joiner.SegmentFile, last_ms: int | None, vanished_ms: int
) -> int:
    """Append a segment with an arrival index to the file; returns when its last media was live."""
    tracks = placed.placement.tracks
    made = layout.Layout(at_ms=float(found.duration_ms), last_live_ms=last_ms)
    file = made.add(layout.sounds_of(tracks.get(flv.AUDIO)), layout.union(tracks.values()))
    found.placed[-1] = joiner.Placed(live=placed.placement, file=file)
    if last_ms is None:
        found.add_gap(found.duration_ms, vanished_ms)
        found.start_ms = round(made.first_live_ms or 0)
    for at_ms, missing_ms in made.gaps:
        found.add_gap(at_ms, missing_ms)
    found.anchors += made.anchors
    found.live += made.live
    exact = all(track.packets >= _MANY_PACKETS for track in tracks.values())
    found.error_ms = max(found.error_ms, _INDEXED_ERROR_MS if exact else live_times.SAMPLED_ERROR_MS)
    for kind in (flv.AUDIO, flv.VIDEO):
        found.note_holes(kind, file, tracks[kind].spans if kind in tracks else ())
    found.duration_ms = round(file.end_ms)
    damage_ms = sum(jump.missing_ms for jump in placed.line.jumps if jump.damaged)
    at_end_ms = _lost_at_end_ms(placed.line, segment)
    found.add_gap(found.duration_ms, at_end_ms)
    if damage_ms or at_end_ms:
        found.lose(damage_ms + at_end_ms)
    return round(made.last_live_ms or 0) + at_end_ms


def _lost_at_end_ms(line: timeline.Timeline, segment: joiner.SegmentFile) -> int:
    """Media that the capture noted behind the end of the file."""
    lost_ms = (segment.media_ms or 0) - line.end_ms - sum(jump.missing_ms for jump in line.jumps if jump.damaged)
    return lost_ms if lost_ms > _LOST_MS else 0


def _vanished(found: Survey, segment: joiner.SegmentFile) -> int:
    """Count a segment without any media; returns the media that its capture noted."""
    lost_ms = segment.media_ms or 0
    if lost_ms:
        found.lose(lost_ms)
    return lost_ms


class _Pass:
    """One segment's contribution to the survey."""

    def __init__(
        self,
        found: Survey,
        walk: joiner.Walk,
        segment: joiner.SegmentFile,
        previous_last_ms: int | None,
        vanished_ms: int,
    ) -> None:
        self._found = found
        self._walk = walk
        self._segment = segment
        self._previous_last_ms = previous_last_ms
        self._vanished_ms = vanished_ms
        self._start_ms = found.duration_ms
        self._track_ends_ms: dict[int, int] = {}
        self._header: dict[tuple[int, str], bytes] = {}
        self._frame_ms: int | None = None

    def run(self) -> int | None:
        """Add the segment; returns the wall time of the last packet so far."""
        while (batch := self._walk.batch()) is not None:
            for tag, place in batch:
                if place is None:
                    self._header[tag.kind, codecs.identity(tag.kind, tag.payload)] = tag.payload
                else:
                    self._packet(tag, place)
        if not self._walk.length_ms:
            return self._previous_last_ms
        for kind in (flv.AUDIO, flv.VIDEO):
            self._hole(kind, self._walk.length_ms)
        for kind, end_ms in self._track_ends_ms.items():
            self._found.ends_ms[kind] = self._start_ms + end_ms
        self._found.duration_ms += self._walk.length_ms
        last_ms = self._times()
        self._lose()
        return last_ms

    def _packet(self, tag: flv.Tag, place: int) -> None:
        found, kind = self._found, tag.kind
        self._hole(kind, place)
        self._track_ends_ms[kind] = place + self._walk.timeline.packet_ms(kind)
        key = kind, codecs.identity(kind, tag.payload)
        if key not in self._header and tag.is_key and (inband := video_headers.inband_header(tag.payload, None)) is not None:
            self._header[key] = inband
        found.note_packet(tag, self._header.get(key))
        found.begins_ms.setdefault(kind, self._start_ms + place)
        if kind == flv.VIDEO:
            if self._frame_ms is not None:
                found.note_frame(place - self._frame_ms)
            self._frame_ms = place

    def _hole(self, kind: int, until_ms: int) -> None:
        from_ms = self._track_ends_ms.get(kind, 0)
        if until_ms - from_ms > _HOLE_MS[kind] and len(self._found.holes) < _MOST_HOLES:
            leading = kind not in self._track_ends_ms
            hole = Hole(kind=kind, from_ms=self._start_ms + from_ms, to_ms=self._start_ms + until_ms, leading=leading)
            self._found.holes.append(hole)

    def _times(self) -> int:
        """Wall times of the segment, and from them the gap before it and the gaps inside it."""
        found, segment, walk = self._found, self._segment, self._walk
        last_ms = segment.last_packet_ms or walk.written_ms() - segment.ahead_ms
        first_ms = segment.first_packet_ms or last_ms - walk.timeline.position_ms
        reached_ms = first_ms + walk.length_ms - segment.burst_ms
        if reached_ms > last_ms + _STALE_MS + joiner.tolerance_ms(walk.length_ms):
            # Its worker was frozen and could not report progress while ffmpeg kept writing.
            last_ms = reached_ms
        if found.start_ms is None:
            found.start_ms = first_ms
        if segment.anchors.points:
            times = live_times.sampled(walk.timeline, walk.length_ms, segment.anchors)
            first_ms, last_ms = times.live[0][0], times.live[-1][1] + _lost_at_end_ms(self._walk.timeline, self._segment)
        else:
            timed = None not in (segment.first_packet_ms, segment.last_packet_ms)
            noted_last_ms = last_ms - _lost_at_end_ms(self._walk.timeline, self._segment)
            times = live_times.estimated(
                walk.timeline, walk.length_ms, first_ms, noted_last_ms, timed=timed, burst_ms=joiner.BURST_MS
            )
        if self._previous_last_ms is not None:
            found.add_gap(self._start_ms, first_ms - self._previous_last_ms)
        else:
            found.add_gap(self._start_ms, self._vanished_ms)
        for at_ms, missing_ms in times.gaps:
            found.add_gap(self._start_ms + at_ms, missing_ms)
        found.anchors += [(self._start_ms + at_ms, time_ms) for at_ms, time_ms in sorted(times.anchors.items())]
        found.live += times.live
        found.error_ms = max(found.error_ms, times.error_ms)
        return last_ms

    def _lose(self) -> None:
        """Compare the file with the media that its capture noted: bytes were damaged inside, or cut off at the end."""
        damage = [jump.missing_ms for jump in self._walk.timeline.jumps if jump.damaged]
        at_end_ms = _lost_at_end_ms(self._walk.timeline, self._segment)
        self._found.add_gap(self._start_ms + self._walk.length_ms, at_end_ms)
        if damage or at_end_ms:
            self._found.lose(sum(damage) + at_end_ms)
