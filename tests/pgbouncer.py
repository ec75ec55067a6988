"""A private PgBouncer before the PostgreSQL of tests: own folder, free port, loopback only; it ends with the process of the test.

PgBouncer refuses to run as root, so there it runs as the Debian package's user `postgres`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator

import asyncpg

from tests import ports, run_folders, waiting

MODES = ("session", "transaction")


@contextlib.asynccontextmanager
async def before(url: str) -> AsyncIterator[dict[str, str]]:
    """Pools in each of MODES before the database of `url`; yields their URLs by mode."""
    server, name = url.partition("://")[2].rpartition("@")[2].split("/")
    host, database_port = server.split(":")
    folder, port = run_folders.make("pgbouncer"), ports.free()
    pools = [f"{mode} = host={host} port={database_port} dbname={name} user=recorder pool_mode={mode}" for mode in MODES]
    lines = [
        "[databases]",
        *pools,
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = any",
    ]
    (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
    command = ["setpriv", "--pdeathsig", "KILL"]
    if os.geteuid() == 0:
        for path in (folder, folder / "pgbouncer.ini"):
            shutil.chown(path, "postgres", "postgres")
        command += ["--reuid", "postgres", "--regid", "postgres", "--init-groups"]
    command += ["--", "/usr/sbin/pgbouncer", "-q", str(folder / "pgbouncer.ini")]
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log)
    urls = {mode: f"postgresql://recorder@127.0.0.1:{port}/{mode}" for mode in MODES}

    async def answers() -> bool:
        assert process.returncode is None, (folder / "log").read_text()
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            await (await asyncpg.connect(urls["session"])).close()
            return True
        return False

    try:
        await waiting.until(answers, what="PgBouncer to answer")
        yield urls
    finally:
        process.kill()
        await process.wait()
        shutil.rmtree(folder, ignore_errors=True)
