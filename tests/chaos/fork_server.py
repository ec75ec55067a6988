"""Fork server: a process that has loaded the whole program once and forks a node for each line on its standard input.

Most of the start time of the service is loading modules, so forking fits many more runs into the same minutes. Rule: it has one
thread and no event loop, so a forked node is like a freshly started one.

    input:  {"Id", "Arguments", "Environment", "Log"}        output:  {"Id", "Pid"} when forked, {"Pid", "Code"} when ended
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
POLL_S = 0.03
PR_SET_PDEATHSIG = 1


class Child:
    """A forked process."""

    def __init__(self, pid: int, ended: asyncio.Future[int]) -> None:
        self.pid = pid
        self._ended = ended

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.done()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended gets none."""
        if self.running:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        """Wait for the exit code: negative for the signal that killed it."""
        return await asyncio.shield(self._ended)


class ForkServer:
    """The client of the fork server's process."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._forked: dict[int, asyncio.Future[Child]] = {}
        self._children: dict[int, asyncio.Future[int]] = {}

    async def start(self) -> None:
        """Start the process and wait until it has loaded the program."""
        self._process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "tests.chaos.fork_server",
            cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"ready\n"
        self._reading = asyncio.create_task(self._read(self._process.stdout))

    async def stop(self) -> None:
        """End the process; nodes that still run die with it."""
        if self._process is not None and self._reading is not None:
            self._process.kill()
            await self._process.wait()
            await self._reading

    async def fork(self, arguments: list[str], environment: dict[str, str], log: Path) -> Child:
        """Fork a node with these arguments (after the program's name) and exactly this environment."""
        assert self._process is not None
        assert self._process.stdin is not None
        number = len(self._forked)
        self._forked[number] = asyncio.get_running_loop().create_future()
        order = {"Id": number, "Arguments": arguments, "Environment": environment, "Log": str(log)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()
        return await self._forked[number]

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            event = json.loads(line)
            if "Id" in event:
                ended = self._children[event["Pid"]] = asyncio.get_running_loop().create_future()
                self._forked[event["Id"]].set_result(Child(event["Pid"], ended))
            else:
                self._children[event["Pid"]].set_result(event["Code"])


def _become_node(order: dict[str, Any]) -> None:
    """Turn the forked process into the node."""
    from tests.chaos import node

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(order["Environment"])
    log = os.open(order["Log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(source, number)
    os.closerange(3, 64)
    sys.argv = ["recorder", *order["Arguments"]]
    code = 1
    try:
        node.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def _write(**event: int) -> None:
    os.write(1, json.dumps(event).encode() + b"\n")


def main() -> None:
    """Fork until standard input ends."""
    # The modules loaded here are there for every forked node.
    from assembly import node as service_node  # noqa: F401 - loaded, not used
    from bus import rabbit  # noqa: F401 - loaded, not used
    from cli import doctor_checks  # noqa: F401 - loaded, not used
    from tests.chaos import node as node

    os.write(1, b"ready\n")
    rest = b""
    while True:
        if select.select([0], [], [], POLL_S)[0]:
            chunk = os.read(0, 65536)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _become_node(order)
                _write(Id=order["Id"], Pid=pid)
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            continue
        if pid:
            _write(Pid=pid, Code=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
