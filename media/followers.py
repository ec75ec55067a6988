"""The followers of a node: one process for each recording that lasts, which writes the finished file while the recording runs.

Rules: following never fails a recording. Without a follower, or if it gave up, the transcode from the segments makes the file. A
short recording gets none, because its transcode takes no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from machine import supervised_task
from media import ffmpeg_process, file_threads, follower_process, following, joiner, resource_limits, transcode

log = structlog.get_logger()

AFTER_S = following.LAG_MS / 1000
_FINISH_S = 60.0
_FINISH_BYTES_PER_S = 5_000_000
_MODULE = "media.follower_process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """A recording to follow: `mode` "00", "01" or "02", the unfinished file `part`, and `earlier`, which lists the segments that
    it has on this spool already (blocking)."""

    recording: str
    mode: str
    part: Path
    earlier: Callable[[], list[Path]]


class Followers:
    """All followers of a node. `stop` is safe to call twice."""

    def __init__(self, ffmpeg: str, *, after_s: float = AFTER_S) -> None:
        """A recording is followed when it has lasted `after_s`."""
        self._ffmpeg = ffmpeg
        self.after_s = after_s
        self._followers: dict[str, _Follower] = {}

    def capturing(self, followed: Followed, segment: Path) -> None:
        """A capture of the recording begins to write this segment."""
        found = self._followers.get(followed.recording)
        if found is None:
            found = self._followers[followed.recording] = _Follower(self._ffmpeg, followed, self.after_s)
            found.start()
        found.add(segment)

    def pids(self) -> list[int]:
        """Process ids of the running followers."""
        return [pid for each in self._followers.values() if (pid := each.pid)]

    async def finish(self, recording: str, segments: Sequence[joiner.SegmentFile], output: Path) -> following.Finished | None:
        """The finished file of a recording that was followed, under its name; None if there is none."""
        found = self._followers.pop(recording, None)
        if found is None:
            return None
        try:
            return await found.finish(segments, output)
        finally:
            await found.stop()

    async def drop(self, recording: str) -> None:
        """Follow a recording no longer."""
        found = self._followers.pop(recording, None)
        if found is not None:
            await found.stop()

    async def stop(self) -> None:
        """End all followers."""
        await asyncio.gather(*(self.drop(recording) for recording in list(self._followers)))


class _Follower:
    """One process, spawned after a while."""

    def __init__(self, ffmpeg: str, followed: Followed, after_s: float) -> None:
        self._ffmpeg = ffmpeg
        self._followed = followed
        self._after_s = after_s
        self._segments: list[Path] = []
        self._process: asyncio.subprocess.Process | None = None
        self._answer: asyncio.Task[follower_process.Answer | None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return self._task is not None and self._task.done()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="follower")

    def add(self, segment: Path) -> None:
        self._segments.append(segment)
        self._tell(follower_process.Segment(path=segment))

    async def finish(self, segments: Sequence[joiner.SegmentFile], output: Path) -> following.Finished | None:
        if self._answer is None or self.ended:
            return None
        size_bytes = await file_threads.BULK.run(transcode.size_in_all, segments)
        self._tell(follower_process.Finish(segments=segments, output=output))
        answer = None
        with contextlib.suppress(TimeoutError):
            answer = await asyncio.wait_for(asyncio.shield(self._answer), _FINISH_S + size_bytes / _FINISH_BYTES_PER_S)
        finished = answer.finished if answer is not None else None
        why = answer.why if answer is not None else "the process died or stood still"
        log.info("transcode.followed", recording=self._followed.recording, done=finished is not None, why=why)
        return finished

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        if self._task is not None:
            if self._process is None:
                self._task.cancel()
            (result,) = await asyncio.gather(self._task, return_exceptions=True)
            if isinstance(result, Exception):
                log.error("follower.failed", recording=self._followed.recording, error=repr(result))

    async def _run(self) -> None:
        """Spawn the process, wait for its end, and remove what it left."""
        await asyncio.sleep(supervised_task.jittered_s(self._after_s))
        part = self._followed.part
        try:
            earlier = await file_threads.BULK.run(self._followed.earlier)
            self._process = process = await self._spawn()
        except OSError as error:
            log.warning("follower.not_started", recording=self._followed.recording, error=str(error))
            return
        assert process.stdout is not None  # noqa: S101 - asked for
        self._answer = asyncio.create_task(follower_process.read(process.stdout))
        self._tell(follower_process.Begin(ffmpeg=self._ffmpeg, mode=self._followed.mode, part=part))
        for segment in dict.fromkeys((*earlier, *self._segments)):
            self._tell(follower_process.Segment(path=segment))
        answer = await self._answer
        await process.wait()
        if answer is not None and answer.why:
            log.info("follower.gave_up", recording=self._followed.recording, why=answer.why)
        with contextlib.suppress(OSError):
            await file_threads.BULK.run_within(file_threads.ANSWER_S, lambda: part.unlink(missing_ok=True))

    async def _spawn(self) -> asyncio.subprocess.Process:
        guard = [resource_limits.tool("setpriv"), "--pdeathsig", "KILL", "--no-new-privs", "--"]
        idle = [resource_limits.tool("ionice"), "--class", "best-effort", "--classdata", "7", "--ignore"]
        return await asyncio.create_subprocess_exec(
            *(*guard, *idle, sys.executable, "-m", _MODULE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            process_group=0,
            env=ffmpeg_process.ENVIRONMENT,
            cwd="/",
        )

    def _tell(self, message: object) -> None:
        """Send a message, if the process runs: it is small enough for the pipe."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.write(follower_process.pack(message))
