"""Black pictures for a recording whose pictures are encoded while it grows: shown where none has come yet. Pure.

Rules: afterwards it is known what is black, and ffmpeg hides what the joiner repeats there. While a recording grows, nobody knows
when its pictures begin, so the joined stream itself brings black ones, in the same codec. A pause of the camera inside a segment
keeps the last picture, as in a file that is copied: the packet behind the pause may need the pictures before it.
"""

from __future__ import annotations

from media import filling, flv, survey

# By codec: a configuration and a key frame of 16 by 16 (H.264) or 64 by 64, made by x264, x265 and libaom from ffmpeg's source
# `color=black`, without SEI. Every size is fitted to the canvas.
_BLACK = {
    "avc": (
        "17000000000142c00affe100166742c00ad91ec044000003000400000300c83c48992001000568cb83cb20",
        "17010000000000000a6588840af2628000a7be",
    ),
    "hevc": (
        "90687663310101600000009000000000001ef000fcfdf8f800000f03200001001840010c01ffff01600000030090000003000003001e9598092100"
        "01002842010101600000030090000003000003001ea020810596566924caf0168080000003008000000c8422000100074401c172b42240",
        "93687663310000000e2801af1d80f7015bfff24efeccf0",
    ),
    "av01": (
        "906176303181000c000a0a00000002afff9f5f3008",
        "916176303112000a0a00000002afff9f5f3008320e1000c00000028000000a05776480",
    ),
}


def picture(found: survey.Survey) -> tuple[bytes, bytes] | None:
    """A black picture in the only codec of the recording, with its configuration; None if there is none."""
    known = found.codecs.get(flv.VIDEO, set())
    if len(known) != 1 or (made := _BLACK.get(next(iter(known)))) is None:
        return None
    return bytes.fromhex(made[0]), bytes.fromhex(made[1])


def fillings(found: survey.Survey, black: tuple[bytes, bytes], joined_ms: int) -> list[filling.Filling]:
    """What keeps the pictures alive from this place of the joined stream on. Pictures that begin a little later than the sound
    are shown from the start, as afterwards."""
    begins_ms, spans_ms = found.begins_ms[flv.VIDEO], tuple(found.hidden_ms(flv.VIDEO)[0])
    late = joined_ms < begins_ms and not any(from_ms == 0 for from_ms, _ in spans_ms)
    header, packet = found.first[flv.VIDEO] if late else black
    (codec,) = found.codecs[flv.VIDEO]
    spans_ms = ((0, begins_ms),) if late else spans_ms
    return [filling.Filling(kind=flv.VIDEO, codec=codec, spans_ms=spans_ms, header=header, packet=packet, same=not late)]


def after_ms(duration_ms: int, rate: int) -> int:
    """Where a picture behind the last one is not shown: no frame of the file, which has `rate` frames a second, is there."""
    frame_ms = round(round(duration_ms * rate / 1000) * 1000 / rate)
    return duration_ms - 1 if frame_ms == duration_ms else duration_ms
