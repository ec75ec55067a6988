"""HEVC headers: the picture of an HEVCDecoderConfigurationRecord, and parameter sets inside key frames. Pure.

Formats: ISO/IEC 14496-15 and ITU-T H.265, 7.3.2.2, 7.3.3, 7.3.4, 7.3.7 and annex E. The functions raise IndexError or ValueError
for records that cannot be parsed.
"""

from __future__ import annotations

from media import bits, picture

VPS, SPS, PPS = 32, 33, 34
IDR = frozenset((16, 17, 18, 19, 20, 21))
# End of sequence, end of stream, filler, SEI behind the slices.
TRAILING = frozenset((36, 37, 38, 40))
PARAMETER_SETS = frozenset((VPS, SPS, PPS))
# The NAL unit that ends a sequence.
END = b"\x48\x01"
_LAST_SLICE = 31
_FIXED_BYTES = 22
_MOST_SETS, _MOST_PICTURES, _MOST_LONG = 64, 16, 32


def kind(unit: bytes) -> int:
    """The type of a NAL unit."""
    return unit[0] >> 1 & 0x3F


def is_slice(unit: bytes) -> bool:
    """Whether a NAL unit holds a part of a picture: no parameter set follows in the same packet."""
    return kind(unit) <= _LAST_SLICE


def is_first_slice(unit: bytes) -> bool:
    """Whether a slice begins a picture: first_slice_segment_in_pic_flag."""
    return len(unit) > 2 and unit[2] & 0x80 != 0


def length_bytes(record: bytes) -> int:
    """How many bytes state the length of each NAL unit."""
    return (record[21] & 3) + 1


def sps(record: bytes) -> bytes:
    """The first sequence parameter set of a record."""
    at = _FIXED_BYTES + 1
    for _ in range(record[_FIXED_BYTES]):
        of_kind, count = record[at] & 0x3F, int.from_bytes(record[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            length = int.from_bytes(record[at : at + 2], "big")
            if of_kind == SPS:
                return record[at + 2 : at + 2 + length]
            at += 2 + length
            if at > len(record):
                break
    raise ValueError("the record has no sequence parameter set")


def record_of(found: dict[int, bytes], record: bytes | None) -> bytes:
    """A record with the parameter sets of a packet; everything else as in `record`."""
    if record is None or len(record) < _FIXED_BYTES:
        raise ValueError("there is no record to change")
    arrays = b"".join(
        bytes((0x80 | of_kind,)) + b"\x00\x01" + len(found[of_kind]).to_bytes(2, "big") + found[of_kind]
        for of_kind in (VPS, SPS, PPS)
        if of_kind in found
    )
    return record[:_FIXED_BYTES] + bytes((len(found),)) + arrays


def parse(record: bytes) -> picture.Picture:
    """The picture of a record."""
    reader = bits.unit(sps(record))
    reader.take(16 + 4)
    layers = reader.take(3)
    reader.take(1)
    profile = _profile(reader, layers)
    reader.unsigned()
    chroma = reader.unsigned()
    if chroma == 3:
        reader.take(1)
    width, height = reader.unsigned(), reader.unsigned()
    width, height = picture.cropped(width, height, reader, 2 if chroma in (1, 2) else 1, 2 if chroma == 1 else 1)
    depth = 8 + max(reader.unsigned(), reader.unsigned())
    try:
        _skip_to_vui(reader, layers)
        aspect = picture.pixel_aspect(reader)
    except ValueError:  # the size is known, and most pixels are square
        aspect = (1, 1)
    return picture.Picture(width=width, height=height, pixel_aspect=aspect, profile=profile, depth=depth, chroma=chroma)


def _profile(reader: bits.Bits, layers: int) -> int:
    reader.take(3)
    profile = reader.take(5)
    reader.take(32 + 48 + 8)
    present = [(reader.take(1), reader.take(1)) for _ in range(layers)]
    if layers:
        reader.take(2 * (8 - layers))
    for with_profile, with_level in present:
        reader.take(88 * with_profile + 8 * with_level)
    return profile


def _skip_to_vui(reader: bits.Bits, layers: int) -> None:
    order_bits = reader.unsigned() + 4
    for _ in range(layers + 1 if reader.take(1) else 1):
        for _ in range(3):
            reader.unsigned()
    for _ in range(6):
        reader.unsigned()
    if reader.take(1) and reader.take(1):
        _skip_scaling_lists(reader)
    reader.take(2)
    if reader.take(1):
        reader.take(8)
        reader.unsigned()
        reader.unsigned()
        reader.take(1)
    _skip_reference_sets(reader)
    if reader.take(1):
        for _ in range(_at_most(reader.unsigned(), _MOST_LONG)):
            reader.take(order_bits + 1)
    reader.take(2)


def _skip_scaling_lists(reader: bits.Bits) -> None:
    for size in range(4):
        for _ in range(0, 6, 3 if size == 3 else 1):
            if not reader.take(1):
                reader.unsigned()
                continue
            if size > 1:
                reader.signed()
            for _ in range(min(64, 1 << (4 + (size << 1)))):
                reader.signed()


def _skip_reference_sets(reader: bits.Bits) -> None:
    pictures = 0
    for index in range(_at_most(reader.unsigned(), _MOST_SETS)):
        if index and reader.take(1):
            reader.take(1)
            reader.unsigned()
            # Each picture of the set before, and that set's own: used, or at least kept.
            pictures = sum(1 for _ in range(pictures + 1) if reader.take(1) or reader.take(1))
        else:
            pictures = _at_most(reader.unsigned(), _MOST_PICTURES) + _at_most(reader.unsigned(), _MOST_PICTURES)
            for _ in range(pictures):
                reader.unsigned()
                reader.take(1)


def _at_most(number: int, most: int) -> int:
    if number > most:
        raise ValueError("the parameter set states more than the standard allows")
    return number
