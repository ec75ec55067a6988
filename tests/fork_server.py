"""Fork server: a process that has loaded the whole program once and forks a command of it for each message on its socket.

Two thirds of the service's start are spent on loading modules, so forks save a test run minutes of CPU. Rule: the server has one
thread and no event loop, so a fork is like a new process, except for its command line and environment in `/proc`. A test that is
about those starts a new process (`ServiceProcess.fresh`).

    message: {"Program", "Arguments", "Environment"}, and three descriptors: its output, its errors, and a pipe that gets the
             exit code
    answer:  the process id
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import waiting

ROOT = Path(__file__).parents[1]
RECORDER = "import service; service.main()"
"""The program `recorder`, as for `python -c`."""
LOADED = (
    "service", "assembly.node", "assembly.logs", "bus.rabbit", "cli.doctor_checks", "tests.chaos.node",
    "alembic.command", "sqlalchemy.dialects.postgresql.asyncpg", "sqlalchemy.dialects.sqlite.aiosqlite",
)  # fmt: skip
LOAD_LIMIT_S = 60.0
POLL_S = 0.03
MOST_BYTES = 1 << 18
PR_SET_PDEATHSIG = 1


class Child:
    """A forked process."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid = pid
        self._ended = ended
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for the signal that killed it; None while it runs."""
        if self._code is None:
            with contextlib.suppress(BlockingIOError):
                # No code at all: the server was killed, and its children with it.
                self._code = int(os.read(self._ended, 100) or -signal.SIGKILL)
                os.close(self._ended)
        return self._code

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.returncode is None

    def send_signal(self, number: int) -> None:
        """Send a signal; a process that has ended gets none."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    async def wait(self) -> int:
        """Wait for the exit code."""
        loop = asyncio.get_running_loop()
        while (code := self.returncode) is None:
            readable = asyncio.Event()
            # A descriptor of its own: two may wait at the same time.
            descriptor = os.dup(self._ended)
            loop.add_reader(descriptor, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
        return code


class ForkServer:
    """The client of the fork server's process. It belongs to no event loop."""

    def __init__(self) -> None:
        """Start the process. It ends with the thread that makes it, and its forks with it."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(waiting.limit_s(LOAD_LIMIT_S))
        self._one = threading.Lock()
        words = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
        # As an operator's process: what the test run has in its environment does not count.
        plain = {"PATH": os.environ["PATH"]}
        with theirs:
            self._process = subprocess.Popen(words, cwd=ROOT, env=plain, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        """End the process; forks that still run die with it."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    async def fork(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: Path,
        *,
        errors: Path | None = None,
        program: str = RECORDER,
    ) -> Child:
        """Fork a command with these arguments (after the program's name) and exactly this environment; its output is appended to
        `output`, what it writes to standard error to `errors`, or there as well. Raises TimeoutError."""
        message = json.dumps({"Program": program, "Arguments": [*arguments], "Environment": {**environment}})
        return await asyncio.to_thread(self._fork, message.encode(), output, errors or output)

    def _fork(self, message: bytes, output: Path, errors: Path) -> Child:
        ended, end = os.pipe()
        os.set_blocking(ended, False)
        with self._one, output.open("ab") as out, errors.open("ab") as err:
            try:
                socket.send_fds(self._socket, [message], [out.fileno(), err.fileno(), end])
                pid = int(self._socket.recv(100))
            finally:
                os.close(end)
        return Child(pid, ended)


@functools.cache
def shared() -> ForkServer:
    """The one server of this test process. Call from the main thread."""
    made = ForkServer()
    atexit.register(made.stop)
    return made


def _become(order: dict[str, Any], output: int, errors: int, server: int) -> None:
    """Turn the forked process into the command. Does not return."""
    code: object = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:  # It was killed before the line above: no signal comes.
            os._exit(1)
        os.environ.clear()
        os.environ.update(order["Environment"])
        for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, errors)):
            os.dup2(source, number)
        os.closerange(3, 256)
        sys.argv = ["recorder", *order["Arguments"]]
        exec(compile(order["Program"], "<program>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - a fork must not go on as the process that forks
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _serve(asked: socket.socket) -> None:
    """Fork until the other end closes."""
    for name in LOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1
    asked.settimeout(POLL_S)
    pipes: dict[int, int] = {}
    while True:
        with contextlib.suppress(TimeoutError):
            text, descriptors, _, _ = socket.recv_fds(asked, MOST_BYTES, 3)
            if not text:
                return
            output, errors, pipe = descriptors
            server, pid = os.getpid(), os.fork()
            if pid == 0:
                _become(json.loads(text), output, errors, server)
            os.close(output)
            os.close(errors)
            pipes[pid] = pipe
            asked.send(str(pid).encode())
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with open(pipes.pop(ended[0]), "wb") as told, contextlib.suppress(BrokenPipeError):
                    told.write(str(os.waitstatus_to_exitcode(ended[1])).encode())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _asked:
        _serve(_asked)
