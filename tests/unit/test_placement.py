"""Segments with an arrival index: their survey and their join, by the times at which packets were live."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from media import arrival_index, flv, joiner, sound, survey, timeline
from tests import flv_source

BEGAN_MS = 1_790_000_000_000
SOUND_MS = 1024 / 44.1
SILENT = sound.silent_packet(flv_source.AAC_HEADER)
AUDIO_HEADER = flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER)
VIDEO_HEADER = flv_source.configuration(flv.VIDEO, flv_source.AVC_HEADER)

Arrived = tuple[flv.Tag, float]  # a tag and its arrival in ms


def sounds(from_ms: float, to_ms: float, *, ahead_ms: int = 0) -> list[Arrived]:
    """Packets of sound that arrive when they were live. Each has its own bytes."""
    first, last = round(from_ms / SOUND_MS), round(to_ms / SOUND_MS)
    made = [(round(n * SOUND_MS), n) for n in range(first, last)]
    return [(flv_source.sound(at + ahead_ms, b"\x21\x10" + n.to_bytes(4, "big")), float(at)) for at, n in made]


def pictures(from_ms: int, to_ms: int, *, ahead_ms: int = 0) -> list[Arrived]:
    """Ten pictures a second, each second a key frame."""
    made = range(from_ms, to_ms, 100)
    return [
        (flv_source.picture(at + ahead_ms, key=at % 1_000 == 0, payload=b"\x00\x00\x00\x06\x41" + at.to_bytes(5, "big")), at)
        for at in made
    ]


def written(path: Path, tags: Iterable[Arrived], *, base_ms: int = BEGAN_MS, late_ms: float = 0.0) -> joiner.SegmentFile:
    """A segment as a native capture writes it: in the order of arrival, the configurations first."""
    sent = sorted(tags, key=lambda each: each[1])
    heads = [(AUDIO_HEADER, sent[0][1]), (VIDEO_HEADER, sent[0][1])]
    present = {tag.kind for tag, _ in sent}
    sent = [*((head, at) for head, at in heads if head.kind in present), *sent]
    flv_source.write(path, [tag for tag, _ in sent])
    records = [arrival_index.record(round(at + late_ms), tag.kind, len(tag.payload)) for tag, at in sent]
    arrival_index.path_of(path).write_bytes(arrival_index.header(base_ms) + b"".join(records))
    line = timeline.Timeline(timeline.wanted("02"))
    for tag, _ in sent:
        line.place(tag)
    first_ms, last_ms = (base_ms + round(sent[at][1] + late_ms) for at in (0, -1))
    return joiner.SegmentFile(path=path, first_packet_ms=first_ms, last_packet_ms=last_ms, media_ms=line.end_ms)


async def joined(found: survey.Survey, segments: list[joiner.SegmentFile], folder: Path) -> list[flv.Tag]:
    stream = joiner.Joiner(segments, found.kinds, placed=found.placed, silences=found.silences).stream()
    path = folder / "joined.flv"
    path.write_bytes(b"".join([chunk async for chunk in stream]))
    return [tag for tag in flv_source.read(path) if tag.is_media]


def times(tags: list[flv.Tag], kind: int) -> list[int]:
    return [tag.timestamp_ms for tag in tags if tag.kind == kind]


def gaps(found: survey.Survey) -> list[tuple[float, float]]:
    return [(round(gap.at_s, 2), round(gap.duration_s, 2)) for gap in found.gaps]


def live(found: survey.Survey) -> list[tuple[int, int]]:
    return [(from_ms - BEGAN_MS, to_ms - BEGAN_MS) for from_ms, to_ms in found.live]


@pytest.mark.parametrize("ahead_ms", [0, 6_000, 50_000, 3_600_000])
async def test_tracks_with_clocks_of_their_own_are_in_step(tmp_path: Path, ahead_ms: int) -> None:
    """However far the tags of one track are ahead, what arrives together is shown together."""
    segment = written(tmp_path / "1.flv", [*sounds(0, 8_000, ahead_ms=ahead_ms), *pictures(0, 8_000)])
    found = survey.survey([segment], "02")
    assert (found.duration_ms, found.gaps) == (pytest.approx(8_000, abs=60), [])
    tags = await joined(found, [segment], tmp_path)
    assert times(tags, flv.VIDEO) == pytest.approx(list(range(0, 8_000, 100)), abs=3)
    assert times(tags, flv.AUDIO) == pytest.approx([round(n * SOUND_MS) for n in range(round(8_000 / SOUND_MS))], abs=3)


@pytest.mark.parametrize("hole", [(4_100, 5_000), (2_000, 2_300), (3_000, 7_500)])
async def test_sound_fills_its_time(tmp_path: Path, hole: tuple[int, int]) -> None:
    """Packets of silence fill a hole, sample by sample, and the sound is copied."""
    segment = written(tmp_path / "1.flv", [*sounds(0, hole[0]), *sounds(hole[1], 10_000), *pictures(0, 10_000)])
    found = survey.survey([segment], "02")
    assert found.agrees(flv.AUDIO)
    assert (found.duration_ms, found.gaps) == (pytest.approx(10_000, abs=60), [])
    tags = await joined(found, [segment], tmp_path)
    at = times(tags, flv.AUDIO)
    assert len(at) * SOUND_MS == pytest.approx(10_000, abs=2 * SOUND_MS)
    assert max(b - a for a, b in itertools.pairwise(at)) <= SOUND_MS + 1
    silent = [tag.timestamp_ms for tag in tags if tag.kind == flv.AUDIO and tag.payload == SILENT]
    assert hole[0] - 30 <= silent[0] <= silent[-1] <= hole[1] + 30


async def test_a_microphone_that_is_switched_on_later(tmp_path: Path) -> None:
    """Silence from the first picture on, also where the clock of the sound begins at 0 then."""
    late = [(replace(tag, timestamp_ms=tag.timestamp_ms - 5_000), at) for tag, at in sounds(5_000, 9_000)]
    segment = written(tmp_path / "1.flv", [*late, *pictures(0, 9_000)])
    found = survey.survey([segment], "02")
    tags = await joined(found, [segment], tmp_path)
    heard = [tag.timestamp_ms for tag in tags if tag.kind == flv.AUDIO and tag.payload != SILENT]
    assert (times(tags, flv.AUDIO)[0], heard[0]) == (0, pytest.approx(5_000, abs=30))
    assert found.duration_ms == pytest.approx(9_000, abs=60)


async def test_sound_that_comes_seconds_after_its_picture_is_in_step(tmp_path: Path) -> None:
    """All of it is delayed, and ends with the picture by its tags: the tags are right."""
    delayed = [(tag, at + 7_000) for tag, at in sounds(0, 12_000)]
    segment = written(tmp_path / "1.flv", [*delayed, *pictures(0, 12_000)])
    found = survey.survey([segment], "02")
    assert (found.duration_ms, found.gaps) == (pytest.approx(12_000, abs=100), [])
    assert times(await joined(found, [segment], tmp_path), flv.AUDIO)[-1] == pytest.approx(12_000, abs=100)


@pytest.mark.parametrize("pause_ms", [11_000, 60_000])
def test_a_long_pause_of_everything_is_cut_and_told(tmp_path: Path, pause_ms: int) -> None:
    """Nothing was live for longer than a stall lasts."""
    after = 3_000 + pause_ms
    segment = written(tmp_path / "1.flv", [*sounds(0, 3_000), *sounds(after, after + 2_000)])
    found = survey.survey([segment], "00")
    assert gaps(found) == [(pytest.approx(3.0, abs=0.05), pytest.approx(pause_ms / 1000, abs=0.05))]
    assert live(found) == [
        (0, pytest.approx(3_000, abs=30)),
        (pytest.approx(after, abs=30), pytest.approx(after + 2_000, abs=60)),
    ]


def test_a_gap_between_segments_is_as_long_as_nothing_was_live(tmp_path: Path) -> None:
    """Whatever the tags of the second segment are, and however late its server began to send."""
    first = written(tmp_path / "1.flv", [*sounds(0, 4_000), *pictures(0, 4_000)])
    second = written(tmp_path / "2.flv", [*sounds(7_000, 9_000, ahead_ms=500_000), *pictures(7_000, 9_000, ahead_ms=500_000)])
    found = survey.survey([first, second], "02")
    assert gaps(found) == [(pytest.approx(4.0, abs=0.05), pytest.approx(3.0, abs=0.06))]
    assert found.duration_ms == pytest.approx(6_000, abs=100)


async def test_cached_media_of_a_new_connection_replaces_what_was_there(tmp_path: Path) -> None:
    """The second connection brings two seconds that the first one has: they are shown once, and there is no gap."""
    first = written(tmp_path / "1.flv", [*sounds(0, 5_000), *pictures(0, 5_000)])
    cached = [(tag, max(at, 5_100.0)) for tag, at in (*sounds(3_000, 8_000), *pictures(3_000, 8_000))]
    second = written(tmp_path / "2.flv", cached)
    found = survey.survey([first, second], "02")
    assert (found.duration_ms, found.gaps, found.lost_ms) == (pytest.approx(8_000, abs=100), [], 0)
    tags = await joined(found, [first, second], tmp_path)
    at = times(tags, flv.VIDEO)
    assert at == pytest.approx(list(range(0, 8_000, 100)), abs=60)


def test_anchors_follow_a_clock_that_drifts(tmp_path: Path) -> None:
    """An hour whose sound gains a third of a second: the file has its samples, the anchors the time."""
    count = round(3_600_000 / SOUND_MS)
    tags = [(flv_source.sound(round(n * SOUND_MS), n.to_bytes(4, "big")), n * SOUND_MS * 1.0001) for n in range(count)]
    found = survey.survey([written(tmp_path / "1.flv", tags)], "00")
    assert found.duration_ms == pytest.approx(3_600_000, abs=60)
    assert len(found.anchors) >= 7
    for at_ms, time_ms in found.anchors:
        assert time_ms - BEGAN_MS == pytest.approx(at_ms * 1.0001, abs=40)
    assert found.error_ms <= 40


def test_lost_bytes_are_a_gap(tmp_path: Path) -> None:
    """A page of zeros costs the packets in it, and the rest stays where it was live."""
    segment = written(tmp_path / "1.flv", sounds(0, 60_000))
    data = bytearray(segment.path.read_bytes())
    data[20_480:24_576] = bytes(4_096)
    segment.path.write_bytes(data)
    found = survey.survey([segment], "00")
    ((_, duration_s),) = gaps(found)
    assert found.lost_segments == 1
    assert found.duration_ms + duration_s * 1000 == pytest.approx(60_000, abs=60)
    assert duration_s * 1000 == pytest.approx(found.lost_ms, abs=60)


def test_an_index_that_ends_early_or_is_damaged(tmp_path: Path) -> None:
    """Packets without a record arrived with those before; without a header the segment has no index."""
    segment = written(tmp_path / "1.flv", [*sounds(0, 5_000), *pictures(0, 5_000)])
    index = arrival_index.path_of(segment.path)
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2 + 3])
    assert survey.survey([segment], "02").duration_ms == pytest.approx(5_000, abs=60)
    index.write_bytes(b"RARX" + whole[4:])
    found = survey.survey([segment], "02")
    assert (found.placed, found.duration_ms) == ([None], pytest.approx(5_000, abs=100))


async def test_a_picture_in_several_tags_is_one_packet(tmp_path: Path) -> None:
    """Its NAL units come in tags of one time; empty units are left out."""
    whole = pictures(0, 3_000)
    split: list[Arrived] = []
    for tag, at in whole:
        delimiter = replace(tag, payload=b"\x27" + tag.payload[1:5] + b"\x00\x00\x00\x02\x09\xf0\x00\x00\x00\x00")
        split += [(delimiter, at), (tag, at + 3)]
    segment = written(tmp_path / "1.flv", split)
    found = survey.survey([segment], "01")
    tags = await joined(found, [segment], tmp_path)
    assert times(tags, flv.VIDEO) == pytest.approx(list(range(0, 3_000, 100)), abs=3)
    assert [tag.payload[5:] for tag in tags[1:]] == [b"\x00\x00\x00\x02\x09\xf0" + tag.payload[5:] for tag, _ in whole[1:]]
    assert [tag.is_key for tag in tags] == [tag.is_key for tag, _ in whole]


async def test_a_track_without_key_flags_begins_with_an_idr_picture(tmp_path: Path) -> None:
    """The first tag that holds one begins the track, whatever its flag says."""
    tags = [(replace(tag, payload=b"\x27" + tag.payload[1:]), at) for tag, at in pictures(0, 3_000)]
    idr = [(replace(tag, payload=tag.payload[:9] + b"\x65" + tag.payload[10:]) if at == 1_000 else tag, at) for tag, at in tags]
    segment = written(tmp_path / "1.flv", idr)
    found = survey.survey([segment], "01")
    assert found.duration_ms == pytest.approx(2_000, abs=60)
    untold = written(tmp_path / "2.flv", tags)
    assert survey.survey([untold], "01").kinds == frozenset()


@pytest.mark.parametrize("mode", ["00", "01"])
async def test_the_last_second_again_and_again(tmp_path: Path, mode: str) -> None:
    """A server repeats what it sent last: the file ends where the publisher did."""
    tags = sounds(0, 6_000) if mode == "00" else pictures(0, 6_000)
    last = [(tag, at) for tag, at in tags if at >= 5_000]
    loops = [(tag, at + 1_000 * (n + 1)) for n in range(5) for tag, at in last]
    found = survey.survey([written(tmp_path / "1.flv", [*tags, *loops])], mode)
    assert found.duration_ms == pytest.approx(6_000, abs=100)


def whole_pictures(count: int, tag_ms: Callable[[int], int], step_ms: float = 1000 / 15) -> list[Arrived]:
    """Pictures of one slice each, the first a key frame, with these tags. Each has its own bytes."""
    slices = (b"\x00\x00\x00\x06\x41\x9a" + n.to_bytes(4, "big") for n in range(count))
    return [(flv_source.picture(tag_ms(n), key=n == 0, payload=payload), n * step_ms) for n, payload in enumerate(slices)]


async def test_pictures_with_equal_tags_are_pictures_of_their_own(tmp_path: Path) -> None:
    """The first two seconds all have the tag 0: no picture is lost, and each is about where it was live."""
    sent = whole_pictures(90, lambda n: 0 if n < 30 else round(n * 1000 / 15))
    segment = written(tmp_path / "1.flv", sent)
    found = survey.survey([segment], "01")
    tags = await joined(found, [segment], tmp_path)
    assert [tag.payload for tag in tags] == [tag.payload for tag, _ in sent]
    assert times(tags, flv.VIDEO) == pytest.approx([at for _, at in sent], abs=150)


async def test_tags_that_jitter_out_of_order_lose_no_picture(tmp_path: Path) -> None:
    """At 30 pictures a second tags jitter by 20 ms, and some are equal: the file has all pictures, in order and well apart."""
    chance = random.Random(5)
    jitter = [max(0, round(n * 1000 / 30) + chance.randrange(-20, 21)) for n in range(300)]
    sent = whole_pictures(300, lambda n: jitter[n], 1000 / 30)
    assert any(a == b for a, b in itertools.pairwise(jitter))
    segment = written(tmp_path / "1.flv", sent)
    tags = await joined(survey.survey([segment], "01"), [segment], tmp_path)
    assert [tag.payload for tag in tags] == [tag.payload for tag, _ in sent]
    apart = [b - a for a, b in itertools.pairwise(times(tags, flv.VIDEO))]
    assert min(apart) >= 15, apart


async def test_a_configuration_that_comes_late_serves_the_packets_before_it(tmp_path: Path) -> None:
    """A server sends both headers after four seconds: nothing before them is lost, and the file begins with them."""
    early = [(tag, at) for tag, at in [*sounds(0, 8_000), *pictures(0, 8_000)]]
    heads = [(head, 4_000.0) for head in (AUDIO_HEADER, VIDEO_HEADER)]
    sent = sorted([*early, *heads], key=lambda each: each[1])
    path = flv_source.write(tmp_path / "1.flv", [tag for tag, _ in sent])
    records = (arrival_index.record(round(at), tag.kind, len(tag.payload)) for tag, at in sent)
    arrival_index.path_of(path).write_bytes(arrival_index.header(BEGAN_MS) + b"".join(records))
    segment = joiner.SegmentFile(path=path)
    found = survey.survey([segment], "02")
    assert (found.duration_ms, found.unreadable) == (pytest.approx(8_000, abs=60), {})
    tags = await joined(found, [segment], tmp_path)
    assert len(times(tags, flv.VIDEO)) == 80
    assert len(times(tags, flv.AUDIO)) == pytest.approx(8_000 / SOUND_MS, abs=2)


@pytest.mark.parametrize(("hole_ms", "step_ms"), [(0, -70), (400, 0), (0, 600)])
@pytest.mark.parametrize("held_ms", [400, 2_500])
async def test_media_that_the_network_holds_back_is_where_it_was_live(
    tmp_path: Path, hole_ms: int, step_ms: int, held_ms: int
) -> None:
    """Nothing is lost and nothing moves when the tags step, or sound is missing, while packets are held back."""
    sent = [*sounds(0, 6_000), *sounds(6_000 + hole_ms, 12_000, ahead_ms=step_ms)]
    free_ms = 5_700 + held_ms
    held = [(tag, free_ms if 5_700 <= at < free_ms else at) for tag, at in sent]
    segment = written(tmp_path / "1.flv", held)
    found = survey.survey([segment], "00")
    assert (found.gaps, live(found)) == ([], [pytest.approx((0, 12_000), abs=80)])
    played = {tag.payload: tag.timestamp_ms for tag in await joined(found, [segment], tmp_path)}
    moved = {at: played.get(tag.payload) for tag, at in sent if abs(played.get(tag.payload, 0) - at) > 130}
    assert moved == {}


def cached(tags: Iterable[Arrived], at_ms: float) -> list[Arrived]:
    """Packets that a server sends again at once."""
    return [(tag, at_ms) for tag, _ in tags]


def both(from_ms: int, to_ms: int, *, ahead_ms: int = 0) -> list[Arrived]:
    return [*sounds(from_ms, to_ms, ahead_ms=ahead_ms), *pictures(from_ms, to_ms, ahead_ms=ahead_ms)]


@pytest.mark.parametrize("ahead_ms", [0, -9_000, 70_000])
@pytest.mark.parametrize("idle_pulls", [0, 2])
async def test_a_cached_group_says_nothing_while_nobody_publishes(tmp_path: Path, ahead_ms: int, idle_pulls: int) -> None:
    """A server hands each pull its last group of pictures, also the pulls in a pause of the publisher. They are shown once, where
    they were live, and the pause is reported, whatever clock follows."""
    segments = [written(tmp_path / "0.flv", both(0, 5_000))]
    for n in range(1, idle_pulls + 1):
        segments.append(written(tmp_path / f"{n}.flv", cached(both(4_000, 5_000), 12_000.0 * n)))
    begins = 12_000 * (idle_pulls + 1)
    again = cached(both(4_000, 5_000), begins - 5_000)
    segments.append(written(tmp_path / "9.flv", [*again, *both(begins, begins + 3_000, ahead_ms=ahead_ms)]))
    found = survey.survey(segments, "02")
    assert gaps(found) == [(pytest.approx(5.0, abs=0.06), pytest.approx(begins / 1000 - 5, abs=0.06))]
    assert live(found) == [(0, pytest.approx(5_000, abs=60)), pytest.approx((begins, begins + 3_000), abs=60)]
    assert (found.unindexed, found.lost_ms) == (False, 0)
    tags = await joined(found, segments, tmp_path)
    assert times(tags, flv.VIDEO) == pytest.approx([*range(0, 8_000, 100)], abs=60)


async def test_a_cached_group_of_a_camera_that_pauses_is_where_it_was_live(tmp_path: Path) -> None:
    """The second pull brings the last group once more, while sound goes on. Its pictures are shown with their sound."""
    first = written(tmp_path / "1.flv", both(0, 5_000))
    again = cached([*sounds(4_000, 6_500), *pictures(4_000, 5_000)], 6_500.0)
    second = written(tmp_path / "2.flv", [*again, *sounds(6_500, 12_000), *pictures(9_000, 12_000)])
    found = survey.survey([first, second], "02")
    assert (found.gaps, found.duration_ms) == ([], pytest.approx(12_000, abs=100))
    tags = await joined(found, [first, second], tmp_path)
    assert times(tags, flv.VIDEO) == pytest.approx([*range(0, 5_000, 100), *range(9_000, 12_000, 100)], abs=60)


async def test_equal_packets_of_another_broadcast_are_kept(tmp_path: Path) -> None:
    """A publisher begins again with the same tags and bytes, as in silence. They arrive as they are live, so they count."""
    first = written(tmp_path / "1.flv", both(0, 5_000))
    second = written(tmp_path / "2.flv", [(tag, at + 9_000) for tag, at in (*both(0, 3_000), *both(5_000, 8_000))])
    found = survey.survey([first, second], "02")
    assert found.duration_ms == pytest.approx(5_000 + 8_000, abs=100)
    assert live(found) == [(0, pytest.approx(5_000, abs=60)), (9_000, pytest.approx(17_000, abs=60))]
