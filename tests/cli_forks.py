"""A runner of `recorder` for standard streams of every kind: each command is a fork of a process that has loaded everything, so
that hundreds of commands take seconds.

Rule: a fork gets its streams, its arguments and its encoding as Python would set them up at the start of a process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pty
import socket
import subprocess
import sys
import termios
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import waiting

ROOT = Path(__file__).parents[1]
LIMIT_S = 30.0
LINES = 40
# Kinds of standard output. The reader of a `broken` pipe has gone.
TERMINAL, PIPE, CLOSED, FULL, BROKEN = "terminal", "pipe", "closed", "full", "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The exit code and the output of a command."""

    code: int
    out: bytes
    err: bytes


class Forks:
    """The loaded process. Use as a context manager."""

    def __enter__(self) -> Forks:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(waiting.limit_s(LIMIT_S))
        with theirs:
            words = [sys.executable, "-m", "tests.cli_forks", str(theirs.fileno())]
            self._process = subprocess.Popen(words, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait(waiting.limit_s(LIMIT_S))

    def run(
        self,
        environment: Mapping[str, str],
        words: Sequence[bytes],
        *,
        encoding: str = "utf-8",
        stdout: str = PIPE,
        stderr: str = PIPE,
        stdin: bytes = b"",
        columns: int = 80,
    ) -> Answer:
        """Run a command. `words` are its arguments as a shell would pass them. Blocking; raises TimeoutError."""
        case = {"Words": [word.decode("latin-1") for word in words], "Environment": dict(environment), "Encoding": encoding}
        case["Open"] = [True, stdout != CLOSED, stderr != CLOSED]
        with contextlib.ExitStack() as stack:
            given = _Reading(PIPE, columns)
            stack.callback(given.close)
            os.write(given.written, stdin)
            out, err = _Reading(stdout, columns), _Reading(stderr, columns)
            descriptors = [given.read, out.written, err.written]
            socket.send_fds(self._socket, [json.dumps(case).encode()], descriptors)
            # The fork has its own copies now: with ours open, nobody sees the end.
            assert self._socket.recv(100) == b"begun"
            given.end_writing()
            out.start()
            err.start()
            code = int(self._socket.recv(100))
            return Answer(code=code, out=out.all(), err=err.all())


class _Reading:
    """One stream of a command, and the bytes read from it."""

    def __init__(self, kind: str, columns: int) -> None:
        self._read = bytearray()
        if kind == TERMINAL:
            self.read, self.written = pty.openpty()
            termios.tcsetwinsize(self.written, (LINES, columns))
        elif kind in (PIPE, BROKEN):
            self.read, self.written = os.pipe()
        else:
            self.read, self.written = os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
        if kind == BROKEN:
            os.close(self.read)
            self.read = os.open(os.devnull, os.O_RDONLY)
        self._thread = threading.Thread(target=self._read_all)

    def start(self) -> None:
        """Begin to read; a terminal that nobody reads stops its writer."""
        self.end_writing()
        self._thread.start()

    def end_writing(self) -> None:
        """Close this process's end."""
        os.close(self.written)
        self.written = -1

    def all(self) -> bytes:
        """Everything that was written, after the command has ended."""
        self._thread.join()
        os.close(self.read)
        return bytes(self._read)

    def close(self) -> None:
        """Close the open ends."""
        os.close(self.read)
        if self.written >= 0:
            self.end_writing()

    def _read_all(self) -> None:
        with contextlib.suppress(OSError):  # a terminal whose other end is closed has no end of file
            while data := os.read(self.read, 1 << 16):
                self._read += data


def _serve(descriptor: int) -> None:
    """Fork for each case until the other end closes."""
    import service  # everything that a command would load
    from assembly import api_keys, dead_letters, logs
    from cli import doctor_checks, live_screen

    loaded: tuple[Any, ...] = (service, api_keys, dead_letters, logs, doctor_checks, live_screen)
    for name in ("box", "cells", "console", "live", "table", "text"):
        __import__(f"rich.{name}")
    assert loaded
    gc.freeze()
    with socket.socket(fileno=descriptor) as asked:
        for case, descriptors in _cases(asked):
            pid = os.fork()
            if not pid:
                _child(case, descriptors)
            for each in descriptors:
                os.close(each)
            asked.send(b"begun")
            asked.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def _cases(asked: socket.socket) -> Iterator[tuple[dict[str, Any], list[int]]]:
    while True:
        text, descriptors, _, _ = socket.recv_fds(asked, 1 << 16, 3)
        if not text:
            return
        yield json.loads(text), descriptors


def _child(case: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Become the command. Does not return."""
    import service

    code: object = 1
    try:
        for number, (descriptor, is_open) in enumerate(zip(descriptors, case["Open"], strict=True)):
            if is_open:
                os.dup2(descriptor, number)
            else:
                os.close(number)
        os.closerange(3, 256)
        os.environ.clear()
        os.environ.update(case["Environment"])
        _set_streams(case["Encoding"], case["Open"])
        sys.argv = ["recorder", *(word.encode("latin-1").decode(case["Encoding"], "surrogateescape") for word in case["Words"])]
        service.main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - a fork must not go on as the process that forks
        traceback.print_exc()
    finally:
        # As at the end of Python, which reports an error of this flush too.
        with contextlib.suppress(AttributeError):
            sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _set_streams(encoding: str, is_open: Sequence[bool]) -> None:
    """The standard streams as Python makes them: none for a closed descriptor, strict but for standard error."""
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115 - it lives as long as the process
    sys.stdout = open(1, "w", encoding=encoding, closefd=False) if is_open[1] else None  # type: ignore[assignment]  # noqa: SIM115
    errors = {"encoding": encoding, "errors": "backslashreplace"}
    sys.stderr = open(2, "w", closefd=False, **errors) if is_open[2] else None  # type: ignore[assignment, call-overload]  # noqa: SIM115


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
