"""The live uploads of a node: one for each recording that is followed, while its file grows.

Rules: a live upload never fails a recording, and no capture waits for it. What it has sent is in memory only: after a crash the
next upload of the same key aborts it. The upload of the finished file resumes from it on this node. On a bounded spool both are
otherwise (piece_uploads.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from assembly import piece_uploads
from machine import errors
from tencent import cos, cos_target, cos_upload, live_upload

log = structlog.get_logger()

LOOK_EVERY_S = 5.0


@dataclass(slots=True, kw_only=True)
class _Live:
    """`upload` and its `target`, or None for the pieces of a bounded spool."""

    look: Callable[[], Awaitable[None]]
    give_up: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    parts: Callable[[], int]
    upload: live_upload.LiveUpload | None = None
    target: cos_target.CosTarget | None = None
    task: asyncio.Task[None] | None = None
    epoch: int = 0  # of the transcode whose file it is, once that is finished


class LiveUploads:
    """The live uploads by recording."""

    def __init__(self, *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._look_every_s = look_every_s
        self._uploads: dict[str, _Live] = {}

    def begin(self, recording: str, upload: live_upload.LiveUpload, target: cos.CosTarget, connect: live_upload.Connect) -> None:
        """Begin to upload the file of a recording, unless it is uploaded already."""
        live = _Live(
            look=lambda: upload.look(connect),
            give_up=lambda: upload.give_up(connect),
            close=upload.close,
            parts=lambda: len(upload.state.parts),
            upload=upload,
            target=target,
        )
        self._begin(recording, live)

    def begin_pieces(self, recording: str, uploads: piece_uploads.PieceUploads) -> None:
        """Begin to upload the pieces of a recording, unless they are uploaded already."""
        parts = uploads.parts
        self._begin(recording, _Live(look=uploads.look, give_up=uploads.give_up, close=uploads.close, parts=parts))

    def _begin(self, recording: str, live: _Live) -> None:
        if recording not in self._uploads:
            self._uploads[recording] = live
            live.task = asyncio.create_task(self._run(recording, live), name="live-upload")

    def sent_parts(self) -> int:
        """How many parts of unfinished files are in COS."""
        return sum(live.parts() for live in self._uploads.values())

    async def pause(self, recording: str) -> None:
        """Read the file no longer: its end is being written."""
        live = self._uploads.get(recording)
        if live is not None:
            await _ended(live)

    def finished(self, recording: str, epoch: int, head_bytes: int) -> None:
        """The uploaded file has become that of the transcode `epoch`; its first part is longer by `head_bytes`."""
        live = self._uploads.get(recording)
        if live is not None and live.upload is not None:
            live.epoch = epoch
            state = live.upload.state
            live.upload.state = replace(state, head_bytes=(state.head_bytes or 0) + head_bytes)

    def state(self, recording: str, epoch: int, target: cos.CosTarget) -> cos_upload.UploadState | None:
        """Where the upload of the file of the transcode `epoch` resumes; None if nothing of it was sent."""
        live = self._uploads.get(recording)
        if live is None or live.upload is None or not live.upload.state.upload_id or (live.epoch, live.target) != (epoch, target):
            return None
        return live.upload.state

    def recordings(self) -> list[str]:
        """The recordings whose files are uploaded, except in pieces: those are of use until their files are removed."""
        return [recording for recording, live in self._uploads.items() if live.upload is not None]

    async def leave(self, recording: str, saved_id: str) -> None:
        """Forget the live upload of a recording that another node has. It is aborted, unless `saved_id` names it: the next upload
        of the recording, on any node, goes on from there. The pieces of a bounded spool stay."""
        live = self._uploads.get(recording)
        if live is not None and live.upload is not None:
            await self.drop(recording, abort=live.upload.state.upload_id != saved_id)

    async def drop(self, recording: str, *, abort: bool = True) -> None:
        """Forget a live upload, and abort it unless its object is complete."""
        live = self._uploads.pop(recording, None)
        if live is None:
            return
        await _ended(live)
        if abort:
            try:
                await live.give_up()
            except errors.RecorderError as error:
                log.warning("upload.parts-left", recording=recording, reason=str(error))

    async def stop(self) -> None:
        """End all, and leave what they have sent to the next upload of each key."""
        await asyncio.gather(*(self.drop(recording, abort=False) for recording in list(self._uploads)))

    async def _run(self, recording: str, live: _Live) -> None:
        """Look at the file until its end, or until COS refuses it for good. The log tells a failure that is another one than that
        of the look before."""
        known = ""
        while True:
            await asyncio.sleep(self._look_every_s)
            reason, detail, retry = "", "", True
            try:
                await live.look()
            except errors.UploadFailed as error:
                reason, detail, retry = error.reason, error.detail, error.retry
            except (OSError, errors.RecorderError) as error:
                reason, detail = type(error).__name__, str(error)
            except Exception:
                log.exception("upload.live_failed", recording=recording)
                continue
            if reason and reason != known:
                log.warning("upload.live_failed", recording=recording, reason=reason, detail=detail)
            elif known and not reason:
                log.info("upload.live_resumed", recording=recording)
            if not retry:
                return
            known = reason


async def _ended(live: _Live) -> None:
    if live.task is not None:
        live.task.cancel()
        await asyncio.gather(live.task, return_exceptions=True)
    await live.close()
