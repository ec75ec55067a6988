"""Secrets at rest: encrypted on arrival, on an upgrade of an older schema, and again on key rotation."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from events import requests
from machine import encryption, errors, job_key, model
from store import audit, connections, encrypted_rows, schema
from store import store as stores
from tests import decider_harness, engines, postgres, transactions

OLD, NEW = "b2xkIGtleSBvZiB0aGlzIHRlc3QsIDMyIGJ5dGVzISE=", "bmV3IGtleSBvZiB0aGlzIHRlc3QsIDMyIGJ5dGVzISE="
BY, NOW_MS = model.Caller(name="cli test"), 1_800_000_000_000
URL = "https://example.com/hooks/MARK-path?token=MARK-query"
PLAIN = {"UserSig": "MARK-sig", "SecretId": "MARK-id", "SecretKey": "MARK-key", "Token": "MARK-token"}


def task(number: int) -> str:
    """The id of one of many sessions."""
    return "01" + str(number).zfill(24)


def keyed(database: engines.Database, clock: engines.Clock, *keys: str) -> stores.Store:
    """A store with these keys."""
    return stores.Store(connections.open_database(database.url), clock=clock, keyring=encryption.Keyring(keys), pinned=True)


@pytest.fixture
async def keep(database: engines.Database, clock: engines.Clock) -> AsyncIterator[Any]:
    """Opens stores by their keys; stops them at the end."""
    made: list[stores.Store] = []

    def make(*keys: str) -> stores.Store:
        made.append(keyed(database, clock, *keys))
        return made[-1]

    yield make
    for each in made:
        await each.stop()


async def put(store: stores.Store, *numbers: int) -> None:
    """Store the secrets of some sessions."""
    async with transactions.opened(store) as tx:
        for number in numbers:
            tx.put_secrets(task(number), requests.Secrets(user_sig=f"sig-{number}"))


async def got(store: stores.Store, number: int) -> str:
    """The stored UserSig of a session."""
    async with transactions.opened(store) as tx:
        return (await tx.read("secrets", task(number))).user_sig


def rows(store: stores.Store, *keys: str) -> encrypted_rows.EncryptedRows:
    """The encrypted rows of a store's database, with other keys."""
    return encrypted_rows.EncryptedRows(store.connections, encryption.Keyring(keys))


@pytest.fixture(params=engines.NAMES)
async def landed(request: pytest.FixtureRequest, tmp_path: Path) -> engines.Database:
    """A database of the first schema with one session's secrets in plain text."""
    path = tmp_path / "recorder.db"
    url = postgres.shared().create() if request.param == "postgresql" else f"sqlite+aiosqlite:///{path}"
    found = engines.Database(engine=request.param, url=url, path=path)
    database = connections.open_database(url)
    async with database.write() as connection:
        await connection.run_sync(schema.upgrade, "0001")
        room = {"sdk_app_id": 1, "room_id": 7, "str_room_id": ""}
        request_ = {"room": room, "user_id": "rec", "region": "ap-shanghai", "bucket": "b-12345", "path": "p", "mode": "00"}
        request_ |= {"callback": URL, "subscribe": [], "unsubscribe": []}
        session = {"task_id": task(1), "request": json.dumps(request_, separators=(",", ":"))}
        await connection.execute(
            text(
                "INSERT INTO sessions (task_id, sdk_app_id, room_kind, room, user_id, request, state, version, opened_ms,"
                " end_reason, revision, idle_from_ms, published, warnings)"
                " VALUES (:task_id, 1, 'integer', '7', 'rec', :request, 'Open', 1, 1, '', 0, 1, false, '[]')"
            ),
            session,
        )
        secrets = {"task_id": task(1), "body": json.dumps(PLAIN)}
        await connection.execute(text("INSERT INTO secrets (task_id, body, updated_ms) VALUES (:task_id, :body, 1)"), secrets)
        callback = {"task_id": task(1), "url": URL}
        await connection.execute(
            text(
                "INSERT INTO callbacks (task_id, revision, url, body, state, version, epoch, tries, detail)"
                " VALUES (:task_id, 1, :url, '{}', 'Pending', 1, 1, 0, '')"
            ),
            callback,
        )
    await database.close()
    return found


async def test_an_upgrade_seals_what_was_plain(landed: engines.Database, clock: engines.Clock) -> None:
    """An upgrade from the first schema keeps every secret and every address, and none in plain text; the next start changes
    nothing."""
    assert b"MARK-key" in landed.everything()
    bodies = []
    for _ in range(2):
        store = keyed(landed, clock, NEW)
        await store.start()
        async with transactions.opened(store) as tx:
            assert (await tx.read("secrets", task(1))).to_json() == PLAIN
            session = await tx.session(task(1))
        callback = await store.assignments.delivery(job_key.DeliveryKey(task(1), 1))
        assert session is not None
        assert callback is not None
        assert (session.request.callback, callback.url) == ("https://example.com/…", URL)
        await store.stop()
        assert b"MARK" not in landed.everything()
        bodies.append(landed.ask("SELECT * FROM secrets ORDER BY kind"))
    assert bodies[0] == bodies[1]


async def test_a_rotation_seals_all_under_the_first_key(keep: Any) -> None:
    """After a rotation the older key is not needed; a repeated rotation does nothing; rows written meanwhile stay."""
    old, both = keep(OLD), keep(NEW, OLD)
    count = 2 * encrypted_rows.BATCH + 7
    await put(old, *range(count))
    turning = rows(both, NEW, OLD)
    writing = put(both, *range(0, count, 5))
    done, _ = await asyncio.gather(turning.rotate(), writing)
    assert count - count // 5 - 1 <= done <= count
    assert await turning.rotate() == 0
    new = keep(NEW)
    await new.check_encrypted()
    assert [await got(new, number) for number in (0, 1, count - 1)] == ["sig-0", "sig-1", f"sig-{count - 1}"]
    assert await turning.key_ids() == {encryption.Keyring([NEW]).key_id}


async def test_a_damaged_row_does_not_keep_the_others_under_an_old_key(keep: Any) -> None:
    """All other rows are encrypted under the new key; the error names the session and the command, and dropping it keeps the
    others."""
    both = keep(NEW, OLD)
    await put(keep(OLD), 1, 2, 3)
    turning = rows(both, NEW, OLD)
    async with turning._database.write() as connection:
        await connection.execute(text("UPDATE secrets SET body = 'AAAA' WHERE task_id = :task"), {"task": task(2)})
    with pytest.raises(errors.Unavailable, match=rf"{task(2)}.*--forget-lost"):
        await turning.rotate()
    assert [await got(keep(NEW), number) for number in (1, 3)] == ["sig-1", "sig-3"]
    assert await turning.forget_lost(BY, NOW_MS) == 1
    assert await turning.rotate() == 0
    assert [await got(keep(NEW), number) for number in (1, 2, 3)] == ["sig-1", "", "sig-3"]


async def _fail(*_: Any) -> None:
    raise OSError("no space on the disk")


async def test_a_lost_key_is_said_and_can_be_lived_without(keep: Any) -> None:
    """Rows that no key decrypts keep the service from starting, with the setting's name; once they are dropped, it starts."""
    await put(keep(OLD), 1)
    await put(keep(NEW), 2)
    new = keep(NEW)
    for refused in (new.start, new.check_encrypted, rows(new, NEW).rotate):
        with pytest.raises(errors.Unavailable, match=r"SECRET_KEYS.*--forget-lost"):
            await refused()
    with pytest.raises(errors.DecryptionFailed):
        await got(new, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "write", _fail)
        with pytest.raises(errors.DatabaseUnavailable):
            await rows(new, NEW).forget_lost(BY, NOW_MS)
    assert await rows(new, NEW).forget_lost(BY, NOW_MS) == 1, "nothing is forgotten in nobody's name"
    await new.start()
    assert [await got(new, number) for number in (1, 2)] == ["", "sig-2"]


async def test_a_session_whose_secrets_were_lost_is_replayed_with_fresh_ones(keep: Any, clock: engines.Clock) -> None:
    """Without the key, a repeated start and a replay bring new credentials, and the session continues."""
    harness = decider_harness.connect(keep(OLD), clock)
    task_id = await harness.start()
    await harness.publish()
    await harness.capture(f"{task_id}/al/1", reason="eof")
    new = keep(NEW)
    await rows(new, NEW).forget_lost(BY, NOW_MS)
    later = dataclasses.replace(decider_harness.connect(new, clock), new_id=engines.ids("f"))
    assert await later.start(UserSig="sig8") == task_id
    async with transactions.opened(new) as tx:
        assert (await tx.read("secrets", task_id)).user_sig == "sig8"
    await rows(new, NEW).forget_lost(BY, NOW_MS)
    fresh = {"SecretId": "id9", "SecretKey": "key9"}
    await later.say("stop", TaskId=task_id)
    await later.transcode(f"{task_id}/al/1", good=False)
    await later.say("replay", TaskId=task_id, UserSig="sig9", CosConfig=fresh)
    async with transactions.opened(new) as tx:
        assert (await tx.read("secrets", task_id)).to_json() == {"UserSig": "sig9", **fresh, "Token": ""}
    await later.recorded(f"{task_id}/al/1")
    assert (await later.states(task_id)) == {"al/1": "Done"}


async def test_a_row_moved_to_another_session_does_not_open(keep: Any) -> None:
    """Write access to the database does not let one session use another's credentials."""
    store = keep(OLD)
    await put(store, 1)
    async with store.connections.write() as connection:
        await connection.execute(text("UPDATE secrets SET task_id = :other"), {"other": task(2)})
    with pytest.raises(errors.DecryptionFailed):
        await got(store, 2)
