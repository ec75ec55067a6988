"""`recorder keys create|list|revoke` and `recorder audit`, as real commands, on a fresh installation and with many nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from assembly import api_keys
from cli import client
from config import settings
from machine import errors
from tests import backends, cli_runner, engines, postgres, service_process, waiting

KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="


def sessions_with(url: str, key: str) -> Any:
    """The sessions that a key can list."""
    return client.ServiceClient(url=url, token=key).sessions()


@pytest.mark.parametrize("engine", backends.NAMES)
async def test_the_first_key_of_a_fresh_installation(tmp_path: Path, engine: str) -> None:
    """A key created before the first start is accepted; revoked while the service runs, it is refused; the audit has both."""
    ground = backends.make(engine, tmp_path / "data")
    service = service_process.ServiceProcess(tmp_path, ground.settings)
    environment = service._environment | {"PYTHONDONTWRITEBYTECODE": "1"}
    words = ("keys", "create", "--name", "school", "--scopes", "operate,read", "--json")
    made = (await cli_runner.process(environment, *words)).json
    assert (made["Scopes"], made["Key"].startswith(f"rec_{made['Id']}_")) == ("read,operate", True)
    await service.start()
    try:
        assert (await asyncio.to_thread(sessions_with, service.url, made["Key"]))["Sessions"] == []
        with pytest.raises(client.ClientError, match="bearer token is missing"):
            await asyncio.to_thread(sessions_with, service.url, "")
        assert made["Key"] not in service.log.read_text()
        assert (await cli_runner.inside(environment, "keys", "revoke", made["Id"])).out == f"{made['Id']} school: revoked\n"

        async def refused() -> bool:
            try:
                await asyncio.to_thread(sessions_with, service.url, made["Key"])
            except client.ClientError:
                return True
            return False

        await waiting.until(refused, 5, "the revoked key to open nothing")
    finally:
        await service.stop()
    said = (await cli_runner.inside(environment, "audit", "--json")).json
    assert [line["Action"] for line in said["Audit"]] == ["keys-revoke", "keys-create"]
    assert all(line["Who"].startswith("cli ") for line in said["Audit"])
    await ground.remove(service.log)


@pytest.mark.parametrize("engine", backends.NAMES)
async def test_invalid_arguments_write_nothing(tmp_path: Path, engine: str) -> None:
    """Invalid scopes and names are refused, an unknown id is not found; a fresh installation gets its database."""
    ground = backends.make(engine, tmp_path / "new" / "data")
    places = {"HOME": str(tmp_path), "DATA_DIR": str(tmp_path / "new" / "data")}
    async with api_keys.opened(settings.load(places | ground.settings)) as keys:
        for name, scopes in (("x", ["everything"]), ("x", ["read", "write"]), ("x", []), (" ", ["read"]), ("x" * 65, ["read"])):
            with pytest.raises(ValueError, match=r"Scopes are some of|A name has"):
                await keys.create(name, scopes, 0)
        with pytest.raises(errors.NotFound):
            await keys.revoke("nobody")
        assert await keys.audit(10) == {"Audit": [], "Count": 0}
        assert await keys.list() == {"Keys": []}
    await ground.remove(tmp_path / "none.log")


async def test_beside_many_nodes(tmp_path: Path) -> None:
    """On PostgreSQL the commands require a migrated database and never migrate it."""
    database = engines.fresh("postgresql", tmp_path)
    nodes = {"HOME": str(tmp_path), "AMQP_URL": "amqp://nobody.invalid/", "CLUSTER_TOKEN": "t", "SECRET_KEYS": KEY}
    async with api_keys.opened(settings.load(nodes | {"DATABASE_URL": database.url})) as keys:
        made = await keys.create("school", ["start", "read"], 7)
        (listed,) = (await keys.list())["Keys"]
    assert listed == {name: value for name, value in made.items() if name != "Key"}
    assert (listed["Scopes"], listed["Quota"]) == ("read,start", 7)
    empty = settings.load(nodes | {"DATABASE_URL": postgres.shared().create()})
    with pytest.raises(errors.Unavailable, match="recorder migrate"):
        async with api_keys.opened(empty):
            pass
