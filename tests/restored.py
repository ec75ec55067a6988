"""A database that comes back some transactions older, under a store that goes on: a restored backup, or a replica that lacked the
newest transactions when it was promoted."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from concurrent import futures

import asyncpg

from store import tables
from tests import engines

_NAMES = [table.name for table in tables.metadata.sorted_tables]
_SAVE = "".join(f"CREATE TABLE saved.{name} AS SELECT * FROM public.{name};" for name in _NAMES)
_PUT_BACK = "".join(f"DELETE FROM public.{name}; INSERT INTO public.{name} SELECT * FROM saved.{name};" for name in _NAMES)


class Backup:
    """All rows of a database as they were when it was made."""

    def __init__(self, database: engines.Database) -> None:
        self._database = database
        self._copy = sqlite3.connect(":memory:", check_same_thread=False)
        if database.engine == "sqlite":
            with contextlib.closing(sqlite3.connect(database.path)) as live:
                live.backup(self._copy)
        else:
            self._on_server(f"CREATE SCHEMA saved; {_SAVE}")

    def put_back(self) -> None:
        """Replace all rows by the older ones."""
        if self._database.engine == "sqlite":
            with contextlib.closing(sqlite3.connect(self._database.path)) as live:
                self._copy.backup(live)
        else:
            self._on_server(f"BEGIN; {_PUT_BACK} COMMIT;")

    def _on_server(self, script: str) -> None:
        async def run() -> None:
            # A connection without a name would be one of release 0.1.0 (store/side_by_side.py).
            named = {"application_name": "backup"}
            connection = await asyncpg.connect(self._database.url.replace("+asyncpg", ""), server_settings=named)
            try:
                await connection.execute(script)
            finally:
                await connection.close()

        with futures.ThreadPoolExecutor(1) as pool:  # a loop of its own: the caller may be inside a running one
            pool.submit(asyncio.run, run()).result()
