"""docker-compose.yml without Docker: the parsed file, its variables substituted as Compose does, and its services as processes.

Rule: commands, environments and health checks come from the file and the Dockerfile; only hosts, ports and mounted folders are
replaced.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests import waiting

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?P<how>:-|:\?)?(?P<word>[^}]*)\})")


def read(environment: Mapping[str, str] | None) -> Any:
    """The whole file. With an environment, its variables are substituted: `${A}`, `${A:-default}`, `${A:?why}`; an unset or empty
    one of the last kind raises KeyError."""
    raw = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return raw if environment is None else _filled(raw, environment)


def _filled(value: Any, environment: Mapping[str, str]) -> Any:
    def fill(found: re.Match[str]) -> str:
        name, how, word = found["name"], found["how"], found["word"]
        if name is None:
            return "$"
        if how == ":?" and not environment.get(name):
            raise KeyError(f"{name}: {word}")
        return environment.get(name) or (word if how == ":-" else "")

    if isinstance(value, dict):
        return {name: _filled(each, environment) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, environment) for each in value]
    return _VARIABLE.sub(fill, value) if isinstance(value, str) else value


def environment_file(path: Path) -> dict[str, str]:
    """An environment file as Compose reads it; quotes and escapes are not used in ours."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), with continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")).replace("\\\n", "")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(instruction, arguments) for instruction, arguments in lines]


class Container:
    """One container of a service, as a process in a folder of its own. `places` maps texts of the file to their replacements."""

    def __init__(self, service: Mapping[str, Any], image: Mapping[str, str], folder: Path, places: Mapping[str, str]) -> None:
        self.folder = folder
        self._places = dict(places)
        for mount in service.get("volumes", ()):
            source, _, target = str(mount).rpartition(":")
            self._places.setdefault(target, str(folder / "own") if not source else str(folder.parent / f"volume-{source}"))
            Path(self._places[target]).mkdir(parents=True, exist_ok=True)
        # A container's unmounted folders are read-only: here they do not exist, and must not exist at the end.
        self.read_only = folder / "read-only"
        for target in ("/var/lib/recorder", "/var/spool/recorder"):
            self._places.setdefault(target, str(self.read_only / target.strip("/")))
        self._command = ["recorder", *service["command"]]
        self._environment = dict(image) | service["environment"]
        self._health = service["healthcheck"].get("test", [])
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, more: Mapping[str, str]) -> None:
        """Start it; `more` is this machine's addition to the container's environment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {name: self._placed(str(value)) for name, value in self._environment.items()} | dict(more)
        with (self.folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                PROGRAMS / self._command[0],
                *(self._placed(word) for word in self._command[1:]),
                cwd=self.folder, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    async def ended(self, limit_s: float) -> int:
        """Wait for its end; returns the exit code."""
        assert self._process is not None
        async with waiting.at_most(limit_s):
            return await self._process.wait()

    async def stop(self, limit_s: float) -> int:
        """SIGTERM, as Docker's; returns the exit code. Raises TimeoutError after the grace period."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.terminate()
        try:
            return await self.ended(limit_s)
        except TimeoutError:
            self._process.kill()
            raise

    async def healthy(self, limit_s: float = 40) -> None:
        """Wait until the file's health check succeeds."""

        (port,) = re.findall(r"127\.0\.0\.1:(\d+)", self._placed(" ".join(self._health)))

        async def look() -> bool:
            assert self._process is not None
            assert self._process.returncode is None, self.log()
            # A health check is a program: it is started only once a server listens.
            return listens(int(port)) and await check(self._health, self._places) == 0

        await waiting.until(look, limit_s, f"{self._command} to be healthy; {self.folder / 'log'}", every_s=0.2)

    def log(self) -> str:
        """The end of its output."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def _placed(self, text: str) -> str:
        return placed(text, self._places)


def listens(port: int) -> bool:
    """Whether a server listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def placed(text: str, places: Mapping[str, str]) -> str:
    """The text with its places replaced, the longest first."""
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place])
    return text


async def check(test: list[str], places: Mapping[str, str], environment: Mapping[str, str] | None = None) -> int:
    """Run the command of a health check; returns its exit code."""
    kind, program, *arguments = test
    assert kind == "CMD"
    found = str(PROGRAMS / program) if program == "python" else program
    process = await asyncio.create_subprocess_exec(
        found,
        *(placed(word, places) for word in arguments),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait()
