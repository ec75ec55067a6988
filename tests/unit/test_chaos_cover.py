"""Chaos's check that files cover the live time: it finds a cut head, a cut tail and an unreported hole, and accepts allowed
losses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest

from tests.chaos import cover, media

RATE = media.RATE
BEGAN_S, PULLED_S, ENDED_S = 100.0, 101.0, 121.0
"""A stream is pulled from its second 1, and the room ends with its second 21."""


def live(*pulls: tuple[float, float]) -> media.Live:
    """A speaker with these pulls, or one long pull."""
    return media.Live(began_s=BEGAN_S, first_frame=0, pulls=[list(pull) for pull in pulls or [(PULLED_S, math.inf)]])


def file(*spans_s: tuple[float, float], gaps: Sequence[tuple[float, float]] = ()) -> cover.File:
    """A file with these seconds of the stream in sequence, and these reported gaps."""
    frames = [frame for begin_s, end_s in spans_s for frame in range(round(begin_s * RATE), round(end_s * RATE))]
    return cover.File(shown=[media.Picture(frame=frame, at_s=n / RATE) for n, frame in enumerate(frames)], gaps=gaps)


def faults(
    *files: cover.File,
    speaker: media.Live | None = None,
    kills: Sequence[float] = (),
    strikes: Sequence[float] = (),
    take_over_s: float = 10.0,
) -> list[str]:
    """The findings; kills and strikes in seconds of the stream. A first file without a gap at its beginning gets one, as long as
    the second before the first pull."""
    told = list(files)
    if told and told[0].shown and not any(at_s == 0 for at_s, _ in told[0].gaps):
        head_s = min(told[0].shown[0].frame / RATE, PULLED_S - BEGAN_S)
        told[0] = dataclasses.replace(told[0], gaps=[(0.0, head_s), *told[0].gaps])
    events = cover.Events(
        ended_s=ENDED_S,
        kills=[BEGAN_S + each for each in kills],
        strikes=[BEGAN_S + each for each in (*kills, *strikes)],
        take_over_s=take_over_s,
    )
    return cover.judge(told, speaker or live(), events).faults


def test_a_whole_file_has_no_fault() -> None:
    """A file may begin a second before the first pull, as servers send older media, and must reach the end; in one file or in
    two."""
    assert faults(file((0.2, 21.1))) == []
    assert faults(file((1, 21))) == []
    assert faults(file((0.2, 9)), file((9, 21.1))) == []


@pytest.mark.parametrize("strikes", [[], [2.0]])
def test_a_cut_head_or_tail_is_found_whatever_struck(strikes: list[float]) -> None:
    """Pulled media must be in the file: a dropped first segment is no takeover, nor is one that was never closed."""
    assert faults(file((5, 21)), strikes=strikes) == ["4.0 s are missing before the first picture"]
    assert faults(file((1, 16)), strikes=strikes) == ["5.1 s are missing after the last picture"]
    assert faults(file((5, 5)), strikes=strikes) == ["21.1 s are missing before the first picture"]
    assert faults(strikes=strikes) == ["21.1 s are missing before the first picture"]


def test_a_capture_that_never_resumes_is_found() -> None:
    """A strike explains a pause of pulls as long as a takeover, and no longer."""
    speaker = live((PULLED_S, BEGAN_S + 6))
    assert faults(file((1, 6)), speaker=speaker, strikes=[6.0], take_over_s=15.5) == []
    found = faults(file((1, 6)), speaker=speaker, strikes=[6.0])
    assert found == ["5.1 s are missing after the last picture", "5.0 s nobody pulled, and nothing had happened"]
    assert "15.0 s nobody pulled, and nothing had happened" in faults(file((1, 6)), speaker=speaker)


def test_the_time_before_the_first_picture_must_be_told() -> None:
    """From the first frame that was published, whether it was pulled or not, but for the second that a kill may cost."""
    short, long = (
        live((PULLED_S, PULLED_S + 0.8), (BEGAN_S + 5, math.inf)),
        live((PULLED_S, PULLED_S + 4), (BEGAN_S + 7, math.inf)),
    )
    assert faults(file((5, 21), gaps=[(0.0, 5.0)]), speaker=short, kills=[1.8]) == []
    assert faults(file((7, 21), gaps=[(0.0, 2.0)]), speaker=long, kills=[5.0]) == ["4.0 s are missing before the first picture"]
    assert faults(file((5, 21), gaps=[(0.0, 5.0)]), speaker=short) == ["3.2 s nobody pulled, and nothing had happened"]


def test_a_hole_must_be_told_just_there_and_as_long_as_it_is() -> None:
    """A reported gap counts where pictures are missing; no gap, a gap elsewhere and a shorter one do not, and a strike does not
    replace one."""
    speaker = live((PULLED_S, BEGAN_S + 6), (BEGAN_S + 12, math.inf))
    holed = ((1.0, 6.0), (12.0, 21.0))
    assert faults(file(*holed, gaps=[(5.0, 6.0)]), speaker=speaker, strikes=[6.0]) == []
    assert faults(file(*holed), speaker=speaker, strikes=[6.0]) == ["6.0 s are missing in between and not reported"]
    assert faults(file(*holed, gaps=[(5.0, 4.0)]), speaker=speaker, strikes=[6.0]) == [
        "2.0 s are missing in between and not reported"
    ]
    elsewhere = faults(file(*holed, gaps=[(9.0, 6.0)]), speaker=speaker, strikes=[6.0])
    assert elsewhere == ["6.0 s are missing in between and not reported", "5.9 s are reported as missing and are there"]
    assert faults(file((1, 6)), file((12, 21)), speaker=speaker, strikes=[6.0]) == [
        "6.0 s are missing in between and not reported"
    ]


def test_gaps_at_the_edges_and_two_at_one_place_are_believed() -> None:
    """Unreachable media is reported before the first picture, or after the last one; gaps of one place follow each other."""
    assert faults(file((5, 21), gaps=[(0.0, 5.0)])) == []
    assert faults(file((1, 16), gaps=[(15.0, 5.0)])) == []
    assert faults(file((1, 6), (12, 21), gaps=[(5.0, 4.0), (5.0, 2.0)])) == []


def test_a_gap_that_is_none_is_found() -> None:
    """A gap is wrong where pictures continue, or at a time in which nothing was live."""
    assert faults(file((1, 21), gaps=[(5.0, 3.0)])) == ["3.0 s are reported as missing and are there"]
    assert faults(file((1, 21), gaps=[(20.0, 9.0)])) == ["8.9 s are reported as missing and are there"]
    assert faults(file((1, 21), gaps=[(0.0, 9.0)])) == ["8.0 s are reported as missing and are there"]


def test_what_is_shown_twice_is_found() -> None:
    """Repeated pictures beyond those of a seam are found."""
    assert faults(file((1, 9), (8, 21))) == []
    assert faults(file((1, 9), (5, 21))) == ["4.0 s are shown twice"]


def test_frames_are_counted_on_over_the_loop() -> None:
    """A stream longer than the loop of its numbers is counted on, over a gap of most of a loop and back over a seam."""
    speaker = media.Live(began_s=BEGAN_S, first_frame=945, pulls=[[BEGAN_S, math.inf]])
    numbers = [945, 959, 0, 800, 790, 944, 945, 946]
    counted = media.sent([media.Picture(frame=number, at_s=0.0) for number in numbers], speaker)
    assert [picture.frame for picture in counted] == [0, 14, 15, 815, 805, 959, 960, 961]
