"""The index of an MP3 file: the Xing or Info frame in front, which states how many frames and bytes follow.

Source: the frame as libmp3lame and ffmpeg write it. An ID3v2 tag may precede it.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

from media import sound

_HEAD_BYTES = 4096
_ID3, _ID3_BYTES = b"ID3", 10
# The frame's own header and side information come first. Flag 1: the number of frames follows, flag 2: that of bytes.
_INDEX = re.compile(rb"(?:Xing|Info)\x00\x00\x00([\x00-\xff])")
_NUMBERS, _BOTH = struct.Struct(">II"), 3


def length_ms(path: Path) -> float | None:
    """The length of the file by its index (blocking); None without an index, and if it does not describe all bytes of the file.
    Raises OSError."""
    with path.open("rb") as file:
        head, size_bytes = file.read(_HEAD_BYTES), os.fstat(file.fileno()).st_size
    at = 0
    if head.startswith(_ID3):
        for byte in head[6:_ID3_BYTES]:
            at = at << 7 | byte & 0x7F
        at += _ID3_BYTES
    counted = sound.mp3_samples(head[at : at + 4])
    found = _INDEX.search(head, at)
    if counted is None or found is None or found[1][0] & _BOTH != _BOTH or found.end() + _NUMBERS.size > len(head):
        return None
    frames, stated_bytes = _NUMBERS.unpack_from(head, found.end())
    if at + stated_bytes != size_bytes:
        return None
    samples, rate = counted
    return float(frames * samples * 1000 / rate)
