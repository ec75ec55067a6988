"""One ffmpeg process: spawn, drain, stop, reap.

Rules: after `wait()` has returned, no process, pipe or task is left. The child has its own process group, so that a terminal's
Ctrl-C does not reach it; an empty environment, so that no proxy setting does; resource limits, and no way to gain privileges. It
dies with the thread that spawned it (setpriv --pdeathsig KILL), so spawn from the main thread, where the event loop runs.

Measured with 9.0.2: a stalled ffmpeg ignores `q` and one signal, and ends its reads after the second, so SIGTERM is sent together
with SIGINT.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import os
import signal
from collections.abc import Callable, Sequence

from machine import errors
from media import resource_limits as limits_of

_RING_LINES = 100
_LONGEST_LINE_BYTES = 8_192
_READ_BYTES = 65_536
_PIPE_BYTES = 1 << 20
TOOLS = ("setpriv", "prlimit")
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
_DRAIN_S = 2.0


def check_tools() -> None:
    """Raise errors.Unavailable unless setpriv and prlimit are installed."""
    try:
        for name in TOOLS:
            limits_of.tool(name)
    except FileNotFoundError as error:
        raise errors.Unavailable(
            f"{error.filename} is not on PATH: without it an ffmpeg would outlive a service that is killed, and take what memory "
            "it likes. Install util-linux."
        ) from error


class Child:
    """One process whose stderr (and stdout, if wanted) is read line by line.

    `on_error_line` gets every redacted line of stderr, `on_output_line` every line of stdout. `last_lines` keeps the latest lines
    of stderr.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        redact: Callable[[str], str],
        on_error_line: Callable[[str], None] = lambda _: None,
        on_output_line: Callable[[str], None] | None = None,
        limits: limits_of.Limits = limits_of.CAPTURE,
    ) -> None:
        self.argv = tuple(argv)
        self.last_lines: collections.deque[str] = collections.deque(maxlen=_RING_LINES)
        self._redact = redact
        self._limits = limits
        self._on_error_line = on_error_line
        self._on_output_line = on_output_line
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        """The process id; 0 before the spawn."""
        return self._process.pid if self._process else 0

    @property
    def stdin(self) -> asyncio.StreamWriter:
        """The process's stdin; only after `start`."""
        assert self._process is not None  # noqa: S101 - a caller's fault, not a state of the world
        assert self._process.stdin is not None  # noqa: S101 - always asked for
        return self._process.stdin

    async def start(self, *, inherit: Sequence[int] = ()) -> None:
        """Spawn the process; it inherits the file descriptors `inherit` under their numbers. Raises OSError on failure."""
        guard = [limits_of.tool("setpriv"), "--pdeathsig", "KILL", "--no-new-privs", "--"]
        self._process = process = await asyncio.create_subprocess_exec(
            *guard,
            *self._limits.argv(),
            *self.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if self._on_output_line else asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=tuple(inherit),
            process_group=0,
            env=ENVIRONMENT,
            cwd="/",
        )
        assert process.stderr is not None  # noqa: S101 - asked for above
        self._readers = [asyncio.create_task(self._drain(process.stderr, self._error_line))]
        if self._on_output_line and process.stdout is not None:
            self._readers.append(asyncio.create_task(self._drain(process.stdout, self._on_output_line)))

    def widen_stdin(self) -> None:
        """Let more bytes wait for the process: each wakes it less often. Without effect where the system or the loop refuses."""
        pipe = self.stdin.get_extra_info("pipe")
        if pipe is not None:
            with contextlib.suppress(OSError, ValueError):  # ValueError: closed, because the process has ended
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    async def wait(self) -> int:
        """Wait until the process has exited and its output is drained. Returns the exit code; a negative one is the signal that
        killed it.

        Raises the error of a line callback, after the process has exited.
        """
        assert self._process is not None  # noqa: S101 - a caller's fault
        code = await self._process.wait()
        if self._readers:
            _, late = await asyncio.wait(self._readers, timeout=_DRAIN_S)
            for reader in late:
                reader.cancel()
            results = await asyncio.gather(*self._readers, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return code

    async def stop(self, *, ask_s: float = 2.0, term_s: float = 2.0) -> None:
        """The kill ladder: `q`, after `ask_s` SIGTERM with SIGINT, after another `term_s` SIGKILL. Returns when the process has
        exited."""
        if ask_s > 0:
            self._ask()
            if await self._ended_within(ask_s):
                return
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGINT)
        if not await self._ended_within(term_s):
            self.kill()
            await self.ended()

    async def ended(self) -> None:
        """Wait for the exit of the process, not for its output."""
        assert self._process is not None  # noqa: S101 - a caller's fault
        await self._process.wait()

    def kill(self) -> None:
        """Send SIGKILL to the process group. No effect after the exit or before the spawn."""
        self._signal(signal.SIGKILL)

    def _ask(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.stdin.write(b"q")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _ended_within(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self.ended(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _drain(self, stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
        try:
            await _lines(stream, on_line)
        except BaseException:
            self.kill()  # no reader is left, so the process would block on a full pipe
            raise

    def _error_line(self, text: str) -> None:
        text = self._redact(text)
        self.last_lines.append(text)
        self._on_error_line(text)


async def _lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
    """Read a stream to its end. A line is cut at 8 KiB, so memory stays bounded."""
    rest = b""
    while chunk := await stream.read(_READ_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if text := line[:_LONGEST_LINE_BYTES].decode("utf-8", "replace").strip():
                on_line(text)
        rest = rest[:_LONGEST_LINE_BYTES]
    if text := rest.decode("utf-8", "replace").strip():
        on_line(text)
