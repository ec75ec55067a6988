"""Wrong settings, files and servers: each ends the service with one line that names it, in no traceback, and doctor names it too.

A fork server runs the commands, because loading the program takes longest. The table has SQLite's files and the servers
of PostgreSQL and RabbitMQ.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests import engines, fork_server, pgbouncer, ports, postgres, waiting, wrong_settings

SECRET = "PLANTED"
# At rest; most of it is ffmpeg, which doctor asks for its abilities.
DOCTOR_S = 3.0


class Commands:
    """Runs commands in a folder, in an environment that is right except for a case's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ran = 0

    def environment(self, engine: str) -> dict[str, str]:
        """Right settings; no other machine is asked for anything."""
        closed = f"http://127.0.0.1:{ports.free()}"
        found = {
            "PATH": "/usr/bin:/bin", "HOME": str(self.folder), "LOG_LEVEL": "error", "LOG_FORMAT": "json", "PORT": "0",
            "DATA_DIR": str(self.folder / "data"), "SPOOL_DIR": str(self.folder / "spool"), "RECORDER_URL": closed,
            "FFMPEG_BINARY": imageio_ffmpeg.get_ffmpeg_exe(), "PULL_ADDRESS": f"{closed}/pull", "COS_ENDPOINT": closed,
            "TENCENTCLOUD_SECRET_ID": "AKIDtest", "TENCENTCLOUD_SECRET_KEY": "test",
        }  # fmt: skip
        if engine == wrong_settings.MANY:
            found |= {"AMQP_URL": f"amqp://127.0.0.1:{ports.free()}/", "DATABASE_URL": "postgresql://recorder@127.0.0.1/recorder"}
            found |= {"SECRET_KEYS": engines.SECRET_KEYS, "CLUSTER_TOKEN": "token"}
        return found

    async def begin(self, environment: dict[str, str], *words: str) -> tuple[fork_server.Child, Path]:
        """Begin a command; returns it and its output."""
        self._ran += 1
        printed = self.folder / f"printed-{self._ran}.txt"
        printed.touch()
        return await fork_server.shared().fork([*words], environment, printed), printed

    async def run(self, environment: dict[str, str], *words: str) -> tuple[int, str]:
        """Run a command to its end; returns its exit code and output."""
        child, printed = await self.begin(environment, *words)
        async with waiting.at_most(30):
            code = await child.wait()
        return code, printed.read_text()

    async def doctor(self, environment: dict[str, str]) -> dict[str, dict[str, str]]:
        """The findings of doctor, by check."""
        _, printed = await self.run(environment, "doctor", f"--within={waiting.limit_s(2.0)}", "--json")
        assert "Traceback" not in printed, printed
        return {check["Check"]: check for check in json.loads(printed[printed.index("{\n") :])["Checks"]}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("settings"))


async def faults(commands: Commands, case: wrong_settings.Case) -> list[str]:
    """The faults of the answers to one case."""
    environment = commands.environment(case.engine) | case.environ
    found = []
    if case.code is not None:
        code, printed = await commands.run(environment, case.command)
        told = [line for line in printed.splitlines() if all(word in line for word in case.told)]
        found += [f"{case.command} ended with {code}"] if code != case.code else []
        lines = 2 if code == wrong_settings.USAGE else 1
        found += [f"it printed\n{printed}"] if len(told) != 1 or printed.count("\n") != lines or SECRET in printed else []
    began_s = time.monotonic()
    checks = await commands.doctor(environment)
    took_s = time.monotonic() - began_s
    texts = [" ".join(check.values()) for check in checks.values() if check["Status"] != "ok"]
    if SECRET in str(checks) or not any(all(word in text for word in case.told) for text in texts):
        found.append("doctor printed\n" + "\n".join(texts))
    found += [f"doctor took {took_s:.1f} s"] if took_s > waiting.limit_s(DOCTOR_S) else []
    return [f"{case.name}: {fault}" for fault in found]


async def check(commands: Commands, cases: Sequence[wrong_settings.Case]) -> None:
    """Fail with every fault of every case."""
    found = [fault for case in cases for fault in await faults(commands, case)]
    assert found == [], "\n".join(found)


async def test_wrong_values_and_addresses(commands: Commands) -> None:
    """Values out of range, contradictions, and addresses that cannot be read: exit code 2 and a line with the name."""
    await check(commands, [*wrong_settings.values(), *wrong_settings.addresses()])


async def test_wrong_files(commands: Commands, tmp_path: Path) -> None:
    """Folders and files in the wrong place, of others, or damaged: exit code 1 and their path."""
    await check(commands, wrong_settings.files(tmp_path))


@pytest.mark.timeout(240)
async def test_wrong_servers(commands: Commands) -> None:
    """Servers that are away, silent, refuse the login or cannot hold the data: exit code 1 and what to do."""
    pooled = postgres.shared().create()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with pgbouncer.before(pooled) as pools:
            await check(commands, await wrong_settings.servers(silent.getsockname()[1], ports.free(), pools["transaction"]))


async def test_the_table_is_long_enough(tmp_path: Path) -> None:
    """Sixty cases of settings and files; those of servers are more."""
    assert len([*wrong_settings.values(), *wrong_settings.addresses(), *wrong_settings.files(tmp_path)]) >= 60


async def test_addresses_that_people_paste(commands: Commands) -> None:
    """Hosting services' forms, several hosts of which one answers, a Unix socket, and a pool of sessions: migrated and ready."""
    server = postgres.shared()
    url = server.create().replace("+asyncpg", "")
    name, away = url.rsplit("/", 1)[1], ports.free()
    async with pgbouncer.before(url) as pools:
        for form in (
            url.replace("postgresql:", "postgres:") + "?sslmode=prefer&channel_binding=prefer&connect_timeout=10",
            url.replace("127.0.0.1", f"127.0.0.1:{away},127.0.0.1"),
            f"postgresql:///{name}?host={server.socket_folder}&port={server.port}&user=recorder",
            pools["session"],
        ):
            environment = commands.environment(wrong_settings.MANY) | {"DATABASE_URL": form}
            code, printed = await commands.run(environment, "migrate")
            assert code == 0, printed
            found = (await commands.doctor(environment))["database"]
            assert found["Status"] == "ok", found


async def test_an_env_file_of_another_system(commands: Commands) -> None:
    """Quotes and carriage returns do not become values, a folder may have any characters, HOST may be IPv6, and a misspelled
    name is reported."""
    data = commands.folder / "100% mine? 'it' is \"so\" #1"
    environment = commands.environment(wrong_settings.ALONE)
    environment |= {"DATA_DIR": f"{data}\r", "HOST": "'::1'", "LOG_LEVEL": '"info"\r', "MIN_FREEE": "1GiB", "MIN_FREE": "1MiB\r"}
    child, printed = await commands.begin(environment, "serve")

    def started() -> str:
        assert child.running, printed.read_text()
        return next((line for line in printed.read_text().splitlines() if "service.started" in line), "")

    line = await waiting.until(started, 30, f"the start; see {printed}")
    assert json.loads(line)["address"].startswith("http://[::1]:")
    assert "MIN_FREEE is no setting: MIN_FREE was probably meant" in printed.read_text()
    assert (data / "recorder.db").is_file()
    checks = await commands.doctor(environment)
    assert (checks["settings"]["Status"], checks["database"]["Status"]) == ("warn", "ok")
    assert "MIN_FREEE" in checks["settings"]["Found"]
    child.send_signal(15)
    assert await asyncio.wait_for(child.wait(), waiting.limit_s(20)) == 0
