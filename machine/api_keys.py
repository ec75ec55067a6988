"""API keys: their text, scopes and digests.

A key is `rec_<id>_<secret>`: the id names it in lists and logs, the secret has 256 random bits. Rules: only its SHA-256 is
stored, so a reader of the database cannot use a key. Digests are compared in constant time.
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
WATCH = "watch"
ADMIN = "admin"
SCOPES = (READ, START, OPERATE, WATCH, ADMIN)

_ID_CHARS = "abcdefghijkmnpqrstuvwxyz23456789"  # no two of them look alike
_ID_LENGTH = 8
_KEY = re.compile(rf"rec_([{_ID_CHARS}]{{{_ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key as the database holds it. Times are Unix ms."""

    id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    quota: int = 0  # Open sessions that it may have at a time; 0: the value of API_SESSIONS
    created_ms: int = 0
    used_ms: int | None = None  # coarse
    revoked_ms: int | None = None  # None: the key is valid


def new() -> tuple[str, str]:
    """Generate a key: its id and its whole text, which is shown once and stored nowhere."""
    id_ = "".join(secrets.choice(_ID_CHARS) for _ in range(_ID_LENGTH))
    return id_, f"rec_{id_}_{secrets.token_urlsafe(32)}"


def id_of(text: str) -> str:
    """The id in a key's text; "" if the text is no key."""
    found = _KEY.fullmatch(text)
    return found[1] if found else ""


def digest(text: str) -> str:
    """SHA-256 of a key's text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two digests are equal, compared in constant time."""
    return hmac.compare_digest(one, other)
