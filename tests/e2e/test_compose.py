"""docker-compose.yml and the Dockerfile, tested without a Docker engine: their text, and their commands and environments as
processes on a real RabbitMQ and PostgreSQL. docs/reliability.md lists the rest under *not confirmed*.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import imageio_ffmpeg
import pytest

from config import parsers, settings
from tests import compose, engines, ports, postgres, rabbit, waiting
from tests.e2e.conftest import APP, live_for

ROOT = compose.ROOT
DEV = compose.environment_file(ROOT / "deploy" / "compose-dev.env")
PRODUCTION = {"POSTGRES_PASSWORD": "one", "RABBITMQ_PASSWORD": "two", "API_TOKENS": "three", "SECRET_KEYS": engines.SECRET_KEYS}
OURS = ("migrate", "api", "machine", "worker", "simulator")
SECRET = re.compile(r"PASS|SECRET|TOKEN|KEY", re.I)


@pytest.fixture(scope="module")
def services() -> Any:
    """The services as written, with unexpanded variables."""
    return compose.read(None)["services"]


def image_environment() -> dict[str, str]:
    """The environment that the image sets."""
    (text,) = [arguments for instruction, arguments in compose.dockerfile() if instruction == "ENV"]
    return dict(word.split("=", 1) for word in text.split())


async def image_health(port: str) -> int:
    """Run the image's own health check; returns its exit code."""
    (text,) = [arguments for instruction, arguments in compose.dockerfile() if instruction == "HEALTHCHECK"]
    return await compose.check(["CMD", *json.loads(text.partition(" CMD ")[2])], {}, {"PORT": port})


# --- the file -----------------------------------------------------------------------------------------------------------------
def test_every_service_is_supervised(services: Any) -> None:
    """Every service has an init and a health check or ends by itself, and every dependency has a condition that can be met."""
    for name, service in services.items():
        assert service["init"] is True, name
        one_shot = service["restart"] == "no"
        assert one_shot == (name == "migrate")
        assert one_shot or service["healthcheck"]["test"][0] == "CMD", name
        for other, wanted in service.get("depends_on", {}).items():
            completed = services[other]["restart"] == "no"
            assert wanted["condition"] == ("service_completed_successfully" if completed else "service_healthy"), (name, other)
    for name in ("api", "machine", "worker"):
        assert {*services[name]["depends_on"]} == {"migrate", "rabbitmq", "postgres"}
    assert [name for name, service in services.items() if service.get("profiles")] == ["simulator"]
    assert services["simulator"]["profiles"] == ["dev"]


def test_the_grace_period_is_longer_than_the_drain(services: Any) -> None:
    """Docker kills a container at least ten seconds after the service has stopped draining."""
    for name in ("api", "machine", "worker"):
        drain_s = parsers.seconds(services[name]["environment"]["DRAIN"])
        assert parsers.seconds(services[name]["stop_grace_period"]) >= drain_s + 10


def test_no_secret_is_in_the_file(services: Any) -> None:
    """Every variable with a secret's name and every password in an address comes from the environment, and a missing one gives an
    error."""
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                assert re.fullmatch(r"\$\{\w+:[-?][^}]*\}", str(value)), (name, variable)
            for password in re.findall(r"://[^:/@]+:([^@]*)@", str(value)):
                assert re.fullmatch(r"\$\{\w+:\?[^}]*\}", password), (name, variable)
    for missing in PRODUCTION:
        with pytest.raises(KeyError, match=missing):
            compose.read(PRODUCTION | {missing: ""})
    example = compose.environment_file(ROOT / "deploy" / "compose.env")
    assert {name: value for name, value in example.items() if SECRET.search(name) and value} == {}
    assert {*PRODUCTION} <= {*example}


def test_containers_have_few_privileges(services: Any) -> None:
    """Our containers have a read-only root and no capabilities, every port is published on loopback, and every image has a full
    version."""
    for name in OURS:
        service = services[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["tmpfs"] == ["/tmp"]
        assert "privileged" not in service
        assert not [mount for mount in service.get("volumes", ()) if str(mount).startswith((".", "~"))]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?", service["image"]), "a tag of a whole version, and no registry's name"


def test_workers_share_the_spool_and_nothing_else(services: Any) -> None:
    """CFS_PATH is one volume for all workers; DATA_DIR, with a node's id and lock, belongs to each container alone."""
    worker = services["worker"]
    assert worker["environment"]["SPOOL_SHARED"] == "true"
    mounts = {str(mount).rpartition(":")[2]: str(mount).rpartition(":")[0] for mount in worker["volumes"]}
    assert mounts == {worker["environment"]["CFS_PATH"]: "spool", worker["environment"]["DATA_DIR"]: ""}
    assert "replicas" in worker["deploy"]


@pytest.mark.parametrize("given", [PRODUCTION, DEV], ids=["production", "dev"])
def test_the_service_accepts_the_settings(given: dict[str, str]) -> None:
    """The recorder starts with every service's environment and knows every variable in it."""
    known = {*settings.variables(), "TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY"}
    for name in ("migrate", "api", "machine", "worker"):
        environment = compose.read(given)["services"][name]["environment"]
        assert {*environment} <= known
        loaded = settings.load(image_environment() | environment)
        assert loaded.roles == ((name,) if name != "migrate" else ("machine",))
        assert parsers.is_loopback(loaded.host) == (name != "api")


# --- the image ----------------------------------------------------------------------------------------------------------------
def test_the_image_contains_the_wheel_and_not_the_tree() -> None:
    """The last of two stages copies one environment out of the first and nothing else, and runs as a user without privileges."""
    lines = compose.dockerfile()
    stages = [index for index, (instruction, _) in enumerate(lines) if instruction == "FROM"]
    assert len(stages) == 2
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-bookworm( AS build)?", lines[index][1]) for index in stages)
    first, last = lines[: stages[1]], lines[stages[1] :]
    build = " ".join(arguments for instruction, arguments in first if instruction == "RUN")
    assert build.count("--require-hashes") == 2
    assert "hatchling build -t wheel" in build
    assert "--offline --no-index --no-deps" in build
    assert [arguments for instruction, arguments in last if instruction in ("COPY", "ADD")] == [
        "--from=build /opt/recorder /opt/recorder"
    ]
    instructions = dict(last)
    user, _, group = instructions["USER"].partition(":")
    assert int(user) > 0 < int(group)
    assert (json.loads(instructions["ENTRYPOINT"]), json.loads(instructions["CMD"])) == (["recorder"], ["serve"])
    assert "/healthz" in instructions["HEALTHCHECK"]
    assert "setpriv" in instructions["RUN"]


def test_the_build_context_has_only_the_wheels_sources() -> None:
    """.dockerignore lets through the locks and the sources of the wheel, but no tests, no history and no .env."""
    rules = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]}
    assert allowed == packed | {"bootstrap.lock", "runtime.lock", "pyproject.toml", "README.md", "LICENSE", "NOTICE"}
    assert not any(fnmatch.fnmatch(name, rule) for rule in allowed for name in (".env", "deploy", "tests", ".git"))


def test_the_image_gets_the_tested_packages() -> None:
    """runtime.lock has the runtime packages with the versions and hashes of requirements.lock, and no tool of the tests."""
    entry = re.compile(r"(?m)^([a-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+)((?: \\\n    --hash=sha256:\S+)+)")
    whole, ours = (
        {name: (version, hashes) for name, version, hashes in entry.findall((ROOT / lock).read_text(encoding="utf-8"))}
        for lock in ("requirements.lock", "runtime.lock")
    )
    assert {name for name in ours if whole.get(name) != ours[name]} == set()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {re.split(r"[\[<>=]", one)[0] for one in project["dependencies"]} <= {*ours}
    tools = {re.split(r"[\[<>=]", one)[0] for one in project["optional-dependencies"]["dev"]}
    assert tools & {*ours} == set()


# --- the services as processes ------------------------------------------------------------------------------------------------
class Stack:
    """The services of the file in the profile `dev`, on the tests' own RabbitMQ and PostgreSQL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database, self.broker = postgres.shared().create(), rabbit.shared()
        self.services = compose.read(DEV | {"AMQP_PREFIX": self.broker.prefix()})["services"]
        self.simulator_url = f"http://127.0.0.1:{ports.free()}"
        self.api_url = f"http://127.0.0.1:{ports.free()}"
        self.containers: dict[str, compose.Container] = {}

    def places(self, name: str) -> dict[str, str]:
        """Replacements for the hosts and ports of the file. Each container has a port 8080 of its own."""
        simulator, api = (url.removeprefix("http://") for url in (self.simulator_url, self.api_url))
        own = api if name == "api" else f"127.0.0.1:{ports.free()}"
        found = {
            "postgres:5432/recorder": self.database.split("@")[1],
            "rabbitmq:5672": f"127.0.0.1:{self.broker.port}",
            "simulator:9000": simulator,
            "172.30.90.10:9000": simulator,
            "127.0.0.1:9000": simulator,
            "api:8080": api,
            "127.0.0.1:8080": own,
        }
        if name == "simulator":
            return found | {"--port=9000": f"--port={simulator.split(':')[1]}"}
        return found | {"8080": own.split(":")[1], "0.0.0.0": "127.0.0.1"}

    async def start(self, service: str, number: int = 1) -> compose.Container:
        """Start one container of a service."""
        name = f"{service}-{number}"
        made = compose.Container(self.services[service], image_environment(), self.folder / name, self.places(service))
        self.containers[name] = made
        # The image sets these itself; a host name of the network is an address here.
        more = {"PATH": f"{compose.PROGRAMS}:{os.environ['PATH']}", "FFMPEG_BINARY": imageio_ffmpeg.get_ffmpeg_exe()}
        await made.start(more | ({"CALLBACK_ALLOW": "127.0.0.1"} if service != "simulator" else {}))
        return made

    async def up(self) -> None:
        """Start in Compose's order: servers, then migrate to its end, then the rest; all become healthy."""
        await self.servers_healthy()
        migrate, simulator = await asyncio.gather(self.start("migrate"), self.start("simulator"))
        assert await migrate.ended(30) == 0, migrate.log()
        nodes = [
            ("api", 1),
            ("machine", 1),
            *(("worker", n + 1) for n in range(int(self.services["worker"]["deploy"]["replicas"]))),
        ]
        started = await asyncio.gather(*(self.start(name, number) for name, number in nodes))
        await asyncio.gather(*(made.healthy() for made in (simulator, *started)))

    async def servers_healthy(self) -> None:
        """Run the health checks of the servers' services with the servers' own tools."""
        server, broker = postgres.shared(), self.broker
        path = f"{postgres.BINARIES[-1]}:{rabbit.SCRIPT.parent}:{os.environ['PATH']}"
        health = self.services["postgres"]["healthcheck"]["test"]
        assert (
            await compose.check(
                [health[0], str(postgres.BINARIES[-1] / health[1]), *health[2:]], {}, {"PGPORT": str(server.port)}
            )
            == 0
        )
        health = self.services["rabbitmq"]["healthcheck"]["test"]
        environment = broker._environment() | {"PATH": path}
        assert await compose.check([health[0], str(rabbit.SCRIPT.with_name(health[1])), *health[2:]], {}, environment) == 0

    async def down(self) -> dict[str, int]:
        """Send SIGTERM to all processes, each with its grace period; returns the exit codes."""
        grace_s = parsers.seconds(self.services["worker"]["stop_grace_period"])
        codes = await asyncio.gather(*(made.stop(grace_s) for made in self.containers.values()))
        await asyncio.to_thread(postgres.shared().drop, self.database)
        return dict(zip(self.containers, codes, strict=True))


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    made = Stack(tmp_path)
    yield made
    await made.down()


@pytest.mark.timeout(110)
async def test_the_composed_services_record_a_room(stack: Stack) -> None:
    """The file's services, run as processes, become healthy, record a simulated room with two speakers, stop within their grace
    periods with exit code 0, and write nothing where a container could not."""
    await stack.up()
    cos = {"Region": "ap-shanghai", "Bucket": "lessons-1250000000", "Path": "x"}
    cos |= {"SecretId": "AKIDsimulator", "SecretKey": "simulator-secret-key"}
    request = {"SdkAppId": APP, "RoomId": 8489, "UserId": "recorder", "UserSig": "any", "Mode": "02", "CosConfig": cos}
    request["Callback"] = f"{stack.simulator_url}/receiver/lesson"
    token = {"Authorization": f"Bearer {DEV['API_TOKENS']}"}
    room = {"Room": "lesson", "SdkAppId": APP, "RoomId": 8489, "Speakers": [{"UserId": "alice"}, {"UserId": "bob"}]}
    async with aiohttp.ClientSession() as http:

        async def ask(method: str, url: str, body: Any = None) -> Any:
            async with http.request(method, url, json=body, headers=token) as answer:
                text = await answer.text()
                assert answer.status < 300, text
                return json.loads(text) if text else None

        assert await image_health(stack.api_url.rpartition(":")[2]) == 0
        assert await image_health(str(ports.free())) != 0
        started = await ask("POST", f"{stack.api_url}/sessions", request)
        await ask("POST", f"{stack.simulator_url}/control/rooms", room)

        async def recording() -> bool:
            session = await ask("GET", f"{stack.api_url}/sessions/{started['TaskId']}")
            return [each["State"] for each in session["Recordings"]] == ["Recording", "Recording"]

        await waiting.until(recording, 30, "both to be recorded", every_s=0.2)
        await live_for(2)
        await ask("DELETE", f"{stack.simulator_url}/control/rooms/lesson")
        (posted,) = await ask("GET", f"{stack.simulator_url}/receiver/lesson?wait=30")
    result = posted["Json"]
    assert (result["TaskId"], result["EndReason"]) == (started["TaskId"], "RoomDestroyed")
    assert sorted((entry["UserId"], entry["Code"]) for entry in result["Files"]) == [("alice", "Success"), ("bob", "Success")]
    assert all(entry["Duration"] > 1.5 for entry in result["Files"])
    codes = await stack.down()
    assert codes == dict.fromkeys(stack.containers, 0)
    assert [name for name, made in stack.containers.items() if made.read_only.exists()] == []
