"""The process of a follower: follows one recording by the messages on its stdin, and answers on its stdout.

Rules: it has a lower priority than captures, for the processor and the disk. It ends with its node, whose end closes its stdin,
and when its recording has not grown for IDLE_S. A message is a pickled value behind its length in four bytes; both ends are this
program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import errors
from media import following, joiner

LENGTH = struct.Struct(">I")
NICENESS = 5
LOOK_EVERY_S = 5.0
IDLE_S = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """The first message: what to follow, and where to write."""

    ffmpeg: str
    mode: str
    part: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A further segment of the recording."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The recording has ended with these segments; asks for the finished file."""

    segments: Sequence[joiner.SegmentFile]
    output: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer, after which the process ends: the finished file, or why there is none."""

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
    """Follow until the recording ends."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # log lines must not mix with answers
    os.nice(NICENESS)
    answer = asyncio.run(_run())
    if answer is not None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(answers, "wb") as file:
            file.write(pack(answer))


async def _run() -> Answer | None:
    stream = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), sys.stdin)
    begin = await read(stream)
    if begin is None:
        return None
    recording = following.Following(begin.ffmpeg, begin.mode, begin.part)
    try:
        return await _follow(recording, stream)
    except following.GaveUp as error:
        return Answer(why=str(error))
    except errors.TranscodeFailed as error:
        return Answer(why=error.detail)
    except OSError as error:
        return Answer(why=f"a file could not be read or written: {error.strerror}")
    except Exception as error:  # noqa: BLE001 - not swallowed: the node logs it
        return Answer(why=f"it failed: {error!r}")
    finally:
        await recording.stop()


async def _follow(recording: following.Following, stream: asyncio.StreamReader) -> Answer | None:
    """Look at the recording every few seconds until it ends; None if nobody wants its file any more."""
    asked = asyncio.create_task(read(stream))
    grown_s = time.monotonic()
    while time.monotonic() - grown_s < IDLE_S:
        done, _ = await asyncio.wait((asked,), timeout=LOOK_EVERY_S)
        if not done:
            if await recording.look():
                grown_s = time.monotonic()
            continue
        message = asked.result()
        if message is None:
            return None
        if isinstance(message, Finish):
            with contextlib.suppress(PermissionError):  # only a privileged process may raise its priority again
                os.setpriority(os.PRIO_PROCESS, 0, 0)
            return Answer(finished=await recording.finish(message.segments, message.output))
        recording.add(message.path)
        asked = asyncio.create_task(read(stream))
    asked.cancel()
    return None


if __name__ == "__main__":
    # Messages have the classes of the module's own name.
    from media import follower_process  # noqa: PLW0406 - the same module, which is __main__ here

    follower_process.main()
