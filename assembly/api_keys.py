"""API keys and the audit, as the operator's commands and the API need them.

Rule: a key's text is generated here, returned once and never stored.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator, Sequence
from typing import Any

import store.api_keys
import store.audit
import store.connections
from assembly import database
from assembly.identity import clock, operator
from config import settings as settings_module
from machine import api_keys, model

MAX_NAME = 64
Json = dict[str, Any]


@contextlib.asynccontextmanager
async def opened(settings: settings_module.Settings) -> AsyncIterator[ApiKeys]:
    """The API keys of these settings. On a fresh embedded installation this creates the database. Raises Unavailable."""
    async with database.opened(settings, create=True) as connections:
        yield ApiKeys(connections)


class ApiKeys:
    """The API keys and the audit of one database. Returned objects are printed as they are with --json."""

    def __init__(self, connections: store.connections.Connections) -> None:
        self._keys = store.api_keys.Keys(connections, clock=clock)
        self._audit = store.audit.Audit(connections, clock=clock)

    async def create(self, name: str, scopes: Sequence[str], quota: int, by: model.Caller | None = None) -> Json:
        """Create a key; `Key` in the answer is its text. `by` is the caller for the audit, by default who typed the command.
        Raises ValueError for an invalid name or scope."""
        name = name.strip()
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise ValueError(f"A name has 1 to {MAX_NAME} printable characters.")
        if not scopes or set(scopes) - set(api_keys.SCOPES):
            raise ValueError(f"Scopes are some of {', '.join(api_keys.SCOPES)}.")
        id_, text = api_keys.new()
        ordered = tuple(scope for scope in api_keys.SCOPES if scope in scopes)
        key = api_keys.ApiKey(id=id_, name=name, digest=api_keys.digest(text), scopes=ordered, quota=quota)
        return _of(await self._keys.add(key, by or operator())) | {"Key": text}

    async def list(self) -> Json:
        """Every key, oldest first."""
        return {"Keys": [_of(key) for key in await self._keys.all()]}

    async def revoke(self, id_: str, by: model.Caller | None = None) -> Json:
        """Revoke a key; `by` as for `create`. Raises NotFound."""
        return _of(await self._keys.revoke(id_, by or operator()))

    async def audit(self, limit: int) -> Json:
        """The newest `limit` entries, and the number of all."""
        lines, count = await self._audit.list(limit)
        return {"Audit": [_line(line) for line in lines], "Count": count}

    async def audit_page(self, before: int, limit: int) -> tuple[Sequence[Json], int]:
        """The newest `limit` entries before this place (0: of all), and the place before which the next page begins; 0: none."""
        lines = await self._audit.page(before, limit)
        return [_line(line) for line in lines], lines[-1].seq if len(lines) == limit else 0


def _of(key: api_keys.ApiKey) -> Json:
    times = {"Created": _iso(key.created_ms), "Used": _iso(key.used_ms), "Revoked": _iso(key.revoked_ms)}
    return {"Id": key.id, "Name": key.name, "Scopes": ",".join(key.scopes), "Quota": key.quota} | times


def _line(line: store.audit.AuditEntry) -> Json:
    return {
        "Time": _iso(line.at_ms),
        "Who": line.who,
        "Action": line.action,
        "Subject": line.subject,
        "Outcome": line.outcome,
    }


def _iso(time_ms: int | None) -> str:
    if not time_ms:
        return ""
    return datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC).isoformat(timespec="seconds")
