"""The content of a recorded file, decoded with PyAV: beeps, flashes, sizes, durations."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass
from pathlib import Path

import av

from simulator import barcode

BEEP_WINDOW_S = 0.01
BEEP_LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Times in seconds from the start of the file; `speakers` are the numbers read from the bar code."""

    duration_s: float
    beeps_s: tuple[float, ...]
    flashes_s: tuple[float, ...]
    sizes: tuple[tuple[int, int], ...]
    speakers: frozenset[int]
    has_audio: bool
    has_video: bool


def look(path: Path) -> Content:
    """Decode the whole file. Raises av.FFmpegError if it cannot be decoded."""
    with av.open(str(path)) as container:
        duration_s = (container.duration or 0) / 1_000_000
        has_audio, has_video = bool(container.streams.audio), bool(container.streams.video)
    beeps = _beeps(path) if has_audio else ()
    flashes, sizes, speakers = _pictures(path) if has_video else ((), (), frozenset())
    return Content(
        duration_s=duration_s,
        beeps_s=beeps,
        flashes_s=flashes,
        sizes=sizes,
        speakers=speakers,
        has_audio=has_audio,
        has_video=has_video,
    )


def check_spacing(times_s: tuple[float, ...], tolerance_s: float = 0.12) -> None:
    """Beeps or flashes are one second apart."""
    steps = [b - a for a, b in itertools.pairwise(times_s)]
    assert steps, f"too few to compare: {times_s}"
    assert all(abs(step - 1) <= tolerance_s for step in steps), f"not 1 s apart: {times_s}"


def check_together(content: Content, tolerance_s: float = 0.3) -> None:
    """Each beep has its flash."""
    assert content.beeps_s
    assert content.flashes_s
    for beep in content.beeps_s[1:-1]:
        assert min(abs(beep - flash) for flash in content.flashes_s) <= tolerance_s, (content.beeps_s, content.flashes_s)


def _beeps(path: Path) -> tuple[float, ...]:
    """The onsets of sound: first window above the level after half a second of quiet."""
    found: list[float] = []
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
        time_s = last_s = 0.0
        for frame in container.decode(audio=0):
            if frame.pts is not None and frame.time_base is not None:
                time_s = float(frame.pts * frame.time_base)
            for piece in resampler.resample(frame):
                samples = array("f", bytes(piece.planes[0])[: piece.samples * 4])
                step = int(16_000 * BEEP_WINDOW_S)
                for start in range(0, len(samples), step):
                    window = samples[start : start + step]
                    loud = sum(abs(s) for s in window) / max(1, len(window)) > BEEP_LEVEL
                    at_s = time_s + start / 16_000
                    if loud and (not found or at_s - last_s > 0.5):
                        found.append(at_s)
                    if loud:
                        last_s = at_s
    return tuple(found)


def _pictures(path: Path) -> tuple[tuple[float, ...], tuple[tuple[int, int], ...], frozenset[int]]:
    flashes: list[float] = []
    sizes: list[tuple[int, int]] = []
    speakers: set[int] = set()
    lit = True
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            size = (frame.width, frame.height)
            if size not in sizes:
                sizes.append(size)
            plane = frame.reformat(format="gray").planes[0]
            luma = bytes(plane)
            now = barcode.flashes(luma, frame.width, frame.height, stride=plane.line_size)
            if now and not lit and frame.time is not None:
                flashes.append(frame.time)
            lit = now
            read = barcode.read(luma, frame.width, frame.height, stride=plane.line_size)
            if read is not None:
                speakers.add(read.speaker)
    return tuple(flashes), tuple(sizes), frozenset(speakers)
