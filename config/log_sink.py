"""Sink of log lines: writes them to one stream, and never fails or blocks the work that logs.

Rules: a line that cannot be written is dropped and counted: the disk is full, the reader of the pipe is gone, or it does not
read. A reader has `PATIENCE_S` for a line, and no time at all while lines are being lost. When lines can be written again, one
says how many were lost.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from typing import TextIO

PATIENCE_S = 0.05
# `warnings` names lost lines for this long after the last one.
TOLD_FOR_S = 300.0


class LogSink:
    """Writes to `stream`, past its buffer: what stays in the buffer of a failing stream fails again when the process ends.
    Without a stream, as in a process whose stderr is closed, every line is lost."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._write_now = _writer(self._descriptor)
        self._lock = threading.RLock()
        self._torn = False
        self._lost = 0
        self._untold = 0
        self._reason = ""
        self._lost_s: float | None = None

    def isatty(self) -> bool:
        """Whether a terminal reads the lines."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write a line, or drop it. Raises nothing."""
        with self._lock:
            try:
                self._write(text)
                if self._untold:
                    # Not by a logger: this call holds the lock of one.
                    self._write(self._told())
                    self._untold = 0
            except (OSError, ValueError) as error:
                self._lost, self._untold, self._lost_s = self._lost + 1, self._untold + 1, time.monotonic()
                self._reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return len(text)

    def flush(self) -> None:
        """Do nothing: each line is written at once."""

    def warnings(self) -> list[str]:
        """What the operator must know: how many lines were lost, and why; [] if none was lost lately."""
        if self._lost_s is None or time.monotonic() - self._lost_s > TOLD_FOR_S:
            return []
        return [
            f"{self._lost} log lines were lost, because they could not be written: {self._reason}. Recordings are not affected."
            " Check the disk and the reader of the service's standard error."
        ]

    def _told(self) -> str:
        """The line that says how many were lost."""
        now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
        fields = {"lines": self._untold, "reason": self._reason, "event": "log.lines_lost", "level": "warning", "time": now}
        return json.dumps(fields) + "\n"

    def _write(self, text: str) -> None:
        if self._stream is None:
            raise ValueError("standard error is closed")
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        data = b"\n" * self._torn + text.encode("utf-8", "backslashreplace")
        while data:
            if not _is_ready(self._descriptor, 0.0 if self._untold else PATIENCE_S):
                raise TimeoutError("the reader of the log does not read")
            data = data[self._write_now(data) :]
            # The rest of a line may find no space: the next line must not continue it.
            self._torn = bool(data)


def _descriptor(stream: TextIO | None) -> int | None:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # no file, but text in memory
            return stream.fileno()
    return None


def _writer(descriptor: int | None) -> Callable[[bytes], int]:
    """A write that never waits for a reader. Other processes share the descriptor, so its own flags must not change: a pipe is
    opened once more, and a socket takes the flag with each call."""
    if descriptor is None:
        return len
    mode = os.fstat(descriptor).st_mode
    with contextlib.suppress(OSError):  # a system that lets no process open its pipe again
        if stat.S_ISFIFO(mode):
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            return lambda data: os.write(own, data)
        if stat.S_ISSOCK(mode):
            sent = socket.socket(fileno=os.dup(descriptor))
            return lambda data: sent.send(data, socket.MSG_DONTWAIT)
    return lambda data: os.write(descriptor, data)


def _is_ready(descriptor: int, timeout_s: float) -> bool:
    """Whether a write may succeed. It may on a pipe without reader, and fails there."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000))
