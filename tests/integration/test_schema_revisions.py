"""A service that meets a schema which is not its own says so and stops, before it does anything else.

On the embedded engine (SQLite) one that is older is brought up to date at the start: nobody else uses that file.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from store import connections, schema
from tests import engines, postgres, waiting

ROOT = Path(__file__).parents[2]
OLDER, NEWER = schema.REVISIONS[-2], "9999"
STARTED = '"service.started"'


async def made_at(engine: str, folder: Path, revision: str) -> engines.Database:
    """A database as the program of that revision made it; of one that nobody has written yet, today's under its name."""
    if revision not in schema.REVISIONS:
        database = engines.fresh(engine, folder)
        await change(database, f"UPDATE alembic_version SET version_num = '{revision}'")
        return database
    path = folder / "recorder.db"
    url = postgres.shared().create() if engine == "postgresql" else f"sqlite+aiosqlite:///{path}"
    opened = connections.open_database(url)
    async with opened.write() as connection:
        await connection.run_sync(schema.upgrade, revision)
    await opened.close()
    return engines.Database(engine=engine, url=url, path=path)


async def change(database: engines.Database, statement: str) -> None:
    """Write past the store."""
    opened = connections.open_database(database.url)
    async with opened.write() as connection:
        await connection.exec_driver_sql(statement)
    await opened.close()


def at(database: engines.Database) -> str:
    """The revision that a database is at."""
    return str(database.ask("SELECT version_num FROM alembic_version")[0][0])


async def run(command: str, database: engines.Database, folder: Path) -> tuple[int, str]:
    """Run a command of `recorder` on the database; one that has started to serve is told to stop. Returns its exit code and all
    that it said."""
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "DATABASE_URL": database.url, "DATA_DIR": str(folder / "data")}
    environment |= {"SPOOL_DIR": str(folder / "spool"), "PORT": "0", "MIN_FREE": "1MiB", "SECRET_KEYS": engines.SECRET_KEYS}
    if database.engine == "postgresql":
        environment |= {"AMQP_URL": "amqp://nobody:nobody@127.0.0.1:1/", "CLUSTER_TOKEN": "of-the-cluster"}

    def wait() -> tuple[int, str]:
        program = [sys.executable, "-c", "import service; service.main()", command]
        with subprocess.Popen(
            program,
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if STARTED in line:
                    process.send_signal(signal.SIGTERM)
            return process.wait(60), "".join(said)

    return await asyncio.wait_for(asyncio.to_thread(wait), waiting.limit_s(90))


@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize("engine", engines.NAMES)
async def test_a_newer_schema_is_not_touched(engine: str, command: str, tmp_path: Path) -> None:
    """A program that is older than its data neither serves nor migrates; it says both revisions and what to do."""
    database = await made_at(engine, tmp_path, NEWER)
    code, said = await run(command, database, tmp_path)
    assert code == 1, said
    assert STARTED not in said
    assert f"The database is at revision {NEWER}, which this service (up to {schema.HEAD}) does not know" in said
    assert "Start the newer service, or restore a backup" in said
    assert at(database) == NEWER


@pytest.mark.parametrize("engine", engines.NAMES)
async def test_an_older_schema_is_migrated_where_that_is_allowed(engine: str, tmp_path: Path) -> None:
    """Many nodes stop, and name the command that migrates; the only node does it by itself. After it both serve."""
    database = await made_at(engine, tmp_path, OLDER)
    code, said = await run("serve", database, tmp_path)
    if engine == "postgresql":
        assert (code, STARTED in said, at(database)) == (1, False, OLDER), said
        assert f"The database is at revision {OLDER}, and this service needs {schema.HEAD}: run `recorder migrate`" in said
        code, said = await run("migrate", database, tmp_path)
        assert (code, at(database)) == (0, schema.HEAD), said
        code, said = await run("serve", database, tmp_path)
    assert (code, STARTED in said, at(database)) == (0, True, schema.HEAD), said
