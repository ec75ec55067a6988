"""Verification of a finished file before it gets its name.

Rules: each track must reach its end within max(0.5 s, 0.5 %). The whole file is demuxed for that, track by track; of a file that
was watched while it was written, the index counts. Its first and last seconds must decode without an error (decoding three hours
would take minutes). Then the file is flushed to disk (fsync) and its CRC-64 computed.

Files that end together share the ffmpeg that decodes them, because its start takes as long as a second of media. If it fails,
each is decoded by itself: a damaged file fails alone.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastcrc
import structlog

from machine import errors
from machine.reasons import Reason
from media import (
    ffmpeg_log,
    ffmpeg_process,
    file_threads,
    flv,
    mp3_index,
    mp4_index,
    resource_limits,
    survey,
    transcode_plan,
)

log = structlog.get_logger()

_TOLERANCE_MS = 500
_TOLERANCE = 0.005
_DECODED_S = 2
_NOWHERE = ("-f", "null", "-")
# A second thread for a few pictures, and one for each filter, take longer to start than they save.
_FEW_THREADS = ("-threads", "1")
_DECODING = ("-filter_threads", "1", "-xerror")
_INPUT = re.compile(r"Input #(\d+), ")
_READ_BYTES = 1 << 20
_LIMIT_S = 60.0
_LIMIT_BYTES_PER_S = 5_000_000
_TOGETHER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The stated and actual content of a file: `duration_ms` is the container's."""

    duration_ms: int


async def verify(
    ffmpeg: str,
    part: Path,
    found: survey.Survey,
    chosen: transcode_plan.Plan,
    *,
    by_index: bool = False,
    ends_ms: Mapping[int, float] | None = None,
    decoded_s: float = _DECODED_S,
    decoder: Decoder | None = None,
) -> Seen:
    """Compare `part` with the joined stream. `by_index`: the file was watched while it was written, so its index tells where the
    tracks end, and it is not read again; or the watcher tells it (`ends_ms`). Of the beginning, `decoded_s` seconds are decoded,
    by `decoder` if other files end meanwhile. Raises errors.TranscodeFailed ("verify-failed") that names the difference, and
    OSError if the file is gone."""
    stat = await file_threads.BULK.run(part.stat)
    limit_s = _LIMIT_S + stat.st_size / _LIMIT_BYTES_PER_S
    if by_index and ends_ms is None:
        ends_ms = await file_threads.BULK.run(_indexed_ms, part, chosen)
    duration_ms = 0
    for kind in sorted(found.kinds):
        name = "a" if kind == flv.AUDIO else "v"
        if ends_ms is None:
            look = _Look()
            await look.run(_args(ffmpeg, _input(part, chosen), ("-map", f"0:{name}:0", "-c", "copy", *_NOWHERE)), limit_s)
            out_ms, duration_ms = look.out_ms, look.durations_ms.get(0, 0)
        else:
            out_ms = round(ends_ms.get(kind, 0))
        _same(f"track {name}", out_ms, _expected_ms(kind, found, chosen))
    first = _input(part, chosen, *_FEW_THREADS, "-t", f"{decoded_s:g}")
    last = _input(part, chosen, *_FEW_THREADS, "-sseof", f"-{_DECODED_S}", "-t", str(_DECODED_S))
    decoded_ms = await (decoder or Decoder()).decode(ffmpeg, (*first, *last), limit_s)
    duration_ms = duration_ms or decoded_ms
    _same("the file", duration_ms, found.duration_ms)
    return Seen(duration_ms=duration_ms)


def _indexed_ms(part: Path, chosen: transcode_plan.Plan) -> dict[int, float] | None:
    """Where each track ends by the file's index (blocking); None without one."""
    if chosen.extension == "mp4":
        return mp4_index.track_ends_ms(part)
    length_ms = mp3_index.length_ms(part)
    return None if length_ms is None else {flv.AUDIO: length_ms}


def _expected_ms(kind: int, found: survey.Survey, chosen: transcode_plan.Plan) -> int:
    """The expected end of each track: a copied one ends with its last packet, encoded audio with its last packet or silence,
    encoded video with the whole file."""
    if kind in chosen.copied:
        return found.ends_ms[kind]
    return found.filled_end_ms(kind) if kind == flv.AUDIO else found.duration_ms


def settle(part: Path) -> tuple[int, str]:
    """Flush the file to disk (fsync) and return its size in bytes and its CRC-64/XZ in decimal. Blocking. Raises OSError."""
    crc = size_bytes = 0
    with part.open("rb") as file:
        os.fsync(file.fileno())
        while piece := file.read(_READ_BYTES):
            crc = fastcrc.crc64.xz(piece, crc)
            size_bytes += len(piece)
    return size_bytes, str(crc)


@dataclass(slots=True, eq=False)
class _Decoding:
    """The inputs of one file, the first and the last seconds; `decoded`: without an error."""

    inputs: Sequence[str]
    limit_s: float
    decoded: bool = False
    duration_ms: int = 0


class Decoder:
    """Decodes files, one ffmpeg at a time; those that wait share the next one."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting: list[_Decoding] = []

    async def decode(self, ffmpeg: str, inputs: Sequence[str], limit_s: float) -> int:
        """Decode the two inputs of a file; returns the duration that its container states, in ms. Raises
        errors.TranscodeFailed."""
        mine = _Decoding(inputs, limit_s)
        self._waiting.append(mine)
        async with self._turn:
            if mine in self._waiting:
                files, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
                try:
                    await _decode(ffmpeg, files)
                except errors.TranscodeFailed as error:
                    if len(files) == 1:
                        raise
                    log.info("verify.together_failed", files=len(files), detail=error.detail)
        if not mine.decoded:
            await _decode(ffmpeg, [mine])
        return mine.duration_ms


async def _decode(ffmpeg: str, files: Sequence[_Decoding]) -> None:
    look, inputs = _Look(), [word for file in files for word in file.inputs]
    outputs = [word for number in range(2 * len(files)) for word in ("-map", str(number), *_NOWHERE)]
    await look.run(_args(ffmpeg, inputs, (*_DECODING, *outputs)), sum(file.limit_s for file in files))
    for number, file in enumerate(files):
        file.decoded, file.duration_ms = True, look.durations_ms.get(2 * number, 0)


class _Look:
    """One run of ffmpeg over the file."""

    def __init__(self) -> None:
        self.out_ms = 0
        self.durations_ms: dict[int, int] = {}  # by the number of the input
        self._input = 0
        self._reader = ffmpeg_log.ProgressReader()

    async def run(self, argv: Sequence[str], limit_s: float) -> None:
        child = ffmpeg_process.Child(
            argv,
            redact=ffmpeg_log.Redactor(),
            on_error_line=self._on_error,
            on_output_line=self._on_output,
            limits=resource_limits.verify(),
        )
        await child.start()
        child.stdin.close()
        reaped = asyncio.create_task(child.wait())
        try:
            code = await asyncio.wait_for(asyncio.shield(reaped), limit_s)
        except TimeoutError:
            raise errors.TranscodeFailed(
                f"Verifying took longer than {limit_s:.0f} s.", reason=Reason.VERIFY_FAILED, retry=True
            ) from None
        finally:
            child.kill()
            await asyncio.gather(reaped, return_exceptions=True)
        if code != 0:
            said = child.last_lines[-1] if child.last_lines else "it said nothing"
            raise errors.TranscodeFailed(
                f"The finished file failed verification: {said}", reason=Reason.VERIFY_FAILED, retry=True
            )

    def _on_error(self, text: str) -> None:
        message = ffmpeg_log.parse(text).message
        if found := _INPUT.match(message):
            self._input = int(found[1])
        elif duration_ms := ffmpeg_log.container_duration_ms(message):
            self.durations_ms[self._input] = duration_ms

    def _on_output(self, text: str) -> None:
        if block := self._reader.read(text):
            self.out_ms = max(self.out_ms, block.out_ms)


def _input(part: Path, chosen: transcode_plan.Plan, *options: str) -> tuple[str, ...]:
    return (*options, "-protocol_whitelist", "file", "-f", chosen.extension, "-i", str(part))


def _args(ffmpeg: str, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    shown = ("-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info", "-progress", "pipe:1")
    return [ffmpeg, *shown, *inputs, *outputs]


def _same(what: str, measured_ms: int, expected_ms: int) -> None:
    if abs(measured_ms - expected_ms) > max(_TOLERANCE_MS, expected_ms * _TOLERANCE):
        message = f"The length of {what} is {measured_ms / 1000:.2f} s, where {expected_ms / 1000:.2f} s were captured."
        raise errors.TranscodeFailed(message, reason=Reason.VERIFY_FAILED, retry=True)
