"""Authentication of requests: the tokens of API_TOKENS, the API keys of the database, or local access if neither exists.
METRICS_TOKEN reads the metrics alone.

Rules: digests are compared in constant time. A text that cannot be a key costs no database query, because the table of keys is
read whole, at most once a second. After the first key was made, revoked or not, every request needs a key or token.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from dataclasses import dataclass

from machine import api_keys, errors, model
from web import dependencies

REFRESH_S = 1.0
USED_EVERY_MS = model.MINUTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """An authenticated caller and its scopes."""

    caller: model.Caller
    scopes: tuple[str, ...]


# Without keys nobody is an administrator: the first key ends everybody's access without one, so it is made at the database.
LOCAL = Identity(caller=model.Caller(name="local"), scopes=tuple(scope for scope in api_keys.SCOPES if scope != api_keys.ADMIN))


class Authenticator:
    """Checks tokens and keys."""

    def __init__(self, api: dependencies.Api) -> None:
        self._api = api
        self._tokens = tuple(api_keys.digest(token) for token in api.tokens)
        self._metrics_token = api_keys.digest(api.metrics_token) if api.metrics_token else ""
        self._keys: dict[str, api_keys.ApiKey] = {}
        self._read_s = -REFRESH_S
        self._failure: errors.RecorderError | None = None
        self._failed_s = 0.0
        self._reading = asyncio.Lock()

    async def open_to_all(self) -> bool:
        """Whether requests need no key: no token is set, and no key was ever made. Raises Unavailable."""
        return not self._tokens and not await self._table()

    def may_scrape(self, authorization: str) -> bool:
        """Whether an Authorization header has METRICS_TOKEN. It needs no database, so that an outage can be seen."""
        token = _bearer(authorization)
        return bool(self._metrics_token and token) and api_keys.same(api_keys.digest(token), self._metrics_token)

    async def identify(self, authorization: str) -> Identity | None:
        """The caller behind an Authorization header, or None. Raises Unavailable."""
        token = _bearer(authorization)
        if not token:
            return None
        digest = api_keys.digest(token)
        # All tokens are compared, so that the duration does not depend on which one matches.
        matches = [api_keys.same(digest, known) for known in self._tokens]
        if any(matches):
            return Identity(caller=model.Caller(name=f"token {matches.index(True) + 1}"), scopes=api_keys.SCOPES)
        id_ = api_keys.id_of(token)
        key = (await self._table()).get(id_) if id_ else None
        if key is None or not api_keys.same(digest, key.digest) or key.revoked_ms is not None:
            return None
        await self._note_used(key)
        quota = key.quota or self._api.quota
        operates = api_keys.OPERATE in key.scopes
        caller = model.Caller(name=f"key {key.id} {key.name}", key_id=key.id, quota=quota, operates=operates)
        return Identity(caller=caller, scopes=key.scopes)

    async def _table(self) -> dict[str, api_keys.ApiKey]:
        asked_s = time.monotonic()
        async with self._reading:
            # Each of the requests that waited would otherwise wait in turn for a database that does not answer.
            if self._failure is not None and asked_s < self._failed_s:
                raise self._failure.with_traceback(None)
            if time.monotonic() - self._read_s >= REFRESH_S:
                try:
                    self._keys = {key.id: key for key in await self._api.keys()}
                except errors.RecorderError as error:
                    self._failure, self._failed_s = error, time.monotonic()
                    raise
                self._read_s, self._failure = time.monotonic(), None
            return self._keys

    async def _note_used(self, key: api_keys.ApiKey) -> None:
        """Write the time of use once a minute, so that a read does not cost a write."""
        now_ms = self._api.clock()
        if key.used_ms is None or now_ms - key.used_ms >= USED_EVERY_MS:
            self._keys[key.id] = dataclasses.replace(key, used_ms=now_ms)
            await self._api.note_key_used(key.id)


def _bearer(authorization: str) -> str:
    """The token of an Authorization header; "" for another scheme."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
