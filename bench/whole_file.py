"""Finished files under the eyes of other programs: are two of them the same, and is one whole, playable and quick to begin?

Rule: ffmpeg decodes and hashes, Chromium plays and seeks; the project's code is not asked.
"""

from __future__ import annotations

import asyncio
import filecmp
import struct
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg

from tests import browser

_SEEKS = 8


def faults(following: Path, afterwards: Path, folder: Path) -> list[str]:
    """What is wrong with the file that was made while the recording ran. `folder`: for Chromium's profile."""
    hashes, complaint = decoded(following)
    found = [f"ffmpeg: {complaint}"] if complaint or not hashes else []
    # Files with the same bytes have the same frames.
    if not filecmp.cmp(following, afterwards, shallow=False) and decoded(afterwards)[0] != hashes:
        found.append("frames or samples differ")
    if following.suffix == ".mp4":
        boxes = [name for name, _ in _boxes(following)]
        found += [] if boxes.index("moov") < boxes.index("mdat") else [f"boxes {boxes}"]
        found += asyncio.run(_played(following, folder))
    return found


def decoded(path: Path) -> tuple[list[str], str]:
    """The hash of all decoded frames and that of all samples, and what ffmpeg has against the file."""
    strict = [imageio_ffmpeg.get_ffmpeg_exe(), "-xerror", "-v", "error", "-i", str(path), "-map", "0"]
    done = subprocess.run([*strict, "-f", "streamhash", "-hash", "sha256", "-"], capture_output=True, text=True, check=False)
    return done.stdout.split(), done.stderr.strip() or ("" if done.returncode == 0 else f"exit code {done.returncode}")


def _boxes(path: Path) -> list[tuple[str, int]]:
    """The boxes at the top of an MP4: name and size."""
    found, at, end = list[tuple[str, int]](), 0, path.stat().st_size
    with path.open("rb") as file:
        while at < end:
            file.seek(at)
            size, name = struct.unpack(">I4s", file.read(8))
            if size == 1:
                (size,) = struct.unpack(">Q", file.read(8))
            found.append((name.decode("latin-1"), size or end - at))
            at += size or end - at
    return found


async def _played(path: Path, folder: Path) -> list[str]:
    """Faults that Chromium has with the file: it begins, and shows a picture wherever one seeks."""
    container_s = _length_s(path)
    positions = [round(container_s * part / _SEEKS, 3) for part in (*range(1, _SEEKS), 0.5, _SEEKS - 0.01)]
    try:
        shown = await browser.play(path, positions, folder, sound=False)
    except (AssertionError, TimeoutError) as error:
        return [f"Chromium: {error!r}"]
    missing = [position for position in positions if shown.bright.get(position, 0) == 0]
    found = [f"Chromium shows nothing at {missing}"] if missing else []
    return found + ([f"Chromium: {shown.duration_s} s of {container_s}"] if abs(shown.duration_s - container_s) > 0.1 else [])


def _length_s(path: Path) -> float:
    with av.open(str(path)) as container:
        return (container.duration or 0) / 1_000_000
