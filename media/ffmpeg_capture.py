"""Capture by ffmpeg: an ffmpeg process that pulls one speaker's stream into one segment, and the watch over it.

Rules: ffmpeg's exit code does not indicate completeness, so the file, stderr and the cause of the end decide the exit reason. The
pull address is no process argument (see media/ffmpeg_command.py).

`-progress` is not used: with flushed packets the file shows progress sooner, and a stalled ffmpeg still prints progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

import structlog

from machine import capture_progress, errors, failpoints
from machine.reasons import Reason
from media import capture, ffmpeg_command, ffmpeg_log, ffmpeg_process, file_threads, flv_tail, resource_limits, spool

log = structlog.get_logger()


_FIRST_POLL_S = 0.1
_POLL_S = 1.0
_ASK_S = 2.0
_TERM_S = 1.0
_NEW_TRACK = {
    "00": frozenset((ffmpeg_log.Meaning.NEW_AUDIO,)),
    "01": frozenset((ffmpeg_log.Meaning.NEW_VIDEO,)),
    "02": frozenset((ffmpeg_log.Meaning.NEW_AUDIO, ffmpeg_log.Meaning.NEW_VIDEO)),
}


class FfmpegCapture(capture.Capture):
    """A capture by an ffmpeg process of its own."""

    def __init__(
        self,
        spec: capture.CaptureSpec,
        *,
        ffmpeg: str,
        on_media: capture.OnMedia | None = None,
        clock: Callable[[], int] = capture.unix_ms,
    ) -> None:
        super().__init__(spec, on_media=on_media, clock=clock)
        self._ffmpeg = ffmpeg
        self._meanings: dict[ffmpeg_log.Meaning, str] = {}
        self._killing = self._exited = False
        self._began_s = self._grown_s = 0.0
        self._polls_with_media = self._code = 0
        self._child: ffmpeg_process.Child | None = None
        self._tail: flv_tail.Tail | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def progress(self) -> capture_progress.CaptureProgress:
        """Media on disk at the last poll, at most a second ago."""
        return self._tail.progress if self._tail else capture_progress.CaptureProgress()

    @property
    def pid(self) -> int:
        """ffmpeg's process id; 0 before the spawn."""
        return self._child.pid if self._child else 0

    def kill(self) -> None:
        """Kill ffmpeg; media on disk is kept. `wait()` then returns "stopped"."""
        self._killing = True
        self.stop()
        if self._child is not None:
            self._child.kill()

    async def _capture(self) -> None:
        self._tail = flv_tail.Tail(self._spec.path, self._spec.mode, spawned_ms=self._clock())
        try:
            await self._spawn()
            self._spawned.set()
            if self._child is not None:
                await self._watch_and_end(self._child)
        finally:
            if self._child is not None:
                self._child.kill()
            if self._reading is not None:
                self._reading.cancel()
            await file_threads.LIVE.run_within(file_threads.ANSWER_S, self._tail.close)

    async def _spawn(self) -> None:
        spec = self._spec
        self._verdict = await self._obstacle()
        if self._verdict is None:
            script = -1
            try:
                script = _inherited(ffmpeg_command.capture_script(spec.address, timeout_s=2 * spec.stall_after_s))
                argv = ffmpeg_command.capture_args(self._ffmpeg, script, spec.path, spec.mode)
                child = ffmpeg_process.Child(
                    argv, redact=self._redact, on_error_line=self._on_line, limits=resource_limits.CAPTURE
                )
                failpoints.hit("capture.spawn.before")
                await child.start(inherit=(script,))
                self._child = child
                failpoints.hit("capture.spawn.after")
                log.info("capture.spawned", pid=child.pid, segment=spec.path.name)
            except (OSError, errors.InvalidParameter) as error:
                self._verdict = (Reason.ERROR, f"ffmpeg could not be started: {self._redact(str(error))}")
            finally:
                if script >= 0:
                    os.close(script)

    async def _watch_and_end(self, child: ffmpeg_process.Child) -> None:
        end = asyncio.create_task(self._reap(child))
        try:
            await self._watch()
            if not self._exited:
                reason = self._verdict[0] if self._verdict else Reason.ERROR
                began = self._tail is not None and self._tail.grown_ms is not None  # before the first byte, ffmpeg ignores `q`
                quick = self._killing or not began or reason in (Reason.STALLED, Reason.SPOOL_LOST)
                await child.stop(ask_s=0 if quick else _ASK_S, term_s=0 if self._killing else _TERM_S)
        finally:
            child.kill()
            await end
        await self._poll()
        while self._tail is not None and self._tail.behind and self._reading is None:
            await self._poll()
        if self._verdict is None:
            self._verdict = self._judge()

    async def _reap(self, child: ffmpeg_process.Child) -> None:
        try:
            self._code = await child.wait()
        finally:
            self._exited = True
            self._end()

    async def _watch(self) -> None:
        """Poll the file until there is a verdict or ffmpeg has exited."""
        loop = asyncio.get_running_loop()
        self._began_s = self._grown_s = loop.time()
        while True:
            alarm = loop.call_later(_POLL_S if self._polls_with_media > 1 else _FIRST_POLL_S, self._news.set)
            await self._news.wait()
            alarm.cancel()
            self._news.clear()
            await self._poll()
            if self._verdict is None and not self._exited:
                self._verdict = self._decide(running_s=loop.time() - self._began_s, silent_s=loop.time() - self._grown_s)
            if self._verdict is not None or self._exited:
                return

    async def _poll(self) -> None:
        """Read the segment in a thread. A poll that hangs goes on, and no other one begins."""
        assert self._tail is not None  # noqa: S101 - _run made it
        loop, grown_ms = asyncio.get_running_loop(), self._tail.grown_ms
        asked_s = loop.time()
        # In this order: if the process stands still between the two, the difference is too small.
        machine_ms, now_ms = capture.unix_ms(), self._clock()
        self._tail.growing = not self._exited
        self._reading = reading = self._reading or asyncio.create_task(
            file_threads.LIVE.run(self._tail.poll, now_ms, machine_ms - now_ms)
        )
        if not await self._answered(reading):
            return
        self._reading = None
        # While the file system did not answer, nothing is known about the stream.
        waited_s = loop.time() - asked_s
        self._began_s, self._grown_s = self._began_s + waited_s, self._grown_s + waited_s
        try:
            reading.result()
            if self._tail.grown_ms != grown_ms:
                self._grown_s = loop.time()
        except OSError as error:
            self._verdict = self._verdict or (spool.fault_of(error), f"The segment cannot be read: {error.strerror}.")
        if self._tail.progress.media_ms > 0:
            self._polls_with_media += 1
            # The first poll may hit the middle of ffmpeg's first burst, when the first packet's time is not settled.
            if self._polls_with_media == 2 or (self._exited and self._polls_with_media == 1):
                self._polls_with_media = 2
                self._announce()

    def _decide(self, *, running_s: float, silent_s: float) -> tuple[Reason, str] | None:
        """The reason to end a running capture, or None."""
        assert self._tail is not None  # noqa: S101 - _run made it
        spec, began = self._spec, self._tail.grown_ms is not None
        if self._stopping:
            return Reason.STOPPED, "Stopped as asked."
        if self._tail.lost:
            return Reason.SPOOL_LOST, f"The segment or its folder {spec.path.parent} was deleted while it was written."
        if ffmpeg_log.Meaning.DISK_FULL in self._meanings:
            return Reason.DISK_FULL, self._meanings[ffmpeg_log.Meaning.DISK_FULL]
        if new := _NEW_TRACK[spec.mode] & self._meanings.keys():
            return Reason.NEW_TRACK, f"Another track began: {self._meanings[min(new, key=str)]}"
        if ffmpeg_log.Meaning.TIME_JUMP in self._meanings:
            return Reason.ERROR, f"The source's timestamps jumped: {self._meanings[ffmpeg_log.Meaning.TIME_JUMP]}"
        if not began and running_s > spec.first_media_s:
            return Reason.NO_MEDIA, f"The server sent nothing for {spec.first_media_s:g} s."
        if began and silent_s > spec.stall_after_s:
            return Reason.STALLED, f"Nothing arrived for {spec.stall_after_s:g} s."
        return None

    def _judge(self) -> tuple[Reason, str]:
        """The reason why ffmpeg exited on its own: first certain causes, then the file, then stderr."""
        assert self._tail is not None  # noqa: S101 - _run made it
        meanings = self._meanings
        said = self._child.last_lines[-1] if self._child and self._child.last_lines else "ffmpeg said nothing."
        if self._stopping:
            return Reason.STOPPED, "Stopped as asked."
        if self._tail.lost or ffmpeg_log.Meaning.SPOOL_LOST in meanings:
            return Reason.SPOOL_LOST, f"The folder {self._spec.path.parent} cannot be written: {said}"
        if ffmpeg_log.Meaning.DISK_FULL in meanings:
            return Reason.DISK_FULL, meanings[ffmpeg_log.Meaning.DISK_FULL]
        if _NEW_TRACK[self._spec.mode] & meanings.keys():
            return Reason.NEW_TRACK, "Another track began just before the stream ended."
        if ffmpeg_log.Meaning.TIME_JUMP in meanings:
            return Reason.ERROR, f"The source's timestamps jumped: {meanings[ffmpeg_log.Meaning.TIME_JUMP]}"
        if self._code < 0:
            return Reason.ERROR, f"ffmpeg was killed by signal {-self._code}."
        if self._tail.grown_ms is not None:
            return Reason.EOF, "The stream ended."
        if ffmpeg_log.Meaning.REFUSED_FOR_GOOD in meanings:
            return (
                Reason.REFUSED_FOR_GOOD,
                f"{capture.REFUSED_FOR_GOOD_DETAIL} It said: {meanings[ffmpeg_log.Meaning.REFUSED_FOR_GOOD]}",
            )
        if ffmpeg_log.Meaning.REFUSED in meanings:
            return Reason.REFUSED, meanings[ffmpeg_log.Meaning.REFUSED]
        if ffmpeg_log.Meaning.NO_TRACK in meanings:
            return Reason.NO_MEDIA, "The stream ended before any sound or picture came."
        return Reason.ERROR, f"ffmpeg ended without media: {said}"

    def _on_line(self, text: str) -> None:
        line = ffmpeg_log.parse(text)
        found = ffmpeg_log.meaning(line)
        if found is not ffmpeg_log.Meaning.OTHER and found not in self._meanings:
            self._meanings[found] = line.message
            log.warning("capture.ffmpeg_message", meaning=found.name.lower(), line=line.message)
            self._news.set()


def _inherited(content: bytes) -> int:
    """The read end of a pipe that contains `content`. The caller closes it."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with contextlib.closing(os.fdopen(writing, "wb", buffering=0)) as file:
            file.write(content)
    except OSError:
        os.close(reading)
        raise
    return reading
