"""When the media of one segment was live: anchors, gaps inside the segment, and spans of live time.

Rules:
- The samples of the capture (envelope.py) decide, if it took any. Where more time passed between two of them than media, the
  difference is a gap: at a cut of the timestamps if there is one, else at the earlier sample.
- Otherwise the arrivals of the first and the last packet decide: a jump of the publisher's clock is a gap as far as time is
  missing.
- Positions are those of the file as it is now. Damage moves what follows it forward.
- Media has an anchor where it begins and where it ends at a gap: between two anchors time runs evenly.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from machine import alignment
from media import timeline

# Less than this is the jitter of arrivals.
GAP_MS = 300
UNTOLD_MS = 500
_DRIFT = 1_000  # one in a thousand, more than any quartz drifts
# A poll reads a file that ffmpeg has just written: the delay of both, and the granularity of modification times.
SAMPLED_ERROR_MS = 100
# Only the first packet is timed, and ffmpeg analyses for up to a second before it writes it.
ESTIMATED_ERROR_MS = 1_000


@dataclass(kw_only=True)
class LiveTimes:
    """`anchors`: position → time; `gaps`: (position, ms missing); `live`: spans (from, to) of the media between the gaps."""

    anchors: dict[int, int] = field(default_factory=dict)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    live: list[tuple[int, int]] = field(default_factory=list)
    error_ms: int = 0


def sampled(line: timeline.Timeline, length_ms: int, noted: alignment.Anchors) -> LiveTimes:
    """By the capture's samples, of which there is one at least."""
    damage = [jump for jump in line.jumps if jump.damaged]
    cuts = [jump.at_ms for jump in line.jumps if not jump.damaged]
    present = [(_present(at_ms, damage), time_ms) for at_ms, time_ms in noted.points]
    whole = [point for point, (at_ms, _) in zip(present, noted.points, strict=True) if not _is_damaged(at_ms, damage)]
    points = [point for point in whole if point[0] <= length_ms] or present[:1]
    found = LiveTimes(anchors={at_ms: time_ms for at_ms, time_ms in points if at_ms < length_ms})
    walk = _Walk(found, points[0])
    unexplained_ms = 0
    for (at_ms, time_ms), (next_ms, next_time_ms) in itertools.pairwise(points):
        walk.anchor(at_ms, time_ms)
        between = [jump for jump in damage if at_ms < jump.at_ms <= next_ms]
        missing_ms = next_time_ms - time_ms - (next_ms - at_ms) - sum(jump.missing_ms for jump in between)
        breaks = [(jump.at_ms, jump.missing_ms) for jump in between]
        if missing_ms > max(GAP_MS, (next_ms - at_ms) // _DRIFT):
            breaks.append((next((cut for cut in cuts if at_ms <= cut <= next_ms), at_ms), missing_ms))
        else:
            unexplained_ms = max(unexplained_ms, abs(missing_ms))
        walk.break_at(sorted(breaks))
    walk.anchor(*points[-1])
    walk.break_at([(jump.at_ms, jump.missing_ms) for jump in damage if jump.at_ms > points[-1][0]])
    walk.end(length_ms)
    found.error_ms = SAMPLED_ERROR_MS + unexplained_ms
    return found


def estimated(line: timeline.Timeline, length_ms: int, first_ms: int, last_ms: int, *, timed: bool, burst_ms: int) -> LiveTimes:
    """By the arrivals of the first and the last packet. `timed`: the capture noted both; `burst_ms`: how much of the media may be
    older than the first arrival."""
    missing_ms = last_ms - first_ms - length_ms
    breaks: list[tuple[int, int]] = []
    for jump in line.jumps:
        believed = not timed or jump.missing_ms <= max(0, missing_ms) + burst_ms
        told_ms = jump.missing_ms if believed else max(0, missing_ms)
        missing_ms -= told_ms
        breaks.append((jump.at_ms, told_ms))
    if timed and missing_ms > max(UNTOLD_MS, length_ms // _DRIFT):
        # The timestamps stood, or started over. Where, only a cut of them tells.
        at_ms = next((jump.at_ms for jump in line.jumps if not jump.missing_ms), length_ms)
        breaks = sorted([*breaks, (at_ms, missing_ms)])
    told_ms = sum(each_ms for _, each_ms in breaks)
    begin_ms = min(first_ms, last_ms - line.position_ms - told_ms) if timed else first_ms
    found = LiveTimes(error_ms=ESTIMATED_ERROR_MS)
    walk = _Walk(found, (0, begin_ms))
    walk.break_at(breaks)
    walk.end(length_ms)
    return found


class _Walk:
    """Walks along a segment and closes a span of live time at each gap."""

    def __init__(self, found: LiveTimes, first: alignment.Anchor) -> None:
        self._found = found
        self._at_ms, self._time_ms = first
        self._from_at_ms, self._from_ms = 0, self._time_ms - self._at_ms

    def anchor(self, at_ms: int, time_ms: int) -> None:
        self._at_ms, self._time_ms = at_ms, time_ms

    def break_at(self, breaks: Sequence[tuple[int, int]]) -> None:
        """Close a span at each break, and begin one behind it."""
        for at_ms, missing_ms in breaks:
            if missing_ms <= 0:
                continue
            self.end(at_ms)
            self._found.gaps.append((at_ms, missing_ms))
            self._at_ms, self._time_ms = at_ms, self._time_ms + at_ms - self._at_ms + missing_ms
            self._from_at_ms, self._from_ms = at_ms, self._time_ms

    def end(self, at_ms: int) -> None:
        """Close the span before this position, and anchor both its ends."""
        until_ms = self._time_ms + at_ms - self._at_ms
        if until_ms <= self._from_ms:
            return
        self._found.live.append((self._from_ms, until_ms))
        anchors, from_ms = self._found.anchors, self._from_at_ms
        # A sample just before a gap has the position of its packet: what follows lies behind the gap.
        from_ms += anchors.get(from_ms, self._from_ms) != self._from_ms
        if from_ms < at_ms:
            anchors.setdefault(from_ms, self._from_ms + from_ms - self._from_at_ms)
            # The position of the end itself is that of the media behind.
            anchors.setdefault(at_ms - 1, until_ms - 1)


def _is_damaged(noted_ms: int, damage: Sequence[timeline.Jump]) -> bool:
    """Whether the media at a noted position can no longer be read."""
    at_ms = noted_ms
    for jump in damage:
        if jump.at_ms < at_ms < jump.at_ms + jump.missing_ms:
            return True
        at_ms = at_ms - jump.missing_ms if at_ms > jump.at_ms else at_ms
    return False


def _present(noted_ms: int, damage: Sequence[timeline.Jump]) -> int:
    """A noted position in the file as it is now."""
    at_ms = noted_ms
    for jump in damage:
        if at_ms > jump.at_ms:
            at_ms = max(jump.at_ms, at_ms - jump.missing_ms)
    return at_ms
