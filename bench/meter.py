"""Measurement of one part of a round: events per second, CPU per event of this process and of the servers, events per commit."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import asyncpg

from bench import processes
from tests import postgres

Part = Callable[[], Awaitable[tuple[int, float]]]
Figures = dict[str, float]


class CommitsOfFile:
    """Commits to a SQLite database in WAL, counted by the index of the log, whose third word grows with each."""

    def __init__(self, path: Path) -> None:
        self._index = path.with_name(f"{path.name}-shm")

    async def position(self) -> str:
        """A position to count from."""
        with self._index.open("rb") as index:
            return str(int.from_bytes(index.read(12)[8:], "little"))

    def between(self, since: str, until: str) -> int:
        """How many transactions that wrote something committed in between."""
        return int(until) - int(since)


class CommitsOfServer:
    """Commits to a PostgreSQL server, counted in its write-ahead log."""

    def __init__(self, server: postgres.Server, url: str) -> None:
        self._server = server
        self._url = url.replace("+asyncpg", "")
        self.between = server.commits

    async def position(self) -> str:
        """A position to count from."""
        connection = await asyncpg.connect(self._url)
        try:
            return str(await connection.fetchval("SELECT pg_current_wal_flush_lsn()::text"))
        finally:
            await connection.close()


class Meter:
    """Measures parts. `servers` are the processes of the servers by name, `commits` the counters of commits by part; the counter
    under "" is for all other parts."""

    def __init__(self, servers: Mapping[str, int], commits: Mapping[str, CommitsOfFile | CommitsOfServer]) -> None:
        self._servers = servers
        self._commits = commits

    async def measure(self, name: str, part: Part) -> Figures:
        """Run one part: per_s, cpu_ms and the servers' cpu_ms per event, events_per_commit if its commits are counted."""
        counter = self._commits.get(name) or self._commits.get("")
        servers, position = self._server_cpu_s(), await counter.position() if counter else ""
        own_s = time.process_time()
        done, took_s = await part()
        used_s = time.process_time() - own_s
        figures = {"per_s": done / took_s, "cpu_ms": used_s / done * 1000}
        for server, now_s in self._server_cpu_s().items():
            figures[f"{server}_cpu_ms"] = (now_s - servers[server]) / done * 1000
        if counter:
            figures["events_per_commit"] = done / max(1, counter.between(position, await counter.position()))
        return figures

    def _server_cpu_s(self) -> dict[str, float]:
        return {name: processes.tree_cpu_s(pid) for name, pid in self._servers.items()}
