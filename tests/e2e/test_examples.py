"""The programs of docs/examples, run as a reader would, on the distributed engine: they start a recording over AMQP and print its
result.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import backends, waiting
from tests.e2e import cluster
from tests.e2e.conftest import APP, World, live_for

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
DISTRIBUTED = pytest.mark.parametrize("engine", [backends.DISTRIBUTED])
PRIVATE = "QUJD" * 8  # secrets that no example may print


@pytest.fixture
async def node(world: World) -> AsyncIterator[cluster.Cluster]:
    """One node with all roles on RabbitMQ and PostgreSQL."""
    made = cluster.Cluster(world, shared=True, settings={"API_TOKENS": ""})
    await made.start(all="api,machine,worker")
    yield made
    await made.stop()


class Program:
    """A running example program with a request on its standard input."""

    def __init__(self, many: cluster.Cluster, *command: str | Path, folder: Path = EXAMPLES) -> None:
        self._command, self._folder = command, folder
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(many.world.folder),
            "AMQP_URL": many.broker.url,
            "AMQP_PREFIX": many.prefix,
            "RESULTS_QUEUE": f"{many.prefix}.lessons",
        }
        self.lines: list[Any] = []
        self.errors = ""
        self._reading: list[asyncio.Task[None]] = []
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Program:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, cwd=self._folder, env=self._environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._reading = [asyncio.create_task(self._lines()), asyncio.create_task(self._errors())]
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(*self._reading)

    async def give(self, request: Any) -> None:
        """Write the request and close the input."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode())
        await self._process.stdin.drain()
        self._process.stdin.close()

    async def line(self, count: int, what: str) -> Any:
        """Wait for the line of this number, from 1; returns its JSON."""
        await waiting.until(lambda: len(self.lines) >= count or self._process.returncode, 40, f"{what}; {self.errors}")
        assert len(self.lines) >= count, self.errors
        return self.lines[count - 1]

    async def ended(self) -> int:
        """Wait for its end; returns the exit code."""
        async with waiting.at_most(40):
            code = await self._process.wait()
            await asyncio.gather(*self._reading)
            return code

    async def _lines(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(json.loads(line))

    async def _errors(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.errors += line.decode(errors="replace")


async def live(world: World, room: str) -> None:
    """A room with one speaker, live until the response and media have arrived."""
    made = world.simulator.create_room(APP, room)
    await made.join("alice")
    task = (await world.service.get("/sessions"))["Sessions"][0]["TaskId"]

    async def recording() -> bool:
        return await world.service.states(task) == ["Recording"]

    await waiting.until(recording, 20, "the speaker to be recorded")
    await live_for(1.5)
    await made.dismiss()


def check(result: Any, task: str) -> None:
    """Assert the session's result with its one file."""
    assert (result["TaskId"], result["Revision"], result["EndReason"]) == (task, 1, "RoomDestroyed")
    assert [(entry["UserId"], entry["Code"]) for entry in result["Files"]] == [("alice", "Success")]


@DISTRIBUTED
@pytest.mark.timeout(120)
async def test_python_publishes_and_subscribes(world: World, node: cluster.Cluster) -> None:
    """publish_start.py prints the TaskId, subscribe_results.py prints every result up to session-finished, a wrong bucket is
    refused with exit code 1, and no secret is printed."""
    async with Program(node, sys.executable, "publish_start.py", "-") as publisher:
        await publisher.give(world.request("lesson", UserSig=PRIVATE))
        accepted = await publisher.line(1, "the answer")
        assert await publisher.ended() == 0
    assert not accepted["Repeated"]
    async with Program(node, sys.executable, "subscribe_results.py", accepted["TaskId"]) as subscriber:
        await waiting.until(lambda: "Listening" in subscriber.errors, 20, "the subscription")
        await live(world, "lesson")
        assert await subscriber.ended() == 0, subscriber.errors
    assert [line["type"] for line in subscriber.lines] == ["recording-done", "session-finished"]
    check(subscriber.lines[-1]["data"], accepted["TaskId"])
    assert PRIVATE not in json.dumps([*publisher.lines, *subscriber.lines]) + publisher.errors + subscriber.errors
    wrong = world.request("other")
    wrong["CosConfig"] = wrong["CosConfig"] | {"Bucket": "nobodys-1250000000"}
    async with Program(node, sys.executable, "publish_start.py", "-") as publisher:
        await publisher.give(wrong)
        assert (await publisher.line(1, "the refusal"))["Code"] == "InvalidParameter"
        assert await publisher.ended() == 1


@DISTRIBUTED
@pytest.mark.timeout(120)
async def test_node_starts_and_waits(world: World, node: cluster.Cluster, tmp_path: Path) -> None:
    """start-and-wait.mjs, with the packages that `npm ci` installs from its lock, prints the acceptance and then
    session-finished."""
    folder = await installed(tmp_path / "example")
    async with Program(node, "node", "start-and-wait.mjs", "-", folder=folder) as program:
        await program.give(world.request("lesson", UserSig=PRIVATE))
        accepted = await program.line(1, "the answer")
        await live(world, "lesson")
        check(await program.line(2, "the result"), accepted["TaskId"])
        assert await program.ended() == 0, program.errors
    assert PRIVATE not in json.dumps(program.lines) + program.errors


async def installed(folder: Path) -> Path:
    """A copy of the examples with the packages of its lock. Skipped, with npm's own message, if npm's registry is unreachable."""
    for tool in ("node", "npm"):
        assert shutil.which(tool), f"{tool} is not installed: apt-get install nodejs npm"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("node_modules"))
    process = await asyncio.create_subprocess_exec(
        "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", str(folder / "cache"),
        cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with waiting.at_most(60):
        output, _ = await process.communicate()
    if process.returncode and re.search(rb"ENOTFOUND|ECONN|ETIMEDOUT|EAI_AGAIN|network|E40[13]", output):
        pytest.skip(f"npm ci could not fetch amqplib: {output.decode(errors='replace')[-300:]}")
    assert process.returncode == 0, output.decode(errors="replace")
    return folder


def test_the_npm_lock_names_no_host() -> None:
    """Every package in the lock has a version and a hash but no address, and the lock matches the manifest."""
    text = (EXAMPLES / "package-lock.json").read_text(encoding="utf-8")
    assert "://" not in text
    lock, manifest = json.loads(text), json.loads((EXAMPLES / "package.json").read_text(encoding="utf-8"))
    root = lock["packages"].pop("")
    assert root["dependencies"] == manifest["dependencies"]
    assert {name.removeprefix("node_modules/") for name in lock["packages"]} >= {*manifest["dependencies"]}
    assert all("resolved" not in each and each["integrity"].startswith("sha512-") for each in lock["packages"].values())
