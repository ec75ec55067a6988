"""Schema revisions: a service with another schema than its own reports it and stops before it does anything else.

On the embedded engine (SQLite) an older schema is migrated at the start, because no other node uses that file.
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
    """A database as the program of that revision made it; for a revision that does not exist yet, the current schema under its
    name."""
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
    """Write without the store."""
    opened = connections.open_database(database.url)
    async with opened.write() as connection:
        await connection.exec_driver_sql(statement)
    await opened.close()


def at(database: engines.Database) -> str:
    """The revision of a database."""
    return str(database.ask("SELECT version_num FROM alembic_version")[0][0])


async def run(command: str, database: engines.Database, folder: Path) -> tuple[int, str]:
    """Run a command of `recorder` on the database; stop it once it serves. Returns its exit code and its whole output."""
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
            output = []
            for line in process.stdout:
                output.append(line)
                if STARTED in line:
                    process.send_signal(signal.SIGTERM)
            return process.wait(60), "".join(output)

    return await asyncio.wait_for(asyncio.to_thread(wait), waiting.limit_s(90))


@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize("engine", engines.NAMES)
async def test_a_newer_schema_is_not_touched(engine: str, command: str, tmp_path: Path) -> None:
    """A program that is older than its data neither serves nor migrates, and names both revisions and the next step."""
    database = await made_at(engine, tmp_path, NEWER)
    code, output = await run(command, database, tmp_path)
    assert code == 1, output
    assert STARTED not in output
    assert f"The database is at revision {NEWER}, which this service (up to {schema.HEAD}) does not know" in output
    assert "Start the newer service, or restore a backup" in output
    assert at(database) == NEWER


@pytest.mark.parametrize("engine", engines.NAMES)
async def test_an_older_schema_is_migrated_where_that_is_allowed(engine: str, tmp_path: Path) -> None:
    """With many nodes the service stops and names the command that migrates, the single node migrates itself, and both serve
    afterwards."""
    database = await made_at(engine, tmp_path, OLDER)
    code, output = await run("serve", database, tmp_path)
    if engine == "postgresql":
        assert (code, STARTED in output, at(database)) == (1, False, OLDER), output
        assert f"The database is at revision {OLDER}, and this service needs {schema.HEAD}: run `recorder migrate`" in output
        code, output = await run("migrate", database, tmp_path)
        assert (code, at(database)) == (0, schema.HEAD), output
        code, output = await run("serve", database, tmp_path)
    assert (code, STARTED in output, at(database)) == (0, True, schema.HEAD), output
