"""Content of untidy streams: every second differs from every other one, in the picture and in the sound.

Rule: a flash and a beep at every full second, 100 ms long. The beep's pitch and four boxes at the bottom of the picture are the
number of the second modulo 16. So a finished file shows which second of the source it holds where.
"""

from __future__ import annotations

import array
import functools
import itertools
import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av

from media import flv
from tests import flv_source
from tests.flv_source import FFMPEG

SECONDS = 16
_LOWEST_HZ, _STEP_HZ = 500, 90
_RATE = 16_000
_WINDOW = _RATE // 100
_LOUD = 1_500
_BRIGHT, _BAR = 150, 32
_SHORTEST_BEEP_MS = 50


@functools.cache
def tags(
    size: str = "160x120",
    duration_s: int = 8,
    *,
    start: int = 0,
    rate: int = 15,
    gop: int = 15,
    samples: int = 44_100,
    video: str = "libx264 -preset ultrafast -pix_fmt yuv420p",
    audio: str = "aac -b:a 64k",
    filters: str = "null",
) -> tuple[flv.Tag, ...]:
    """A stream whose first second has the number `start`; its tags begin at 0. Both tracks, as in `flv_source.content`."""
    width, height = map(int, size.split("x"))
    box, low = width // 4, height - height // 4
    lit = "eq(mod(floor((t+{0}+0.001)/{1}),2),1)"
    boxes = [
        f"drawbox=x={box * bit}:y={low}:w={box}:h={height // 4}:color=white:t=fill:enable='{lit.format(start, 2**bit)}'"
        for bit in range(4)
    ]
    flash = f"drawbox=x=0:y=0:w={width}:h={height // 2}:color=white:t=fill:enable='lt(mod(t+0.001,1),0.1)'"
    picture = ",".join([f"color=0x2040A0:s={size}:r={rate}:d={duration_s}", flash, *boxes, filters])
    pitch = f"({_LOWEST_HZ}+{_STEP_HZ}*mod(floor(t)+{start},{SECONDS}))"
    beeps = f"aevalsrc='0.5*sin(2*PI*t*{pitch})*lt(mod(t,1),0.1)':s={samples}:d={duration_s}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source.flv"
        sources = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", beeps]
        encoders = f"-c:v {video} -g {gop} -bf 0 -c:a {audio} -ac 1".split()
        subprocess.run([FFMPEG, "-loglevel", "error", *sources, *encoders, "-f", "flv", str(path)], check=True)
        return flv_source.read(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A finished file: (position in s, number of the second) of each flash and beep, the numbers and sizes of its pictures, the
    length of its sound less that of its samples, and whether the packets of each track are in order."""

    duration_s: float
    flashes: tuple[tuple[float, int], ...]
    beeps: tuple[tuple[float, int], ...]
    numbers: frozenset[int]
    sizes: frozenset[tuple[int, int]]
    lacking_s: float
    in_order: bool
    tracks: frozenset[str]


def look(path: Path) -> Seen:
    """Decode a whole file. Raises av.FFmpegError if it cannot be decoded."""
    with av.open(str(path)) as container:
        duration_s = (container.duration or 0) / 1_000_000
        tracks = frozenset(stream.type for stream in container.streams)
    in_order = all(_in_order(path, kind) for kind in tracks)
    flashes, numbers, sizes = _pictures(path) if "video" in tracks else ((), frozenset(), frozenset())
    beeps, lacking_s = _sound(path) if "audio" in tracks else ((), 0.0)
    return Seen(
        duration_s=duration_s,
        flashes=flashes,
        beeps=beeps,
        numbers=numbers,
        sizes=sizes,
        lacking_s=lacking_s,
        in_order=in_order,
        tracks=tracks,
    )


def _in_order(path: Path, kind: str) -> bool:
    with av.open(str(path)) as container:
        times = [packet.dts for packet in container.demux(next(s for s in container.streams if s.type == kind))]
    known = [time for time in times if time is not None]
    return all(a < b for a, b in itertools.pairwise(known))


def _pictures(path: Path) -> tuple[tuple[tuple[float, int], ...], frozenset[int], frozenset[tuple[int, int]]]:
    flashes: list[tuple[float, int]] = []
    numbers, sizes, was = set(), set(), False
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            sizes.add((frame.width, frame.height))
            plane = frame.reformat(format="gray").planes[0]
            found = _read(bytes(plane), frame.width, frame.height, plane.line_size)
            if found is None:
                was = False
                continue
            number, lit = found
            numbers.add(number)
            if lit and not was:
                flashes.append((float(frame.time or 0), number))
            was = lit
    return tuple(flashes), frozenset(numbers), frozenset(sizes)


def _read(luma: bytes, width: int, height: int, line: int) -> tuple[int, bool] | None:
    """The number in a picture and whether it flashes, inside black bars; None for a black picture."""
    rows = [y for y in range(height) if max(luma[y * line : y * line + width]) > _BAR]
    if not rows:
        return None
    top, bottom = rows[0], rows[-1] + 1
    middle = luma[(top + (bottom - top) * 5 // 8) * line :][:width]  # neither flash nor boxes
    columns = [x for x in range(width) if middle[x] > _BAR]
    if not columns:
        return None
    left, wide, high = columns[0], columns[-1] + 1 - columns[0], bottom - top

    def bright(x: float, y: float) -> bool:
        return luma[(top + int(high * y)) * line + left + int(wide * x)] > _BRIGHT

    return sum(1 << bit for bit in range(4) if bright((bit + 0.5) / 4, 0.9)), bright(0.5, 0.25)


def _sound(path: Path) -> tuple[tuple[tuple[float, int], ...], float]:
    """The beeps, and how many seconds of samples the track lacks for its length. Players play AAC sample after sample."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=_RATE)
    samples, starts = array.array("h"), list[float]()
    heard_s = ends_s = 0.0
    with av.open(str(path)) as container:
        for decoded in container.decode(audio=0):
            starts.append(float(decoded.time or 0))
            heard_s += decoded.samples / decoded.sample_rate
            ends_s = starts[-1] + decoded.samples / decoded.sample_rate
            for frame in resampler.resample(decoded):
                samples.frombytes(bytes(frame.planes[0])[: frame.samples * 2])
    return tuple(_beeps(samples, starts[0])), ends_s - starts[0] - heard_s


def _beeps(samples: array.array[int], begins_s: float) -> list[tuple[float, int]]:
    found: list[tuple[float, int]] = []
    loud = [max(map(abs, samples[at : at + _WINDOW]), default=0) > _LOUD for at in range(0, len(samples), _WINDOW)]
    quiet = 100
    for window, now in enumerate(loud):
        if now and quiet >= 20 and sum(loud[window : window + 10]) * 10 >= _SHORTEST_BEEP_MS:
            heard = samples[window * _WINDOW : window * _WINDOW + _RATE // 9]
            found.append((begins_s + window / 100, max(range(SECONDS), key=lambda n: _power(heard, _LOWEST_HZ + _STEP_HZ * n))))
        quiet = 0 if now else quiet + 1
    return found


def _power(samples: array.array[int], hertz: int) -> float:
    """How much of one frequency there is (Goertzel)."""
    factor, one, two = 2 * math.cos(2 * math.pi * hertz / _RATE), 0.0, 0.0
    for sample in samples:
        one, two = sample + factor * one - two, one
    return one * one + two * two - factor * one * two
