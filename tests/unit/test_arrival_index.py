"""Arrival index: it names each tag's place and arrival, for finished, growing, torn and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from media import arrival_index, flv
from tests import flv_source

BASE_MS = 1_700_000_000_000
TAGS = (flv_source.sound(0), flv_source.picture(40, key=True, payload=b"x" * 70_000), flv_source.sound(23))
ARRIVALS_MS = (0, 41, 41)


def _segment(folder: Path) -> Path:
    """A segment with its index."""
    path = flv_source.write(folder / "1.flv", TAGS)
    records = (arrival_index.record(at, tag.kind, len(tag.payload)) for at, tag in zip(ARRIVALS_MS, TAGS, strict=True))
    arrival_index.path_of(path).write_bytes(arrival_index.header(BASE_MS) + b"".join(records))
    return path


def test_records_name_place_and_arrival_of_each_tag(tmp_path: Path) -> None:
    """The offsets are those of the tags in the file, and the arrivals are Unix ms."""
    path = _segment(tmp_path)
    data = path.read_bytes()
    found = list(arrival_index.read(path))
    assert [each.arrival_ms - BASE_MS for each in found] == list(ARRIVALS_MS)
    for each, tag in zip(found, TAGS, strict=True):
        assert data[each.offset : each.offset + 4] == struct.pack(">I", tag.kind << 24 | len(tag.payload))
        assert (each.kind, each.size) == (tag.kind, len(tag.payload))


def test_a_growing_index_is_read_record_by_record(tmp_path: Path) -> None:
    """A torn record is read once it is whole, and so is a torn header."""
    path = _segment(tmp_path)
    file = arrival_index.path_of(path)
    whole = file.read_bytes()
    expected = list(arrival_index.read(path))
    file.write_bytes(b"")
    reader = arrival_index.ArrivalReader(path)
    found: list[arrival_index.Arrival] = []
    with file.open("ab", buffering=0) as growing:
        for at in range(len(whole)):
            growing.write(whole[at : at + 1])
            found += reader.read()
            assert len(found) == max(0, at + 1 - 16) // 8
    reader.close()
    reader.close()
    assert (found, reader.base_ms) == (expected, BASE_MS)


def test_an_index_that_is_absent_or_of_another_version_is_none(tmp_path: Path) -> None:
    """No file, an empty one, another magic and another version give no records and no error."""
    path = _segment(tmp_path)
    file = arrival_index.path_of(path)
    whole = file.read_bytes()
    for damaged in (b"", whole[:15], b"X" + whole[1:], whole[:7] + b"\x02" + whole[8:]):
        file.write_bytes(damaged)
        assert not list(arrival_index.read(path))
    file.unlink()
    assert not list(arrival_index.read(path))


def test_a_damaged_record_ends_the_index(tmp_path: Path) -> None:
    """Zeros in the place of a record end the index, because the offsets behind it are unknown."""
    path = _segment(tmp_path)
    file = arrival_index.path_of(path)
    whole = file.read_bytes()
    file.write_bytes(whole[:24] + bytes(8) + whole[32:])
    assert len(list(arrival_index.read(path))) == 1


def test_a_late_arrival_keeps_its_largest_value() -> None:
    """A span of more than 49 days does not spoil the record."""
    assert arrival_index.record(1 << 40, flv.AUDIO, 5) == struct.pack(">II", (1 << 32) - 1, flv.AUDIO << 24 | 5)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(tmp_path_factory: object, data: bytes) -> None:
    """Random bytes behind a right header never raise, and the offsets only grow."""
    path = tmp_path_factory.getbasetemp() / "any.flv"  # type: ignore[attr-defined]
    arrival_index.path_of(path).write_bytes(arrival_index.header(0) + data)
    offsets = [each.offset for each in arrival_index.read(path)]
    assert offsets == sorted(set(offsets))
