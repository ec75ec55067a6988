"""Layout: which position of the finished file shows which live time. Pure.

Rules:
- The file shows live time without its gaps. A gap is time in which no track has media.
- Audio keeps its samples: where there is audio, the file runs as long as the audio sounds, and pictures follow it. So a clock
  that drifts moves nothing out of step, and the anchors tell the drift.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from machine import alignment
from media import placement

# Shorter pauses between two segments are a seam: a frame or two.
SEAM_MS = 60.0
ANCHOR_EVERY_MS = 600_000.0
_LEAST_STEP_MS = 1.0
_EVEN_MS = 0.01
# A run of audio: from, to, and its (live time, media time) pairs.
Sounding = tuple[float, float, Sequence[tuple[float, float]]]


@dataclass(slots=True, kw_only=True)
class SegmentLayout:
    """The (live time, position) pairs of one segment, in the order of both, and its first and last position."""

    points: list[tuple[float, float]] = field(default_factory=list)
    begin_ms: float = 0.0
    end_ms: float = 0.0

    def at(self, live_ms: float) -> float:
        """The position that shows a live time; in a gap, the place where it was cut."""
        points = self.points
        after = bisect.bisect_right(points, (live_ms, float("inf")))
        if after == 0:
            return points[0][1]
        if after == len(points):
            return points[-1][1]
        (from_ms, at_ms), (to_ms, to_at_ms) = points[after - 1], points[after]
        if to_at_ms == at_ms or to_ms - from_ms < _LEAST_STEP_MS:
            return at_ms
        if is_even(points[after - 1], points[after]):  # and the end of the piece, which may be still to come, decides nothing
            return at_ms + live_ms - from_ms
        return at_ms + (live_ms - from_ms) * (to_at_ms - at_ms) / (to_ms - from_ms)


def is_even(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether the file runs as fast as the live time between two points."""
    return abs(other[0] - one[0] - other[1] + one[1]) < _EVEN_MS


class Layout:
    """Builds the file segment by segment. `gaps`: (position, ms missing); `anchors` and `live` as in live_times.LiveTimes."""

    def __init__(self, at_ms: float = 0.0, last_live_ms: float | None = None) -> None:
        self.at_ms = at_ms
        self.last_live_ms = last_live_ms
        self.first_live_ms: float | None = None
        self.gaps: list[tuple[int, int]] = []
        self.anchors: list[alignment.Anchor] = []
        self.live: list[tuple[int, int]] = []

    def add(self, sounds: Sequence[Sounding], spans: Iterable[placement.Span]) -> SegmentLayout:
        """Append the spans of one segment, in their order, whose audio has these runs, in the order of their beginnings."""
        made = SegmentLayout(begin_ms=self.at_ms)
        # A hostile stream has 100,000 of both: each span looks only at the runs that reach into it.
        heard: list[Sounding] = []
        following = 0
        for span in spans:
            while following < len(sounds) and sounds[following][0] < span.to_ms:
                heard.append(sounds[following])
                following += 1
            heard = [sounding for sounding in heard if sounding[1] > span.from_ms]
            self._skip_to(span.from_ms)
            self._span(made, heard, span)
        made.end_ms = self.at_ms
        return made

    def _skip_to(self, live_ms: float) -> None:
        if self.first_live_ms is None:
            self.first_live_ms = live_ms
        if self.last_live_ms is not None and (missing_ms := live_ms - self.last_live_ms) > SEAM_MS:
            self.gaps.append((round(self.at_ms), round(missing_ms)))

    def _span(self, made: SegmentLayout, sounds: Sequence[Sounding], span: placement.Span) -> None:
        anchored_ms = self.at_ms
        self._point(made, span.from_ms, self.at_ms)
        self.anchors.append((round(self.at_ms), round(span.from_ms)))
        now_ms = span.from_ms
        for from_ms, to_ms, points in sounds:
            if to_ms <= now_ms or from_ms >= span.to_ms:
                continue
            begin_ms = max(from_ms, now_ms)
            self.at_ms += begin_ms - now_ms
            begin_media_ms, begin_at_ms = _media_at(points, begin_ms), self.at_ms
            self._point(made, begin_ms, self.at_ms)
            until_ms = min(to_ms, span.to_ms)
            for live_ms, media_ms in points[bisect.bisect_right(points, (begin_ms, float("inf"))) : _before(points, until_ms)]:
                at_ms = begin_at_ms + media_ms - begin_media_ms
                self._point(made, live_ms, at_ms)
                if at_ms - anchored_ms >= ANCHOR_EVERY_MS:
                    anchored_ms = at_ms
                    self.anchors.append((round(at_ms), round(live_ms)))
            self.at_ms = begin_at_ms + max(0.0, _media_at(points, until_ms) - begin_media_ms)
            self._point(made, until_ms, self.at_ms)
            now_ms = until_ms
        self.at_ms += max(0.0, span.to_ms - now_ms)
        self._point(made, span.to_ms, self.at_ms)
        self.anchors.append((round(self.at_ms), round(span.to_ms)))
        self.live.append((round(span.from_ms), round(span.to_ms)))
        self.last_live_ms = span.to_ms

    def _point(self, made: SegmentLayout, live_ms: float, at_ms: float) -> None:
        if not made.points or live_ms > made.points[-1][0] or at_ms > made.points[-1][1]:
            made.points.append((max(live_ms, made.points[-1][0]) if made.points else live_ms, at_ms))


def sounds_of(track: placement.Track | None) -> list[Sounding]:
    """The runs of an audio track for `Layout.add`."""
    found = []
    for run in track.runs if track is not None else ():
        if run.repeated:
            continue
        ends = {0.0, run.stretches[0].at_ms, max(stretch.ends_ms for stretch in run.stretches)}
        media = sorted(ends | {at_ms for at_ms, _ in run.points})
        points = [(run.live_ms(at_ms), at_ms) for at_ms in media]
        found.append((points[0][0], points[-1][0], points))
    return sorted(found, key=lambda each: each[0])


def union(tracks: Iterable[placement.Track]) -> list[placement.Span]:
    """The live time in which any track has media."""
    found: list[placement.Span] = []
    for span in sorted((span for track in tracks for span in track.spans), key=lambda each: each.from_ms):
        if found and span.from_ms <= found[-1].to_ms + SEAM_MS:
            found[-1].to_ms = max(found[-1].to_ms, span.to_ms)
        else:
            found.append(placement.Span(from_ms=span.from_ms, to_ms=span.to_ms))
    return found


def _before(points: Sequence[tuple[float, float]], live_ms: float) -> int:
    """How many of the points are live before this time."""
    return bisect.bisect_left(points, (live_ms, float("-inf")))


def _media_at(points: Sequence[tuple[float, float]], live_ms: float) -> float:
    after = bisect.bisect_right(points, (live_ms, float("inf")))
    if after == 0 or len(points) == 1:
        return points[0][1] + live_ms - points[0][0]
    if after == len(points):
        return points[-1][1] + live_ms - points[-1][0]
    (from_ms, media_ms), (to_ms, to_media_ms) = points[after - 1], points[after]
    return media_ms + (live_ms - from_ms) * (to_media_ms - media_ms) / max(to_ms - from_ms, _LEAST_STEP_MS)
