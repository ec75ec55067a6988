"""Reader of the bit fields in decoder configurations. Pure.

Rule: reading past the end raises ValueError, so a parser needs no checks of its own against truncated input.
"""

from __future__ import annotations

# A parameter set takes some dozen bytes, or a kilobyte with all its scaling lists. An untrusted header may claim more.
LONGEST_BYTES = 4_096
_LONGEST_CODE = 32


class Bits:
    """The bits of some bytes, the highest first; at most LONGEST_BYTES are read."""

    def __init__(self, raw: bytes) -> None:
        raw = raw[:LONGEST_BYTES]
        self._value = int.from_bytes(raw, "big")
        self.left = len(raw) * 8

    def take(self, count: int) -> int:
        """The next `count` bits as a number. Raises ValueError past the end."""
        self.left -= count
        if self.left < 0:
            raise ValueError("the configuration ends too early")
        return (self._value >> self.left) & ((1 << count) - 1)

    def unsigned(self) -> int:
        """An Exp-Golomb number, `ue(v)`."""
        zeros = 0
        while self.take(1) == 0:
            zeros += 1
            if zeros > _LONGEST_CODE:
                raise ValueError("the configuration holds a number of more than 32 bits")
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        """A signed Exp-Golomb number, `se(v)`."""
        value = self.unsigned()
        return (value + 1) // 2 if value % 2 else -(value // 2)


def unit(raw: bytes) -> Bits:
    """The bits of a NAL unit of H.264 or HEVC, without its emulation prevention bytes."""
    return Bits(raw[:LONGEST_BYTES].replace(b"\x00\x00\x03", b"\x00\x00"))
