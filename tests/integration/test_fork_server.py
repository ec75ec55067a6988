"""The fork server of the tests: a fork is like a new process, and its end is known."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests import fork_server, waiting

PROGRAM = """
import asyncio, gc, json, os, signal, sys, threading
handled = [name for name in ("SIGTERM", "SIGINT", "SIGCHLD", "SIGPIPE", "SIGHUP")]
print(json.dumps({
    "words": sys.argv[1:],
    "environment": {name: value for name, value in os.environ.items() if name != "LC_CTYPE"},
    "folder": os.getcwd(),
    "descriptors": sorted(n for n in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{n}")),
    "input": os.readlink("/proc/self/fd/0"),
    "encodings": [sys.stdout.encoding, sys.stderr.encoding, sys.getfilesystemencoding()],
    "signals": {name: str(signal.getsignal(getattr(signal, name))) for name in handled},
    "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "threads": threading.active_count(),
    "collects": gc.isenabled(),
    "name": __name__,
}))
print("to whom it concerns", file=sys.stderr)
sys.exit(int(os.environ["CODE"]))
"""


async def test_a_fork_is_like_a_new_process(tmp_path: Path) -> None:
    """Arguments, environment, folder, descriptors, streams, encodings, signals and exit code are those of a new process."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CODE": "7", "WORDS": "数据"}
    out, err = tmp_path / "out", tmp_path / "err"
    forked = await fork_server.shared().fork(["serve", "数据"], environment, out, errors=err, program=PROGRAM)
    async with waiting.at_most(30):
        assert await forked.wait() == 7
    pipe = asyncio.subprocess.PIPE
    fresh = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, "serve", "数据",
        cwd=fork_server.ROOT, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe,
    )  # fmt: skip
    printed, said = await fresh.communicate()
    assert fresh.returncode == 7
    assert _read(out) == json.loads(printed)
    assert err.read_bytes() == said == b"to whom it concerns\n"


async def test_the_end_of_a_fork_is_known(tmp_path: Path) -> None:
    """By exit code, by an error that nobody expected, and by the signal that killed it, to all who wait."""
    server, log = fork_server.shared(), tmp_path / "log"
    failed = await server.fork([], {}, log, program="raise ValueError('unexpected')")
    waits = await server.fork([], {}, log, program="import signal; signal.pause()")
    async with waiting.at_most(30):
        assert await failed.wait() == 1
        both = asyncio.gather(waits.wait(), waits.wait())
        assert waits.running
        waits.send_signal(signal.SIGKILL)
        assert await both == [-signal.SIGKILL, -signal.SIGKILL]
    assert (waits.running, waits.returncode) == (False, -signal.SIGKILL)
    assert "ValueError: unexpected" in log.read_text()


async def test_forks_die_with_their_server(tmp_path: Path) -> None:
    """A killed run leaves no service behind."""
    server = fork_server.ForkServer()
    try:
        waits = await server.fork([], {}, tmp_path / "log", program="import signal; signal.pause()")
    finally:
        server.stop()
    async with waiting.at_most(30):
        assert await waits.wait() == -signal.SIGKILL
    await waiting.until(lambda: not Path(f"/proc/{waits.pid}").exists(), what="the fork to be gone")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
