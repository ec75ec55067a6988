"""CRC-64/XZ of two pieces."""

from __future__ import annotations

import random

import fastcrc
import pytest

from media import crc64


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 5), (5, 0), (1, 1), (4096, 1_000_003), (77, 1 << 16)])
def test_two_pieces(one: int, other: int) -> None:
    """The combined CRC is that of all bytes."""
    data = random.Random(one * 31 + other).randbytes(one + other)
    crcs = [int(fastcrc.crc64.xz(piece)) for piece in (data[:one], data[one:])]
    assert crc64.combined(*crcs, other) == fastcrc.crc64.xz(data)
