"""Media that captures noted and files no longer have: told as gaps at their place, and counted."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

import pytest

from machine import alignment
from media import envelope, flv, joiner, survey, timeline
from tests import flv_source

BEGAN_MS = 1_790_000_000_000
PAGE = 4096


def _segment(folder: Path, n: int, seconds: int, *, from_s: int = 0) -> joiner.SegmentFile:
    """A whole segment of sound, as its capture noted it."""
    tags = [flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER)]
    tags += [flv_source.sound(ms, bytes((ms // 20 % 255 + 1,)) * 120) for ms in range(0, seconds * 1000, 20)]
    first_ms = BEGAN_MS + from_s * 1000
    return joiner.SegmentFile(
        path=flv_source.write(folder / f"{n}.flv", tags),
        first_packet_ms=first_ms,
        last_packet_ms=first_ms + seconds * 1000 - 20,
        media_ms=seconds * 1000,
    )


def _gaps(found: survey.Survey) -> list[tuple[float, float]]:
    return [(gap.at_s, gap.duration_s) for gap in found.gaps]


@pytest.mark.parametrize("page", [3, 20, 55])
def test_a_zeroed_page_is_a_gap(tmp_path: Path, page: int) -> None:
    """A page of zeros in 60 s of sound costs the packets in it. They are a gap, and the rest is read."""
    segment = _segment(tmp_path, 1, 60)
    data = bytearray(segment.path.read_bytes())
    data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    segment.path.write_bytes(data)
    found = survey.survey([segment], "00")
    assert (found.lost_segments, found.duration_ms + found.lost_ms) == (1, 60_000)
    assert 500 < found.lost_ms < 800
    ((at_s, duration_s),) = _gaps(found)
    assert duration_s * 1000 == found.lost_ms
    assert at_s == pytest.approx(page * PAGE / (137 / 20) / 1000, abs=0.1)


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.7])
def test_a_truncated_segment_is_a_gap_at_its_end(tmp_path: Path, kept: float) -> None:
    """A segment that lost its end, or all of it, leaves a gap there, before the time between it and its successor."""
    cut, after = _segment(tmp_path, 1, 20), _segment(tmp_path, 2, 10, from_s=25)
    size = cut.path.stat().st_size
    with cut.path.open("r+b") as file:
        file.truncate(int(size * kept))
    found = survey.survey([cut, after], "00")
    assert found.duration_ms + found.lost_ms == pytest.approx(30_000, abs=20)
    assert found.lost_segments == 1
    at_s, duration_s = _gaps(found)[0]
    assert (at_s, len(found.gaps)) == (pytest.approx(20 * kept, abs=0.2), 1)
    assert duration_s == pytest.approx(20 * (1 - kept) + (5 if kept else 0), abs=0.2)


def test_a_truncated_last_segment_is_a_gap_at_the_end_of_the_file(tmp_path: Path) -> None:
    """Nothing follows the lost media, and it is still told."""
    segment = _segment(tmp_path, 1, 30)
    with segment.path.open("r+b") as file:
        file.truncate(segment.path.stat().st_size // 2)
    found = survey.survey([segment], "00")
    assert _gaps(found) == [(found.duration_ms / 1000, found.lost_ms / 1000)]
    assert found.duration_ms + found.lost_ms == 30_000


def test_a_deleted_segment_is_lost_media(tmp_path: Path) -> None:
    """A segment whose file is gone counts with the media that its capture noted."""
    files = [_segment(tmp_path, n, 10, from_s=11 * n) for n in range(3)]
    files[1].path.unlink()
    found = survey.survey(files, "00")
    assert (found.duration_ms, found.lost_ms, found.lost_segments) == (20_000, 10_000, 1)
    assert sum(duration_s for _, duration_s in _gaps(found)) == pytest.approx(12, abs=0.1)


def test_whole_segments_lose_nothing(tmp_path: Path) -> None:
    """Also a segment whose last tag is unfinished has all media that was noted."""
    first, second = _segment(tmp_path, 1, 10), _segment(tmp_path, 2, 10, from_s=10)
    with first.path.open("ab") as file:
        file.write(b"\x08\x00\x00\x50")
    found = survey.survey([first, second], "00")
    assert (found.lost_ms, found.lost_segments, found.duration_ms) == (0, 0, 20_000)


@pytest.mark.parametrize("at_s", [10, 15, 22])
def test_damage_over_an_anchor_counts_once(tmp_path: Path, at_s: int) -> None:
    """Seconds of zeros over the sample of a capture are one gap, as long as the media in them."""
    segment = _segment(tmp_path, 1, 60)
    samples = tuple((second * 1000, BEGAN_MS + second * 1000) for second in range(0, 60, 5))
    data = bytearray(segment.path.read_bytes())
    data[at_s * 6850 : (at_s + 8) * 6850] = bytes(8 * 6850)
    segment.path.write_bytes(data)
    found = survey.survey([dataclasses.replace(segment, anchors=alignment.Anchors(samples))], "00")
    assert found.lost_ms == pytest.approx(8_000, abs=100)
    ((_, duration_s),) = _gaps(found)
    assert duration_s * 1000 == pytest.approx(8_000, abs=100)
    assert found.duration_ms + duration_s * 1000 == pytest.approx(60_000, abs=20)
    assert found.anchors == sorted(found.anchors)


def test_a_segment_that_its_successor_covers_loses_nothing(tmp_path: Path) -> None:
    """A superseded capture began after its successor did: all it wrote is there a second time."""
    late, whole = _segment(tmp_path, 1, 5, from_s=10), _segment(tmp_path, 2, 30)
    late = dataclasses.replace(late, media_ms=4_980)
    found = survey.survey([late, whole], "00")
    assert (found.lost_ms, found.lost_segments, found.gaps) == (0, 0, [])


@pytest.mark.parametrize("ahead_ms", [0, -5_000, 61_000])
def test_a_segment_that_nobody_reported_is_timed_by_the_true_clock(tmp_path: Path, ahead_ms: int) -> None:
    """Its capture was killed before it noted anything. Its file's times are those of a machine whose clock is off."""
    killed, follower = _segment(tmp_path, 1, 5), _segment(tmp_path, 2, 10, from_s=12)
    written_ns = (BEGAN_MS + 4_980 + ahead_ms) * 1_000_000
    os.utime(killed.path, ns=(written_ns, written_ns))
    killed = joiner.SegmentFile(path=killed.path, registered_ms=BEGAN_MS - 100, ahead_ms=ahead_ms)
    found = survey.survey([killed, follower], "00")
    ((at_s, duration_s),) = _gaps(found)
    assert (at_s, duration_s) == (pytest.approx(5.0, abs=0.05), pytest.approx(7.0, abs=0.05))
    assert found.live[0][0] == pytest.approx(BEGAN_MS, abs=50)


def _paused(folder: Path, pause_ms: int, *, clock_ms: int, sampled: bool) -> joiner.SegmentFile:
    """Twenty seconds of sound with a pause in the middle, after which timestamps go on from `clock_ms`."""
    tags = [flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER)]
    tags += [flv_source.sound(5_000 + ms) for ms in range(0, 10_000, 20)]
    tags += [flv_source.sound(clock_ms + ms) for ms in range(0, 10_000, 20)]
    line, found = timeline.Timeline(timeline.wanted("00")), envelope.Envelope()
    for number, tag in enumerate(tags[1:]):
        at_ms = line.place(tag)
        if number % 50 == 49:
            found.add(at_ms or 0, BEGAN_MS + number * 20 + (pause_ms if number >= 500 else 0))
    return joiner.SegmentFile(
        path=flv_source.write(folder / "paused.flv", tags),
        first_packet_ms=BEGAN_MS,
        last_packet_ms=BEGAN_MS + 19_980 + pause_ms,
        media_ms=line.end_ms,
        anchors=found.anchors if sampled else alignment.NO_ANCHORS,
    )


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("pause_ms", [2_000, 8_000, 60_000])
@pytest.mark.parametrize("clock_ms", [15_000, 0, 15_400, 900_000], ids=["stands", "new", "nearly stands", "far ahead"])
def test_a_pause_is_a_gap_whatever_the_timestamps_say(tmp_path: Path, pause_ms: int, clock_ms: int, sampled: bool) -> None:
    """Timestamps that stand over a pause, start over after it or jump ahead: the wall clock tells how long it was."""
    found = survey.survey([_paused(tmp_path, pause_ms, clock_ms=clock_ms, sampled=sampled)], "00")
    assert sum(gap.duration_s for gap in found.gaps) * 1000 == pytest.approx(pause_ms, abs=500)
    if sampled:
        ((at_s, _),) = _gaps(found)
        assert at_s == pytest.approx(10, abs=1.1)
        assert [at for at, _ in found.live] == pytest.approx([BEGAN_MS, BEGAN_MS + 10_000 + pause_ms], abs=1_100)
        assert found.live[-1][1] == pytest.approx(BEGAN_MS + 20_000 + pause_ms, abs=500)


def test_anchors_follow_the_joined_file(tmp_path: Path) -> None:
    """Each segment has an anchor in the joined time, at least every ten minutes, with the time at which it was live."""
    files = []
    for n, (from_s, seconds) in enumerate(((0, 1_500), (1_600, 30))):
        segment, found = _segment(tmp_path, n, seconds, from_s=from_s), envelope.Envelope()
        for second in range(1, seconds):
            found.add(second * 1000, BEGAN_MS + (from_s + second) * 1000)
        files.append(dataclasses.replace(segment, anchors=found.anchors))
    found_all = survey.survey(files, "00")
    assert len(found_all.anchors) >= 6
    for at_ms, time_ms in found_all.anchors:
        assert time_ms == BEGAN_MS + at_ms + (100_000 if at_ms >= 1_500_000 else 0)
    assert found_all.live == [(BEGAN_MS, BEGAN_MS + 1_500_000), (BEGAN_MS + 1_600_000, BEGAN_MS + 1_630_000)]
    assert found_all.error_ms <= 110


@pytest.mark.parametrize("sampled", [True, False])
def test_time_runs_evenly_between_two_anchors(tmp_path: Path, sampled: bool) -> None:
    """A pause inside a segment and one between two segments lie between two neighbouring positions, not over minutes."""
    first = _paused(tmp_path, 8_000, clock_ms=15_000, sampled=sampled)
    second = _segment(tmp_path, 2, 20, from_s=60)
    second = dataclasses.replace(second, first_packet_ms=BEGAN_MS + 60_000, last_packet_ms=BEGAN_MS + 79_980, media_ms=20_000)
    found = survey.survey([first, second], "00")
    pairs = [(b_ms - a_ms, b_time - a_time) for (a_ms, a_time), (b_ms, b_time) in itertools.pairwise(found.anchors)]
    jumps = [(position_ms, time_ms - position_ms) for position_ms, time_ms in pairs if abs(time_ms - position_ms) > 300]
    assert [position_ms for position_ms, _ in jumps] == [1] * len(jumps)
    assert sum(jump_ms for _, jump_ms in jumps) == pytest.approx(40_000, abs=1_000)
    assert len({at_ms for at_ms, _ in found.anchors}) == len(found.anchors)
