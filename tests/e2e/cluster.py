"""Cluster: many nodes as processes in any mix of roles, on the tests' own RabbitMQ and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from concurrent import futures
from typing import Any

import asyncpg

from tests import backends, earlier_release, engines, fork_server, postgres, rabbit, service_process, waiting
from tests.e2e.conftest import World

LEASE_S = 6.0 * waiting.pace()
# A server dies with the thread that started it, so a restart needs a thread that lives until the end.
KEEPER = futures.ThreadPoolExecutor(1)


async def keep(work: Callable[[], None]) -> None:
    """Run blocking work on a server in the long-lived thread."""
    await asyncio.get_running_loop().run_in_executor(KEEPER, work)


class Cluster:
    """One recorder with many nodes. With `shared`, all workers share one spool. `release` is the version of new nodes."""

    def __init__(
        self,
        world: World,
        *,
        shared: bool,
        settings: dict[str, str] | None = None,
        database: str = "",
        broker: rabbit.Broker | None = None,
    ) -> None:
        """`database`: one of a server of its own, which ends with its server; otherwise one of the tests' own server. `broker`:
        that of the tests if None."""
        self.world = world
        self.database = database or postgres.shared().create()
        self._dropped = not database
        self.broker = broker or rabbit.shared()
        self.prefix = world.folder.name.replace("_", "-")[:40]
        self.nodes: dict[str, service_process.ServiceProcess] = {}
        self.release = earlier_release.current()
        self._settings = world.settings() | {
            "DATABASE_URL": self.database,
            "AMQP_URL": self.broker.url,
            "AMQP_PREFIX": self.prefix,
            "CLUSTER_TOKEN": backends.CLUSTER_TOKEN,
            "SECRET_KEYS": engines.SECRET_KEYS,
            "LEASE": f"{LEASE_S:.1f}s",
        }
        if shared:
            self._settings |= {"CFS_PATH": str(world.folder / "cfs"), "SPOOL_SHARED": "true"}
        self._settings |= settings or {}

    async def start(self, **roles: str) -> None:
        """Migrate, then start a node for each name: `api="api", worker1="worker"`."""
        code, output = await self.migrate()
        assert code == 0, output
        await asyncio.gather(*(self.add(name, role) for name, role in roles.items()))

    async def add(self, name: str, roles: str, **settings: str) -> service_process.ServiceProcess:
        """Start one more node, with settings in addition to the cluster's, or start an old one again."""
        if name not in self.nodes:
            folder = self.world.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            self.nodes[name] = service_process.ServiceProcess(folder, self._settings | settings)
            self.nodes[name].options = ("--roles", roles)
        node = self.nodes[name]
        node.root, node.python = self.release.root, self.release.python
        await node.start()
        if "api" in roles:
            self.world.service = node
            self.world.point_callbacks()
        return node

    async def stop(self) -> None:
        """Stop every node and drop the database."""
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))
        if self._dropped:
            await asyncio.to_thread(postgres.shared().drop, self.database)

    def node_id(self, name: str) -> str:
        """The node id of a started node."""
        started = [line for line in self.nodes[name].log.read_text().splitlines() if '"service.started"' in line]
        return str(json.loads(started[-1])["node"])

    def owners_told(self, event: str, **fields: Any) -> set[str]:
        """The owners in all log lines of any node with this event and these fields."""
        lines = [json.loads(line) for node in self.nodes.values() for line in node.log.read_text().splitlines() if event in line]
        wanted = {"event": event} | fields
        return {line["owner"] for line in lines if wanted.items() <= line.items()}

    async def ask(self, query: str) -> list[Any]:
        """Run a query of the test."""
        connection = await asyncpg.connect(self.database.replace("+asyncpg", ""))
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    async def migrate(self, *options: str) -> tuple[int, str]:
        """Run `recorder migrate`; returns its exit code and its output."""
        environment = self._settings | {"HOME": str(self.world.folder), "PATH": "/usr/bin:/bin"}
        if self.release == earlier_release.current():
            log = self.world.folder / f"migrate-{len(self.nodes)}.log"
            child = await fork_server.shared().fork(["migrate", *options], environment, log)
            return await child.wait(), log.read_text()
        command = [self.release.python, "-c", fork_server.RECORDER, "migrate", *options]

        def run() -> tuple[int, str]:
            done = subprocess.run(command, cwd=self.release.root, env=environment, capture_output=True, text=True, check=False)
            return done.returncode, done.stdout + done.stderr

        return await asyncio.to_thread(run)
