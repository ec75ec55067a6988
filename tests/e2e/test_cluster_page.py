"""docs/cluster.md, typed: PostgreSQL and RabbitMQ of the tests are its first machine, and two processes on loopback its nodes.

Only names, addresses and ports differ from the page, and the simulator is used in Tencent's place. The page is about the
distributed engine, with PostgreSQL and RabbitMQ.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests import backends, pages, postgres, rabbit, service_process, waiting
from tests.e2e.conftest import APP, BUCKET, SECRET_ID, SECRET_KEY, World

pytestmark = pytest.mark.parametrize("engine", [backends.DISTRIBUTED])
PAGE = pages.ROOT / "docs" / "cluster.md"
ROOM = 8489
# These change the reader's machines. Packages, unit and proxy are those of docs/go-live.md, whose tests check them.
ON_THE_MACHINE = ("apt-get", "useradd", "git", "cd", "install", "chown", "chmod", "systemctl", "sed")
SERVERS = ("runuser", "rabbitmqctl")


class Machines:
    """The machines of the page. Its role, its database and its user of the broker get a name that no other test has."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.server, self.broker = postgres.shared(), rabbit.shared()
        self.name = f"page{self.server.port}"
        self.terminals = pages.Terminals(world.folder / "terminal")
        (text,) = [block.text for block in pages.blocks(PAGE) if block.file.endswith("recorder.env")]
        written = dict(line.split("=", 1) for line in self.servers(text).splitlines())
        folders = {"DATA_DIR", "SPOOL_DIR", "HOST", "PORT", "RECORDER_URL"}
        settings = {name: value for name, value in written.items() if name not in folders}
        settings |= world.settings() | {"AMQP_PREFIX": self.broker.prefix()}
        self.nodes = [service_process.ServiceProcess(self._folder(number), settings) for number in (1, 2)]
        own = {"RECORDER_URL": self.nodes[0].url, "PORT": str(self.nodes[0].port), "HOST": "127.0.0.1"}
        own |= {"DATA_DIR": str(self.nodes[0].folder / "data"), "SPOOL_DIR": str(self.nodes[0].folder / "spool")}
        own |= {"COS_SECRET_ID": SECRET_ID, "COS_SECRET_KEY": SECRET_KEY}
        lines = [f"{name}={shlex.quote(value)}" for name, value in (settings | own).items()]
        (self.terminals.folder / "recorder.env").write_text("\n".join(lines))

    def servers(self, text: str) -> str:
        """The text with the servers of the tests."""
        database, broker = f"127.0.0.1:{self.server.port}/{self.name}", f"127.0.0.1:{self.broker.port}/"
        text = text.replace("recorder:put-the-database-password-here@10.0.0.10/recorder", f"{self.name}@{database}")
        return text.replace("//recorder:put-the-broker", f"//{self.name}:put-the-broker").replace("10.0.0.10/", broker)

    def change_servers(self, line: str) -> None:
        """Carry out a line of the page that changes PostgreSQL or RabbitMQ."""
        words = shlex.split(re.sub(r"\brecorder\b", self.name, line))
        if words[0] == "rabbitmqctl":
            self.broker.control(*words[1:])
        elif "ALTER SYSTEM" not in line:  # the server of the tests listens on loopback only
            assert words[:4] == ["runuser", "-u", "postgres", "--"]
            reached = ["-h", "127.0.0.1", "-p", str(self.server.port), "-U", "recorder"]
            reached += ["-d", "postgres", "-v", "ON_ERROR_STOP=1"] if words[4] == "psql" else []
            subprocess.run([words[4], *reached, *words[5:]], check=True, capture_output=True)

    async def type(self, block: pages.Block) -> str:
        """Type a block of the page on node 1; it prints what the page shows."""
        text = block.text.replace("/etc/recorder/recorder.env", str(self.terminals.folder / "recorder.env"))
        text = text.replace("/opt/recorder/.venv/bin", str(self.terminals.folder / ".venv" / "bin"))
        for node, address in zip(self.nodes, ("10.0.0.11", "10.0.0.12"), strict=True):
            text = text.replace(f"http://{address}:8080", node.url)
        printed = await self.terminals.type(text.replace("lessons-1250000000", BUCKET))
        assert pages.matches(block.shows, printed), f"{text}\nprinted\n{printed}\nand the page shows\n{block.shows}"
        return printed

    async def session(self) -> dict[str, Any]:
        """The only session, from node 2."""
        asked = f"RECORDER_URL={self.nodes[1].url} recorder"
        (found,) = json.loads(await self.terminals.type(f"{asked} sessions --json"))["Sessions"]
        shown: dict[str, Any] = json.loads(await self.terminals.type(f"{asked} show {found['TaskId']} --json"))
        return shown

    async def start(self) -> None:
        """Start both nodes, and send TRTC's callbacks to the second one."""
        for node in self.nodes:
            await node.start()
        self.world.service = self.nodes[1]
        self.world.point_callbacks()

    def _folder(self, number: int) -> Any:
        folder = self.world.folder / f"node-{number}"
        folder.mkdir()
        return folder


@pytest.fixture
async def machines(world: World) -> AsyncIterator[Machines]:
    made = Machines(world)
    yield made
    await made.terminals.leave()
    for node in made.nodes:
        await node.stop()


@pytest.mark.timeout(240)
async def test_from_the_servers_to_the_first_recording(machines: Machines) -> None:
    """Role, database and user are made as the page says, both nodes are ready, and a recording goes on when a node stops."""
    room = machines.world.simulator.create_room(APP, ROOM)

    async def recorded() -> bool:
        return [each["State"] for each in (await machines.session())["Recordings"]] == ["Recording"]

    for block in filter(lambda block: block.shell, pages.blocks(PAGE)):
        if "systemctl stop recorder" in block.lines:
            await room.join("alice")
            await waiting.until(recorded, 40, "a capture", every_s=0.3)
            await machines.nodes[0].stop()
        elif "systemctl start recorder" in block.lines:
            await waiting.until(recorded, 40, "a capture on the other node", every_s=0.3)
            await machines.nodes[0].start()
        elif "systemctl enable --now recorder" in block.lines:
            await machines.start()
        elif block.lines[0].split()[0] in (*ON_THE_MACHINE, *SERVERS):
            for line in block.lines:
                word = line.split()[0]
                assert word in (*ON_THE_MACHINE, *SERVERS), line
                if word in SERVERS:
                    machines.change_servers(line)
        else:
            await machines.type(block)
    await room.dismiss()

    async def finished() -> Any:
        found = await machines.session()
        return found if found["State"] == "Finished" else None

    session = await waiting.until(finished, 60, "the end of the session", every_s=0.3)
    assert [each["State"] for each in session["Recordings"]] == ["Done"]
    (file,) = (machines.world.simulator.folder / "cos" / BUCKET / "lessons" / session["TaskId"]).iterdir()
    assert file.name == "alice_1.mp4"
