"""Who asks: tokens of API_TOKENS, keys of the keys' table, or somebody at this machine where there is neither. Imports `machine`.

Rules: tokens and keys are compared as digests, in constant time; what is no key costs no question to the database, because the
table is read as a whole, once a second at most. Where a key was ever made, revoked or not, nobody gets in without one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from dataclasses import dataclass

from machine import api_keys, model
from web import dependencies

REFRESH_S = 1.0
USED_EVERY_MS = model.MINUTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Somebody who may ask, and for what."""

    caller: model.Caller
    scopes: tuple[str, ...]


LOCAL = Known(caller=model.Caller(name="local"), scopes=api_keys.SCOPES)


class Access:
    """Knows tokens and keys."""

    def __init__(self, api: dependencies.Api) -> None:
        self._api = api
        self._tokens = tuple(api_keys.digest(token) for token in api.tokens)
        self._keys: dict[str, api_keys.ApiKey] = {}
        self._read_s = -REFRESH_S
        self._reading = asyncio.Lock()

    async def open_to_all(self) -> bool:
        """Whether no key is asked for: there are no tokens, and no key was ever made. Raises Unavailable."""
        return not self._tokens and not await self._table()

    async def known(self, authorization: str) -> Known | None:
        """Who shows this header; None for nobody we know. Raises Unavailable."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = api_keys.digest(token.strip())
        # All of them are compared, so that the time taken says nothing about which one was nearly right.
        matches = [api_keys.same(digest, known) for known in self._tokens]
        if any(matches):
            return Known(caller=model.Caller(name=f"token {matches.index(True) + 1}"), scopes=api_keys.SCOPES)
        id_ = api_keys.id_of(token.strip())
        key = (await self._table()).get(id_) if id_ else None
        if key is None or not api_keys.same(digest, key.digest) or key.revoked_ms is not None:
            return None
        await self._note_used(key)
        quota = key.quota or self._api.quota
        operates = api_keys.OPERATE in key.scopes
        caller = model.Caller(name=f"key {key.id} {key.name}", key_id=key.id, quota=quota, operates=operates)
        return Known(caller=caller, scopes=key.scopes)

    async def _table(self) -> dict[str, api_keys.ApiKey]:
        async with self._reading:
            if time.monotonic() - self._read_s >= REFRESH_S:
                self._keys = {key.id: key for key in await self._api.keys()}
                self._read_s = time.monotonic()
            return self._keys

    async def _note_used(self, key: api_keys.ApiKey) -> None:
        """Once a minute, so that reading is not writing."""
        now_ms = self._api.clock()
        if key.used_ms is None or now_ms - key.used_ms >= USED_EVERY_MS:
            self._keys[key.id] = dataclasses.replace(key, used_ms=now_ms)
            await self._api.note_key_used(key.id)
