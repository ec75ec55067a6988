"""Capture: one run that pulls one speaker's stream into one segment. The base of both kinds (native_capture, ffmpeg_capture).

Rules: every end goes through `wait()`, which returns its reason; `start` and `stop` raise nothing about the stream. A stream with
packets in any track is not stalled, even if the mode does not record that track. A file system that hangs is not waited for once
the capture ends. The pull address is secret: every text is redacted before it leaves a capture.
"""

from __future__ import annotations

import abc
import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import capture_progress, failpoints
from machine.reasons import Reason
from media import ffmpeg_log, file_threads, spool

REFUSED_FOR_GOOD_DETAIL = (
    "The server refused this UserSig or account: the UserSig may have expired or be another user's, or the application "
    "has no package that includes pulling (TRTC needs Standard or Pro)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSpec:
    """A capture's input (`address`, secret), output (`path`), `mode` "00", "01" or "02", and its time limits: for silence and for
    the first packet. `make_folder` creates the output's folder (blocking)."""

    address: str = field(repr=False)
    path: Path
    mode: str
    make_folder: Callable[[], object] = bool
    stall_after_s: float = 10.0
    first_media_s: float = 15.0


OnMedia = Callable[[capture_progress.CaptureProgress], None]
"""Called once, in the event loop, when the first packet of a wanted track is on disk; it must not block."""


def unix_ms() -> int:
    """The wall clock, in Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Capture(abc.ABC):
    """A capture that starts once. `stop` and `kill` may be called at any time, any number of times."""

    def __init__(self, spec: CaptureSpec, *, on_media: OnMedia | None, clock: Callable[[], int]) -> None:
        self._spec = spec
        self._on_media = on_media
        self._clock = clock
        self._redact = ffmpeg_log.Redactor(spec.address)
        self._news = asyncio.Event()
        self._spawned = asyncio.Event()
        self._stopping = self._announced = False
        self._verdict: tuple[Reason, str] | None = None
        self._ending: asyncio.Future[None] | None = None
        self._task: asyncio.Task[capture_progress.CaptureExit] | None = None

    @property
    @abc.abstractmethod
    def progress(self) -> capture_progress.CaptureProgress:
        """Media on disk, as far as it is known."""

    @property
    def ended(self) -> bool:
        """Whether `wait()` would return immediately."""
        return self._task is not None and self._task.done()

    @property
    def pid(self) -> int:
        """The id of the process that captures; 0 if that is this process, or none yet."""
        return 0

    async def start(self) -> None:
        """Begin; returns when the pull runs or has failed, which `wait()` reports. Safe to call twice; cancellation kills the
        capture."""
        if self._task is None:
            self._ending = asyncio.get_running_loop().create_future()
            if self._stopping:
                self._ending.set_result(None)
            self._task = asyncio.create_task(self._run(), name=f"capture {self._spec.path.name}")
        try:
            await self._spawned.wait()
        except asyncio.CancelledError:
            self.kill()
            raise

    def stop(self) -> None:
        """Request the end and return immediately; `wait()` then returns "stopped"."""
        self._stopping = True
        self._end()

    def kill(self) -> None:
        """End at once; media on disk is kept. `wait()` then returns "stopped"."""
        self.stop()

    async def wait(self) -> capture_progress.CaptureExit:
        """Wait for the end. Cancelling the wait kills the capture, which then ends in the background; `wait` may be called
        again."""
        if self._task is None:
            return capture_progress.CaptureExit(
                reason=Reason.STOPPED, detail="The capture was never started.", progress=self.progress
            )
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self.kill()
            raise

    @abc.abstractmethod
    async def _capture(self) -> None:
        """Capture to the end, and leave its reason in `_verdict`. Sets `_spawned` when the pull runs."""

    async def _run(self) -> capture_progress.CaptureExit:
        try:
            await self._capture()
        finally:
            self._spawned.set()
        reason, detail = self._verdict or (Reason.ERROR, "The capture ended without a reason.")
        detail = self._redact(detail)
        return capture_progress.CaptureExit(reason=reason, detail=detail, progress=self.progress)

    def _end(self) -> None:
        """Wake the watch. From now on it does not wait for a file system that hangs."""
        self._news.set()
        if self._ending is not None and not self._ending.done():
            self._ending.set_result(None)

    async def _answered(self, reading: asyncio.Task[Any]) -> bool:
        """Wait for an answer of the file system; once the capture ends, only for a moment. Returns whether it came."""
        assert self._ending is not None  # noqa: S101 - start made it
        await asyncio.wait((reading, self._ending), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await asyncio.wait((reading,), timeout=file_threads.ANSWER_S)
        return reading.done()

    async def _obstacle(self) -> tuple[Reason, str] | None:
        """Why the capture does not begin; None if it does."""
        checking = asyncio.create_task(file_threads.LIVE.run(obstacle, self._spec))
        found = checking.result() if await self._answered(checking) else None
        if self._stopping and (found is None or found[0] != Reason.SPOOL_LOST):
            return Reason.STOPPED, "Stopped before it began."
        return found

    def _announce(self) -> None:
        """Report the first media, once."""
        if not self._announced:
            self._announced = True
            failpoints.hit("capture.media.before")
            if self._on_media is not None:
                self._on_media(self.progress)


def obstacle(spec: CaptureSpec) -> tuple[Reason, str] | None:
    """Create the folder, and return why no segment can be written there (blocking)."""
    try:
        spec.make_folder()
        if not spec.path.parent.is_dir():
            return Reason.SPOOL_LOST, f"The folder {spec.path.parent} is gone."
        if spec.path.exists() and spec.path.stat().st_size > 0:
            return Reason.ERROR, f"{spec.path.name} holds media already; a capture never overwrites a segment."
    except OSError as error:
        return spool.fault_of(error), f"The segment {spec.path.name} cannot be created: {error.strerror}."
    return None
