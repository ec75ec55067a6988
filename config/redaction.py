"""Redaction of log lines: masks secrets that code should not have logged.

Rule: a secret is known by its name in any spelling (UserSig, user_sig, user-sig), as a field or in text as `name=value` or
`"name": "value"`. The name stays visible; only the value is masked.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

MASK = "***"
MAX_DEPTH = 8
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\x21-\x7e]+")


class LogRedactor:
    """Masks the values of secret names. `secret_names` is a regular expression for the names (events.secret_names.pattern)."""

    def __init__(self, secret_names: str) -> None:
        name = re.compile(secret_names, re.IGNORECASE)
        self._is_secret = functools.lru_cache(maxsize=1024)(lambda text: name.fullmatch(text) is not None)
        # name=value of an address or a form, percent-encoded too; "name": "value" of JSON and of reprs. A colon alone is prose.
        self._assigned = re.compile(rf"""(?i)(\b(?:{secret_names})(?:=|%3D)["']?)([^\s"'&,;)}}\]]+)""")
        self._quoted = re.compile(rf"""(?i)(["'](?:{secret_names})\\?["']\s*:\s*\\?["'])([^"']+)""")

    def __call__(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Mask an event, as a structlog processor."""
        for name, value in event.items():
            event[name] = MASK if self._is_secret(name) and value else self.masked(value)
        return event

    def masked(self, value: Any, depth: int = 0) -> Any:
        """The value with every secret in it masked; values nested deeper than `MAX_DEPTH` are left out."""
        match value:
            case str():
                return self.text(value)
            case bytes():
                return self.text(value.decode("utf-8", "replace"))
            case Mapping() | list() | tuple() | set() | frozenset() if depth >= MAX_DEPTH:
                return "…"
            case Mapping():
                return {k: MASK if self._is_secret(str(k)) and v else self.masked(v, depth + 1) for k, v in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self.masked(v, depth + 1) for v in value]
            case None | bool() | int() | float():
                return value
            case _:
                return self.text(repr(value))

    def text(self, value: str) -> str:
        """The text with the values of secret names masked."""
        # Most values have none of these characters: the checks make a log line twenty times cheaper than the patterns alone.
        if "=" in value or "%3" in value:
            value = self._assigned.sub(rf"\1{MASK}", value)
        if ":" in value and ('"' in value or "'" in value):
            value = self._quoted.sub(rf"\1{MASK}", value)
        if "bearer" in value.lower():
            value = _BEARER.sub(rf"\1{MASK}", value)
        return value
