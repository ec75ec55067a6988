"""Bounds of what a survey tells about a file, so that no stream makes a result large.

Rules:
- The total is exact: the media in all spans, and the missing time in all gaps. Only places become less exact.
- What says least goes first: the shortest pauses, the gaps closest to another one, the anchors closest to the line between
  their neighbours.
- Within the bounds nothing changes, except that pauses too short to count are no pauses.
"""

from __future__ import annotations

from collections.abc import Sequence

from machine import alignment, coverage, published
from media import survey

# A speaker of a long session who pauses every minute and a half stays within it. Each span has an anchor at both ends.
MOST_SPANS = MOST_GAPS = 1_000
MOST_ANCHORS = 2 * MOST_SPANS
_FIRST_MS = 50


def bounded(found: survey.Survey) -> survey.Survey:
    """The same survey within the bounds."""
    found.live, found.gaps = spans(found.live), gaps(found.gaps)
    found.anchors, off_ms = anchors(found.anchors)
    found.error_ms += off_ms
    return found


def spans(live: Sequence[published.Span]) -> list[published.Span]:
    """Spans of media in their order. Of too many, a span follows the one before it at once, and the pause between them comes
    later: no pause counts as media."""
    found: list[published.Span] = []
    for from_ms, to_ms in sorted(live):
        if found and from_ms - found[-1][1] <= coverage.INSIDE_MS:
            found[-1] = (found[-1][0], max(found[-1][1], to_ms))
        else:
            found.append((from_ms, to_ms))
    near_ms = coverage.INSIDE_MS
    while len(found) > MOST_SPANS:
        near_ms *= 2
        # The first and the last span keep the times at which the file begins and ends.
        kept, last = found[:1], found[-1]
        for from_ms, to_ms in found[1:-1]:
            began_ms, ended_ms = kept[-1]
            if from_ms - ended_ms <= near_ms:
                kept[-1] = (began_ms, ended_ms + to_ms - from_ms)
            else:
                kept.append((from_ms, to_ms))
        found = [*kept, last]
    return found


def gaps(told: Sequence[survey.Gap]) -> list[survey.Gap]:
    """Gaps by position. Too many become fewer and longer; those at the first and the last position stay."""
    found, near_ms = list(told), _FIRST_MS
    while len(found) > MOST_GAPS:
        near_ms *= 2
        # A gap that has just grown takes no other one in the same round, so that all grow alike.
        kept, grown = found[:2], False
        for gap in found[2:-1]:
            before = kept[-1]
            grown = not grown and (gap.at_s - before.at_s) * 1000 <= near_ms
            if grown:
                kept[-1] = survey.Gap(at_s=before.at_s, duration_s=round(before.duration_s + gap.duration_s, 3))
            else:
                kept.append(gap)
        found = [*kept, found[-1]]
    return found


def anchors(told: Sequence[alignment.Anchor]) -> tuple[list[alignment.Anchor], int]:
    """Anchors by position, and by how much the times between them are off because of those that were left out."""
    found, off_ms, near_ms = list(told), 0, _FIRST_MS
    while len(found) > MOST_ANCHORS:
        near_ms *= 2
        kept, most_ms, last = found[:1], 0, 0
        for index in range(1, len(found) - 1):
            far_ms = _far_ms(kept[-1], found[index], found[index + 1])
            # No two neighbours in one round: the line is then between points that stay.
            if far_ms <= near_ms and last != index - 1:
                most_ms, last = max(most_ms, far_ms), index
            else:
                kept.append(found[index])
        found, off_ms = [*kept, found[-1]], off_ms + most_ms
    return found, off_ms


def _far_ms(before: alignment.Anchor, point: alignment.Anchor, after: alignment.Anchor) -> int:
    """How far the time of an anchor is from the line between its neighbours."""
    (a_ms, a_time_ms), (at_ms, time_ms), (b_ms, b_time_ms) = before, point, after
    if a_ms == b_ms:
        return 0
    return abs(time_ms - a_time_ms - (b_time_ms - a_time_ms) * (at_ms - a_ms) // (b_ms - a_ms))
