"""Parked messages as text that may be shown: without the secrets they carry. Pure; imports `events`.

Rule: secrets are known by the name of their field, in any spelling and at any depth. What is no JSON object has no fields one
could trust: of it only the beginning is shown, and everything in it that looks like a key is masked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from events import codec
from events import errors as event_errors

MASK = "***"
MAX_SHOWN = 64 * 1024
MAX_RAW = 500
MAX_DEPTH = 32

# How the names of secret fields end, in small letters and nothing else: SessionToken, x-cos-security-token. Beside TRTC's Sign.
ENDINGS = ("usersig", "secretkey", "secretid", "token", "password", "secret", "authorization", "signature")
_NAMED = re.compile(
    r"""(?ix)
    ((?:user[_-]?sig | secret[_-]?(?:key|id) | (?:session|security)?[_-]?token | password | secret | q-ak | q-signature
        | authorization | sign)
    (?:\\?["'])? \s* (?:=|:|%3d) \s* (?:\\?["'])?)
    [^\s"'&,;)}\]\\]+"""
)
# A run this long without a space is no word: base64, hexadecimal, a key's id.
_KEY_LIKE = re.compile(r"[A-Za-z0-9+/=_*-]{16,}")


def body(raw: bytes) -> str:
    """The body of a message: JSON set out with its secrets masked, or the masked beginning of what is none."""
    try:
        text = json.dumps(masked(codec.parse(raw)), ensure_ascii=False, indent=2)
    except event_errors.InvalidEvent:
        beginning = raw[: 4 * MAX_RAW].decode("utf-8", "replace")
        shown = _KEY_LIKE.sub(MASK, _NAMED.sub(rf"\1{MASK}", beginning))[:MAX_RAW]
        return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in shown) + _rest(len(raw), MAX_RAW)
    return text[:MAX_SHOWN] + _rest(len(text), MAX_SHOWN)


def masked(value: Any, depth: int = 0) -> Any:
    """The value with every secret in it masked, ready for JSON."""
    match value:
        case _ if depth > MAX_DEPTH:
            return "…"
        case Mapping():
            return {str(k): MASK if _is_secret(str(k)) and v else masked(v, depth + 1) for k, v in value.items()}
        case list() | tuple():
            return [masked(v, depth + 1) for v in value]
        case None | bool() | int() | float():
            return value
        case bytes() | bytearray():
            return _NAMED.sub(rf"\1{MASK}", bytes(value).decode("utf-8", "replace"))
        case _:
            return _NAMED.sub(rf"\1{MASK}", str(value))


def _is_secret(name: str) -> bool:
    written = re.sub(r"[^a-z0-9]", "", name.lower())
    return written == "sign" or written.endswith(ENDINGS)


def _rest(size: int, shown: int) -> str:
    return f"\n… {size - shown} more" if size > shown else ""
