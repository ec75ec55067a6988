"""The bounds of a survey: a speaker who comes and goes thousands of times leaves a result of bounded size and exact totals."""

from __future__ import annotations

import bisect
import random

import pytest

from machine import alignment, coverage, model, published
from media import bounds, survey

BEGAN_MS = 1_790_000_000_000
Spans = list[tuple[int, int]]


def _flapping(seed: int, count: int) -> Spans:
    """Media that was live in this many spans, with pauses of 0.3 s to a minute between them."""
    chance, at_ms, live = random.Random(seed), BEGAN_MS, []
    for _ in range(count):
        until_ms = at_ms + chance.randint(100, 8_000)
        live.append((at_ms, until_ms))
        at_ms = until_ms + chance.choice([300, chance.randint(300, 3_000), 60_000])
    return live


def _survey(live: Spans) -> survey.Survey:
    """What a survey finds in media of these spans: a gap between two, and an anchor at both ends of each."""
    found = survey.Survey(live=list(live), error_ms=100)
    for index, (from_ms, to_ms) in enumerate(live):
        if index:
            found.add_gap(found.duration_ms, from_ms - live[index - 1][1])
        length_ms = to_ms - from_ms
        found.anchors += [(found.duration_ms, from_ms), (found.duration_ms + length_ms - 1, to_ms - 1)]
        found.duration_ms += length_ms
    return found


def _time_ms(anchors: list[alignment.Anchor], at_ms: int) -> float:
    """The time of a position, evenly between its neighbours."""
    index = min(max(1, bisect.bisect_right([at for at, _ in anchors], at_ms)), len(anchors) - 1)
    (a_ms, a_time), (b_ms, b_time) = anchors[index - 1 : index + 1]
    return a_time + (b_time - a_time) * (at_ms - a_ms) / (b_ms - a_ms)


@pytest.mark.parametrize(("seed", "count"), [(1, 1_100), (2, 5_000), (3, 20_000)])
def test_totals_stay_exact(seed: int, count: int) -> None:
    """Media, missing time and both ends are as before, in fewer pieces; Missing of a speaker who published throughout, too."""
    live = _flapping(seed, count)
    media_ms, gaps_s = published.total_ms(live), sum(gap.duration_s for gap in _survey(live).gaps)
    found = bounds.bounded(_survey(live))
    assert bounds.MOST_SPANS // 2 <= len(found.live) <= bounds.MOST_SPANS
    assert bounds.MOST_GAPS // 2 <= len(found.gaps) <= bounds.MOST_GAPS
    assert len(found.anchors) <= bounds.MOST_ANCHORS
    assert published.total_ms(found.live) == media_ms
    assert (found.live[0][0], found.live[-1][1]) == (live[0][0], live[-1][1])
    assert all(a < b <= c for (a, b), (c, _) in zip(found.live, found.live[1:], strict=False))
    assert sum(gap.duration_s for gap in found.gaps) == pytest.approx(gaps_s)
    told = published.UNKNOWN.switched_on(live[0][0], live[0][0]).stopped(live[-1][1])
    output = model.Output(duration_ms=media_ms, size_bytes=1, live=tuple(found.live))
    recording = model.Recording(task_id="T" * 26, speaker="al", n=1, published=told, output=output)
    assert coverage.of(recording).missing_ms == live[-1][1] - live[0][0] - media_ms


@pytest.mark.parametrize(("seed", "count"), [(4, 1_200), (5, 9_000)])
def test_the_error_bounds_what_fewer_anchors_tell(seed: int, count: int) -> None:
    """Each time of media by the anchors that are left is within ErrorMs of the time by all of them."""
    live = _flapping(seed, count)
    whole, found = _survey(live), bounds.bounded(_survey(live))
    off_ms = [abs(_time_ms(found.anchors, at_ms) - time_ms) for at_ms, time_ms in whole.anchors]
    assert max(off_ms) <= found.error_ms - whole.error_ms + 5
    assert found.error_ms > whole.error_ms


def test_within_the_bounds_nothing_changes() -> None:
    """But for pauses that are too short to count, which are none."""
    live = _flapping(6, bounds.MOST_SPANS)
    whole, found = _survey(live), bounds.bounded(_survey(live))
    assert (found.live, found.gaps, found.anchors, found.error_ms) == (live, whole.gaps, whole.anchors, whole.error_ms)
    assert bounds.spans([(0, 1_000), (1_250, 2_000), (1_900, 1_950), (2_251, 3_000)]) == [(0, 2_000), (2_251, 3_000)]
