"""Owner of one ffmpeg process: spawning, draining, stopping and reaping. May import `machine` and `media.resource_limits`.

Rule: after `wait()` has returned there is no process, no pipe and no task left. The child has its own process group, so
that a terminal's Ctrl-C does not reach it; an environment with nothing in it, so that no proxy setting does; limits on
what it may take, and no way to more rights than it has; and it dies with the thread that spawned it (setpriv
--pdeathsig KILL), so spawn from the main thread, where the event loop runs.

Measured with 9.0.2: a stalled ffmpeg ignores `q` and one signal, and ends its reads after the second, so SIGTERM goes
with a SIGINT.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
from collections.abc import Callable, Sequence

from machine import errors
from media import resource_limits as limits_of

_RING_LINES = 100
_LONGEST_LINE_BYTES = 8_192
_READ_BYTES = 65_536
TOOLS = ("setpriv", "prlimit")
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
_DRAIN_S = 2.0


def check_tools() -> None:
    """Raise errors.Unavailable unless everything that stands in front of an ffmpeg is there."""
    try:
        for name in TOOLS:
            limits_of.tool(name)
    except FileNotFoundError as error:
        raise errors.Unavailable(
            f"{error.filename} is not on PATH: without it an ffmpeg would outlive a service that is killed, and take what memory "
            "it likes. Install util-linux."
        ) from error


class Child:
    """One process with its stderr (and stdout, if wanted) read line by line.

    `on_error_line` sees every redacted line of stderr, `on_output_line` every line of stdout. `last_lines` keeps the
    latest of stderr.
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
        """The process id; 0 before it was spawned."""
        return self._process.pid if self._process else 0

    @property
    def stdin(self) -> asyncio.StreamWriter:
        """Where the process reads from; only after `start`."""
        assert self._process is not None  # noqa: S101 - a caller's fault, not a state of the world
        assert self._process.stdin is not None  # noqa: S101 - always asked for
        return self._process.stdin

    async def start(self, *, inherit: Sequence[int] = ()) -> None:
        """Spawns the process; it keeps the file descriptors `inherit` under their numbers. Raises OSError when it cannot."""
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

    async def wait(self) -> int:
        """Waits for the end of the process and of what it said; returns its exit code (negative: the signal that killed it).

        Raises whatever a line callback raised, after the process is gone.
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
        """The ladder: `q`, after `ask_s` SIGTERM with SIGINT, after `term_s` more SIGKILL. Returns when the process has ended."""
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
        """Waits for the end of the process alone."""
        assert self._process is not None  # noqa: S101 - a caller's fault
        await self._process.wait()

    def kill(self) -> None:
        """SIGKILL to the process group, at once; harmless when it has ended or was never spawned."""
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
            self.kill()  # nobody reads its output any more, so it would block on a full pipe
            raise

    def _error_line(self, text: str) -> None:
        text = self._redact(text)
        self.last_lines.append(text)
        self._on_error_line(text)


async def _lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
    """Reads to the end in pieces, however long a line is; a line is cut at 8 KiB, so memory stays bounded."""
    rest = b""
    while chunk := await stream.read(_READ_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if text := line[:_LONGEST_LINE_BYTES].decode("utf-8", "replace").strip():
                on_line(text)
        rest = rest[:_LONGEST_LINE_BYTES]
    if text := rest.decode("utf-8", "replace").strip():
        on_line(text)
