"""A probe of finished files with PyAV: times of beeps and flashes, and the frames.

Rule: times are those of a player (edit lists applied), in seconds.
"""

from __future__ import annotations

import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

_RATE = 8_000
_WINDOW = _RATE // 100
_LOUD = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One decoded picture: its time, its size, and the brightness (16 black … 235 white) of its centre and two of its edges."""

    time_s: float
    size: tuple[int, int]
    centre: int
    edge: int
    top: int


def frames(path: Path) -> list[Frame]:
    """Every frame of the picture track, decoded in order."""
    with av.open(str(path)) as container:
        return [_frame(frame) for frame in container.decode(video=0)]


def flashes(path: Path) -> list[float]:
    """When the picture turns white."""
    found, was_white = [], False
    for frame in frames(path):
        white = frame.centre > 180
        if white and not was_white:
            found.append(frame.time_s)
        was_white = white
    return found


def beeps(path: Path) -> list[float]:
    """When sound begins after silence, to 10 ms."""
    found, quiet = [], 100
    for time_s, loudness in _loudness(path):
        if loudness > _LOUD:
            if quiet >= 20:
                found.append(time_s)
            quiet = 0
        else:
            quiet += 1
    return found


def sound_span(path: Path) -> tuple[float, float]:
    """When the sound track begins and ends, loud or not."""
    times = [time_s for time_s, _ in _loudness(path)]
    return times[0], times[-1] + 0.01


def tracks(path: Path) -> set[str]:
    """The kinds of track in the file."""
    with av.open(str(path)) as container:
        return {stream.type for stream in container.streams}


def _frame(frame: av.VideoFrame) -> Frame:
    plane = frame.planes[0]
    luma = bytes(plane)
    row = (frame.height // 2) * plane.line_size
    top = 4 * plane.line_size
    return Frame(
        time_s=float(frame.time or 0),
        size=(frame.width, frame.height),
        centre=luma[row + frame.width // 2],
        edge=luma[row + 4],
        top=luma[top + frame.width // 2],
    )


def _loudness(path: Path) -> Iterator[tuple[float, int]]:
    """Peaks of windows of 10 ms; the space between two packets counts as no sound and is omitted."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=_RATE)
    with av.open(str(path)) as container:
        for decoded in container.decode(audio=0):
            start_s = float(decoded.time or 0)
            samples = array.array("h")
            for frame in resampler.resample(decoded):
                samples.frombytes(bytes(frame.planes[0])[: frame.samples * 2])
            for at in range(0, len(samples), _WINDOW):
                window = samples[at : at + _WINDOW]
                yield start_s + at / _RATE, max(map(abs, window), default=0)
