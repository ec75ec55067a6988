"""The transcode: segments in, one verified file out.

Steps: survey the segments, feed them as one stream to one ffmpeg, verify its output (media/verify.py), then give the file its
name: `*.part` → fsync → rename → fsync of the folder. A copy that fails verification is encoded instead, before the transcode
fails.

Rules: only a verified file has the output's name; cancellation kills ffmpeg and removes the part; only one chunk is in memory;
ffmpeg has a lower priority than the captures of its node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from machine import alignment, errors, failpoints, model
from machine.reasons import Reason
from media import (
    bounds,
    ffmpeg_log,
    ffmpeg_process,
    file_threads,
    flv,
    joiner,
    mp4_index,
    resource_limits,
    spool,
    survey,
    transcode_plan,
    verify,
)
from media.joiner import SegmentFile as SegmentFile
from media.survey import Gap as Gap

log = structlog.get_logger()

_CHUNK_BYTES = 1 << 18
# Captures and decisions come first: encoders have more threads than a node has CPUs.
_NICENESS = 5
# No session is that long; without a limit, a stream whose timestamps run ahead could keep an encoder busy forever.
_LONGEST_MS = 31 * 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscodeOutput:
    """The finished file. `duration_ms` is the duration in its header, gaps cut; `crc64` is CRC-64/XZ in decimal; `gaps` are the
    places of missing media. `lost_ms` of media in `lost_segments` segments were captured and are damaged or gone. `start_ms` and
    `end_ms` are the wall times (Unix ms) of the first and last packet, None if no segment has them. `anchors`, `error_ms` and
    `live` say when the media was live. `unreadable`: codecs of tracks that ffmpeg cannot read."""

    path: Path
    duration_ms: int
    size_bytes: int
    crc64: str | None
    gaps: tuple[Gap, ...]
    anchors: alignment.Anchors
    error_ms: int
    live: tuple[tuple[int, int], ...]
    unreadable: tuple[str, ...]
    lost_ms: int
    lost_segments: int
    start_ms: int | None
    end_ms: int | None

    def stored(self, epoch: int) -> model.Output:
        """The form of events and of the database, as the output of the transcode `epoch`."""
        return model.Output(
            duration_ms=self.duration_ms,
            size_bytes=self.size_bytes,
            crc64=self.crc64 or "",
            start_ms=self.start_ms,
            end_ms=self.end_ms,
            gaps=tuple((round(g.at_s * 1000), round(g.duration_s * 1000)) for g in self.gaps),
            anchors=self.anchors,
            error_ms=self.error_ms,
            live=self.live,
            unreadable=self.unreadable,
            lost_ms=self.lost_ms,
            lost_segments=self.lost_segments,
            epoch=epoch,
        )


class Transcoder:
    """Turns a recording's segments into its file. Keeps no state between calls.

    `stuck_after_s`: an ffmpeg that reads, writes and reports nothing for this long is killed.
    """

    def __init__(self, ffmpeg: str, *, stuck_after_s: float = 300.0) -> None:
        self._ffmpeg = ffmpeg
        self._stuck_after_s = stuck_after_s

    async def transcode(self, segments: Sequence[SegmentFile], mode: str, output: Path) -> TranscodeOutput:
        """Write `output` (MP3 for mode "00", MP4 for "01" and "02") from all segments, in their order.

        Raises errors.TranscodeFailed with the reason "no-media", "ffmpeg-failed", "verify-failed", "disk-full", "spool-lost" or
        "killed".
        """
        part = output.with_name(output.name + ".part")
        try:
            failpoints.hit("transcode.start.before")
            found = await file_threads.BULK.run(lambda: bounds.bounded(survey.survey(segments, mode)))
            await file_threads.BULK.run(self._check, found, segments, output)
            log.info("transcode.surveyed", duration_ms=found.duration_ms, segments=len(segments), gaps=len(found.gaps))
            seen = await self._make(found, segments, mode, part)
            size_bytes, crc64 = await file_threads.BULK.run(verify.settle, part)
            failpoints.hit("transcode.rename.before")
            await file_threads.BULK.run(give_name, part, output)
            failpoints.hit("transcode.rename.after")
        except OSError as error:
            raise storage_failed(error) from error
        finally:
            with contextlib.suppress(OSError):
                await file_threads.BULK.run_within(file_threads.ANSWER_S, lambda: part.unlink(missing_ok=True))
        return output_of(found, seen, output, size_bytes, crc64)

    def _check(self, found: survey.Survey, segments: Sequence[SegmentFile], output: Path) -> None:
        folders = {segment.path.parent for segment in segments} | {output.parent}
        if gone := sorted(str(folder) for folder in folders if not folder.is_dir()):
            raise errors.TranscodeFailed(f"The folder {gone[0]} is gone.", reason=Reason.SPOOL_LOST, retry=True)
        if not found.kinds:
            codec = "".join(f" ffmpeg cannot read {each}." for _, each in sorted(found.unreadable.items()))
            detail = f"No segment holds a track that the mode records.{codec}"
            raise errors.TranscodeFailed(detail, reason=Reason.NO_MEDIA, retry=False)
        if found.duration_ms > _LONGEST_MS:
            hours = found.duration_ms // 3_600_000
            detail = f"The segments claim {hours} hours of media, more than any session lasts."
            raise errors.TranscodeFailed(detail, reason=Reason.FFMPEG_FAILED, retry=False)

    async def _make(
        self,
        found: survey.Survey,
        segments: Sequence[SegmentFile],
        mode: str,
        part: Path,
    ) -> verify.Seen:
        chosen = transcode_plan.plan(found, mode)
        while True:
            try:
                await self._run(found, segments, chosen, part)
                if chosen.extension == "mp4":
                    await file_threads.BULK.run(mp4_index.to_front, part)
                return await verify.verify(self._ffmpeg, part, found, chosen)
            except errors.TranscodeFailed as error:
                if not chosen.copied or error.reason not in (Reason.FFMPEG_FAILED, Reason.VERIFY_FAILED):
                    raise
                log.warning("transcode.copy_refused", reason=error.reason, detail=error.detail)
                chosen = transcode_plan.plan(found, mode, copy=False)

    async def _run(
        self,
        found: survey.Survey,
        segments: Sequence[SegmentFile],
        chosen: transcode_plan.Plan,
        part: Path,
    ) -> None:
        argv = transcode_plan.transcode_args(self._ffmpeg, found, chosen, str(part))
        silences = found.silences
        filled = sorted(kind for kind in chosen.encoded if kind != flv.AUDIO or silences is None)
        fillings = [filling for kind in filled for filling in found.fillings(kind)]
        joined = joiner.Joiner(segments, found.kinds, fillings=fillings, placed=found.placed, silences=silences)
        input_bytes = await file_threads.BULK.run(size_in_all, segments)
        run = FfmpegRun(resource_limits.polite(argv, _NICENESS), resource_limits.transcode(input_bytes))
        log.info(
            "transcode.spawning", copied=sorted(chosen.copied), encoded=sorted(chosen.encoded), duration_ms=found.duration_ms
        )
        code = await run.to_end(joined.stream(), part, self._stuck_after_s)
        if code != 0:
            raise run.failure(code)


class FfmpegRun:
    """One ffmpeg: fed, drained, and watched for stalls."""

    def __init__(self, argv: Sequence[str], allowed: resource_limits.Limits, *, inherit: Sequence[int] = ()) -> None:
        self._inherit = inherit
        self._reader = ffmpeg_log.ProgressReader()
        self._heard: dict[ffmpeg_log.Meaning, str] = {}
        self._fed_bytes = 0
        self._out_ms = 0
        self._stuck = False
        self._child = ffmpeg_process.Child(
            argv, redact=ffmpeg_log.Redactor(), on_error_line=self._on_error, on_output_line=self._on_output, limits=allowed
        )

    async def to_end(self, stream: AsyncIterator[bytes], part: Path, stuck_after_s: float) -> int:
        """Feed the stream and wait for the end; returns the exit code. Any interruption kills ffmpeg first."""
        await self._child.start(inherit=self._inherit)
        self._child.widen_stdin()
        reaped = asyncio.create_task(self._child.wait())
        feeding = asyncio.create_task(self._feed(stream))
        watching = asyncio.create_task(self._watch(part, stuck_after_s))
        try:
            failpoints.hit("transcode.start.after")
            code = await asyncio.shield(reaped)
            if code == 0 or feeding.done():
                await feeding  # an unreadable segment is the reason, not the ffmpeg that was killed for it
            return code
        finally:
            self._child.kill()
            watching.cancel()
            feeding.cancel()
            await asyncio.gather(reaped, feeding, watching, return_exceptions=True)

    def failure(self, code: int) -> errors.TranscodeFailed:
        """The failure behind an exit code other than 0."""
        said = self._child.last_lines[-1] if self._child.last_lines else "it said nothing"
        if self._stuck:
            return errors.TranscodeFailed(
                f"ffmpeg stood still and was killed; last words: {said}", reason=Reason.FFMPEG_FAILED, retry=True
            )
        if ffmpeg_log.Meaning.DISK_FULL in self._heard:
            return errors.TranscodeFailed(self._heard[ffmpeg_log.Meaning.DISK_FULL], reason=Reason.DISK_FULL, retry=True)
        if ffmpeg_log.Meaning.SPOOL_LOST in self._heard:
            return errors.TranscodeFailed(self._heard[ffmpeg_log.Meaning.SPOOL_LOST], reason=Reason.SPOOL_LOST, retry=True)
        if code < 0:
            return errors.TranscodeFailed(f"ffmpeg was killed by signal {-code}.", reason=Reason.KILLED, retry=True)
        return errors.TranscodeFailed(f"ffmpeg ended with code {code}: {said}", reason=Reason.FFMPEG_FAILED, retry=True)

    async def _feed(self, stream: AsyncIterator[bytes]) -> None:
        stdin = self._child.stdin
        try:
            async for chunk in stream:
                for at in range(0, len(chunk), _CHUNK_BYTES):
                    stdin.write(chunk[at : at + _CHUNK_BYTES])
                    await stdin.drain()
                    self._fed_bytes += _CHUNK_BYTES
        except (BrokenPipeError, ConnectionResetError):
            return  # ffmpeg exited before its input ended; its exit code and stderr tell why
        except OSError:
            self._child.kill()
            raise
        stdin.close()

    async def _watch(self, part: Path, stuck_after_s: float) -> None:
        before: object = None
        while True:
            now = (self._fed_bytes, self._out_ms, await file_threads.BULK.run(_size_bytes, part))
            if now == before:
                self._stuck = True
                self._child.kill()
                return
            before = now
            await asyncio.sleep(stuck_after_s)

    def _on_error(self, text: str) -> None:
        line = ffmpeg_log.parse(text)
        self._heard.setdefault(ffmpeg_log.meaning(line), line.message)

    def _on_output(self, text: str) -> None:
        block = self._reader.read(text)
        if block is not None and block.out_ms > self._out_ms:
            self._out_ms = block.out_ms


def size_in_all(segments: Sequence[SegmentFile]) -> int:
    """The size of all segments in bytes (blocking)."""
    found = 0
    for segment in segments:
        with contextlib.suppress(FileNotFoundError):  # a missing file is empty, as in the survey
            found += segment.path.stat().st_size
    return found


def _size_bytes(part: Path) -> int:
    try:
        stat = part.stat()
    except OSError:
        return 0
    return stat.st_size ^ stat.st_mtime_ns


def output_of(found: survey.Survey, seen: verify.Seen, path: Path, size_bytes: int, crc64: str) -> TranscodeOutput:
    """The finished file of a bounded survey."""
    return TranscodeOutput(
        path=path,
        duration_ms=seen.duration_ms,
        size_bytes=size_bytes,
        crc64=crc64,
        gaps=tuple(found.gaps),
        anchors=alignment.Anchors(tuple(found.anchors)),
        error_ms=found.error_ms,
        live=tuple(found.live),
        unreadable=tuple(codec for _, codec in sorted(found.unreadable.items())),
        lost_ms=found.lost_ms,
        lost_segments=found.lost_segments,
        start_ms=found.start_ms,
        end_ms=found.end_ms,
    )


def give_name(part: Path, output: Path) -> None:
    """Rename a finished part, so that the name survives a power cut (blocking). Raises OSError."""
    part.replace(output)
    folder = os.open(output.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn an OSError of the spool into TranscodeFailed."""
    try:
        yield
    except OSError as error:
        raise storage_failed(error) from error


def storage_failed(error: OSError) -> errors.TranscodeFailed:
    """The failure behind an error of the operating system: no space, a lost spool, or another one. All are retryable."""
    reason, said = spool.fault_of(error), error.strerror or error
    detail = (
        f"The transcode could not run: {said}." if reason == Reason.ERROR else f"The spool cannot be read or written: {said}."
    )
    return errors.TranscodeFailed(detail, reason=reason, retry=True)
