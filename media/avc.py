"""Picture size from an AVC sequence header. Pure.

Format: ISO/IEC 14496-15 (AVCDecoderConfigurationRecord) and ITU-T H.264, 7.3.2.1.1 (sequence parameter set). The size in FLV
metadata is ignored: after a change of size inside a stream it still states the first one.
"""

from __future__ import annotations

# A parameter set takes some dozen bytes, or a kilobyte with all its scaling lists. An untrusted header may claim more.
_LONGEST_BYTES = 4_096
_MOST_REFERENCES = 255
_WITH_CHROMA = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))


def picture_size(payload: bytes) -> tuple[int, int] | None:
    """Width and height in pixels of an FLV tag's AVC sequence header, or None if it cannot be parsed."""
    try:
        record = payload[5:]
        if payload[0] & 0x8F != 0x07 or record[5] & 0x1F == 0:
            return None
        length = min(int.from_bytes(record[6:8], "big"), _LONGEST_BYTES)
        return _size(record[8 : 8 + length])
    except (IndexError, ValueError):
        return None


class _Bits:
    """The bits of a NAL unit without emulation prevention bytes. Reading past the end raises ValueError."""

    def __init__(self, unit: bytes) -> None:
        raw = unit.replace(b"\x00\x00\x03", b"\x00\x00")
        self._value = int.from_bytes(raw, "big")
        self._left = len(raw) * 8

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the parameter set ends too early")
        return (self._value >> self._left) & ((1 << count) - 1)

    def unsigned(self) -> int:
        zeros = 0
        while self.take(1) == 0:
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        value = self.unsigned()
        return (value + 1) // 2 if value % 2 else -(value // 2)


def _size(unit: bytes) -> tuple[int, int]:
    bits = _Bits(unit)
    bits.take(8)
    profile = bits.take(8)
    bits.take(16)
    bits.unsigned()
    chroma = _chroma(bits) if profile in _WITH_CHROMA else 1
    bits.unsigned()
    _skip_order_count(bits)
    bits.unsigned()
    bits.take(1)
    width, height = (bits.unsigned() + 1) * 16, (bits.unsigned() + 1) * 16
    frames_only = bits.take(1)
    if not frames_only:
        height *= 2
        bits.take(1)
    bits.take(1)
    if bits.take(1):
        left, right, top, bottom = (bits.unsigned() for _ in range(4))
        unit_x = 2 if chroma in (1, 2) else 1
        unit_y = (2 if chroma == 1 else 1) * (1 if frames_only else 2)
        width -= (left + right) * unit_x
        height -= (top + bottom) * unit_y
    if width <= 0 or height <= 0:
        raise ValueError("the parameter set states no picture")
    return width, height


def _chroma(bits: _Bits) -> int:
    chroma = bits.unsigned()
    if chroma == 3:
        bits.take(1)
    bits.unsigned()
    bits.unsigned()
    bits.take(1)
    if bits.take(1):
        for index in range(8 if chroma != 3 else 12):
            if bits.take(1):
                _skip_scaling_list(bits, 16 if index < 6 else 64)
    return chroma


def _skip_scaling_list(bits: _Bits, length: int) -> None:
    last = following = 8
    for _ in range(length):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _skip_order_count(bits: _Bits) -> None:
    kind = bits.unsigned()
    if kind == 0:
        bits.unsigned()
    elif kind == 1:
        bits.take(1)
        bits.signed()
        bits.signed()
        for _ in range(min(bits.unsigned(), _MOST_REFERENCES)):
            bits.signed()
