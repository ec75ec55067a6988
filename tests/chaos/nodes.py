"""Nodes under a supervisor that starts them again, as systemd or Compose would. Imports the tests' own eyes and no room of ours.

Rule: a node dies with the run, and whatever ends it before, it comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path

import aiohttp
import imageio_ffmpeg

from tests import ports, waiting
from tests.chaos import fork_server as forges
from tests.chaos import plans

READY_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0


async def pass_time(seconds: float) -> None:
    """Let time pass that a run is about."""
    ends = time.monotonic() + seconds
    await waiting.until(lambda: time.monotonic() >= ends, seconds + 5, every_s=min(0.2, max(seconds, 0.01)))


class Node:
    """One `recorder serve` with a harness. `away_s`: how long it stays away when it was killed."""

    def __init__(
        self, forge: forges.Forge, folder: Path, environment: dict[str, str], *, roles: str = "", away_s: float = 0.0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._forge = forge
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
        self._process: forges.Child | None = None
        self._keeping: asyncio.Task[None] | None = None

    def arm(self, folder: Path, strikes: tuple[plans.Strike, ...]) -> None:
        """What the harness does; each strike happens once among all nodes with this folder."""
        told = [{"Point": s.point, "Hit": s.hit, "Act": s.act} for s in strikes]
        (self.folder / "plan.json").write_text(json.dumps({"Folder": str(folder), "Strikes": told}))

    async def start(self) -> None:
        """Start it, and keep it running from now on."""
        await self._spawn()
        self._keeping = asyncio.create_task(self._keep())

    async def _spawn(self) -> None:
        arguments = [str(self.folder / "plan.json"), *self._options]
        self._process = await self._forge.fork(arguments, self._environment, self.log)
        self.pids.append(self._process.pid)

    async def _keep(self) -> None:
        while True:
            assert self._process is not None
            code = await self._process.wait()
            self.codes.append(code)
            await pass_time(self._away_s if code == -signal.SIGKILL else 0.1)
            await self._spawn()

    async def ready(self) -> None:
        """Wait until it says that it is."""
        await waiting.until(self.is_ready, READY_LIMIT_S, f"{self.folder.name} to be ready; see {self.log}", every_s=0.1)

    async def is_ready(self) -> bool:
        """Whether it says that it is."""
        try:
            async with waiting.at_most(3), aiohttp.ClientSession() as http, http.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def wake(self, pid: int) -> None:
        """Let a frozen process go on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    async def stop(self) -> int:
        """SIGTERM; returns the exit code. Killed if it does not end in time: the code then is -9."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        process = self._process
        if process is None or not process.running:  # killed by a strike, and not back yet
            return 0
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        try:
            async with waiting.at_most(STOP_LIMIT_S):
                return await process.wait()
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            return await process.wait()
