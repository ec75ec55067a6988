"""A private PostgreSQL server for tests: own folder, free port, loopback only; it ends with the process that started it.

PostgreSQL refuses to run as root, so there it runs as the Debian package's user `postgres`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import asyncpg

from tests import certificates, ports, run_folders, waiting

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
START_LIMIT_S = 30.0


class Server:
    """One server. Durable writes are off: the tests kill it, not the machine."""

    def __init__(self, *, durable: bool = False, copy_of: Server | None = None, follows_port: int = 0) -> None:
        """`copy_of`: a server to copy while it runs, as a backup does, which `start` brings up as it was at that moment. With
        `follows_port` it is an asynchronous replica instead, and follows the other one over that port until `promote`."""
        if not BINARIES:
            raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
        self._bin = BINARIES[-1]
        self._folder = run_folders.make("postgres")
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self.port = ports.free()
        self._own()
        if copy_of is None:
            self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", "recorder", "-E", "UTF8", "--locale=C", "--no-sync")
            return
        source = f"host=127.0.0.1 port={follows_port or copy_of.port} user=recorder"
        options = ["--checkpoint=fast", "--no-sync", *(["--write-recovery-conf"] if follows_port else [])]
        self._run("pg_basebackup", "-D", str(self._data), "-d", source, *options)

    @property
    def pid(self) -> int:
        """The process of the running server; its connections are its children."""
        assert self._process is not None
        return self._process.pid

    @property
    def socket_folder(self) -> Path:
        """The folder of its Unix socket."""
        return self._folder

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def start(self) -> None:
        """Start, and wait until it accepts connections."""
        options = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self._folder)}
        if not self._durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
            # It would visit hundreds of databases of ended tests, again and again.
            options |= {"autovacuum": "off"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            command = [*self._as_user(), str(self._bin / "postgres"), "-D", str(self._data), *settings]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        limit_s = time.monotonic() + waiting.limit_s(START_LIMIT_S)
        while not self._accepts():
            if time.monotonic() > limit_s or self._process.poll() is not None:
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT is PostgreSQL's fast shutdown, SIGKILL a crash. No effect if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(waiting.limit_s(30))

    def promote(self) -> None:
        """Make a replica the primary, with what it has received."""
        self._sql("SELECT pg_promote()")

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def create(self, template: str = "template1") -> str:
        """A new database; returns its URL."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        # A copy of the files costs less than half of a copy by the log, which is the default since 15 and unknown before.
        how = " STRATEGY FILE_COPY" if int(self._bin.parent.name) >= 15 else ""
        self._sql(f"CREATE DATABASE {name} TEMPLATE {template}{how}")
        return f"postgresql+asyncpg://recorder@127.0.0.1:{self.port}/{name}"

    def drop(self, url: str) -> None:
        """Delete a database and its connections."""
        self._sql(f"DROP DATABASE IF EXISTS {url.rsplit('/', 1)[1]} WITH (FORCE)")

    def commits(self, since: str, until: str) -> int:
        """How many transactions that wrote something committed between two positions of the write-ahead log."""
        command = [str(self._bin / "pg_waldump"), "-p", str(self._data / "pg_wal"), "-r", "Transaction", "-s", since, "-e", until]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return listed.count("desc: COMMIT")

    def dump(self, url: str) -> bytes:
        """Everything in a database, as text."""
        command = [str(self._bin / "pg_dump"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "recorder", url.rsplit("/", 1)[1]]
        return subprocess.run(command, check=True, capture_output=True).stdout

    @contextlib.contextmanager
    def tls(self, made: certificates.Certificates) -> Iterator[None]:
        """Serve TLS in addition while the context is open, with these certificates."""
        for name, source in (("server.crt", made.certificate), ("server.key", made.key)):
            shutil.copy(source, self._data / name)
            (self._data / name).chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(self._data / name, "postgres", "postgres")
        self._switch_tls("on")
        try:
            yield
        finally:
            self._switch_tls("off")

    def _switch_tls(self, how: str) -> None:
        self._sql(f"ALTER SYSTEM SET ssl = {how}")
        self._sql("SELECT pg_reload_conf()")

    def _sql(self, statement: str) -> None:
        # In a thread of its own: the caller may be inside a running loop. A `psql` takes more CPU, a thousand times a run.
        with futures.ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, self._execute(statement)).result()

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(host="127.0.0.1", port=self.port, user="recorder", database="postgres", ssl=False)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _accepts(self) -> bool:
        try:
            self._sql("SELECT 1")
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_user(), str(self._bin / program), *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")

    def _own(self) -> None:
        self._folder.chmod(0o700)
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")

    def _as_user(self) -> list[str]:
        # It dies with this process in any case; a leftover server would hold its port and folder.
        tied = ["setpriv", "--pdeathsig", "INT"]
        return (
            [*tied, "--reuid", "postgres", "--regid", "postgres", "--init-groups", "--"] if os.geteuid() == 0 else [*tied, "--"]
        )


@functools.cache
def shared() -> Server:
    """The one server of this test process, started at its first use and removed at its end."""
    server = Server()
    atexit.register(server.remove)
    server.start()
    return server
