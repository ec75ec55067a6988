"""A process of followers: follows many recordings by the messages on its stdin, and answers on its stdout.

Rules: it has a lower priority than captures, for the processor and the disk, and for memory: where that runs out, the kernel
ends followers and their ffmpegs first. On a spool that is nearly full it makes room, and follows no more. It ends with its node,
whose end closes its stdin. A recording is followed in a task of its own, and its end, an error too, touches no other one. It ends
when it has not grown for IDLE_S. A message is a pickled value behind its length in four bytes; both ends are this program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from machine import errors
from media import file_threads, following, joiner, pieces, verify

LENGTH = struct.Struct(">I")
NICENESS = 5
# Above that of any other process with less than half of the memory (proc(5): from -1000 to 1000).
OOM_SCORE = 500
# Less than a capture needs in the time that it takes to follow no longer.
LEAST_FREE_BYTES = 256 * 2**20
LOOK_EVERY_S = 5.0
IDLE_S = 3_600.0
# Others wait while a recording reads hours again, but not all of them if its ffmpeg stands still. Ends do not wait.
_LOOKS, _LATER_S = 4, 0.2
# One for each CPU of the node, as there are processes.
_ENCODERS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Follow a recording: under which number it is meant, and where to write. `bound_bytes`: the file is the next piece in the
    folder of `part`, and so much of it may wait for COS; 0: the spool keeps everything."""

    number: int
    ffmpeg: str
    mode: str
    part: Path
    bound_bytes: int = 0
    look_every_s: float = 0.0  # 0: LOOK_EVERY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A further segment of the recording."""

    number: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The recording has ended with these segments; asks for the finished file."""

    number: int
    segments: Sequence[joiner.SegmentFile]
    output: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """The recording is not wanted any more."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The only answer about a recording, which is followed no more: the finished file, or why there is none. Its unfinished file
    is gone."""

    number: int
    finished: following.Finished | None = None
    why: str = ""


def pack(message: object) -> bytes:
    """A message as bytes."""
    body = pickle.dumps(message)
    return LENGTH.pack(len(body)) + body


async def read(stream: asyncio.StreamReader) -> Any:
    """The next message; None at the end of the stream."""
    try:
        (length,) = LENGTH.unpack(await stream.readexactly(LENGTH.size))
        return pickle.loads(await stream.readexactly(length))  # noqa: S301 - from the other end of this program's own pipe
    except asyncio.IncompleteReadError:
        return None


def main() -> None:
    """Follow until the node ends."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # log lines must not mix with answers
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # without /proc
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), "ascii")
    with os.fdopen(answers, "wb", buffering=0) as file:
        asyncio.run(_run(file))


async def _run(answers: BinaryIO) -> None:
    stream = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), sys.stdin)
    looks, decoder, encoders = asyncio.Semaphore(_LOOKS), verify.Decoder(), asyncio.Semaphore(_ENCODERS)
    told: dict[int, asyncio.Queue[Any]] = {}
    tasks: set[asyncio.Task[None]] = set()

    def answer(given: Answer) -> None:
        del told[given.number]
        with contextlib.suppress(BrokenPipeError):
            answers.write(pack(given))

    while (message := await read(stream)) is not None:
        if isinstance(message, Begin):
            told[message.number] = asyncio.Queue()
            bound_bytes, part = message.bound_bytes, message.part  # what stays if the follower of its rest cannot begin
            recording = following.Following(
                message.ffmpeg, message.mode, part, bound_bytes=bound_bytes, decoder=decoder, encoders=encoders
            )
            task = asyncio.create_task(_follow(message, recording, told[message.number], looks, answer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        elif message.number in told:
            told[message.number].put_nowait(message)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(
    begin: Begin,
    recording: following.Following,
    told: asyncio.Queue[Any],
    looks: asyncio.Semaphore,
    answer: Callable[[Answer], None],
) -> None:
    """Follow one recording, and answer."""
    finished, why = None, ""
    try:
        try:
            if begin.bound_bytes:
                recording = await file_threads.BULK.run(_rest, begin)
            finished = await _finished(recording, told, looks, begin)
        finally:
            await recording.stop()
    except following.GaveUp as error:
        why = str(error)
    except errors.TranscodeFailed as error:
        why = error.detail
    except OSError as error:
        why = f"a file could not be read or written: {error.strerror}"
    except Exception as error:  # noqa: BLE001 - not swallowed: the node logs it
        why = f"it failed: {error!r}"
    answer(Answer(number=begin.number, finished=finished, why=why))


def _rest(begin: Begin) -> following.Following:
    """Follows what is in no piece yet (blocking). Raises GaveUp and OSError."""
    known = pieces.settled(begin.part.parent)
    if known and known[-1].begin is None:
        raise following.GaveUp("its file is whole already")
    path = pieces.next_path(begin.part, known)
    from_ = known[-1].begin if known else None
    return following.Following(begin.ffmpeg, begin.mode, path, bound_bytes=begin.bound_bytes, begin=from_)


async def _finished(
    recording: following.Following, told: asyncio.Queue[Any], looks: asyncio.Semaphore, begin: Begin
) -> following.Finished | None:
    """Look at the recording every few seconds until it ends; None if nobody wants its file any more. A piece waits for ever: what
    it releases cannot be made again."""
    idle_s = float("inf") if begin.bound_bytes else IDLE_S
    look_every_s = begin.look_every_s or LOOK_EVERY_S
    grown_s = time.monotonic()
    look_s = grown_s + random.uniform(0, look_every_s)  # noqa: S311 - no secret: recordings that begin together do not stay so
    while time.monotonic() - grown_s < idle_s:
        try:
            async with asyncio.timeout(max(0.0, look_s - time.monotonic())):
                message = await told.get()
        except TimeoutError:
            if looks.locked():  # and look later, so that an end is heard meanwhile
                look_s = time.monotonic() + _LATER_S
                continue
            async with looks:
                grown = await _look(recording, begin)
            look_s = time.monotonic() + (_LATER_S if recording.behind else look_every_s)
            if grown or recording.behind:
                grown_s = look_s
            continue
        if isinstance(message, Finish):
            return await recording.finish(message.segments, message.output)
        if isinstance(message, Drop):
            return None
        recording.add(message.path)
    return None


async def _look(recording: following.Following, begin: Begin) -> bool:
    """Look once, if there is room. Raises the errors of Following.look."""
    if not begin.bound_bytes:
        try:
            found = await file_threads.BULK.run(os.statvfs, begin.part.parent)
        except FileNotFoundError:  # its capture has still to make the folder
            return False
        if found.f_bavail * found.f_frsize < LEAST_FREE_BYTES:
            raise following.GaveUp("the spool is nearly full")
    return await recording.look()


if __name__ == "__main__":
    # Messages have the classes of the module's own name.
    from media import follower_process  # noqa: PLW0406 - the same module, which is __main__ here

    follower_process.main()
