"""Runs of other engines: an environment made from `bench/peers.txt`, and one process for each engine and round.

Rule: each gets an empty database on the same servers as the recorder, with synchronous commits, and one process (Celery: a
producer and a worker). Where a size of pools or workers mattered, the fastest was taken. A failed run costs only its own figure,
and is reported.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests import postgres, rabbit

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "bench" / "peers.txt"
LIMIT_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another engine: its program in `bench/peers/`, and what the life is guaranteed in it."""

    name: str
    program: str
    arguments: tuple[str, ...] = ()
    effects: str
    next_step: str
    crash: str
    target: str


_GUARDED = "at least once; a repeat fails the guard"
_CELERY = Peer(
    name="Celery",
    program="celery_life",
    effects=_GUARDED,
    next_step="published after the commit, no outbox",
    crash="redelivered (late acknowledgement, quorum queue)",
    target="> 1",
)
_PROCRASTINATE = Peer(
    name="procrastinate",
    program="procrastinate_life",
    effects=_GUARDED,
    next_step="a row in the same transaction",
    crash="stalled until the application asks for it",
    target="≥ 5",
)
_PGQUEUER = Peer(
    name="PgQueuer",
    program="pgqueuer_life",
    effects=_GUARDED,
    next_step="a row in the same transaction",
    crash="heartbeat expires, another worker takes it",
    target="> 1",
)
_ABSURD = Peer(
    name="absurd",
    program="absurd_life",
    effects="at least once, then a checkpoint; a repeat fails the guard",
    next_step="an event from outside, kept under its name",
    crash="claim expires, another worker continues after the checkpoint",
    target="≥ 5",
)
_DBOS = Peer(
    name="DBOS",
    program="dbos_life",
    effects="exactly once: the checkpoint commits with them",
    next_step="a message from outside, kept as a row",
    crash="continues after the checkpoint when the process is back",
    target="≥ 5",
)
PEERS = (
    _CELERY,
    _PROCRASTINATE,
    _PGQUEUER,
    _ABSURD,
    replace(_ABSURD, name="absurd, inline", arguments=("--inline",), next_step="the next line of the task", target=""),
    _DBOS,
    replace(_DBOS, name="DBOS, inline", arguments=("--inline",), next_step="the next line of the workflow", target=""),
)
RECORDER = (
    "recorder",
    "exactly once: inbox, state, journal and outbox commit together",
    "a row in the same transaction",
    "redelivered; leases expire",
)


def environment(folder: Path) -> Path:
    """The folder of the environment: another one for other requirements."""
    return folder / f"peers-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]}"


def exists(folder: Path) -> bool:
    """Whether the environment is complete."""
    return (environment(folder) / ".synced").exists()


def make(folder: Path) -> None:
    """Make the environment, unless it is complete. Raises CalledProcessError."""
    if exists(folder):
        return
    made, uv = environment(folder), Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, made], check=True)
    subprocess.run([uv, "pip", "sync", "--quiet", "--python", made / "bin" / "python", REQUIREMENTS], check=True)
    (made / ".synced").touch()


class PeerRuns:
    """The runs of all peers on these servers."""

    def __init__(self, folder: Path, server: postgres.Server, broker: rabbit.Broker) -> None:
        self._python = environment(folder) / "bin" / "python"
        self._server = server
        self._broker = broker
        self.failures: list[str] = []

    async def run(self, peer: Peer, seconds: float, lanes: int) -> Mapping[str, float] | None:
        """The figures of one run; None if it failed, with the reason in `failures`."""
        url = self._server.create()
        command = [self._python, "-m", f"bench.peers.{peer.program}", *peer.arguments]
        command += ["--database", url.replace("+asyncpg", ""), "--broker", self._broker.url]
        command += ["--seconds", str(seconds), "--lanes", str(lanes)]
        command += [f"--server=postgres={self._server.pid}", f"--server=rabbitmq={self._broker.pid}"]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                printed, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            printed, errors = await process.communicate()
        self._server.drop(url)
        if process.returncode:
            words = errors.decode().strip().splitlines() or ["no word"]
            self.failures.append(f"{peer.name} ended with {process.returncode}: {words[-1]}")
            return None
        figures: dict[str, float] = json.loads(printed.decode().strip().splitlines()[-1])
        return figures


def guarantees() -> str:
    """What each engine guarantees, as a table in Markdown."""
    rows = [RECORDER, *((peer.name, peer.effects, peer.next_step, peer.crash) for peer in PEERS)]
    head = "| engine | effects of a step | next step | a worker dies |\n|---|---|---|---|"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])
