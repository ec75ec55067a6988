"""The finished files of a recording on a bounded spool, from its pieces and what is left of its segments.

Rules: a recording that was followed to its end has one file, its last piece. Where following could not go on, each earlier piece
is a file of its own, and the transcode makes the last one from the rest. Every call may be repeated after a crash.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from machine import errors, model, states
from machine.reasons import Reason
from media import file_threads, pieces, transcode
from tencent import cos_target

log = structlog.get_logger()

_ALWAYS_MS = 9_007_199_254_740_991
Make = Callable[[Sequence[transcode.SegmentFile], str, Path], Awaitable[transcode.TranscodeOutput]]
"""Makes the finished file of segments: in which mode, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One transcode: its segments, its epoch, the path of its output, and the object of each file by its number."""

    files: Sequence[transcode.SegmentFile]
    mode: str
    epoch: int
    output: Path
    target: Callable[[int], cos_target.CosTarget]


async def finish(job: Job, make: Make) -> model.Output | None:
    """The output of a recording that has pieces; None for one without any. Nobody may write its pieces any more. Raises
    errors.TranscodeFailed."""
    with transcode.storage_errors():
        found = await file_threads.BULK.run(pieces.settled, job.output.parent)
    if not found:
        return None
    made, earlier = await _rest(job, make, found)
    with transcode.storage_errors():
        if made is None:
            last = found[-1]
            await file_threads.BULK.run(_give_name, last, job.output)
            made = replace(last.output, epoch=job.epoch)
    log.info("transcode.pieces", files=len(earlier) + 1, whole=len(earlier) < len(found))
    return _told(made, earlier, job)


async def _rest(job: Job, make: Make, found: Sequence[pieces.Piece]) -> tuple[model.Output | None, Sequence[pieces.Piece]]:
    """The file of what is in no piece, None if there is nothing, and the pieces before it."""
    if found[-1].begin is None:
        return None, found[:-1]
    try:
        made = await make(pieces.left(job.files, found[-1].begin), job.mode, job.output)
    except errors.TranscodeFailed as error:
        if error.reason != Reason.NO_MEDIA:
            raise
        return None, found[:-1]
    return made.stored(job.epoch), found


def _give_name(piece: pieces.Piece, output: Path) -> None:
    """Give a piece the name of the output too, and the state of its upload."""
    with contextlib.suppress(FileNotFoundError):  # nothing was sent
        pieces.write_durably(upload_path(output), piece.upload_path.read_text("utf-8"))
    part = output.with_name(f"{output.name}.part")
    part.unlink(missing_ok=True)
    os.link(piece.path, part)
    transcode.give_name(part, output)


def upload_path(output: Path) -> Path:
    """Where the state of an upload is that began before its file was finished."""
    return output.with_name(output.name + pieces.UPLOAD_SUFFIX)


def _told(made: model.Output, earlier: Sequence[pieces.Piece], job: Job) -> model.Output:
    """The output with its earlier files; each tells what is missing until the next one begins."""
    if not earlier:
        return made
    outputs = [*(piece.output for piece in earlier), made]
    begins = [0, *(output.start_ms or 0 for output in outputs[1:]), _ALWAYS_MS]
    windows = itertools.pairwise(begins)
    *before, last = (replace(output, window=window) for output, window in zip(outputs, windows, strict=True))
    files = tuple(
        model.DeliveredFile(n=0, url=cos_target.url(job.target(piece.number)), code=states.SUCCESS, detail="", output=output)
        for piece, output in zip(earlier, before, strict=True)
    )
    return replace(last, earlier=files)
