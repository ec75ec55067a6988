"""The followers of a node: each recording that lasts is followed, and its finished file written while it runs.

Rules: following never fails a recording. Without a follower, or if it gave up, the transcode from the segments makes the file. A
short recording gets none, because its transcode takes no time, and neither does one for which there is no memory. As many
processes as CPUs share the recordings. One that dies, or does not answer in time, costs its recordings their followers; later
ones get a new process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from machine import supervised_task
from media import ffmpeg_process, file_threads, follower_process, following, joiner, pieces, resource_limits, transcode

log = structlog.get_logger()

AFTER_S = following.LAG_MS / 1000
# The memory of one recording's ffmpeg and its share of a process, for 1.5 Mbit/s (bench/RESULTS.md).
FOLLOWED_BYTES = 24 * 2**20
_FINISH_S = 60.0
_FINISH_BYTES_PER_S = 5_000_000
_MODULE = "media.follower_process"
_NUMBERS = itertools.count(1)
# On a bounded spool: how often a recording's follower begins, and the pause before the second time.
_MOST_RUNS, _AGAIN_S = 12, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """A recording to follow: `mode` "00", "01" or "02", the unfinished file `part`, and `earlier`, which lists the segments that
    it has on this spool already (blocking). `begun`: it has segments with media; where none of them is on this spool, they are on
    another node's, and it is not followed. `bound_bytes`: see follower_process.Begin."""

    recording: str
    mode: str
    part: Path
    earlier: Callable[[], list[Path]]
    begun: bool = False
    bound_bytes: int = 0


class Followers:
    """All followers of a node. `stop` is safe to call twice."""

    def __init__(
        self,
        ffmpeg: str,
        *,
        processes: int = 1,
        memory_bytes: int = sys.maxsize,
        after_s: float = AFTER_S,
        look_every_s: float = 0.0,
    ) -> None:
        """A recording is followed when it has lasted `after_s`, by one of so many processes. Together they take `memory_bytes`; a
        bounded spool needs its followers, and counts none."""
        self._ffmpeg = ffmpeg
        self._look_every_s = look_every_s
        self._most = memory_bytes // FOLLOWED_BYTES
        self.after_s = after_s
        self._processes = [_Process() for _ in range(processes)]
        self._followers: dict[str, _Follower] = {}

    def capturing(self, followed: Followed, segment: Path) -> None:
        """A capture of the recording begins to write this segment."""
        found = self._followers.get(followed.recording)
        if found is None:
            found = _Follower(self._ffmpeg, followed, self.after_s, self._processes, self._look_every_s, self._has_room)
            self._followers[followed.recording] = found
            found.start()
        found.add(segment)

    def pids(self) -> list[int]:
        """Process ids of the running processes."""
        return [pid for each in self._processes if (pid := each.pid)]

    @property
    def count(self) -> int:
        """How many recordings are followed now."""
        return sum(len(each.answers) for each in self._processes)

    def recordings(self) -> list[str]:
        """The recordings that are followed, will be, or were until their followers gave up."""
        return list(self._followers)

    def follows(self, recording: str) -> bool:
        """Whether the file of this recording is being written."""
        found = self._followers.get(recording)
        return found is not None and found.follows

    def _has_room(self) -> bool:
        """Whether there is memory for one more."""
        return self.count < self._most

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
        await asyncio.gather(*(each.stop() for each in self._processes))
        await asyncio.gather(*(self.drop(recording) for recording in list(self._followers)))


def _give(waiting: asyncio.Future[follower_process.Answer | None], answer: follower_process.Answer | None) -> None:
    if not waiting.done():
        waiting.set_result(answer)


class _Process:
    """One process, spawned when it is needed. `answers`: those that are still to come, by number."""

    def __init__(self) -> None:
        self.answers: dict[int, asyncio.Future[follower_process.Answer | None]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._spawning = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def begin(self, message: follower_process.Begin) -> asyncio.Future[follower_process.Answer | None]:
        """Follow one more recording; its answer is None if the process dies. Raises OSError if none can be spawned."""
        self.answers[message.number] = answer = asyncio.get_running_loop().create_future()
        try:
            async with self._spawning:
                if self._reading is None or self._reading.done():
                    self._process = await self._spawn()
                    self._reading = asyncio.create_task(self._read(self._process), name="followers")
        except BaseException:
            del self.answers[message.number]
            raise
        self.tell(message)
        return answer

    def tell(self, message: object) -> None:
        """Send a message, if the process runs: it is small enough for the pipe."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.write(follower_process.pack(message))

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self.pid and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self) -> None:
        """End the process, and wait for its end."""
        self.kill()
        if self._reading is not None:
            await self._reading

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Take the answers until the process ends."""
        assert process.stdout is not None  # noqa: S101 - asked for
        while (answer := await follower_process.read(process.stdout)) is not None:
            if answer.number in self.answers:
                _give(self.answers.pop(answer.number), answer)
        self.kill()
        code = await process.wait()
        if self.answers:
            log.warning("follower.process_ended", recordings=len(self.answers), code=code)
        for number in list(self.answers):
            _give(self.answers.pop(number), None)

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


class _Follower:
    """One recording, followed after a while by the process that follows the fewest."""

    def __init__(
        self,
        ffmpeg: str,
        followed: Followed,
        after_s: float,
        processes: Sequence[_Process],
        look_every_s: float,
        has_room: Callable[[], bool],
    ) -> None:
        self._ffmpeg = ffmpeg
        self._look_every_s = look_every_s
        self._has_room = has_room
        self._wanted = True
        self._followed = followed
        self._after_s = after_s
        self._processes = processes
        self._number = next(_NUMBERS)
        self._segments: list[Path] = []
        self._process: _Process | None = None
        self._answer: asyncio.Future[follower_process.Answer | None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="follower")

    def add(self, segment: Path) -> None:
        self._segments.append(segment)
        if self._answer is not None and self._process is not None:
            self._process.tell(follower_process.Segment(number=self._number, path=segment))

    @property
    def follows(self) -> bool:
        return self._answer is not None and not self._answer.done()

    async def finish(self, segments: Sequence[joiner.SegmentFile], output: Path) -> following.Finished | None:
        if not self.follows:
            return None
        self._wanted = False
        size_bytes = await file_threads.BULK.run(transcode.size_in_all, segments)
        message = follower_process.Finish(number=self._number, segments=segments, output=output)
        answer = await self._answered(message, _FINISH_S + size_bytes / _FINISH_BYTES_PER_S)
        finished = answer.finished if answer is not None else None
        why = answer.why if answer is not None else "the process died or stood still"
        log.info("transcode.followed", recording=self._followed.recording, done=finished is not None, why=why)
        return finished

    async def stop(self) -> None:
        self._wanted = False
        if self._task is not None and (self._answer is None or (self._followed.bound_bytes and self._answer.done())):
            self._task.cancel()
        elif self._answer is not None and not self._answer.done():
            await self._answered(follower_process.Drop(number=self._number), _FINISH_S)
        if self._task is not None:
            (result,) = await asyncio.gather(self._task, return_exceptions=True)
            if isinstance(result, Exception):
                log.error("follower.failed", recording=self._followed.recording, error=repr(result))

    async def _answered(self, message: object, limit_s: float) -> follower_process.Answer | None:
        """The answer to the last message about the recording. A process that does not give it in time is killed."""
        assert self._process is not None  # noqa: S101 - the caller has looked
        assert self._answer is not None  # noqa: S101 - the same
        self._process.tell(message)
        _, late = await asyncio.wait((self._answer,), timeout=limit_s)
        if late:
            self._process.kill()
        return await asyncio.shield(self._answer)

    async def _run(self) -> None:
        """Follow after a while. On a bounded spool the file cannot be made afterwards: a follower that ends has a successor,
        which writes the next piece."""
        if not await file_threads.BULK.run(self._begun):
            await asyncio.sleep(supervised_task.jittered_s(self._after_s))
        await self._once()
        runs = 1
        while self._followed.bound_bytes and self._wanted and runs <= _MOST_RUNS:
            await asyncio.sleep(supervised_task.jittered_s(_AGAIN_S * runs))
            runs += 1
            if self._wanted:
                self._number = next(_NUMBERS)
                await self._once()
        if self._followed.bound_bytes and self._wanted:
            kept = "Its segments stay on the spool until it is Done; follower.gave_up says why."
            log.warning("follower.ended_often", recording=self._followed.recording, times=runs, detail=kept)

    def _begun(self) -> bool:
        """Whether a part of the recording was released already: what follows must not wait for it (blocking)."""
        return self._followed.bound_bytes > 0 and any(self._followed.part.parent.glob(f"*{pieces.NOTE_SUFFIX}"))

    async def _once(self) -> None:
        """Let a process follow the recording, wait for the answer, and remove what a process that died has left."""
        part, bound_bytes = self._followed.part, self._followed.bound_bytes
        self._process = process = min(self._processes, key=lambda each: len(each.answers))
        begin = follower_process.Begin(
            number=self._number,
            ffmpeg=self._ffmpeg,
            mode=self._followed.mode,
            part=part,
            bound_bytes=bound_bytes,
            look_every_s=self._look_every_s,
        )
        try:
            earlier = await file_threads.BULK.run(self._followed.earlier)
            if self._followed.begun and set(earlier) <= set(self._segments):
                log.info("follower.not_started", recording=self._followed.recording, error="its earlier segments are elsewhere")
                return
            if not bound_bytes and not self._has_room():
                log.info("follower.not_started", recording=self._followed.recording, error="there is no memory for it")
                return
            self._answer = await process.begin(begin)
        except OSError as error:
            log.warning("follower.not_started", recording=self._followed.recording, error=str(error))
            return
        for segment in dict.fromkeys((*earlier, *self._segments)):
            process.tell(follower_process.Segment(number=self._number, path=segment))
        answer = await asyncio.shield(self._answer)
        if answer is not None and answer.why:
            log.info("follower.gave_up", recording=self._followed.recording, why=answer.why)
        if bound_bytes:
            return
        with contextlib.suppress(OSError):
            await file_threads.BULK.run_within(file_threads.ANSWER_S, lambda: part.unlink(missing_ok=True))
