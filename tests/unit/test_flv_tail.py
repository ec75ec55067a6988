"""The reader of a growing segment: wall times on the clock of the database, whatever this machine's clock says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from media import flv, flv_tail
from tests import flv_source

NOW_MS = 1_790_000_000_000


@pytest.mark.parametrize("ahead_ms", [0, 3_600_000, -3_600_000, 1_500])
def test_times_do_not_depend_on_this_machines_clock(tmp_path: Path, ahead_ms: int) -> None:
    """The file was written 400 ms before the poll, on a machine whose clock is ahead or behind."""
    tags = [flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER), *(flv_source.sound(ms) for ms in range(0, 1_000, 20))]
    path = flv_source.write(tmp_path / "1.flv", tags)
    written_ns = (NOW_MS + ahead_ms - 400) * 1_000_000
    os.utime(path, ns=(written_ns, written_ns))
    tail = flv_tail.Tail(path, "00", spawned_ms=NOW_MS - 5_000)
    tail.poll(NOW_MS, ahead_ms)
    tail.close()
    assert (tail.progress.last_packet_ms, tail.progress.first_packet_ms) == (NOW_MS - 400, NOW_MS - 400 - 980)
    at_ms, time_ms = tail.progress.anchors.points[-1]
    assert (at_ms, time_ms) == (980, pytest.approx(NOW_MS - 400, abs=100))  # reading takes a moment


def _with_tags_inside() -> list[flv.Tag]:
    """Packets whose payloads look like whole tags, as a hostile server may send them."""
    inside = b"".join(flv.encode(flv.AUDIO, 9_000 + n, b"\xaf\x01false") for n in range(3))
    pictures = [flv_source.picture(ms, payload=inside + bytes((ms,)) + inside) for ms in (40, 60)]
    return [flv_source.sound(0), *pictures, flv_source.sound(80)]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_growing_file_gives_no_tag_twice_and_none_that_is_false(tmp_path: Path, damaged: bool) -> None:
    """The file is cut at each of its bytes. Each reading returns exactly the whole tags that are new, and the last one completes
    them, also behind damage."""
    tags = _with_tags_inside()
    data = bytearray(flv_source.write(tmp_path / "whole.flv", tags).read_bytes())
    if damaged:
        first = flv.encode(tags[0].kind, tags[0].timestamp_ms, tags[0].payload)
        data[flv.FIRST_TAG_BYTES + len(first) - 1] ^= 0x55  # its trailing size
        tags = tags[1:]
    ends = [data.index(each := flv.encode(t.kind, t.timestamp_ms, t.payload)) + len(each) for t in tags]
    path = tmp_path / "growing.flv"
    path.touch()
    reader, found, expected = flv.TagReader(path), [], [(t.timestamp_ms, t.payload) for t in tags]
    with path.open("ab", buffering=0) as file:
        for size_bytes in range(1, len(data) + 1):
            file.write(data[size_bytes - 1 : size_bytes])
            while more := reader.read(growing=True):
                found += [(t.timestamp_ms, t.payload) for t in more]
            assert found == expected[: len(found)]
            assert damaged or len(found) == sum(end <= size_bytes for end in ends)
    reader.close()
    assert found == expected


def test_a_tail_reads_on_when_nobody_writes_any_more(tmp_path: Path) -> None:
    """A tag whose size is damaged is awaited while the file grows. The last poll finds the media behind it."""
    tags = [flv_source.sound(ms, bytes(300)) for ms in range(0, 1_000, 20)]
    data = bytearray(flv_source.write(tmp_path / "1.flv", tags).read_bytes())
    data[flv.FIRST_TAG_BYTES + 1] = 0x55  # 5 MiB
    (tmp_path / "1.flv").write_bytes(data)
    tail = flv_tail.Tail(tmp_path / "1.flv", "00", spawned_ms=NOW_MS)
    tail.poll(NOW_MS)
    assert tail.progress.media_ms == 0
    tail.growing = False
    tail.poll(NOW_MS)
    tail.close()
    assert tail.progress.media_ms > 900
