"""CRC-64/XZ of bytes that are known in two pieces, computed in the order in which they become known. Pure.

A CRC is linear: behind n zero bytes it is the product with a matrix over GF(2), whose power n is found by squaring. Source: Mark
Adler's explanation of zlib's crc32_combine.
"""

from __future__ import annotations

import functools

_POLYNOMIAL = 0xC96C_5795_D787_0F42  # CRC-64/XZ, reflected
_BITS = 64
_Matrix = tuple[int, ...]


def combined(first: int, second: int, second_bytes: int) -> int:
    """The CRC of two pieces, from the CRC of each and the length of the second."""
    bit = 0
    while second_bytes >> bit:
        if second_bytes >> bit & 1:
            first = _product(_zero_bytes(bit), first)
        bit += 1
    return first ^ second


@functools.cache
def _zero_bytes(power: int) -> _Matrix:
    """The matrix of 2 ** power zero bytes."""
    if power > 0:
        half = _zero_bytes(power - 1)
        return tuple(_product(half, column) for column in half)
    one_bit: _Matrix = (_POLYNOMIAL, *(1 << bit for bit in range(_BITS - 1)))
    for _ in range(3):
        one_bit = tuple(_product(one_bit, column) for column in one_bit)
    return one_bit


def _product(matrix: _Matrix, vector: int) -> int:
    found = 0
    for column in matrix:
        if not vector:
            break
        if vector & 1:
            found ^= column
        vector >>= 1
    return found
