"""Agreement of two placements of one segment: whether the second one leaves the packets up to a point where the first had them.
Pure.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from media import flv, joiner, layout

# The clock has a point every few seconds, but none in a pause. One behind a pause moves nothing before it by a whole millisecond.
_PAUSE_MS, _MOVED_MS = 10_000.0, 0.5


def whole(one: joiner.Placed, other: joiner.Placed) -> bool:
    """Whether they have the same places throughout."""
    return one.file.points == other.file.points and one.file.end_ms == other.file.end_ms


def until_position(one: joiner.Placed, other: joiner.Placed, at_ms: float, *, nearly: bool = False) -> bool:
    """Whether they have the same places up to this position of the file; `nearly`: to half a millisecond, before a pause."""
    return until(one, other, _live_at(one.file.points, at_ms), nearly=nearly)


def until(one: joiner.Placed, other: joiner.Placed, live_ms: float, *, nearly: bool = False) -> bool:
    """Whether they have the same places for all that was live until then (Unix ms)."""
    if _known(one.file.points, live_ms) != _known(other.file.points, live_ms):
        return False
    kinds = one.live.tracks.keys() | other.live.tracks.keys()
    return all(_track(one, kind, live_ms, nearly) == _track(other, kind, live_ms, nearly) for kind in kinds)


def _live_at(points: Sequence[tuple[float, float]], at_ms: float) -> float:
    """A live time that is not before any that has this position."""
    after = bisect.bisect_right(points, at_ms, key=lambda point: point[1])
    if not 0 < after < len(points):
        return points[min(after, len(points) - 1)][0]
    (from_ms, from_at_ms), (to_ms, to_at_ms) = points[after - 1], points[after]
    return from_ms + (at_ms - from_at_ms) * max(1.0, (to_ms - from_ms) / (to_at_ms - from_at_ms))


def _known(points: Sequence[tuple[float, float]], live_ms: float) -> list[object]:
    """The points that decide the positions until a live time. The end of an even piece decides nothing."""
    after = bisect.bisect_right(points, live_ms, key=lambda point: point[0])
    found: list[object] = [*points[:after]]
    if 0 < after < len(points):
        found.append("even" if layout.is_even(points[after - 1], points[after]) else points[after])
    return found


def _track(placed: joiner.Placed, kind: int, live_ms: float, nearly: bool) -> object:
    """What decides the places of a track's packets until a live time."""
    track = placed.live.tracks.get(kind)
    if track is None or track.spans[0].from_ms > live_ms:
        return None
    found: list[object] = [track.frame_ms if kind == flv.VIDEO else None]
    for run in track.runs:
        if not run.repeated and run.points[0][1] <= live_ms:
            cut = bisect.bisect_right(run.points, live_ms, key=lambda point: point[1]) + 1
            begun = [stretch for stretch in run.stretches if run.live_ms(stretch.at_ms) <= live_ms]
            points = run.points[:cut]
            found.append(_clock(points, run.stretches[len(begun) - 1].ends_ms if begun else 0.0) if nearly else points)
            found += [(each.first, each.tag_ms, each.at_ms, each.counted, each.standing) for each in begun]
    return found


def _clock(points: Sequence[tuple[float, float]], end_ms: float) -> Sequence[object]:
    """The points that decide, the last of which may be behind a pause; before it the track ends at `end_ms`."""
    if len(points) < 2 or points[-1][0] - points[-2][0] < _PAUSE_MS or end_ms > points[-1][0]:
        return points
    (from_ms, live_ms), (to_ms, to_live_ms) = points[-2:]
    moved_ms = (end_ms - from_ms) * ((to_live_ms - live_ms) / (to_ms - from_ms) - 1)
    return points[:-1] if abs(moved_ms) < _MOVED_MS else points
