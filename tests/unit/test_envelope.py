"""The envelope of delays: anchors of a growing segment, for packets that are late, in bursts, paused or skipped."""

from __future__ import annotations

import itertools
import random

import pytest

from machine import alignment
from media import envelope

BEGAN_MS = 1_790_000_000_000


def _live(anchors: alignment.Anchors, at_ms: int) -> int:
    """The time between the anchors around a position."""
    before = [point for point in anchors.points if point[0] <= at_ms] or [anchors.points[0]]
    after = [point for point in anchors.points if point[0] >= at_ms] or [anchors.points[-1]]
    (a_ms, a_time), (b_ms, b_time) = before[-1], after[0]
    return a_time + (0 if a_ms == b_ms else round((at_ms - a_ms) * (b_time - a_time) / (b_ms - a_ms)))


@pytest.mark.parametrize("burst_ms", [0, 700, 2_900])
@pytest.mark.parametrize("jitter_ms", [0, 40, 400])
def test_the_earliest_packets_decide(burst_ms: int, jitter_ms: int) -> None:
    """Late packets and a burst of older media at the beginning move no anchor by more than the least jitter of a minute."""
    chance = random.Random(f"{burst_ms} {jitter_ms}")
    found = envelope.Envelope()
    for second in range(1, 3_601):
        at_ms = second * 1_000 - chance.randrange(40)
        late_ms = chance.randrange(jitter_ms + 1) + (burst_ms if second == 1 else 0)
        found.add(at_ms, BEGAN_MS + at_ms + late_ms)
    points = found.anchors.points
    assert max(abs(time_ms - BEGAN_MS - at_ms) for at_ms, time_ms in points) <= max(2, jitter_ms // 8)
    assert max(b - a for (a, _), (b, _) in itertools.pairwise(points)) <= 670_000
    assert 7 <= len(points) <= 9


@pytest.mark.parametrize("drift", [-800, 300, 800])
def test_a_publisher_whose_clock_drifts_stays_in_place(drift: int) -> None:
    """Over two hours a clock that is off by up to 0.8 in a thousand is followed."""
    found = envelope.Envelope()
    for second in range(1, 7_200):
        found.add(second * 1_000, BEGAN_MS + second * 1_000 + second * drift // 1_000)
    for at_ms in range(1_000, 7_000_000, 250_000):
        assert _live(found.anchors, at_ms) == pytest.approx(BEGAN_MS + at_ms + at_ms * drift // 1_000_000, abs=100)


@pytest.mark.parametrize("pause_ms", [900, 8_000])
def test_a_pause_over_which_timestamps_stand_begins_a_run(pause_ms: int) -> None:
    """Media continues where it was after a pause of wall time: the anchors around it are that far apart."""
    found = envelope.Envelope()
    for second in range(1, 61):
        found.add(second * 1_000, BEGAN_MS + second * 1_000 + (pause_ms if second > 30 else 0))
    points = found.anchors.points
    steps = [(at_ms, later - time_ms - (until - at_ms)) for (at_ms, time_ms), (until, later) in itertools.pairwise(points)]
    assert [step for step in steps if abs(step[1]) > 100] == [(30_000, pause_ms)]


@pytest.mark.parametrize("late_ms", [600, 850, 2_500])
def test_a_packet_that_is_late_before_a_pause_hides_no_part_of_it(late_ms: int) -> None:
    """ffmpeg writes the last packet before a pause late: the run behind the pause begins with its own delay all the same."""
    found = envelope.Envelope()
    for second in range(1, 15):
        late = {10: late_ms}.get(second, 7_000 if second > 10 else 0)
        found.add(second * 1_000, BEGAN_MS + second * 1_000 + late)
    assert {time_ms - at_ms - BEGAN_MS for at_ms, time_ms in found.anchors.points} == {0, 7_000}


def test_a_stall_that_is_made_up_for_is_no_pause() -> None:
    """Packets that arrive three seconds late and then in time again leave the anchors alone."""
    found = envelope.Envelope()
    for second in range(1, 61):
        found.add(second * 1_000, BEGAN_MS + second * 1_000 + (3_000 if second in (30, 31) else 0))
    assert {time_ms - at_ms for at_ms, time_ms in found.anchors.points} == {BEGAN_MS}


@pytest.mark.parametrize("late_s", [4, 9, 40])
def test_a_machine_that_is_late_for_long_is_no_pause(late_s: int) -> None:
    """Packets that are 0.8 s late for some seconds, in the middle or at the end, leave the anchors alone."""
    found = envelope.Envelope()
    for second in range(1, 91):
        found.add(second * 1_000, BEGAN_MS + second * 1_000 + (800 if 30 <= second < 30 + late_s or second > 88 else 0))
    assert {time_ms - at_ms for at_ms, time_ms in found.anchors.points} == {BEGAN_MS}


def test_a_wild_stream_costs_bounded_memory() -> None:
    """A stream whose delay jumps with every packet leaves a bounded number of anchors."""
    chance = random.Random(5)
    found = envelope.Envelope()
    for second in range(20_000):
        found.add(second * 10_000, BEGAN_MS + chance.randrange(10**9))
    assert len(found.anchors.points) < 2_000
