"""`recorder doctor`: every check passes on a good machine, and each fails alone on a machine with that one fault."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import imageio_ffmpeg
import pytest

from assembly import encryption_keys, identity
from assembly import inspection as surroundings
from cli import doctor_checks as doctor
from events import requests
from media import holes
from store import inspection
from tests import cli_runner, engines, transactions
from tests.integration import doctor_world

REAL_SCHEMA = surroundings.schema
SQLITE, POSTGRESQL = doctor_world.SQLITE, doctor_world.POSTGRESQL
WHSEC, TOKEN = doctor_world.WHSEC, doctor_world.TOKEN
World = doctor_world.World


@pytest.fixture
async def world(tmp_path: Path, database: engines.Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with doctor_world.prepared(tmp_path, database, monkeypatch) as made:
        yield made


def script(path: Path, text: str) -> str:
    """An executable file."""
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


async def test_every_check_passes(world: World) -> None:
    """Every check runs and passes, and nothing is written."""
    before = sorted(p.name for p in world.folder.iterdir())
    found = await world.examine()
    assert [f for f in found.values() if f.status != "ok"] == []
    assert len(found) == len(doctor.CHECKS) == 26
    assert sorted(p.name for p in world.folder.iterdir()) == before
    assert doctor.verdict(list(found.values())) == "ok"


async def test_settings(world: World) -> None:
    """Every fault is named; checks that need no settings still run."""
    world.environ |= {"PORT": "x", "LINGER": "long"}
    assert await world.broken() == [("settings", "fail")]
    found = (await world.examine())["settings"].found
    assert "PORT: must be" in found
    assert "LINGER: must be" in found


async def test_api_tokens(world: World) -> None:
    """No token on a reachable port is a failure; a short token is a warning."""
    world.environ |= {"HOST": "0.0.0.0", "NODE_URL": "http://127.0.0.1:1"}
    assert await world.broken() == [("settings", "fail"), ("api-tokens", "fail")]
    world.environ["API_TOKENS"] = "short"
    assert await world.broken() == [("api-tokens", "warn")]
    world.environ["API_TOKENS"] = TOKEN
    assert await world.broken() == []


async def test_ffmpeg(world: World) -> None:
    """It is missing, does not run, or is too old."""
    world.environ["FFMPEG_BINARY"] = str(world.folder / "none")
    assert await world.broken() == [("ffmpeg", "fail"), ("ffmpeg-abilities", "fail")]
    real = imageio_ffmpeg.get_ffmpeg_exe()
    old = f'[ "$1" = -version ] && echo "ffmpeg version 5.1.9 Copyright" && exit\nexec {real} "$@"\n'
    world.environ["FFMPEG_BINARY"] = script(world.folder / "old", old)
    assert await world.broken() == [("ffmpeg", "warn")]
    assert "5.1.9" in (await world.examine())["ffmpeg"].found


async def test_ffmpeg_abilities(world: World) -> None:
    """The missing features are named."""
    real = imageio_ffmpeg.get_ffmpeg_exe()
    world.environ["FFMPEG_BINARY"] = script(world.folder / "poor", f'exec {real} "$@" | grep -v -e libmp3lame -e "^  rtmp$"\n')
    assert await world.broken() == [("ffmpeg-abilities", "fail")]
    assert (await world.examine())["ffmpeg-abilities"].found == "it lacks rtmp (protocols), libmp3lame (encoders)"


async def test_setpriv(world: World) -> None:
    """setpriv is missing or too old; or setpriv works and prlimit does not."""
    empty = world.folder / "bin"
    empty.mkdir()
    world.environ["PATH"] = str(empty)
    assert await world.broken() == [("setpriv", "fail")]
    script(empty / "setpriv", "exit 1\n")
    assert await world.broken() == [("setpriv", "fail")]
    assert "does not know --pdeathsig" in (await world.examine())["setpriv"].found
    script(empty / "setpriv", "exit 0\n")
    assert (await world.examine())["setpriv"].found == "prlimit is not on PATH"
    script(empty / "prlimit", "exit 0\n")
    assert await world.broken() == []


async def test_spool(world: World) -> None:
    """A file in place of the folder; a folder that cannot be written (for users other than root); a folder in a public one that
    other users can write."""
    folder = world.spool
    folder.write_text("")
    assert await world.broken() == [("spool", "fail")]
    folder.unlink()
    folder.mkdir(mode=0o500)
    assert await world.broken() == ([] if os.geteuid() == 0 else [("spool", "fail")])
    assert list(folder.iterdir()) == []
    folder.chmod(0o777)
    assert await world.broken() == []
    folder.parent.chmod(0o1777)
    assert await world.broken() == [("spool", "fail")]
    assert "not a folder of this user alone" in (await world.examine())["spool"].found


async def test_an_error_in_a_check_is_a_finding(world: World) -> None:
    """An unexpected error of the system fails that check; the others still run."""

    def breaks(_: object) -> inspection.SchemaState:
        raise OSError("the disk is on fire")

    world.change(schema=breaks)
    assert await world.broken() == [("database", "fail")]
    assert "the disk is on fire" in (await world.examine())["database"].found


async def test_spool_space(world: World) -> None:
    """Below MIN_FREE every start would be refused."""
    world.environ["MIN_FREE"] = "9999TiB"
    assert await world.broken() == [("spool-space", "fail")]


@doctor_world.SQLITE
async def test_spool_policy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedded engine keeps everything on a spool whose file system cannot release bytes, and doctor says so. It also names
    recordings that take more than their bound; a file with two names counts once."""
    world.environ["SPOOL_POLICY"] = "bounded"
    world.spool.mkdir(parents=True)
    assert await world.broken() == []
    assert (await world.examine())["spool-policy"].found == "at most 64.0 MiB for a recording"
    (folder := world.spool / "T" / "al_1").mkdir(parents=True)
    (folder / "00000001.p1.mp4").write_bytes(bytes(24 << 20))
    (folder / "finished.00000002.mp4").hardlink_to(folder / "00000001.p1.mp4")
    world.environ["SPOOL_PER_RECORDING"] = "32MiB"
    assert await world.broken() == []
    (folder / "00000001.flv").write_bytes(bytes(12 << 20))
    assert (await world.examine())["spool-policy"].found == "recordings that take more than 32.0 MiB: 1"
    assert await world.broken() == [("spool-policy", "warn")]
    monkeypatch.setattr(holes, "supported", lambda _: False)
    assert await world.broken() == [("spool-policy", "warn")]


async def test_spool_lock(world: World) -> None:
    """A held lock is ok if a service answers and a failure if none does; a free lock is ok."""
    folder = world.spool
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        assert await world.broken() == []
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert await world.broken() == []
        assert (await world.examine())["spool-lock"].found == "held by the running service"
        world.service.not_ready = ["It is stopping."]
        assert await world.broken() == [("spool-lock", "fail"), ("service", "warn")]


@SQLITE
async def test_database_file(world: World) -> None:
    """SQLite: no file, a file that is no database, an older and newer schemas, a folder that is a file."""
    file = Path(world.environ["DATA_DIR"]) / "recorder.db"
    kept = world.folder / "kept.db"
    shutil.copy(file, kept)
    file.unlink()
    assert await world.broken() == []
    assert not file.exists()
    file.write_bytes(b"not a database, but long enough to look at" * 100)
    assert await world.broken() == [("database", "fail")]
    for revision, oldest, status in (("9999", "9999", "fail"), ("9999", "0001", "warn"), ("", "0001", "ok")):
        shutil.copy(kept, file)
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("UPDATE schema_range SET oldest = ?", (oldest,))
            connection.execute(
                "UPDATE alembic_version SET version_num = ?" if revision else "DELETE FROM alembic_version",
                (revision,) * bool(revision),
            )
            connection.commit()
        assert (await world.examine())["database"].status == status
    shutil.copy(kept, file)
    world.change(schema=lambda settings: inspection.SchemaState(current="0001", newest="0002"))
    assert await world.broken() == [("database", "warn")]
    world.change(schema=REAL_SCHEMA)
    world.environ["DATA_DIR"] = str(kept)
    assert ("database", "fail") in await world.broken()


@POSTGRESQL
async def test_database_server(world: World) -> None:
    """PostgreSQL: unfinished upgrade, other schemas, no database, a server that does not answer; no password is printed."""
    real = world.environ["DATABASE_URL"]
    connection = await asyncpg.connect(real.replace("+asyncpg", ""))
    await connection.execute("UPDATE schema_range SET oldest = '0001'")
    assert await world.broken() == [("database", "warn")]
    assert (await world.examine())["database"].type.startswith("recorder migrate --contract")
    await connection.execute("UPDATE schema_range SET oldest = '9999'")
    for revision, type_ in (("9999", "newer version"), ("", "recorder migrate")):
        await connection.execute(f"UPDATE alembic_version SET version_num = '{revision}'")
        await connection.execute("DELETE FROM alembic_version WHERE version_num = ''")
        assert await world.broken() == [("database", "fail")]
        assert type_ in (await world.examine())["database"].type
    await connection.close()
    world.change(schema=lambda settings: inspection.SchemaState(current="0001", newest="0002"))
    assert await world.broken() == [("database", "fail")]
    assert "recorder migrate" in (await world.examine())["database"].type
    for check, warned in (("clock", {"clock_warnings": ("behind",)}), ("database", {"free": 2})):
        world.change(schema=lambda _, about=warned: inspection.SchemaState(current="0001", newest="0001", **about))
        assert await world.broken() == [(check, "warn")]
    assert "DATABASE_CONNECTIONS" in (await world.examine())["database"].type
    world.change(schema=REAL_SCHEMA)
    for away in (real + "_none", "postgresql+asyncpg://recorder:PLANTED@127.0.0.1:9/recorder"):
        world.environ["DATABASE_URL"] = away
        assert await world.broken() == [("database", "fail")]
        found = (await world.examine())["database"]
        assert "PLANTED" not in found.found
        assert "PostgreSQL" in found.type


@POSTGRESQL
async def test_database_server_has_no_place(world: World) -> None:
    """PostgreSQL's files are the server's; CFS_PATH does not matter."""
    world.environ["CFS_PATH"] = world.environ["DATA_DIR"]
    assert "no file" in (await world.examine())["database-place"].found


async def test_secret_keys(world: World, database: engines.Database) -> None:
    """Keys that do not decrypt the database, a key file that others can read, a missing one; doctor creates none."""
    world.environ |= {"DATABASE_URL": database.url, "SECRET_KEYS": engines.SECRET_KEYS}
    store = database.open(engines.Clock())
    async with transactions.opened(store) as tx:
        tx.put_secrets("01" * 13, requests.Secrets(user_sig="PLANTED"))
    await store.stop()
    assert await world.broken() == []
    ours, world.environ["SECRET_KEYS"] = world.environ["SECRET_KEYS"], "c29tZSBvdGhlciBrZXkgb2YgdGhpcnR5LXR3byBieXQ="
    assert await world.broken() == [("secret-keys", "fail")]
    if database.engine == "postgresql":
        return
    del world.environ["SECRET_KEYS"]
    file = Path(world.environ["DATA_DIR"]) / encryption_keys.KEY_FILE
    assert await world.broken() == [("secret-keys", "fail")]
    assert not file.exists()
    file.write_text(ours)
    file.chmod(0o640)
    assert await world.broken() == [("secret-keys", "fail")]
    file.chmod(0o600)
    assert await world.broken() == []


@SQLITE
async def test_database_file_place(world: World) -> None:
    """SQLite: on CFS_PATH, on a network file system, on a file system that may be one."""
    for kind, status in (("nfs4", "fail"), ("cifs", "fail"), ("fuse.sshfs", "warn"), ("fuseblk", "ok"), ("xfs", "ok")):
        world.mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nhost:/x {world.folder} {kind} rw 0 0\n")
        assert (await world.examine())["database-place"].status == status, kind
    world.mounts.unlink()
    assert (await world.examine())["database-place"].status == "ok"
    world.environ["CFS_PATH"] = world.environ["DATA_DIR"]
    assert await world.broken() == [("settings", "fail"), ("database-place", "fail")]


async def test_callback_keys(world: World) -> None:
    """Without keys every callback is refused."""
    del world.environ["TRTC_CALLBACK_KEYS"]
    assert await world.broken() == [("callback-keys", "warn")]


async def test_callback_secret(world: World) -> None:
    """Without a secret results are unsigned."""
    del world.environ["CALLBACK_SECRET"]
    assert await world.broken() == [("callback-secret", "warn")]
    assert WHSEC not in repr(await world.examine())


async def test_credentials(world: World) -> None:
    """No credentials: every start must bring its own."""
    world.change(credentials_source=doctor_world.no_credentials)
    assert await world.broken() == [("credentials", "warn")]


async def test_pull(world: World) -> None:
    """No listener; an invalid template."""
    world.environ["PULL_ADDRESS"] = "rtmp://127.0.0.1:9/pull/{room}"
    assert await world.broken() == [("pull", "warn")]
    world.environ["PULL_ADDRESS"] = "rtmp://127.0.0.1/pull/{rom}"
    assert await world.broken() == [("pull", "fail")]
    assert "{rom}" in (await world.examine())["pull"].found


async def test_cos(world: World) -> None:
    """No listener."""
    world.environ["COS_ENDPOINT"] = "http://127.0.0.1:9"
    assert await world.broken() == [("cos", "warn")]


async def test_service(world: World) -> None:
    """A wrong token, a service that is not ready, one that needs attention, another version, no service."""
    world.environ["RECORDER_TOKEN"] = "wrong"
    assert await world.broken() == [("service", "warn")]
    world.environ["RECORDER_TOKEN"], world.service.not_ready = TOKEN, ["It is starting."]
    assert await world.broken() == [("service", "warn")]
    world.service.not_ready, world.service.warnings = [], ["A queue is full."]
    assert await world.broken() == [("attention", "warn")]
    world.patches.setattr(identity, "VERSION", "9.9.9")
    assert await world.broken() == [("service", "warn"), ("attention", "warn")]
    world.environ["RECORDER_URL"] = "http://127.0.0.1:9"
    assert "recorder serve" in (await world.examine())["service"].type


async def run(world: World, *words: str) -> tuple[int, str]:
    """Run `recorder doctor` in a process."""
    await world.beat()
    environ = world.environ | {"TENCENTCLOUD_SECRETID": "id", "TENCENTCLOUD_SECRETKEY": "key"}
    answer = await cli_runner.process(environ, "doctor", "--within=60", *words)
    assert answer.err == ""
    return answer.code, answer.out


async def test_the_command(world: World) -> None:
    """0 with warnings, 1 with a failure; JSON with --json, a line for each check in a pipe; no secret in either."""
    code, text = await run(world, "--json")
    body = json.loads(text)
    assert (code, body["Status"]) == (0, "warn")
    assert [c["Check"] for c in body["Checks"] if c["Status"] != "ok"] == ["service"]
    assert next(c["Found"] for c in body["Checks"] if c["Check"] == "credentials") == "from scf"
    world.environ["MIN_FREE"] = "9999TiB"
    code, text = await run(world)
    lines = [line.split("\t") for line in text.splitlines()]
    assert (code, lines[0], len(lines)) == (1, ["Status", "Check", "Found", "Meaning", "Type"], len(doctor.CHECKS) + 1)
    assert [line[1] for line in lines if line[0] == "fail"] == ["spool-space"]
    assert WHSEC not in text
    assert TOKEN not in text
