"""The real service as a process, as an operator would run it; it can be killed and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import imageio_ffmpeg

from tests import fork_server, ports, waiting
from tests.chaos import open_captures

ROOT = Path(__file__).parent.parent


class ServiceProcess:
    """`recorder serve` in a folder of its own, with the settings of `environment`; `program` replaces `recorder`, and `root` with
    `python` another version. It is a fork of `tests/fork_server.py`; another version, or a `fresh` one, is a new process."""

    program = fork_server.RECORDER
    fresh = False

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.port = ports.free()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "service.log"
        self.options: tuple[str, ...] = ()
        self.root, self.python = ROOT, sys.executable
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "DATA_DIR": str(folder / "data"),
            "SPOOL_DIR": str(folder / "spool"),
            "LOG_FORMAT": "json",
            "FFMPEG_BINARY": imageio_ffmpeg.get_ffmpeg_exe(),
        } | environment
        self._process: asyncio.subprocess.Process | fork_server.Child | None = None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        await self.begin()
        await self.ready()

    async def begin(self) -> None:
        """Start it, and wait for nothing."""
        if not self.fresh and (self.root, self.python) == (ROOT, sys.executable):
            words = ["serve", *self.options]
            self._process = await fork_server.shared().fork(words, self._environment, self.log, program=self.program)
            return
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                self.python, "-c", self.program, "serve", *self.options,
                cwd=self.root, env=self._environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    async def ready(self) -> None:
        """Wait until it is ready."""
        await waiting.until(self._is_ready, 30, "the service to be ready")

    async def end(self) -> int:
        """Wait until it ends by itself; returns the exit code."""
        assert self._process is not None
        async with waiting.at_most(30):
            return await self._process.wait()

    async def kill(self) -> None:
        """kill -9, and reap it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM; returns the exit code. No effect if it does not run."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.terminate()
        async with waiting.at_most(20):
            return await self._process.wait()

    async def get(self, path: str) -> Any:
        """GET, as JSON; fails on anything but 2xx."""
        async with aiohttp.ClientSession() as http, http.get(self.url + path) as answer:
            body = await answer.json()
            assert answer.status < 300, body
            return body

    async def post(self, path: str, body: Any = None) -> Any:
        """POST, as JSON; fails on anything but 2xx."""
        async with aiohttp.ClientSession() as http, http.post(self.url + path, json=body) as answer:
            said = await answer.json()
            assert answer.status < 300, said
            return said

    async def session(self, task_id: str) -> Any:
        """A session, from the API."""
        return await self.get(f"/sessions/{task_id}")

    async def finished(self, task_id: str, timeout_s: float = 40, every_s: float = 0.2) -> Any:
        """Wait until the session is Finished, with a request `every_s`; returns it."""

        async def look() -> Any:
            found = await self.session(task_id)
            return found if found["State"] == "Finished" else None

        return await waiting.until(look, timeout_s, f"{task_id} to be Finished; see {self.log}", every_s=every_s)

    async def states(self, task_id: str) -> list[str]:
        """The states of the session's recordings."""
        return [r["State"] for r in (await self.session(task_id))["Recordings"]]

    async def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self.log.read_text()[-3000:]
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with aiohttp.ClientSession() as http, http.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        return False


def work(pid: int) -> list[str]:
    """The ffmpegs of a process that run, and the segments that it captures itself. A zombie of a frozen parent has ended."""
    alive = [child for child in children(pid) if _state(child) not in ("", "Z")]
    return [*map(str, alive), *sorted(open_captures.written(Path(f"/proc/{pid}")))]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    """The children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return found
