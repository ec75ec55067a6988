"""Sign-in of a browser: one encrypted cookie with the API key, the CSRF token and the end of the visit.

Rules: the key inside the cookie is checked with every request, like that of a program, so a revoked key ends the visit at once,
on every node. SECRET_KEYS encrypt the cookie: a reader of the database or of the browser's profile cannot make one or read one.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
from dataclasses import dataclass

from machine import encryption, errors, model

NAME = "recorder_console"
LIFETIME_MS = 12 * model.HOUR
_OWNER = "console"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What a browser's cookie holds. `key` is "" for a browser that has not signed in."""

    key: str
    csrf: str
    until_ms: int  # Unix ms

    def has_token(self, given: str) -> bool:
        """Whether a form sent this visit's CSRF token, compared in constant time."""
        return hmac.compare_digest(self.csrf.encode(), given.encode("utf-8", "surrogatepass"))


def begin(key: str, now_ms: int) -> Visit:
    """A new visit, with a CSRF token of its own."""
    return Visit(key=key, csrf=secrets.token_urlsafe(24), until_ms=now_ms + LIFETIME_MS)


def write(visit: Visit, keyring: encryption.Keyring) -> str:
    """The text of the cookie."""
    clear = json.dumps([visit.key, visit.csrf, visit.until_ms]).encode()
    return base64.urlsafe_b64encode(keyring.encrypt(clear, _OWNER)).decode().rstrip("=")


def read(text: str, keyring: encryption.Keyring, now_ms: int) -> Visit | None:
    """The visit of a cookie; None for any other text, and after its end."""
    try:
        encrypted = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        key, csrf, until_ms = json.loads(keyring.decrypt(encrypted, _OWNER))
    except (binascii.Error, ValueError, errors.DecryptionFailed):
        return None
    return Visit(key=key, csrf=csrf, until_ms=until_ms) if now_ms < until_ms else None
