"""Native capture: pulls one speaker's stream over RTMP(S) or HTTP-FLV in this process and writes its segment.

Rules:
- It behaves as the capture by ffmpeg (media/capture.py): same interface, reasons, limits and failpoints. A late track, another
  codec and a jump of the timestamps end nothing, because each tag is written as it came.
- Every media packet shows that the stream is alive, also one of a track that is not recorded.
- A disk that is slower than the stream pauses the reading. Meanwhile nothing is known about the stream, so it counts as no stall.
- The pull address is secret: every text that a server wrote is redacted before it leaves this module.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import structlog

from machine import capture_progress, failpoints
from machine.reasons import Reason
from media import capture, ffmpeg_log, file_threads, flv, http_flv, pull, rtmp_client, segment_writer, spool

log = structlog.get_logger()

MOST_WAITING_BYTES = 4 << 20
_RESUME_BYTES = 1 << 20
_PAUSED_POLL_S = 0.1


class NativeCapture:
    """A capture that starts once. `stop` and `kill` may be called at any time, any number of times.

    `on_media` is called once, in the event loop, when the first packet of a wanted track is on disk. `on_misunderstood` is called
    when the server did not understand this client, or the other way round, before any media; both must not block.
    """

    def __init__(
        self,
        spec: capture.CaptureSpec,
        *,
        on_media: Callable[[capture_progress.CaptureProgress], None] | None = None,
        on_misunderstood: Callable[[], None] = lambda: None,
        clock: Callable[[], int] = capture.unix_ms,
    ) -> None:
        self._spec = spec
        self._on_media = on_media
        self._on_misunderstood = on_misunderstood
        self._clock = clock
        self._redact = ffmpeg_log.Redactor(spec.address)
        self._news = asyncio.Event()
        self._spawned = asyncio.Event()
        self._stopping = self._announced = self._paused = self._began = False
        self._base_s = self._alive_s = 0.0
        self._verdict: tuple[Reason, str] | None = None
        self._writer: segment_writer.SegmentWriter | None = None
        self._pull: pull.Pull | None = None
        self._task: asyncio.Task[capture_progress.CaptureExit] | None = None

    @property
    def progress(self) -> capture_progress.CaptureProgress:
        """Media on disk."""
        return self._writer.progress if self._writer else capture_progress.CaptureProgress()

    @property
    def ended(self) -> bool:
        """Whether `wait()` would return immediately."""
        return self._task is not None and self._task.done()

    @property
    def pid(self) -> int:
        """0: there is no other process."""
        return 0

    async def start(self) -> None:
        """Begin to connect; `wait()` reports failures. Safe to call twice; cancellation kills the capture."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"capture {self._spec.path.name}")
        try:
            await self._spawned.wait()
        except asyncio.CancelledError:
            self.kill()
            raise

    def stop(self) -> None:
        """Request the end and return immediately; `wait()` then returns "stopped"."""
        self._stopping = True
        self._news.set()

    def kill(self) -> None:
        """As `stop`: there is no process to kill, and media that arrived is written."""
        self.stop()

    async def wait(self) -> capture_progress.CaptureExit:
        """Wait for the end. Cancelling the wait stops the capture, which then ends in the background; `wait` may be called
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

    async def _run(self) -> capture_progress.CaptureExit:
        try:
            self._verdict = await self._obstacle()
            if self._verdict is None:
                failpoints.hit("capture.spawn.before")
                await self._capture()
        finally:
            self._spawned.set()
        reason, detail = self._verdict or (Reason.ERROR, "The capture ended without a reason.")
        detail = self._redact(detail)
        log.info("capture.ended", reason=reason, detail=detail, media_ms=self.progress.media_ms)
        return capture_progress.CaptureExit(reason=reason, detail=detail, progress=self.progress)

    async def _obstacle(self) -> tuple[Reason, str] | None:
        """Why the capture does not begin; None if it does. A file system that hangs is not waited for after a stop."""
        checking = asyncio.create_task(file_threads.LIVE.run(capture.obstacle, self._spec))
        while not checking.done() and not self._stopping:
            news = asyncio.create_task(self._news.wait())
            await asyncio.wait((checking, news), return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
        if not checking.done():
            await asyncio.wait((checking,), timeout=file_threads.ANSWER_S)
        found = checking.result() if checking.done() else None
        if self._stopping and (found is None or found[0] != Reason.SPOOL_LOST):
            return Reason.STOPPED, "Stopped before it began."
        return found

    async def _capture(self) -> None:
        loop = asyncio.get_running_loop()
        spec = self._spec
        self._base_s = self._alive_s = time.monotonic()
        writer = self._writer = segment_writer.SegmentWriter(
            spec.path, spec.mode, base_ms=self._clock(), on_change=self._news.set, loop=loop
        )
        self._pull = _pull_of(spec.address)
        pulling = asyncio.create_task(self._pull.run(self._take), name=f"pull {spec.path.name}")
        pulling.add_done_callback(lambda _: self._news.set())
        segment_writer.SHARED.add(writer)
        failpoints.hit("capture.spawn.after")
        log.info("capture.spawned", segment=spec.path.name, native=True)
        self._spawned.set()
        try:
            while self._verdict is None:
                await self._next_news()
                self._verdict = self._decide(pulling)
        finally:
            pulling.cancel()
            await asyncio.wait((pulling,))
            writer.close()
            segment_writer.SHARED.hurry()
            await self._written(writer)
        if not self._announced and writer.progress.media_ms:
            self._announce()
        if self._verdict[0] in (Reason.EOF, Reason.STOPPED) and writer.fault is not None:
            self._verdict = self._fault(writer.fault)

    def _take(self, kind: int, timestamp_ms: int, payload: bytes) -> None:
        """Take a tag from the network, in the event loop."""
        writer = self._writer
        assert writer is not None  # noqa: S101 - _capture made it
        now_s = time.monotonic()
        if flv.is_media(kind, payload):
            self._alive_s = now_s
            if not self._began:
                self._began = True
                self._news.set()
        writer.add(round((now_s - self._base_s) * 1000), kind, timestamp_ms, payload)
        if not self._paused and writer.waiting_bytes > MOST_WAITING_BYTES and self._pull is not None:
            self._paused = True
            self._pull.pause()
            log.warning("capture.paused", segment=self._spec.path.name, waiting_bytes=writer.waiting_bytes)
            self._news.set()

    async def _next_news(self) -> None:
        """Wait for news, or until the limit for silence."""
        spec = self._spec
        limit_s = spec.stall_after_s if self._began else spec.first_media_s
        left_s = _PAUSED_POLL_S if self._paused else max(0.0, self._alive_s + limit_s - time.monotonic()) + 0.01
        alarm = asyncio.get_running_loop().call_later(left_s, self._news.set)
        await self._news.wait()
        alarm.cancel()
        self._news.clear()
        if self._paused:
            self._alive_s = time.monotonic()
            if self._writer is not None and self._pull is not None and self._writer.waiting_bytes < _RESUME_BYTES:
                self._paused = False
                self._pull.resume()
                log.info("capture.resumed", segment=spec.path.name)
        if not self._announced and self.progress.media_ms:
            self._announce()

    def _announce(self) -> None:
        self._announced = True
        failpoints.hit("capture.media.before")
        if self._on_media is not None:
            self._on_media(self.progress)

    def _decide(self, pulling: asyncio.Task[pull.End]) -> tuple[Reason, str] | None:
        """The reason to end the capture, or None."""
        spec, silent_s = self._spec, time.monotonic() - self._alive_s
        if self._stopping:
            return Reason.STOPPED, "Stopped as asked."
        if self._writer is not None and self._writer.fault is not None:
            return self._fault(self._writer.fault)
        if pulling.done():
            failed = pulling.exception()
            if failed is not None:
                log.error("capture.pull_failed", segment=spec.path.name, exc_info=failed)
                return Reason.ERROR, f"The pull failed: {type(failed).__name__}."
            return self._judge(pulling.result())
        if not self._began and silent_s > spec.first_media_s:
            return Reason.NO_MEDIA, f"The server sent nothing for {spec.first_media_s:g} s."
        if self._began and silent_s > spec.stall_after_s:
            return Reason.STALLED, f"Nothing arrived for {spec.stall_after_s:g} s."
        return None

    def _judge(self, end: pull.End) -> tuple[Reason, str]:
        """The reason why the pull ended on its own."""
        if self._began:
            return Reason.EOF, f"The stream ended. {end.detail}"
        if end.misunderstood:
            log.warning("capture.misunderstood", segment=self._spec.path.name, detail=self._redact(end.detail))
            self._on_misunderstood()
        match end.meaning:
            case ffmpeg_log.Meaning.REFUSED_FOR_GOOD:
                return Reason.REFUSED_FOR_GOOD, f"{capture.REFUSED_FOR_GOOD_DETAIL} It said: {end.detail}"
            case ffmpeg_log.Meaning.REFUSED:
                return Reason.REFUSED, end.detail
            case ffmpeg_log.Meaning.NO_TRACK:
                return Reason.NO_MEDIA, f"The stream ended before any sound or picture came. {end.detail}"
        return Reason.ERROR, f"The pull ended without media: {end.detail}"

    def _fault(self, error: Exception) -> tuple[Reason, str]:
        if isinstance(error, segment_writer.SegmentFull):
            return Reason.ERROR, "The segment reached its largest size. The next segment continues."
        if not isinstance(error, OSError):
            return Reason.ERROR, f"The segment could not be written: {type(error).__name__}."
        said = error.strerror or str(error)
        return spool.fault_of(error), f"The segment {self._spec.path} cannot be written: {said}"

    async def _written(self, writer: segment_writer.SegmentWriter) -> None:
        """Wait until the rest is on disk, but not for a file system that hangs."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + file_threads.ANSWER_S
        while not writer.closed and (left_s := until_s - loop.time()) > 0:
            alarm = loop.call_later(left_s, self._news.set)
            await self._news.wait()
            alarm.cancel()
            self._news.clear()


def _pull_of(address: str) -> pull.Pull:
    scheme = urlsplit(address).scheme.lower()
    return http_flv.HttpFlvPull(address) if scheme in ("http", "https") else rtmp_client.RtmpPull(address)
