"""A database that answers queries and refuses writes, for tests: PostgreSQL as a read-only server, SQLite without further pages.

Rule: on PostgreSQL connections made meanwhile refuse writes for good, as those to a demoted server do; new ones do not.
"""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy import Integer, column, text

from store import sql
from tests import engines

REASON = {"postgresql": "The database is read-only", "sqlite": "The disk of the database file is full"}
_MOST_PAGES = 1 << 30


class RefusingDatabase:
    """Switches one database of a test. `store` is the store whose connections are concerned."""

    def __init__(self, database: engines.Database, store: Any) -> None:
        self._database = database
        self._store = store

    @property
    def reason(self) -> str:
        """The beginning of the reason that the recorder gives."""
        return REASON[self._database.engine]

    async def begin(self) -> None:
        """Refuse writes from now on, on new connections; those that exist are ended."""
        if self._database.engine == "sqlite":
            await self._limit_pages(1)
            return
        await self._ask("ALTER DATABASE {name} SET default_transaction_read_only = on")
        await self._ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    async def end(self) -> None:
        """Accept writes again, on new connections."""
        if self._database.engine == "sqlite":
            await self._limit_pages(_MOST_PAGES)
            return
        await self._ask("ALTER DATABASE {name} RESET default_transaction_read_only")

    async def _limit_pages(self, pages: int) -> None:
        # SQLite takes the present size for a limit below it.
        pragma = text(f"PRAGMA max_page_count = {pages}").columns(column("max_page_count", Integer))
        await self._store.connections.fetch(sql.Statement(pragma), {})

    async def _ask(self, statement: str) -> None:
        server, name = self._database.url.replace("+asyncpg", "").rsplit("/", 1)
        connection = await asyncpg.connect(f"{server}/postgres")
        try:
            await connection.execute(statement.format(name=name))
        finally:
            await connection.close()
