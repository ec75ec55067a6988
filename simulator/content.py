"""The loops that simulated speakers send: encoded once by the bundled ffmpeg and cached as FLV payloads.

Rules:
- A loop has no seam: 64 s are 960 pictures at 15/s, each second a closed group that begins with a key frame; the sound repeats
  every 8 s, which are exactly 375 AAC frames of 1024 samples at 48 kHz.
- AAC frames overlap, and an encoder begins with one frame of silence (priming). So three rounds of the sound are encoded and the
  *second* one is taken, one frame late: the sound at the seam was encoded next to the same sound.
- A cached file is complete or absent (written under another name, then renamed); an invalid one is replaced.

The picture is ffmpeg's `testsrc` (its digits are the second of the loop) with the flash and the bar code of barcode.py; the sound
is 100 ms of 1 kHz at every full second, when the flash is lit, else silence.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import structlog

from simulator import barcode, flv

FRAMES_PER_SECOND = barcode.FRAMES_PER_SECOND
LOOP_S = 64
LOOP_FRAMES = LOOP_S * FRAMES_PER_SECOND
SAMPLE_RATE = 48_000
AAC_SAMPLES = 1024
SOUND_LOOP_S = 8
SOUND_FRAMES = SOUND_LOOP_S * SAMPLE_RATE // AAC_SAMPLES
SIZES = ("320x240", "240x320", "640x360")
NUMBERS = 16
FORMAT = "v1"
"""Part of the cache's file names; change it with anything that changes the encoded bytes."""

AAC_HEAD = b"\xaf"
"""FLV's first byte of audio: AAC, 44 kHz, 16 bit, stereo – fixed for AAC, whose real format is in its configuration."""
AAC_CONFIGURATION = bytes([0x11, 0x88])
"""AudioSpecificConfig: AAC-LC, 48 kHz, mono."""

log = structlog.get_logger()


class ContentFailed(Exception):
    """ffmpeg failed to make the loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """One round of sound: FLV audio payloads, 64/3 ms each."""

    sequence_header: bytes
    frames: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One loop of pictures of one size with one speaker's number: FLV video payloads, 15 per second."""

    size: str
    number: int
    sequence_header: bytes
    frames: tuple[bytes, ...]

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.size.partition("x")[0])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.size.partition("x")[2])


class Content:
    """The loops: made on first use and cached in `folder` for the next process."""

    def __init__(self, folder: Path, *, ffmpeg: str = "") -> None:
        self.folder = folder
        self._ffmpeg = ffmpeg
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._sound: Sound | None = None
        self._pictures: dict[tuple[str, int], Picture] = {}

    async def sound(self) -> Sound:
        """The sound, the same for all speakers. Raises ContentFailed."""
        async with self._locks["sound"]:
            if self._sound is None:
                data = await self._file(f"sound-{FORMAT}.adts", _sound_arguments(), _sound)
                self._sound = _sound(data)
            return self._sound

    async def picture(self, size: str, number: int) -> Picture:
        """The pictures of one size (of SIZES) and speaker's number 0 … 15. Raises ValueError, ContentFailed."""
        if size not in SIZES or not 0 <= number < NUMBERS:
            raise ValueError(f"size must be one of {', '.join(SIZES)} and number below {NUMBERS}")
        async with self._locks[f"{size}-{number}"]:
            if (size, number) not in self._pictures:
                arguments = _picture_arguments(size, number)
                data = await self._file(
                    f"picture-{FORMAT}-{size}-{number}.flv", arguments, lambda data: _picture(data, size, number)
                )
                self._pictures[size, number] = _picture(data, size, number)
            return self._pictures[size, number]

    async def _file(self, name: str, arguments: list[str], check: Callable[[bytes], object]) -> bytes:
        path = self.folder / name
        data = _read(path)
        if data is not None and _holds(check, data):
            return data
        part = path.with_name(f"{name}.{os.getpid()}.part")
        await self._encode(arguments, part)
        data = _read(part)
        if data is None or not _holds(check, data):
            raise ContentFailed(f"ffmpeg made an incomplete {name}")
        part.replace(path)
        log.info("content.made", name=name, size_bytes=len(data))
        return data

    async def _encode(self, arguments: list[str], output: Path) -> None:
        binary = self._ffmpeg or imageio_ffmpeg.get_ffmpeg_exe()
        _make_folder(self.folder)
        process = await asyncio.create_subprocess_exec(
            binary, "-nostdin", "-v", "error", "-y", *arguments, str(output),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            _, stderr = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise ContentFailed(stderr.decode(errors="replace").strip()[-500:])


def _sound_arguments() -> list[str]:
    beep = "0.5*sin(2*PI*1000*t)*lt(mod(t,1),0.1)"
    source = f"aevalsrc=exprs='{beep}':s={SAMPLE_RATE}:d={3 * SOUND_LOOP_S}"
    return ["-f", "lavfi", "-i", source, "-c:a", "aac", "-b:a", "48k", "-ac", "1", "-f", "adts"]


def _sound(data: bytes) -> Sound:
    packets = list(_adts(data))
    first = SOUND_FRAMES + 1
    if len(packets) < first + SOUND_FRAMES:
        raise ValueError("too few AAC frames")
    frames = tuple(AAC_HEAD + b"\x01" + packet for packet in packets[first : first + SOUND_FRAMES])
    return Sound(sequence_header=AAC_HEAD + b"\x00" + AAC_CONFIGURATION, frames=frames)


def _adts(data: bytes) -> list[bytes]:
    packets, at = [], 0
    while at + 7 <= len(data):
        size = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
        head = 7 if data[at + 1] & 1 else 9
        packets.append(data[at + head : at + size])
        at += size
    return packets


def _picture_arguments(size: str, number: int) -> list[str]:
    source = f"testsrc=size={size}:rate={FRAMES_PER_SECOND}:duration={LOOP_S}"
    width, _, height = size.partition("x")
    boxes = _boxes(barcode.Box(x=0, y=0, width=int(width), height=int(height)), SIZES.index(size), number)
    return [
        "-f", "lavfi", "-i", source, "-vf", ",".join([*boxes, "format=yuv420p"]),
        "-c:v", "libx264", "-profile:v", "baseline", "-preset", "veryfast", "-crf", "30", "-threads", "1",
        "-g", str(FRAMES_PER_SECOND), "-keyint_min", str(FRAMES_PER_SECOND), "-sc_threshold", "0", "-bf", "0",
        "-x264-params", "repeat-headers=0", "-f", "flv",
    ]  # fmt: skip


def _boxes(picture: barcode.Box, size_index: int, number: int) -> list[str]:
    bar = barcode.cell_box(0, picture)
    whole_bar = barcode.Box(x=0, y=bar.y, width=picture.width, height=bar.height)
    flash = barcode.flash_box(picture)
    boxes = [
        _drawbox(flash, "black"),
        _drawbox(flash, "white", f"lt(mod(n,{FRAMES_PER_SECOND}),{barcode.FLASH_FRAMES})"),
        _drawbox(whole_bar, "black"),
    ]
    fixed = number << len(barcode.SIZE_CELLS) | size_index
    for cell in (0, barcode.CELLS - 1):
        boxes.append(_drawbox(barcode.cell_box(cell, picture), "white"))
    for cell in (*barcode.SPEAKER_CELLS, *barcode.SIZE_CELLS):
        if fixed >> (barcode.SIZE_CELLS[-1] - cell) & 1:
            boxes.append(_drawbox(barcode.cell_box(cell, picture), "white"))
    frame_bits = [f"gt(bitand(n,{1 << bit}),0)" for bit in range(len(barcode.FRAME_CELLS))]
    for bit, lit in enumerate(frame_bits):
        boxes.append(_drawbox(barcode.cell_box(barcode.FRAME_CELLS[-1] - bit, picture), "white", lit))
    parity = f"mod({'+'.join(frame_bits)}+{fixed.bit_count()},2)"
    boxes.append(_drawbox(barcode.cell_box(barcode.PARITY_CELL, picture), "white", parity))
    return boxes


def _drawbox(box: barcode.Box, color: str, when: str = "") -> str:
    place = f"x={box.x}:y={box.y}:w={box.width}:h={box.height}"
    return f"drawbox={place}:color={color}:t=fill" + (f":enable='{when}'" if when else "")


def _picture(data: bytes, size: str, number: int) -> Picture:
    payloads = [payload for kind, _, payload in flv.tags(data) if kind == flv.VIDEO]
    headers = [payload for payload in payloads if payload[1] == flv.SEQUENCE_HEADER]
    frames = tuple(payload for payload in payloads if payload[1] == 1)
    keys = [n for n, payload in enumerate(frames) if payload[0] >> 4 == flv.KEY_FRAME]
    if len(headers) != 1 or len(frames) != LOOP_FRAMES or keys != list(range(0, LOOP_FRAMES, FRAMES_PER_SECOND)):
        raise ValueError("not a loop of closed seconds")
    if any(payload[2:5] != b"\0\0\0" for payload in frames):
        raise ValueError("pictures out of order")
    return Picture(size=size, number=number, sequence_header=headers[0], frames=frames)


def _holds(check: Callable[[bytes], object], data: bytes) -> bool:
    try:
        check(data)
    except (ValueError, IndexError):
        return False
    return True


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
