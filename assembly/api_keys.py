"""The API's keys and the audit of one recorder, for the operator's commands. May import every room but the simulator.

Rule: a key's text is made here, given to the one who asked, and kept nowhere.
"""

from __future__ import annotations

import datetime
import os
import pwd
from collections.abc import Sequence
from typing import Any

import store.api_keys
import store.audit
import store.engine
from assembly.identity import clock
from config import settings as ops_settings
from machine import api_keys, model

MAX_NAME = 64
Json = dict[str, Any]


def operator() -> model.Caller:
    """Who types commands here: the user of this process, by the system's word and not by the environment's."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user has no name
        name = str(os.getuid())
    return model.Caller(name=f"cli {name}")


class ApiKeys:
    """Keys and audit in the database of the settings. On a fresh install of one node it makes the database, for the first key."""

    def __init__(self, settings: ops_settings.Settings) -> None:
        self._many = bool(settings.amqp_url.get_secret_value())
        self._settings = settings
        self._engine = store.engine.open_engine(settings.database)
        self._keys = store.api_keys.Keys(self._engine, clock=clock)
        self._audit = store.audit.Audit(self._engine, clock=clock)

    async def start(self) -> None:
        """See that the database is there and of this program's schema. Raises Unavailable."""
        if not self._many and not self._settings.database_file.exists():
            self._settings.database_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            await store.engine.migrate(self._engine)
        await store.engine.ping(self._engine)
        await store.engine.check_schema(self._engine)

    async def stop(self) -> None:
        """Close the database."""
        await self._engine.dispose()

    async def create(self, name: str, scopes: Sequence[str], quota: int) -> Json:
        """Make a key; `Key` in the answer is its text. Raises ValueError for a name or scopes that are none."""
        name = name.strip()
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise ValueError(f"A name has 1 to {MAX_NAME} printable characters.")
        if not scopes or set(scopes) - set(api_keys.SCOPES):
            raise ValueError(f"Scopes are some of {', '.join(api_keys.SCOPES)}.")
        id_, text = api_keys.new()
        ordered = tuple(scope for scope in api_keys.SCOPES if scope in scopes)
        key = api_keys.ApiKey(id=id_, name=name, digest=api_keys.digest(text), scopes=ordered, quota=quota)
        return _of(await self._keys.add(key, operator())) | {"Key": text}

    async def list(self) -> Json:
        """Every key, oldest first."""
        return {"Keys": [_of(key) for key in await self._keys.all()]}

    async def revoke(self, id_: str) -> Json:
        """Take a key's rights. Raises NotFound."""
        return _of(await self._keys.revoke(id_, operator()))

    async def note(self, action: str, subject: str, outcome: str = "ok") -> None:
        """Write down what was done here beside the keys of the API."""
        await self._audit.add(operator(), action, subject, outcome)

    async def audit(self, limit: int) -> Json:
        """The newest lines, and how many there are."""
        lines, count = await self._audit.list(limit)
        return {"Audit": [_line(line) for line in lines], "Count": count}


def _of(key: api_keys.ApiKey) -> Json:
    times = {"Created": _iso(key.created_ms), "Used": _iso(key.used_ms), "Revoked": _iso(key.revoked_ms)}
    return {"Id": key.id, "Name": key.name, "Scopes": ",".join(key.scopes), "Quota": key.quota} | times


def _line(line: store.audit.Line) -> Json:
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
