"""The clock of a track: when packets were live, for every way in which tags and arrivals disagree."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator

import pytest

from media import track_clock
from tests import waiting

BEGAN_MS = 1_790_000_000_000
SOUND_MS = 1024 / 44.1
FRAME_MS = 1000 / 15
WRAP = 1 << 32

Packet = tuple[float, int, float, float | None]  # live, tag, arrival, duration
Tags = Callable[[float], float]


def stream(
    kind: str,
    seconds: float,
    *,
    tag: Tags = lambda at: at,
    there: Callable[[float], bool] = lambda at: True,
    held_ms: Tags = lambda at: 0.0,
    ppm: float = 0.0,
    jitter_ms: float = 50.0,
    seed: int = 1,
) -> list[Packet]:
    """Packets of sound or pictures: those that are `there`, with their tags, late by jitter and by `held_ms`. The clock of the
    publisher is off by `ppm`."""
    chance, step_ms = random.Random(seed), SOUND_MS if kind == "sound" else FRAME_MS
    found: list[Packet] = []
    for number in range(int(seconds * 1000 / step_ms)):
        media_ms = number * step_ms
        live_ms = media_ms * (1 + ppm * 1e-6)
        if there(media_ms):
            late_ms = chance.random() * jitter_ms + held_ms(media_ms)
            arrived_ms = max(live_ms + late_ms, found[-1][2] - BEGAN_MS if found else 0.0)
            packet_ms = SOUND_MS if kind == "sound" else None
            found.append((live_ms, round(tag(media_ms)) % WRAP, BEGAN_MS + arrived_ms, packet_ms))
    return found


def placed(packets: list[Packet]) -> Iterator[float]:
    """The live time that the clock gives each packet."""
    clock = track_clock.TrackClock()
    for _, tag, arrived_ms, packet_ms in packets:
        clock.add(tag, arrived_ms, packet_ms)
    left = iter(packets)
    for run in clock.runs():
        for stretch in run.stretches:
            counted_ms, tag_ms = 0.0, stretch.tag_ms
            for _ in range(stretch.packets):
                _, tag, _, packet_ms = next(left)
                tag_ms = track_clock.unwrapped(tag_ms, tag)
                at_ms = counted_ms if stretch.counted and packet_ms is not None else float(tag_ms - stretch.tag_ms)
                counted_ms += packet_ms or 0.0
                yield run.live_ms(stretch.at_ms + at_ms) - BEGAN_MS
    assert next(left, None) is None


def errors_ms(packets: list[Packet]) -> list[float]:
    """How far each packet is off."""
    return [found_ms - live_ms for found_ms, (live_ms, *_) in zip(placed(packets), packets, strict=True)]


def muted(from_ms: float, to_ms: float) -> Callable[[float], bool]:
    return lambda at: not from_ms <= at < to_ms


KINDS = pytest.mark.parametrize("kind", ["sound", "pictures"])


@KINDS
@pytest.mark.parametrize(
    "tag",
    [
        lambda at: at,
        lambda at: at + 3_132_000,
        lambda at: at + WRAP - 8_000,
        lambda at: at + (3_000 if at >= 8_000 else 0),
        lambda at: at + (20_000 if at >= 8_000 else 0),
        lambda at: at + 2_000 * (at // 4_000),
        lambda at: at - (3_000 if at >= 8_000 else 0),
        lambda at: at - (400 if at >= 8_000 else 0),
        lambda at: at - 70 * (at // 3_000),
        lambda at: at - 8_000 if at >= 8_000 else at + 3_600_000,
    ],
    ids=[
        "plain",
        "late base",
        "wraps",
        "3 s ahead",
        "20 s ahead",
        "2 s ahead often",
        "3 s back",
        "0.4 s back",
        "70 ms back",
        "starts over",
    ],
)
def test_clocks_that_jump_while_nothing_is_missing(kind: str, tag: Tags) -> None:
    """The packets go on where they were live, whatever their tags say."""
    assert max(map(abs, errors_ms(stream(kind, 24, tag=tag)))) < 20


@KINDS
@pytest.mark.parametrize(("from_ms", "to_ms"), [(4_100, 5_000), (5_000, 11_000), (5_000, 8_000), (10_600, 11_000)])
@pytest.mark.parametrize("runs", [True, False], ids=["clock runs", "clock stands"])
def test_pauses(kind: str, from_ms: float, to_ms: float, runs: bool) -> None:
    """Over a pause the clock of the publisher runs on or stands."""
    packets = stream(kind, 24, there=muted(from_ms, to_ms), tag=lambda at: at if runs or at < from_ms else at - (to_ms - from_ms))
    assert max(map(abs, errors_ms(packets))) < 30


@KINDS
def test_a_burst_at_the_beginning_is_older_media(kind: str) -> None:
    """A server sends its cached five seconds at once: they were live before the connection."""
    packets = [(live, tag, max(arrived, BEGAN_MS + 5_000.0), length) for live, tag, arrived, length in stream(kind, 30)]
    assert max(map(abs, errors_ms(packets))) < 20


@KINDS
def test_a_network_that_stalls_moves_nothing(kind: str) -> None:
    """Ten seconds of media come late and at once: nothing was paused."""
    packets = stream(kind, 60, held_ms=lambda at: max(0.0, 30_000 - at) if at >= 20_000 else 0.0)
    assert max(map(abs, errors_ms(packets))) < 20


@KINDS
def test_media_that_is_sent_twice_lies_over_itself(kind: str) -> None:
    """Four seconds come again in a burst, with their tags."""
    packets = stream(kind, 20)
    at = next(number for number, (live, *_) in enumerate(packets) if live >= 8_000)
    again = [(live, tag, BEGAN_MS + 8_030.0, length) for live, tag, _, length in packets if 4_000 <= live < 8_000]
    assert max(map(abs, errors_ms([*packets[:at], *again, *packets[at:]]))) < 20


@KINDS
def test_tags_that_stand_at_the_beginning(kind: str) -> None:
    """The first two seconds all have the tag 0: their arrivals place them."""
    assert max(map(abs, errors_ms(stream(kind, 16, tag=lambda at: 0 if at < 2_000 else at)))) < 260


def test_lost_packets_leave_their_time() -> None:
    """One packet of sound in twenty is missing: the others stay where they were."""
    chance = random.Random(5)
    assert max(map(abs, errors_ms(stream("sound", 60, there=lambda at: chance.random() > 0.05)))) < 40


def test_tags_that_jitter() -> None:
    """Tags of sound that jitter by 20 ms leave its samples in a row."""
    chance = random.Random(5)
    found = list(placed(stream("sound", 60, tag=lambda at: at + chance.randrange(-20, 21))))
    assert max(b - a for a, b in itertools.pairwise(found)) < SOUND_MS + 25


@pytest.mark.parametrize("most_ms", [20, 40])
def test_tags_of_pictures_that_jitter_by_more_than_their_distance(most_ms: int) -> None:
    """Tags out of order are no steps back: no picture is further off than its tag."""
    chance = random.Random(5)
    packets = stream("pictures", 60, tag=lambda at: max(0, at + chance.randrange(-most_ms, most_ms + 1)))
    assert max(map(abs, errors_ms(packets))) < 2 * most_ms + 20


@KINDS
@pytest.mark.parametrize("ppm", [-100, 100])
def test_a_clock_that_drifts_is_followed(kind: str, ppm: float) -> None:
    """Over an hour a publisher's clock gains or loses a third of a second."""
    assert max(map(abs, errors_ms(stream(kind, 3_600, ppm=ppm)))) < 20


@KINDS
def test_a_hostile_stream_takes_no_longer_than_its_packets(kind: str) -> None:
    """Each packet begins a stretch of its own, because the tags only run backwards."""
    clock, began_s = track_clock.TrackClock(), time.process_time()
    for number in range(40_000):
        clock.add(-1_000 * number % WRAP, BEGAN_MS + number / 100, SOUND_MS if kind == "sound" else None)
    clock.runs()
    assert time.process_time() - began_s < waiting.limit_s(20)


def test_pictures_of_a_shared_screen() -> None:
    """A picture every six seconds, or one a second, has the time until the next one."""
    slides = stream("pictures", 60, there=lambda at: round(at / FRAME_MS) % 90 == 0)
    assert max(map(abs, errors_ms(slides))) < 150


def test_one_picture_a_second() -> None:
    """Each keeps its second, also while the clock still learns how far apart pictures are; the last is shown for a second."""
    packets: list[Packet] = [(n * 1_000.0, n * 1_000, BEGAN_MS + n * 1_000.0 + n * 7 % 11, None) for n in range(16)]
    assert max(map(abs, errors_ms(packets))) < 20
    clock = track_clock.TrackClock()
    for _, tag, arrived_ms, _ in packets:
        clock.add(tag, arrived_ms, None)
    (run,) = clock.runs()
    assert run.live_ms(run.stretches[-1].ends_ms) - BEGAN_MS == pytest.approx(16_000, abs=20)


def test_later_pictures_move_no_earlier_ones() -> None:
    """Positions are final some minutes later: neither pictures at another distance nor a better clock change them then. Between
    two interruptions lies a single picture, whose duration only its neighbors tell."""

    def positions(seconds: int) -> list[float]:
        clock = track_clock.TrackClock()
        times = [*range(0, 100_000, 40), *range(100_000, 300_000, 60)]
        for at_ms in (at_ms for at_ms in times if at_ms < seconds * 1_000):
            held_ms = 300 * ((at_ms >= 10_000) + (at_ms >= 10_040)) if at_ms < 11_000 else 0
            clock.add(at_ms, BEGAN_MS + at_ms + held_ms + (400 if at_ms < 200_000 else 0), None)
        (run,) = clock.runs()
        assert run.stretches[1].packets == 1
        return [value for stretch in run.stretches[:3] for value in (stretch.at_ms, run.live_ms(stretch.at_ms))]

    assert positions(90) == positions(180) == positions(290)


@pytest.mark.parametrize("tag_ms", [0, 1_000, 3_600_000])
@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_few_pictures_last_as_long_as_pictures_do(tag_ms: int, pictures: int) -> None:
    """A pull that ends after one picture shows it for a usual time, wherever the tags of the publisher are by then."""
    clock = track_clock.TrackClock()
    for number in range(pictures):
        at_ms = round(number * FRAME_MS)
        clock.add(tag_ms + at_ms, BEGAN_MS + at_ms, None)
    (run,) = clock.runs()
    assert run.stretches[-1].length_ms - (pictures - 1) * FRAME_MS == pytest.approx(FRAME_MS, abs=30)


def test_a_copy_leaves_the_clock_as_it_is() -> None:
    """A clock that is placed again and again while its packets come places them as one that is placed once."""
    packets = stream("pictures", 90, tag=lambda at: at + (7_000 if at > 40_000 else 0), there=lambda at: not 30_000 < at < 36_000)
    clock, once = track_clock.TrackClock(), track_clock.TrackClock()
    for number, (_, tag, arrived_ms, packet_ms) in enumerate(packets):
        clock.add(tag, arrived_ms, packet_ms)
        once.add(tag, arrived_ms, packet_ms)
        if number % 40 == 0:
            clock.copied().runs()
    assert clock.copied().runs() == once.runs()
