"""Messages as text that may be shown: without the secrets they carry. Pure; imports `events`.

Rule: shown is what the schemas know and do not call a secret, in any depth; of everything else only the name. What is no JSON
object has no fields one could trust: of it only the beginning is shown, and everything in it that looks like a key is masked.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from events import codec, requests
from events import errors as event_errors

MASK = "***"
MAX_SHOWN = 64 * 1024
MAX_PARSED = 512 * 1024
MAX_RAW = 500
MAX_DEPTH = 32

# Of CloudEvents, and what brokers and our consumers add to a message's headers.
ENVELOPE = ("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "correlationid", "data")
HEADERS = ("x-reason", "x-routing-key", "x-queue", "x-sealed-by", "x-death", "reason", "queue", "exchange", "routing-keys")
ADDRESSES = ("Callback",)
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
    """The body of a message: JSON set out with its secrets masked, or the masked beginning of what is none or too large."""
    try:
        if len(raw) > MAX_PARSED:
            raise event_errors.InvalidEvent("", "too large to be set out")
        # JSON can spell halves of characters, which neither a header nor a terminal can hold.
        text = json.dumps(masked(codec.parse(raw)), ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace").decode()
    except event_errors.InvalidEvent:
        beginning = raw[: 4 * MAX_RAW].decode("utf-8", "replace")
        shown = _KEY_LIKE.sub(MASK, _NAMED.sub(rf"\1{MASK}", beginning))[:MAX_RAW]
        return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in shown) + _rest(len(raw), MAX_RAW)
    return text[:MAX_SHOWN] + _rest(len(text), MAX_SHOWN)


def masked(value: Any, depth: int = 0) -> Any:
    """The value with every secret in it masked, ready for JSON. Text by itself is taken for a sentence of ours."""
    match value:
        case _ if depth > MAX_DEPTH:
            return "…"
        case Mapping():
            return {str(name): _field(str(name), held, depth + 1) for name, held in value.items()}
        case list() | tuple():
            return [masked(v, depth + 1) for v in value]
        case None | bool() | int() | float():
            return value
        case bytes() | bytearray():
            return _NAMED.sub(rf"\1{MASK}", bytes(value).decode("utf-8", "replace"))
        case _:
            return _NAMED.sub(rf"\1{MASK}", str(value))


def _field(name: str, value: Any, depth: int) -> Any:
    if name in ADDRESSES and isinstance(value, str):
        return requests.origin(value)
    if name in _known() or isinstance(value, Mapping | None | bool | int | float):
        return masked(value, depth)
    if isinstance(value, list | tuple):
        return [_field(name, held, depth + 1) for held in value] if depth <= MAX_DEPTH else "…"
    return MASK if value else value


@functools.cache
def _known() -> frozenset[str]:
    """The names of fields whose text may be shown."""
    return frozenset({*ENVELOPE, *HEADERS, *_names(codec.schemas())})


def _names(schema: Any) -> Iterator[str]:
    """The fields that a schema knows and does not call a secret."""
    if isinstance(schema, list):
        for held in schema:
            yield from _names(held)
    elif isinstance(schema, Mapping):
        properties = schema.get("properties", {})
        yield from (name for name, held in properties.items() if not held.get("x-secret"))
        for held in schema.values():
            yield from _names(held)


def _rest(size: int, shown: int) -> str:
    return f"\n… {size - shown} more" if size > shown else ""
