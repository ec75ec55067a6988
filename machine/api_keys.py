"""API keys as text: how one is made, taken apart and compared; what it may do. Pure but for the dice. Imports nothing of ours.

A key is `rec_<id>_<secret>`: the id names it in lists and logs, the secret has 256 random bits. Rule: only its SHA-256 is kept;
whoever reads the database cannot use a key, and two digests are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

READ = "read"
START = "start"
OPERATE = "operate"
SCOPES = (READ, START, OPERATE)

_ID_CHARS = "abcdefghijkmnpqrstuvwxyz23456789"  # none that are mistaken for another
_ID_LENGTH = 8
_KEY = re.compile(rf"rec_([{_ID_CHARS}]{{{_ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key as it is kept. `quota` is how many Open sessions it may have at once, 0 for as many as API_SESSIONS says; times are
    Unix ms, `used_ms` is coarse, `revoked_ms` None while the key is good."""

    id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    quota: int = 0
    created_ms: int = 0
    used_ms: int | None = None
    revoked_ms: int | None = None


def new() -> tuple[str, str]:
    """A new key: its id and its whole text, which is shown once and kept nowhere."""
    id_ = "".join(secrets.choice(_ID_CHARS) for _ in range(_ID_LENGTH))
    return id_, f"rec_{id_}_{secrets.token_urlsafe(32)}"


def id_of(text: str) -> str:
    """The id in a key's text; "" for what cannot be a key."""
    found = _KEY.fullmatch(text)
    return found[1] if found else ""


def digest(text: str) -> str:
    """SHA-256 of a key's text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two digests are equal, in a time that says nothing about where they differ."""
    return hmac.compare_digest(one, other)
