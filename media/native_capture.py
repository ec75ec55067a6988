"""Native capture: pulls one speaker's stream over RTMP(S) or HTTP-FLV in this process and writes its segment.

Rules:
- It behaves as the capture by ffmpeg: same reasons, limits and failpoints. A late track, another codec and a jump of the
  timestamps end nothing, because each tag is written as it came.
- A disk that is slower than the stream pauses the reading. Meanwhile nothing is known about the stream, so it counts as no stall.
  The same holds while the process stands still, frozen or on a machine that sleeps.
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
# How often a capture looks up within the limit for silence. If it looks up later than the next look, the process stood still.
_LOOKS = 4


class NativeCapture(capture.Capture):
    """A capture in this process.

    `on_misunderstood` is called before any media when the server and this client did not understand each other, with False if
    only a repetition would show that; it must not block.
    """

    def __init__(
        self,
        spec: capture.CaptureSpec,
        *,
        on_media: capture.OnMedia | None = None,
        on_misunderstood: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], int] = capture.unix_ms,
    ) -> None:
        super().__init__(spec, on_media=on_media, clock=clock)
        self._on_misunderstood = on_misunderstood
        self._paused = self._began = False
        self._base_s = self._alive_s = 0.0
        self._writer: segment_writer.SegmentWriter | None = None
        self._pull: pull.Pull | None = None

    @property
    def progress(self) -> capture_progress.CaptureProgress:
        """Media on disk."""
        return self._writer.progress if self._writer else capture_progress.CaptureProgress()

    async def _capture(self) -> None:
        self._verdict = await self._obstacle()
        if self._verdict is None:
            failpoints.hit("capture.spawn.before")
            await self._pull_to_the_end()

    async def _pull_to_the_end(self) -> None:
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
        try:
            failpoints.hit("capture.spawn.after")
            log.info("capture.spawned", segment=spec.path.name, native=True)
            self._spawned.set()
            while self._verdict is None:
                await self._next_news()
                self._verdict = self._decide(pulling)
        finally:
            pulling.cancel()
            await asyncio.wait((pulling,))
            writer.close()
            segment_writer.SHARED.hurry()
            await self._written(writer)
        if writer.progress.media_ms:
            self._announce()
        else:
            reason, detail = self._verdict
            self._verdict = reason, detail + "".join(f" ffmpeg cannot read {codec}." for codec in writer.unreadable)
        if self._verdict[0] in (Reason.EOF, Reason.STOPPED) and writer.fault is not None:
            self._verdict = self._fault(writer.fault)

    def _take(self, kind: int, timestamp_ms: int, payload: bytes) -> None:
        """Take a tag from the network, in the event loop."""
        writer = self._writer
        assert writer is not None  # noqa: S101 - _capture made it
        now_s = time.monotonic()
        writer.add(round((now_s - self._base_s) * 1000), kind, timestamp_ms, payload)
        if flv.is_media(kind, payload):
            self._alive_s = now_s
            if not self._began:
                self._began = True
                self._news.set()
                segment_writer.SHARED.hurry()  # the start of the recording does not wait for a tick
        if not self._paused and writer.waiting_bytes > MOST_WAITING_BYTES and self._pull is not None:
            self._paused = True
            self._pull.pause()
            log.warning("capture.paused", segment=self._spec.path.name, waiting_bytes=writer.waiting_bytes)
            self._news.set()

    async def _next_news(self) -> None:
        """Wait for news, or until the limit for silence."""
        spec = self._spec
        limit_s = spec.stall_after_s if self._began else spec.first_media_s
        look_s = limit_s / _LOOKS
        left_s = _PAUSED_POLL_S if self._paused else min(look_s, max(0.0, self._alive_s + limit_s - time.monotonic()) + 0.01)
        alarm_s = time.monotonic() + left_s
        alarm = asyncio.get_running_loop().call_later(left_s, self._news.set)
        await self._news.wait()
        alarm.cancel()
        self._news.clear()
        if self._paused or time.monotonic() > alarm_s + look_s:
            self._alive_s = time.monotonic()
        writer, pulled = self._writer, self._pull
        if self._paused and writer is not None and pulled is not None and writer.waiting_bytes < _RESUME_BYTES:
            self._paused = False
            pulled.resume()
            log.info("capture.resumed", segment=spec.path.name)
        if self.progress.media_ms:
            self._announce()

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
        if end.blame is not pull.Blame.NONE:
            certain = end.blame is pull.Blame.CLIENT
            log.warning("capture.misunderstood", segment=self._spec.path.name, certain=certain, detail=self._redact(end.detail))
            self._on_misunderstood(certain)
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
