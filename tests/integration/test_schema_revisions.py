"""Schema revisions: a service with another schema than its own reports it and stops before it does anything else.

On the embedded engine (SQLite) an older schema is migrated at the start, because no other node uses that file.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from store import connections, schema
from tests import engines, postgres, waiting

ROOT = Path(__file__).parents[2]
OLDER, NEWER = schema.REVISIONS[-2], "9999"
STARTED = '"service.started"'


async def made_at(engine: str, folder: Path, revision: str, oldest: str = "") -> engines.Database:
    """A database as the program of that revision made it; for a revision that does not exist yet, the current schema under its
    name, which allows programs since `oldest`."""
    if revision not in schema.REVISIONS:
        database = engines.fresh(engine, folder)
        await change(database, f"UPDATE alembic_version SET version_num = '{revision}'")
        await change(database, f"UPDATE schema_range SET oldest = '{oldest or revision}'")
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


async def run(
    command: str, database: engines.Database, folder: Path, *, once_started: Callable[[], object] | None = None
) -> tuple[int, str]:
    """Run a command of `recorder` on the database; stop it once it serves, or do something else then. Returns its exit code and
    its whole output."""
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
                    if once_started is None:
                        process.send_signal(signal.SIGTERM)
                    else:
                        once_started()
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
async def test_a_newer_schema_that_allows_this_program(engine: str, tmp_path: Path) -> None:
    """Before its contract, a newer schema is used and not touched: nodes of two versions work side by side."""
    database = await made_at(engine, tmp_path, NEWER, oldest=schema.HEAD)
    for command in ("migrate", "serve"):
        code, output = await run(command, database, tmp_path)
        assert (code, STARTED in output) == (0, command == "serve"), output
    assert at(database) == NEWER


@pytest.mark.parametrize("engine", engines.NAMES)
async def test_a_running_service_that_has_become_too_old(engine: str, tmp_path: Path) -> None:
    """A node that lives on after a contract, such as one that stood still meanwhile, ends by itself and says what to do."""
    database = engines.fresh(engine, tmp_path)
    ban = change(database, f"UPDATE schema_range SET oldest = '{NEWER}'")
    code, output = await run("serve", database, tmp_path, once_started=lambda: asyncio.run(ban))
    assert (code, STARTED in output, "service.stopped" in output) == (1, True, True), output
    assert f"older than the database allows (since revision {NEWER}): install the newer version" in output


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
