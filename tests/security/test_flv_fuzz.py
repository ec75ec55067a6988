"""FLV fuzzing: the service's own readers get segments that are mutated, invented, or built to exhaust memory.

Rule: the seed is fixed, so a failure can be repeated. A reader returns a value, never raises, and stays within time and memory.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import errors
from media import filling, flv, flv_tail, joiner, segment_scan, survey, timeline, transcode, transcode_plan, video_headers
from tests import flv_source, waiting

SEED = 20_261_123
MUTANTS = 250
PACKET_BYTES = 1 << 20
EXPRESSION_BYTES = 131_072  # Linux: the longest single argument of a command


def whole() -> bytes:
    """A valid segment of two seconds with both tracks."""
    tags = [
        flv_source.configuration(flv.VIDEO, flv_source.AVC_HEADER),
        flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER),
    ]
    tags += flv_source.merged(
        [flv_source.picture(at, key=at % 400 == 0) for at in range(0, 2000, 40)],
        [flv_source.sound(at) for at in range(0, 2000, 23)],
    )
    return flv.header(audio=True, video=True) + b"".join(flv.encode(tag.kind, tag.timestamp_ms, tag.payload) for tag in tags)


def mutants(good: bytes) -> Iterator[bytes]:
    """The valid segment with bytes changed, removed, doubled or cut off, and with numbers made extreme."""
    chance = random.Random(SEED)
    for _ in range(MUTANTS):
        made = bytearray(good)
        for _ in range(chance.randrange(1, 12)):
            at = chance.randrange(len(made))
            match chance.randrange(5):
                case 0:
                    made[at] = chance.randrange(256)
                case 1:
                    made[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
                case 2:
                    del made[at : at + chance.randrange(64)]
                case 3:
                    made[at:at] = made[at : at + chance.randrange(256)]
                case _:
                    made = made[: max(1, at)] if chance.randrange(4) == 0 else made
        yield bytes(made)


def read_everything(path: Path) -> survey.Survey:
    """Every step of the service with a segment except ffmpeg: tail, scan, survey, plan, join."""
    watch = flv_tail.Tail(path, "02", spawned_ms=0)
    watch.poll(2_000_000_000_000)
    watch.growing = False
    while watch.behind:
        watch.poll(2_000_000_000_000)
    watch.poll(2_000_000_000_000)
    watch.close()
    scanned = segment_scan.scan(path, "02")
    assert 0 <= watch.progress.media_ms == scanned.media_ms
    parts = [joiner.SegmentFile(path=path)]
    found = survey.survey(parts, "02")
    assert found.duration_ms >= 0
    if found.kinds:
        chosen = transcode_plan.plan(found, "02", copy=False)
        argv = transcode_plan.transcode_args("ffmpeg", found, chosen, "out.part")
        assert max(map(len, argv)) < EXPRESSION_BYTES
        fillings = [each for kind in chosen.encoded for each in found.fillings(kind)]
        asyncio.run(drain(joiner.Joiner(parts, found.kinds, fillings=fillings)))
    return found


async def drain(joined: joiner.Joiner) -> int:
    """Read the joined stream to its end, or to 64 MB; returns the size of its largest chunk."""
    seen_bytes = largest_bytes = 0
    async for chunk in joined.stream():
        seen_bytes += len(chunk)
        largest_bytes = max(largest_bytes, len(chunk))
        if seen_bytes > 64 << 20:
            break
    return largest_bytes


def test_no_reader_fails_on_a_damaged_segment(tmp_path: Path) -> None:
    """Every reader reads hundreds of damaged segments as far as they are intact, and none raises."""
    path = tmp_path / "a.flv"
    lengths = set()
    for mutant in mutants(whole()):
        path.write_bytes(mutant)
        lengths.add(read_everything(path).duration_ms)
    assert len(lengths) > 20, "the mutants differ, and some still hold media"


def jumping(count: int) -> Iterator[bytes]:
    """Packets with hours between them."""
    for number in range(count):
        yield flv.encode(flv.AUDIO, number * 36_000_000 % (1 << 32), b"\xaf\x01x")


def switching(count: int) -> Iterator[bytes]:
    """Another configuration before each picture."""
    for number in range(count):
        yield flv.encode(flv.VIDEO, number * 40, flv_source.AVC_HEADER + struct.pack(">I", number) + bytes(1000))
        yield flv.encode(flv.VIDEO, number * 40, b"\x17\x01\0\0\0x")


def holed(count: int) -> Iterator[bytes]:
    """One track pauses after every packet, each time just short of a jump."""
    yield flv.encode(flv.VIDEO, 0, flv_source.AVC_HEADER)
    for number in range(count):
        yield flv.encode(flv.VIDEO, number * 4_900, b"\x17\x01\0\0\0x")
        yield flv.encode(flv.AUDIO, number * 4_900, b"\xaf\x01x")


def test_remembered_data_of_a_bomb_is_bounded(tmp_path: Path) -> None:
    """Segments in which every packet adds to the remembered data grow no list without bound, and their transcode command can be
    run."""
    found = {}
    for bomb, count in ((jumping, 3_000), (switching, 600), (holed, 22_000)):
        path = tmp_path / "a.flv"
        path.write_bytes(flv.header(audio=True, video=True) + b"".join(bomb(count)))
        found[bomb] = read_everything(path)
    assert 900 < len(found[jumping].gaps) <= 1_000
    assert len(found[switching].headers[flv.VIDEO]) == 256
    assert len(found[holed].holes) == 20_000


@pytest.mark.parametrize("again", [0, 1], ids=["between packets", "behind the last"])
def test_filled_in_media_is_never_whole_in_memory(tmp_path: Path, again: int) -> None:
    """A large packet of a track that pauses for half an hour is repeated chunk by chunk, and less often than a small one."""
    large = flv.encode(flv.AUDIO, 0, b"\xaf\x01" + bytes(PACKET_BYTES))
    frames = b"".join(flv.encode(flv.VIDEO, n * 4_900, b"\x17\x01\0\0\0x") for n in range(400))
    path = tmp_path / "a.flv"
    path.write_bytes(flv.header(audio=True, video=True) + flv.encode(flv.VIDEO, 0, flv_source.AVC_HEADER) + large + frames)
    parts = [joiner.SegmentFile(path=path)]
    found = survey.survey(parts, "02")
    (filled_in,) = found.fillings(flv.AUDIO)
    # With the frames, or without them, as if they were still to arrive.
    joined = joiner.Joiner(parts[again:], found.kinds, fillings=[filled_in])
    joined.end_ms = found.duration_ms * again
    assert asyncio.run(drain(joined)) <= joiner.CHUNK_BYTES + PACKET_BYTES + 100
    times_ms = [b - a for a, b in filled_in.spans_ms]
    assert sum(times_ms) > 1_900_000
    filled = list(joiner.Joiner((), found.kinds, fillings=[filled_in])._fill_until(100_000))
    assert len(filled) == pytest.approx(100 / (PACKET_BYTES / filling.LARGE_BYTES * 0.5), abs=3)


def test_a_poll_is_short_however_much_has_arrived(tmp_path: Path) -> None:
    """A flood of tiny tags takes several polls, each poll is short for the event loop, and in the end every tag is counted."""
    path = tmp_path / "a.flv"
    path.write_bytes(
        flv.header(audio=True, video=False) + b"".join(flv.encode(flv.AUDIO, n, b"\xaf\x01") for n in range(150_000))
    )
    watch = flv_tail.Tail(path, "00", spawned_ms=0)
    polls, longest_s = 0, 0.0
    while not polls or watch.behind:
        began_s = time.process_time()
        watch.poll(2_000_000_000_000)
        longest_s = max(longest_s, time.process_time() - began_s)
        polls += 1
    watch.close()
    assert polls > 1
    assert longest_s < waiting.limit_s(1)
    assert watch.progress.media_ms == segment_scan.scan(path, "00").media_ms > 149_000


def test_no_parameter_set_takes_long() -> None:
    """Random, endless and huge parameter sets give a size or none within the time limit, and a canvas that an encoder accepts."""
    chance = random.Random(SEED)
    head = b"\x17\x00\x00\x00\x00\x01\x42\xc0\x33\xff\xe1"
    units = [chance.randbytes(chance.randrange(1, 80)) for _ in range(2_000)]
    units += [
        bytes((0x67, profile, 0, 51)) + filling * 60_000
        for profile in (66, 100, 244)
        for filling in (b"\0", b"\xff", b"\xaa", b"\x01")
    ]
    began_s = time.process_time()
    sizes = []
    for unit in units:
        header = head + min(len(unit), 65_535).to_bytes(2, "big") + unit
        if (picture := video_headers.picture_of(header)) is not None:
            sizes.append((picture.width, picture.height))
            width, height = survey.Survey(headers={flv.VIDEO: [header]}).canvas
            assert 2 <= width <= 4_096
            assert 2 <= height <= 4_096
    assert time.process_time() - began_s < waiting.limit_s(10)
    assert max(width for width, _ in sizes) > 4_096


def test_a_timeline_forgets_no_missing_time() -> None:
    """The total of missing media stays exact when there are more jumps than the timeline remembers."""
    line = timeline.Timeline(timeline.wanted("00"))
    for number in range(3_000):
        line.place(flv_source.sound(number * 10_000))
    assert len(line.jumps) == 1_000
    assert sum(jump.missing_ms for jump in line.jumps) == sum(10_000 - 23 for _ in range(2_999))


async def test_a_stream_whose_clock_runs_away_is_not_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that claim more media than any session lasts fail the transcode before an encoder starts."""
    monkeypatch.setattr(transcode, "_LONGEST_MS", 3_600_000)
    path = tmp_path / "a.flv"
    tags = (flv.encode(flv.AUDIO, number * 4_900, b"\xaf\x01x") for number in range(1_000))
    path.write_bytes(flv.header(audio=True, video=False) + b"".join(tags))
    with pytest.raises(errors.TranscodeFailed, match="1 hours of media") as caught:
        await transcode.Transcoder("/nowhere/ffmpeg").transcode([joiner.SegmentFile(path=path)], "00", tmp_path / "out.mp3")
    assert not caught.value.retry
