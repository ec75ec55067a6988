"""H.264 headers: the picture of an AVCDecoderConfigurationRecord, and parameter sets inside key frames. Pure.

Formats: ISO/IEC 14496-15 and ITU-T H.264, 7.3.2.1.1 and annex E. The size in FLV metadata is ignored: after a change of size
inside a stream it still states the first one. The functions raise IndexError or ValueError for records that cannot be parsed.
"""

from __future__ import annotations

from media import bits, picture

SPS, PPS = 7, 8
IDR = frozenset((5,))
# End of sequence, end of stream, filler.
TRAILING = frozenset((10, 11, 12))
PARAMETER_SETS = frozenset((SPS, PPS))
_LAST_SLICE = 5
_MOST_REFERENCES = 255
_WITH_CHROMA = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))


def kind(unit: bytes) -> int:
    """The type of a NAL unit."""
    return unit[0] & 0x1F


def is_slice(unit: bytes) -> bool:
    """Whether a NAL unit holds a part of a picture: no parameter set follows in the same packet."""
    return 1 <= kind(unit) <= _LAST_SLICE


def is_first_slice(unit: bytes) -> bool:
    """Whether a slice begins a picture: first_mb_in_slice is 0."""
    return len(unit) > 1 and unit[1] & 0x80 != 0


def length_bytes(record: bytes) -> int:
    """How many bytes state the length of each NAL unit."""
    return (record[4] & 3) + 1


def sps(record: bytes) -> bytes:
    """The first sequence parameter set of a record."""
    if record[5] & 0x1F == 0:
        raise ValueError("the record has no parameter set")
    return _counted(record, 6)


def pps(record: bytes) -> bytes:
    """The first picture parameter set of a record."""
    at = 6
    for _ in range(record[5] & 0x1F):
        at += 2 + len(_counted(record, at))
    if not record[at]:
        raise ValueError("the record has no picture parameter set")
    return _counted(record, at + 1)


def record_of(found: dict[int, bytes], record: bytes | None) -> bytes:
    """A record with the parameter sets of a packet; with the PPS of `record`, if the packet has none."""
    sequence = found[SPS]
    with_pps = found.get(PPS) or (pps(record) if record is not None else b"")
    lengths = 0xFF if record is None else 0xFC | record[4] & 3
    count = 1 if with_pps else 0
    counted = len(with_pps).to_bytes(2, "big") + with_pps if with_pps else b""
    return b"".join(
        (b"\x01", sequence[1:4], bytes((lengths, 0xE1)), len(sequence).to_bytes(2, "big"), sequence, bytes((count,)), counted)
    )


def parse(record: bytes) -> picture.Picture:
    """The picture of a record."""
    reader = bits.unit(sps(record))
    reader.take(8)
    profile = reader.take(8)
    reader.take(16)
    reader.unsigned()
    chroma, depth = _chroma(reader) if profile in _WITH_CHROMA else (1, 8)
    reader.unsigned()
    _skip_order_count(reader)
    reader.unsigned()
    reader.take(1)
    width, height = (reader.unsigned() + 1) * 16, (reader.unsigned() + 1) * 16
    frames_only = reader.take(1)
    if not frames_only:
        height *= 2
        reader.take(1)
    reader.take(1)
    unit_x = 2 if chroma in (1, 2) else 1
    unit_y = (2 if chroma == 1 else 1) * (1 if frames_only else 2)
    width, height = picture.cropped(width, height, reader, unit_x, unit_y)
    aspect = picture.pixel_aspect(reader)
    return picture.Picture(width=width, height=height, pixel_aspect=aspect, profile=profile, depth=depth, chroma=chroma)


def _counted(record: bytes, at: int) -> bytes:
    """A parameter set behind its length."""
    found = record[at + 2 : at + 2 + int.from_bytes(record[at : at + 2], "big")]
    if not found:
        raise ValueError("the record has an empty parameter set")
    return found


def _chroma(reader: bits.Bits) -> tuple[int, int]:
    chroma = reader.unsigned()
    if chroma == 3:
        reader.take(1)
    depth = 8 + max(reader.unsigned(), reader.unsigned())
    reader.take(1)
    if reader.take(1):
        for index in range(8 if chroma != 3 else 12):
            if reader.take(1):
                _skip_scaling_list(reader, 16 if index < 6 else 64)
    return chroma, depth


def _skip_scaling_list(reader: bits.Bits, length: int) -> None:
    last = following = 8
    for _ in range(length):
        if following:
            following = (last + reader.signed()) % 256
        last = following or last


def _skip_order_count(reader: bits.Bits) -> None:
    kind = reader.unsigned()
    if kind == 0:
        reader.unsigned()
    elif kind == 1:
        reader.take(1)
        reader.signed()
        reader.signed()
        for _ in range(min(reader.unsigned(), _MOST_REFERENCES)):
            reader.signed()
