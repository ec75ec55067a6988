"""AV1 headers: the picture of an AV1CodecConfigurationRecord, and sequence headers inside key frames. Pure.

Formats: "AV1 Codec ISO Media File Format Binding" and "AV1 Bitstream & Decoding Process Specification", 5.5. The functions raise
IndexError or ValueError for records that cannot be parsed.
"""

from __future__ import annotations

from media import bits, picture

_FIXED_BYTES = 4
_SEQUENCE_HEADER, _FRAME_HEADER = 1, 3
_MOST_UNITS = 16


def sequence_header(units: bytes) -> bytes:
    """The first sequence header among OBUs, with its own header."""
    at = 0
    for _ in range(_MOST_UNITS):
        first = units[at]
        kind, extended, sized = first >> 3 & 15, first >> 2 & 1, first >> 1 & 1
        if not sized:
            after = len(units)
        else:
            length, used = _leb128(units, at + 1 + extended)
            after = at + 1 + extended + used + length
        if kind == _SEQUENCE_HEADER:
            return units[at:after]
        if kind >= _FRAME_HEADER and kind != 5:  # a frame: no sequence header follows in its unit
            break
        at = after
    raise ValueError("there is no sequence header")


def parse(record: bytes) -> picture.Picture:
    """The picture of a record."""
    flags = record[2]
    depth = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    chroma = 0 if flags & 0x10 else 3 if not flags & 0x08 else 1 if flags & 0x04 else 2
    unit = sequence_header(record[_FIXED_BYTES:])
    begin = 1 + (unit[0] >> 2 & 1)
    if unit[0] >> 1 & 1:
        begin += _leb128(unit, begin)[1]
    reader = bits.Bits(unit[begin:])
    profile = reader.take(3)
    reader.take(1)
    if reader.take(1):
        reader.take(5)
    else:
        _skip_operating_points(reader)
    width_bits, height_bits = reader.take(4) + 1, reader.take(4) + 1
    width, height = reader.take(width_bits) + 1, reader.take(height_bits) + 1
    return picture.Picture(width=width, height=height, profile=profile, depth=depth, chroma=chroma)


def record_of(unit: bytes, record: bytes) -> bytes:
    """A record with this sequence header; everything else as in `record`."""
    return record[:_FIXED_BYTES] + unit


def _skip_operating_points(reader: bits.Bits) -> None:
    model_bits = 0
    if reader.take(1):
        reader.take(64)
        if reader.take(1):
            reader.unsigned()
        if reader.take(1):
            model_bits = reader.take(5) + 1
            reader.take(42)
    delayed = reader.take(1)
    for _ in range(reader.take(5) + 1):
        reader.take(12)
        if reader.take(5) > 7:
            reader.take(1)
        if model_bits and reader.take(1):
            reader.take(2 * model_bits + 1)
        if delayed and reader.take(1):
            reader.take(4)


def _leb128(raw: bytes, at: int) -> tuple[int, int]:
    """A number and the bytes that it takes."""
    value = 0
    for index in range(8):
        value |= (raw[at + index] & 0x7F) << 7 * index
        if not raw[at + index] & 0x80:
            return value, index + 1
    raise ValueError("the number is too long")
