"""Nodes under a supervisor that restarts them, as systemd or Compose would.

Rule: a node that ends is restarted, whatever the cause, until the run ends; then it ends too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import imageio_ffmpeg

from tests import fork_server, ports, waiting
from tests.chaos import plans

READY_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0
PROGRAM = "from tests.chaos import node; node.main()"


async def pass_time(seconds: float) -> None:
    """Wait for a span of time that the run is about."""
    ends = time.monotonic() + seconds
    await waiting.until(lambda: time.monotonic() >= ends, seconds + 5, every_s=min(0.2, max(seconds, 0.01)))


class Node:
    """One `recorder serve` with a harness. `away_s`: delay of the restart after a kill."""

    def __init__(
        self, forks: fork_server.ForkServer, folder: Path, environment: dict[str, str], *, roles: str = "", away_s: float = 0.0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._forks = forks
        self.port = ports.free()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "service.log"
        self.pids: list[int] = []
        self.codes: list[int] = []
        self._away_s = away_s
        self._options = ["serve", *(["--roles", roles] if roles else [])]
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
        self._process: fork_server.Child | None = None
        self._supervisor: asyncio.Task[None] | None = None

    def arm(self, folder: Path, strikes: tuple[plans.Strike, ...], skews: Sequence[tuple[float, int]] = ()) -> None:
        """Write the plan of the harness; each strike happens once among all nodes that share the folder."""
        listed = [{"Point": s.point, "Hit": s.hit, "Act": s.act} for s in strikes]
        (self.folder / "plan.json").write_text(json.dumps({"Folder": str(folder), "Strikes": listed, "Skews": skews}))

    async def start(self) -> None:
        """Start the node and supervise it from now on."""
        await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise())

    async def _spawn(self) -> None:
        arguments = [str(self.folder / "plan.json"), *self._options]
        self._process = await self._forks.fork(arguments, self._environment, self.log, program=PROGRAM)
        self.pids.append(self._process.pid)

    async def _supervise(self) -> None:
        while True:
            assert self._process is not None
            code = await self._process.wait()
            self.codes.append(code)
            await pass_time(self._away_s if code == -signal.SIGKILL else 0.1)
            await self._spawn()

    async def ready(self) -> None:
        """Wait until `/readyz` reports ready."""
        await waiting.until(self.is_ready, READY_LIMIT_S, f"{self.folder.name} to be ready; see {self.log}", every_s=0.1)

    async def is_ready(self) -> bool:
        """Whether `/readyz` reports ready."""
        try:
            async with waiting.at_most(3), aiohttp.ClientSession() as http, http.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def wake(self, pid: int) -> None:
        """Let a frozen process continue."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code; -9 if the node did not end in time and was killed."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        process = self._process
        if process is None or not process.running:  # killed by a strike and not restarted yet
            return 0
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        try:
            async with waiting.at_most(STOP_LIMIT_S):
                return await process.wait()
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            return await process.wait()
