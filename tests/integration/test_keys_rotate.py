"""`recorder keys rotate` as a real command, and the error of a service without the keys."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika
import pytest

from assembly import encryption_keys, key_rotation
from bus import dead_letter_envelope
from bus import topology as topologies
from cli import exits
from config import settings as ops_settings
from events import requests
from machine import encryption as rings
from machine import errors
from store import connections, encrypted_rows
from store import store as stores
from tests import backends, buses, cli_runner, engines, rabbit, transactions

TASK = "01" * 13
OLD, NEW, OTHER = rings.new_key(), rings.new_key(), rings.new_key()


async def run(folder: Path, *words: str, process: bool = False, **environ: str) -> tuple[int, str]:
    """Run the command, in this process or a new one. Returns its exit code and its whole output."""
    given = {"PATH": os.environ["PATH"], "HOME": str(folder), "DATA_DIR": str(folder), "SPOOL_DIR": str(folder / "spool")}
    answer = await (cli_runner.process if process else cli_runner.inside)(given | environ, *words)
    said = answer.out + answer.err
    assert not any(key in said for key in (OLD, NEW, OTHER, "PLANTED"))
    return answer.code, said


@pytest.fixture(params=backends.NAMES)
async def ground(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[backends.Backend]:
    """The backend of a service, with the current schema."""
    made = backends.make(request.param, tmp_path)
    if made.engine == backends.EMBEDDED:
        engines.fresh("sqlite", tmp_path)
    yield made
    await made.remove(tmp_path / "none.log")


async def keep(ground: backends.Backend) -> None:
    """Store a session's secrets, encrypted under the old key."""
    url = ground.database.replace("sqlite:", "sqlite+aiosqlite:")
    store = stores.Store(connections.open_database(url), clock=engines.Clock(), keyring=rings.Keyring([OLD]), pinned=True)
    async with transactions.opened(store) as tx:
        tx.put_secrets(TASK, requests.Secrets(user_sig="PLANTED"))
    await store.stop()


def given(ground: backends.Backend, folder: Path, *keys: str) -> dict[str, str]:
    """The environment with these keys: a setting for the distributed engine, a file for the embedded one."""
    if ground.engine == backends.DISTRIBUTED:
        return ground.settings | {"SECRET_KEYS": ",".join(keys)}
    file = folder / encryption_keys.KEY_FILE
    file.touch(0o600)
    file.write_text("".join(f"{key}\n" for key in keys))
    return {}


async def test_from_an_old_key_to_a_new_one(ground: backends.Backend, tmp_path: Path) -> None:
    """With both keys everything is re-encrypted, once; then the old key can be removed. Secrets that no key decrypts stop the
    service from starting until they are forgotten. The audit has every rotation."""
    await keep(ground)
    new, other = (rings.Keyring([key]).key_id for key in (NEW, OTHER))

    async def say(keys: list[str], *words: str, process: bool = False) -> tuple[int, str]:
        return await run(tmp_path, *words, process=process, **given(ground, tmp_path, *keys))

    for keys, said in (([NEW, OLD], "1 re-encrypted"), ([NEW, OLD], "0 re-encrypted"), ([NEW], "0 re-encrypted")):
        assert await say(keys, "keys", "rotate") == (exits.OK, f"{said} under key {new}.\n")
    code, said = await say([OTHER], "serve", process=True)
    assert (code, said.count("SECRET_KEYS"), new in said) == (1, 1, True)
    code, said = await say([OTHER], "keys", "rotate", process=True)
    assert (code, "--forget-lost" in said) == (exits.UNREACHABLE, True)
    code, said = await say([OTHER], "keys", "rotate", "--forget-lost")
    assert (code, "1 forgotten" in said) == (exits.OK, True)
    assert await say([OTHER], "keys", "rotate") == (exits.OK, f"0 re-encrypted under key {other}.\n")
    turned = [("keys-rotate", new, "ok")] * 3 + [("keys-rotate", other, "ServiceUnavailable")]
    lost = [("keys-forget-lost", "1 forgotten", "ok"), ("keys-rotate", other, "ok")]
    assert await audited(ground, tmp_path) == [*turned, *lost, ("keys-rotate", other, "ok")]


async def audited(ground: backends.Backend, folder: Path) -> list[tuple[str, str, str]]:
    """Action, subject and outcome of the audit's entries, oldest first, all by the operator."""
    code, said = await run(folder, "audit", "--json", **given(ground, folder, OTHER))
    lines = json.loads(said)["Audit"]
    assert (code, {line["Who"].partition(" ")[0] for line in lines}) == (exits.OK, {"cli"})
    return [(line["Action"], line["Subject"], line["Outcome"]) for line in reversed(lines)]


async def test_forgotten_secrets_are_audited_if_the_rotation_fails(
    ground: backends.Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgetting is final, so a failure of the rotation after it hides neither entry."""
    await keep(ground)

    async def fail(_: encrypted_rows.EncryptedRows) -> int:
        raise errors.Unavailable("The database went away.")

    monkeypatch.setattr(encrypted_rows.EncryptedRows, "rotate", fail)
    code, said = await run(tmp_path, "keys", "rotate", "--forget-lost", **given(ground, tmp_path, OTHER))
    assert (code, "went away" in said) == (exits.UNREACHABLE, True)
    rotation = ("keys-rotate", rings.Keyring([OTHER]).key_id, "ServiceUnavailable")
    assert await audited(ground, tmp_path) == [("keys-forget-lost", "1 forgotten", "ok"), rotation]


async def test_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    """The embedded engine (SQLite) refuses it; the error names the file and the command to type."""
    engines.fresh("sqlite", tmp_path)
    file = tmp_path / encryption_keys.KEY_FILE
    file.write_text(NEW)
    file.chmod(0o640)
    code, said = await run(tmp_path, "keys", "rotate")
    assert (code, f"chmod 600 {file}" in said) == (exits.UNREACHABLE, True)


async def test_parked_messages_that_need_an_older_key_are_counted(tmp_path: Path) -> None:
    """Dead letters are in RabbitMQ, not in the database; the rotation counts those under another key."""
    topology = topologies.Topology(rabbit.shared().prefix())
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await topologies.declare(channel, topology)
    for key in (OLD, OLD, NEW):
        made = dead_letter_envelope.encrypt(
            dead_letter_envelope.Original(key="event.start", body=b"{}"), rings.Keyring([key]), {"x-reason": "r"}
        )
        await buses.say(topology.parked, made.key, made.body, headers=dict(made.headers))
    await buses.say(topology.parked, "event.start", b"parked by the broker itself")
    url = engines.fresh("postgresql", tmp_path).url
    many = {"DATABASE_URL": url, "AMQP_URL": rabbit.shared().url, "AMQP_PREFIX": topology.prefix, "CLUSTER_TOKEN": "t"}
    settings = ops_settings.load({"HOME": str(tmp_path), "SECRET_KEYS": f"{NEW},{OLD}", **many})
    assert await key_rotation.dead_letters_under_other_keys(settings) == 2
