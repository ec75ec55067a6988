"""A simulated room whose speakers' packets arrive as a network delivers them: what the files of a session say of the time at
which their content was live, next to the truth.

Every speaker has a clock of its own, which runs fast or slow, and is pulled three times: the first pull ends with a kill, the
second is handed over to another node, whose pull begins before the old one ends. In the middle 10 s are missing: they arrive
later or never. A server with a GOP cache begins each pull with all media since the last key frame. Packets are late by up to
JITTER_MS, but never overtake each other. The segments have the bytes and the arrival indexes of a native capture; nothing is
encoded.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import align
from events import codec
from media import arrival_index, flv, joiner, survey, timeline
from tests import flv_source

BEGAN_MS = 1_790_000_000_000
SAMPLES, RATE = 44_100, 15
PACKET_MS, FRAME_MS = 1_024_000 / SAMPLES, 1000 / RATE
JITTER_MS, DELAY_MS, STALL_MS = 50.0, 80.0, 10_000.0
KILLED_MS, OVERLAP_MS = 4_000.0, 1_500.0
# The node's clock follows the database's this exactly.
CLOCK_ERROR_MS = 5.0
_MARK = b"\x00\x00\x00\x09\x41"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """`drift`: how much faster than true its clock runs; `begins_ms`: when it began to publish; `stall`: what happens to the
    media of the 10 s in the middle: "none" (they arrive in time), "late" or "lost"."""

    drift: float
    begins_ms: float
    stall: str = "none"


@dataclass(frozen=True, slots=True)
class _Packet:
    live_ms: float
    tag: flv.Tag


def errors_ms(speaker: Speaker, folder: Path, *, lasts_ms: float, gop_s: int, seed: int) -> dict[int, float]:
    """For each second of true time (Unix s) with media: the time which the finished file's anchors give for the packet that was
    live then, less the truth. The file of a constant delay has that as its error."""
    chance = random.Random(seed)
    segments = [
        _segment(
            folder / f"{number}.flv", _arrivals(speaker, pull, lasts_ms, gop_s, chance), CLOCK_ERROR_MS * chance.uniform(-1, 1)
        )
        for number, pull in enumerate(_pulls(speaker, lasts_ms), 1)
    ]
    found = survey.survey(segments, "02")
    entry = {
        "Anchors": [{"At": at_ms / 1000, "Time": codec.iso(time_ms)} for at_ms, time_ms in found.anchors],
        "Gaps": [{"At": gap.at_s} for gap in found.gaps],
    }
    errors: dict[int, float] = {}
    for tag in _joined(segments, found):
        live_ms = _truth(tag)
        if live_ms is not None:
            # In the middle of the packet: the place of a cut is exact to some samples.
            half_ms = (PACKET_MS if tag.kind == flv.AUDIO else FRAME_MS) / 2
            shown_ms = align.live_s(entry, (tag.timestamp_ms + half_ms) / 1000) * 1000 - BEGAN_MS
            errors.setdefault(int(live_ms // 1000), shown_ms - live_ms - half_ms)
    return errors


def between(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """How far the files of two speakers are apart in the seconds that both have, in ms, sorted."""
    return sorted(abs(one[second] - other[second]) for second in one.keys() & other.keys())


def _pulls(speaker: Speaker, lasts_ms: float) -> Iterator[tuple[float, float]]:
    killed_ms, handed_over_ms = lasts_ms / 4, 3 * lasts_ms / 4
    yield speaker.begins_ms + 300, killed_ms
    yield killed_ms + KILLED_MS, handed_over_ms + OVERLAP_MS
    yield handed_over_ms, lasts_ms


def _packets(speaker: Speaker, from_ms: float, to_ms: float, gop_s: int) -> Iterator[_Packet]:
    """What the speaker sent between two true times, in order. Each packet bears the time at which it was live, in 0.01 ms."""
    pace, key_every = 1 + speaker.drift, max(gop_s, 2) * RATE

    def track(step_ms: float, made: Any) -> Iterator[_Packet]:
        for n in itertools.count(max(0, int((from_ms - speaker.begins_ms) * pace / step_ms))):
            live_ms = speaker.begins_ms + n * step_ms / pace
            if live_ms >= to_ms:
                return
            if live_ms >= from_ms:
                yield _Packet(live_ms, made(n, round(n * step_ms), round(live_ms * 100).to_bytes(8, "big")))

    sound = track(PACKET_MS, lambda n, at, mark: flv_source.sound(at, b"\x21\x10" + mark))
    picture = track(FRAME_MS, lambda n, at, mark: flv_source.picture(at, key=n % key_every == 0, payload=_MARK + mark))
    both = [next(sound, None), next(picture, None)]
    while any(both):
        first = min((each for each in both if each is not None), key=lambda packet: packet.live_ms)
        yield first
        side = both.index(first)
        both[side] = next((sound, picture)[side], None)


def _arrivals(
    speaker: Speaker, pull: tuple[float, float], lasts_ms: float, gop_s: int, chance: random.Random
) -> Iterator[tuple[flv.Tag, float]]:
    """The tags of one pull with their true arrivals."""
    begins_ms, ends_ms = pull
    key_ms = max(gop_s, 2) * 1000 / (1 + speaker.drift)
    cached_ms = (begins_ms - speaker.begins_ms) % key_ms if gop_s else 0.0
    stall_ms = lasts_ms / 2
    last_ms, offset_ms = 0.0, chance.randrange(1 << 20)
    for packet in _packets(speaker, begins_ms - cached_ms, ends_ms, gop_s):
        arrived_ms = max(begins_ms, packet.live_ms) + DELAY_MS + chance.uniform(0, JITTER_MS)
        if speaker.stall != "none" and stall_ms <= packet.live_ms < stall_ms + STALL_MS:
            if speaker.stall == "lost":
                continue
            arrived_ms = stall_ms + STALL_MS + DELAY_MS + chance.uniform(0, JITTER_MS)
        last_ms = max(last_ms, arrived_ms)
        if last_ms >= ends_ms:
            return
        tag = packet.tag
        yield flv.Tag(kind=tag.kind, timestamp_ms=tag.timestamp_ms + offset_ms, payload=tag.payload), last_ms


def _segment(path: Path, arrivals: Iterator[tuple[flv.Tag, float]], clock_error_ms: float) -> joiner.SegmentFile:
    """The segment that a native capture makes of a pull."""
    line, first_ms, last_ms = timeline.Timeline(timeline.wanted("02")), 0, 0
    with path.open("wb") as file, arrival_index.path_of(path).open("wb") as index:
        file.write(flv.header(audio=True, video=True))
        for number, (tag, arrived_ms) in enumerate(_with_headers(arrivals)):
            last_ms = BEGAN_MS + round(arrived_ms + clock_error_ms)
            if number == 0:
                first_ms = last_ms
                index.write(arrival_index.header(first_ms))
            file.write(flv.encode(tag.kind, tag.timestamp_ms, tag.payload))
            index.write(arrival_index.record(last_ms - first_ms, tag.kind, len(tag.payload)))
            line.place(tag)
    return joiner.SegmentFile(path=path, first_packet_ms=first_ms, last_packet_ms=last_ms, media_ms=line.end_ms)


def _with_headers(arrivals: Iterator[tuple[flv.Tag, float]]) -> Iterator[tuple[flv.Tag, float]]:
    first = next(arrivals)
    for kind, header in ((flv.AUDIO, flv_source.AAC_HEADER), (flv.VIDEO, flv_source.AVC_HEADER)):
        yield flv_source.configuration(kind, header, first[0].timestamp_ms), first[1]
    yield first
    yield from arrivals


def _joined(segments: Sequence[joiner.SegmentFile], found: survey.Survey) -> Iterator[flv.Tag]:
    stream = joiner.Joiner(segments, found.kinds, placed=found.placed, silences=found.silences)
    return (tag for chunk in stream.chunks() for tag in flv.tags(chunk) if tag.is_media)


def _truth(tag: flv.Tag) -> float | None:
    """When a packet was live; None for silence that fills a hole."""
    size = 4 if tag.kind == flv.AUDIO else 5 + len(_MARK)
    mark = tag.payload[size:]
    return int.from_bytes(mark, "big") / 100 if len(mark) == 8 else None
