"""Masks secrets in what is about to be logged, as a last net under code that should not have logged them. Pure.

Imports nothing of ours. Rule: keys are known by name in any spelling (UserSig, user_sig, user-sig); in text, by `name=value` and
`"name": "value"`. What is masked leaves its name, so that one sees that it was there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

MASK = "***"
MAX_DEPTH = 8

NAMES = (
    "usersig",
    "secretkey",
    "secretid",
    "token",
    "tokens",
    "apitokens",
    "sessiontoken",
    "xcossecuritytoken",
    "authorization",
    "password",
    "secret",
    "callbacksecret",
    "secretkeys",
    "clustertoken",
    "apikey",
    "xapikey",
    "trtckeys",
    "trtccallbackkeys",
    "qsignature",
    "sign",
)
_SPELLED = (
    r"user[_-]?sig|secret[_-]?(?:key|id)|(?:session|security)?[_-]?token|x-cos-security-token|q-signature|q-ak|password"
    r"|(?:callback|client)[_-]?secret"
)
# name=value of an address or a form, percent-encoded too; "name": "value" of JSON and of reprs. A colon alone is prose.
_ASSIGNED = re.compile(rf"""(?i)(\b(?:{_SPELLED})(?:=|%3D)["']?)([^\s"'&,;)}}\]]+)""")
_QUOTED = re.compile(rf"""(?i)(["'](?:{_SPELLED})\\?["']\s*:\s*\\?["'])([^"']+)""")
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\x21-\x7e]+")


def mask(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor."""
    for name, value in event.items():
        event[name] = MASK if _is_secret(name) and value else masked(value)
    return event


def masked(value: Any, depth: int = 0) -> Any:
    """The value with every secret in it masked; what nests deeper than `MAX_DEPTH` is left out."""
    match value:
        case str():
            return text(value)
        case bytes():
            return text(value.decode("utf-8", "replace"))
        case Mapping() | list() | tuple() | set() | frozenset() if depth >= MAX_DEPTH:
            return "…"
        case Mapping():
            return {k: MASK if _is_secret(str(k)) and v else masked(v, depth + 1) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [masked(v, depth + 1) for v in value]
        case None | bool() | int() | float():
            return value
        case _:
            return text(repr(value))


def text(value: str) -> str:
    """The text with what looks like a named secret masked."""
    for pattern in (_ASSIGNED, _QUOTED, _BEARER):
        value = pattern.sub(rf"\1{MASK}", value)
    return value


def _is_secret(name: str) -> bool:
    return re.sub(r"[^a-z0-9]", "", name.lower()) in NAMES
