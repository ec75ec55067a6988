"""Frames of an MP3 that still grows: where a file may end. Format: ISO/IEC 11172-3 and 13818-3, layer III.

Rule: ffmpeg changes only the first frame (Xing/Info) later; everything behind it only grows.
"""

from __future__ import annotations

import os
from pathlib import Path

from machine import errors
from machine.reasons import Reason
from media import flv, fragments

EVERY_MS = 10_000
# LAME's encoder and a decoder delay the sound by so many samples.
_DELAY_SAMPLES = 1_105
_READ_BYTES = 1 << 20
_HEADER_BYTES, _ID3_BYTES = 4, 10
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_LOW_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


class GrowingFrames:
    """Reads the frames of one file as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._samples = -_DELAY_SAMPLES
        self._told_ms = 0.0
        self.first_bytes = fragments.RESERVED_BYTES  # nothing behind them changes
        self._begun = False

    def look(self) -> list[fragments.Start]:
        """A frame every EVERY_MS at which the file may end (blocking). Raises OSError, and errors.TranscodeFailed for bytes that
        are no MP3."""
        found: list[fragments.Start] = []
        if not self._path.exists():
            return found
        with self._path.open("rb") as file:
            while len(data := os.pread(file.fileno(), _READ_BYTES, self._at)) > _ID3_BYTES:
                taken = self._frames(data, found)
                if not taken:
                    break
                self._at += taken
        return found

    def _frames(self, data: bytes, found: list[fragments.Start]) -> int:
        """Walk over the whole frames of the data; returns their length."""
        at = 0
        if self._at == 0 and data[:3] == b"ID3":
            at = _ID3_BYTES + sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(data[6:10]))
        while at + _HEADER_BYTES <= len(data):
            size, samples, rate = _frame(data[at : at + _HEADER_BYTES])
            if at + size > len(data):
                break
            at_ms = self._samples * 1000 / rate
            if self._at + at > self.first_bytes and at_ms - self._told_ms >= EVERY_MS:
                self._told_ms = at_ms
                found.append(fragments.Start(offset=self._at + at, at_ms={flv.AUDIO: at_ms}, clean=True))
            self._samples += samples if self._begun else 0  # the first frame holds no sound
            self._begun = True
            at += size
        return at


def _frame(head: bytes) -> tuple[int, int, int]:
    """Size in bytes, samples and sample rate of a frame."""
    version, layer, kbits, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    if head[0] != 0xFF or head[1] & 0xE0 != 0xE0 or version == 1 or layer != 1 or kbits in (0, 15) or rate == 3:
        raise errors.TranscodeFailed("The growing file is no MP3.", reason=Reason.FFMPEG_FAILED, retry=True)
    samples = 1_152 if version == 3 else 576
    hz = _RATES[version][rate]
    kilobits = (_KBITS if version == 3 else _LOW_KBITS)[kbits]
    return samples // 8 * kilobits * 1000 // hz + (head[2] >> 1 & 1), samples, hz
