"""The joiner and the survey on synthetic packets: one finite stream, its times, holes, gaps, fillings, and growth."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from media import flv, formats, joiner, survey, timeline, transcode_plan
from tests import flv_source

BOTH = timeline.wanted("02")
VIDEO_HEADER = flv_source.configuration(flv.VIDEO, flv_source.AVC_HEADER)
AUDIO_HEADER = flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER)


def _sounds(from_ms: int, to_ms: int) -> list[flv.Tag]:
    return [flv_source.sound(ms) for ms in range(from_ms, to_ms, 20)]


def _pictures(from_ms: int, to_ms: int) -> list[flv.Tag]:
    return [flv_source.picture(ms, key=(ms - from_ms) % 1000 == 0) for ms in range(from_ms, to_ms, 100)]


def _both(from_ms: int, to_ms: int) -> list[flv.Tag]:
    return [VIDEO_HEADER, AUDIO_HEADER, *flv_source.merged(_pictures(from_ms, to_ms), _sounds(from_ms, to_ms))]


def _segment(
    path: Path, tags: Iterable[flv.Tag], first_ms: int | None = None, last_ms: int | None = None, burst_ms: int = 0
) -> joiner.SegmentFile:
    tags, line = tuple(tags), timeline.Timeline(BOTH)
    for tag in tags:
        line.place(tag)
    media_ms = None if first_ms is None or last_ms is None else min(last_ms - first_ms + burst_ms, line.end_ms)
    return joiner.SegmentFile(
        path=flv_source.write(path, tags), first_packet_ms=first_ms, last_packet_ms=last_ms, media_ms=media_ms
    )


async def _join(folder: Path, joined: joiner.Joiner) -> tuple[flv.Tag, ...]:
    path = folder / "joined.flv"
    path.write_bytes(b"".join([chunk async for chunk in joined.stream()]))
    return flv_source.read(path)


def _times(tags: Iterable[flv.Tag], kind: int) -> list[int]:
    return [tag.timestamp_ms for tag in tags if tag.kind == kind and tag.is_media]


async def test_the_next_segment_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    """Two segments far apart in time become one run of audio, and identical configuration is written once."""
    files = [_segment(tmp_path / "a", _both(5_000, 6_000)), _segment(tmp_path / "b", _both(900_000, 901_000))]
    tags = await _join(tmp_path, joiner.Joiner(files, BOTH))
    assert _times(tags, flv.AUDIO) == list(range(0, 2_000, 20))
    assert _times(tags, flv.VIDEO) == list(range(0, 2_000, 100))
    assert [tag.kind for tag in tags if tag.is_sequence_header] == [flv.VIDEO, flv.AUDIO]


async def test_sound_and_picture_keep_their_distance(tmp_path: Path) -> None:
    """Video that begins 300 ms after the audio keeps that offset in both halves of the joined stream."""
    tags = [AUDIO_HEADER, VIDEO_HEADER, *flv_source.merged(_sounds(0, 1_000), _pictures(300, 1_000))]
    joined = await _join(tmp_path, joiner.Joiner([_segment(tmp_path / "a", tags), _segment(tmp_path / "b", tags)], BOTH))
    assert _times(joined, flv.VIDEO)[0] == 300
    assert 1_300 in _times(joined, flv.VIDEO)


async def test_unwanted_tracks_torn_tails_and_missing_files_are_left_out(tmp_path: Path) -> None:
    """Audio alone is joined, to the last whole tag, and a segment without a file is skipped."""
    first = _segment(tmp_path / "a", _both(0, 1_000))
    first.path.write_bytes(first.path.read_bytes()[:-3])
    files = [first, joiner.SegmentFile(path=tmp_path / "never"), _segment(tmp_path / "b", _both(0, 1_000))]
    tags = await _join(tmp_path, joiner.Joiner(files, timeline.wanted("00")))
    assert {tag.kind for tag in tags} == {flv.AUDIO}
    assert _times(tags, flv.AUDIO) == list(range(0, 1_980, 20))


async def test_another_configuration_is_passed_on(tmp_path: Path) -> None:
    """A size change inside a segment reaches the encoder at its place."""
    larger = flv_source.configuration(flv.VIDEO, flv_source.LARGER_AVC_HEADER, 1_000)
    tags = [VIDEO_HEADER, *_pictures(0, 1_000), larger, *_pictures(1_000, 2_000)]
    segment = _segment(tmp_path / "a", tags)
    joined = await _join(tmp_path, joiner.Joiner([segment], BOTH))
    assert [tag.payload for tag in joined if tag.is_sequence_header] == [flv_source.AVC_HEADER, flv_source.LARGER_AVC_HEADER]
    found = survey.survey([segment], "02")
    assert found.canvas == (1_278, 718)
    assert not found.agrees(flv.VIDEO)


async def test_what_a_superseded_capture_wrote_beside_its_successor_is_left_out(tmp_path: Path) -> None:
    """A first segment that continues for a second after the next one began contributes only the time before."""
    files = [
        _segment(tmp_path / "a", _both(0, 3_000), 100_000, 103_000),
        _segment(tmp_path / "b", _both(0, 1_000), 102_000, 103_000),
    ]
    tags = await _join(tmp_path, joiner.Joiner(files, BOTH))
    assert _times(tags, flv.AUDIO) == list(range(0, 3_000, 20))
    assert survey.survey(files, "02").duration_ms == 3_000


async def test_a_segment_may_still_grow(tmp_path: Path) -> None:
    """At a segment's end, `more` lets the stream continue with added media, and end when it returns false."""
    whole = flv_source.write(tmp_path / "whole", _both(0, 2_000)).read_bytes()
    segment = joiner.SegmentFile(path=tmp_path / "growing")
    segment.path.write_bytes(whole[:1_001])
    cuts = [whole[1_001:1_500], whole[1_500:]]

    async def more(asked: joiner.SegmentFile) -> bool:
        if cuts:
            with asked.path.open("ab") as file:
                file.write(cuts.pop(0))
            return True
        return False

    tags = await _join(tmp_path, joiner.Joiner([segment], BOTH, more=more))
    assert _times(tags, flv.AUDIO) == list(range(0, 2_000, 20))


async def test_a_missing_track_is_kept_alive_from_its_own_packets(tmp_path: Path) -> None:
    """In a segment without video, a key frame is repeated, before the first real one with its configuration."""
    files = [_segment(tmp_path / "a", [AUDIO_HEADER, *_sounds(0, 8_000)]), _segment(tmp_path / "b", _both(0, 1_000))]
    found = survey.survey(files, "02")
    assert found.holes == [survey.Hole(kind=flv.VIDEO, from_ms=0, to_ms=8_000, leading=True)]
    tags = await _join(tmp_path, joiner.Joiner(files, BOTH, fillings=found.fillings(flv.VIDEO)))
    assert next(tag for tag in tags if tag.kind == flv.VIDEO).is_sequence_header
    times = _times(tags, flv.VIDEO)
    assert times[:16] == list(range(0, 8_000, 500))
    assert times[16:] == [7_950, *range(8_000, 9_000, 100)]
    assert all(tag.is_key for tag in tags if tag.kind == flv.VIDEO and tag.is_media and tag.timestamp_ms < 8_000)


def test_holes_decide_what_is_copied(tmp_path: Path) -> None:
    """Audio with a pause of two seconds is encoded while the video is copied; complete tracks are both copied; MP3 is always
    encoded."""
    paused = [AUDIO_HEADER, VIDEO_HEADER, *flv_source.merged(_sounds(0, 1_000), _sounds(3_000, 4_000), _pictures(0, 4_000))]
    found = survey.survey([_segment(tmp_path / "a", paused)], "02")
    chosen = transcode_plan.plan(found, "02")
    assert (set(chosen.copied), set(chosen.encoded)) == ({flv.VIDEO}, {flv.AUDIO})
    whole = survey.survey([_segment(tmp_path / "b", _both(0, 4_000))], "02")
    assert transcode_plan.plan(whole, "02").copied == BOTH
    assert transcode_plan.plan(whole, "02", copy=False).encoded == BOTH
    assert transcode_plan.plan(survey.survey([_segment(tmp_path / "c", _both(0, 4_000))], "00"), "00").encoded == {flv.AUDIO}
    assert whole.rate == 10


@pytest.mark.parametrize(
    ("distances_ms", "rate"),
    [
        ([66, 67] * 1_000, 15),
        ([33, 33, 34] * 1_000, 30),
        ([200] * 100 + [40] * 200, 25),  # a slow start
        ([40] * 200 + [1_000] * 3_000, 25),
        ([1_000] * 60, 5),
        ([71, 72] * 500, 15),
        ([10] * 1_000, 60),
        ([], 15),
        ([50], 20),
    ],
)
def test_the_frame_rate_shows_every_picture(distances_ms: list[int], rate: int) -> None:
    """The fastest seconds of a recording decide, as one of the usual rates. A single frame counts until there are seconds."""
    found = formats.Formats()
    for distance_ms in distances_ms:
        found.note_frame(distance_ms)
    assert found.rate == rate


def test_gaps_are_wall_seconds_at_their_place_in_the_file(tmp_path: Path) -> None:
    """Gaps are measured between segments by their packets' wall times, inside a segment by the jump; a segment without media adds
    none."""
    jumping = [AUDIO_HEADER, *_sounds(0, 1_000), *_sounds(61_000, 62_000)]
    files = [
        _segment(tmp_path / "a", _both(0, 2_000), 1_000_000, 1_002_000),
        _segment(tmp_path / "b", [AUDIO_HEADER]),
        _segment(tmp_path / "c", jumping, 1_009_000, 1_071_000),
    ]
    found = survey.survey(files, "00")
    assert found.gaps == [survey.Gap(at_s=2.0, duration_s=7.0), survey.Gap(at_s=3.0, duration_s=60.0)]
    assert (found.duration_ms, found.start_ms, found.end_ms) == (4_000, 1_000_000, 1_071_000)


@pytest.mark.parametrize(
    ("jump_ms", "lasted_ms", "missing_s"),
    [(20_000, 2_000, []), (7_000, 9_000, [7.0]), (7_000, 8_200, [7.0]), (20_000, 22_000, [20.0]), (20_000, 7_000, [5.0])],
    ids=["only the clock jumped", "muted", "muted after a burst at the beginning", "away for long", "less than it says"],
)
def test_a_jump_is_a_gap_as_far_as_time_is_missing(tmp_path: Path, jump_ms: int, lasted_ms: int, missing_s: list[float]) -> None:
    """For timestamps that jump ahead inside a segment, the wall clock gives the missing time, if any."""
    tags = [AUDIO_HEADER, *_sounds(0, 1_000), *_sounds(1_000 + jump_ms, 2_000 + jump_ms)]
    found = survey.survey([_segment(tmp_path / "a", tags, 100_000, 100_000 + lasted_ms)], "00")
    assert found.duration_ms == 2_000
    assert [gap.duration_s for gap in found.gaps] == pytest.approx(missing_s, abs=0.03)
    untimed = survey.survey([_segment(tmp_path / "b", tags)], "00")
    assert [gap.duration_s for gap in untimed.gaps] == pytest.approx([jump_ms / 1000], abs=0.03)


def test_a_segment_that_went_on_unseen_is_cut_where_its_successor_begins(tmp_path: Path) -> None:
    """A frozen worker's record of the last packet is old, while its ffmpeg kept writing. Its end is neither counted as a gap nor
    repeated."""
    files = [
        _segment(tmp_path / "a", _both(0, 9_000), 100_000, 103_000),
        _segment(tmp_path / "b", _both(0, 4_000), 106_000, 110_000),
    ]
    found = survey.survey(files, "02")
    assert found.gaps == []
    assert found.duration_ms == pytest.approx(10_000, abs=400)
    before = [
        _segment(tmp_path / "c", _both(0, 9_000), 100_000, 103_000),
        _segment(tmp_path / "d", _both(0, 500), 111_000, 111_500),
    ]
    assert [gap.duration_s for gap in survey.survey(before, "02").gaps] == pytest.approx([2.0], abs=0.2)


def test_a_segment_that_nobody_told_of_is_cut_where_its_successor_begins(tmp_path: Path) -> None:
    """A segment whose worker froze before its first report ends about where the next one begins, measured from its order, and no
    longer than a burst may have made it."""
    path = _segment(tmp_path / "a", _both(0, 30_000)).path
    untold = joiner.SegmentFile(path=path, registered_ms=100_000)
    files = [untold, _segment(tmp_path / "b", _both(0, 4_000), 106_000, 110_000)]
    found = survey.survey(files, "02")
    assert 10_000 <= found.duration_ms <= 10_000 + joiner.BURST_MS + 1_000
    assert found.gaps == []


@pytest.mark.parametrize("known", [True, False], ids=["noted", "its worker said no more"])
async def test_a_burst_at_the_beginning_is_no_overlap(tmp_path: Path, known: bool) -> None:
    """Two seconds of old packets make a segment longer than it took: its prompt successor removes nothing of its end."""
    files = [
        _segment(tmp_path / "a", _both(0, 5_000), 100_000, 103_000 if known else None, burst_ms=2_000),
        _segment(tmp_path / "b", _both(0, 1_000), 103_200, 104_200),
    ]
    tags = await _join(tmp_path, joiner.Joiner(files, BOTH))
    assert _times(tags, flv.AUDIO) == list(range(0, 6_000, 20))
    if known:
        found = survey.survey(files, "02")
        assert found.duration_ms == 6_000
        assert [gap.duration_s for gap in found.gaps] == pytest.approx([0.2], abs=0.01)


async def test_a_burst_moves_the_place_of_an_overlap(tmp_path: Path) -> None:
    """A superseded capture that began with old packets and overlaps its successor is cut by its own media time."""
    files = [
        _segment(tmp_path / "a", _both(0, 6_000), 100_000, 104_000, burst_ms=2_000),
        _segment(tmp_path / "b", _both(0, 1_000), 103_000, 104_000),
    ]
    tags = await _join(tmp_path, joiner.Joiner(files, BOTH))
    assert _times(tags, flv.AUDIO) == list(range(0, 6_000, 20))
