"""Names of secrets: the message fields marked `x-secret` in schemas.json, and the names that other protocols use.

Rule: no other list exists. Redaction of messages, of log lines and of ffmpeg's output takes its names from here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from events import codec

# HTTP, COS (q-* and x-cos-*), TRTC's callbacks (Sign) and the usual names of temporary credentials.
FOREIGN = (
    "Authorization", "Password", "Secret", "CallbackSecret", "ClientSecret", "ApiKey", "XApiKey", "Tokens", "SessionToken",
    "SecurityToken", "XCosSecurityToken", "QAk", "QSignature", "Sign", "Signature",
)  # fmt: skip
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")


@functools.cache
def fields() -> frozenset[str]:
    """The message fields that are marked as secret."""
    return frozenset(_marked(codec.schemas()))


def pattern(*more: str) -> str:
    """A regular expression for every name, and for `more` names, in any spelling: UserSig, user_sig, user-sig. Ignore case."""
    names = sorted({*fields(), *FOREIGN, *more}, key=len, reverse=True)
    return "|".join("[_-]?".join(_WORD.findall(name)) for name in names)


def _marked(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        properties = schema.get("properties", {})
        yield from (name for name, about in properties.items() if about.get("x-secret"))
    children = schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list) else ()
    for child in children:
        yield from _marked(child)
