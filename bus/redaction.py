"""Redaction of messages for display: text without the secrets that a message carries.

Rule: the text of a field is shown only if a schema knows the field and does not mark it as a secret, at any depth. Of other
fields only the name is shown. A body that is no JSON object has no fields to trust: only its beginning is shown, and everything
in it that looks like a key is masked.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from events import codec, requests, secret_names
from events import errors as event_errors

MASK = "***"
MAX_SHOWN = 64 * 1024
MAX_PARSED = 512 * 1024
MAX_RAW = 500
MAX_DEPTH = 32

# Fields of CloudEvents, and headers that brokers and the recorder's consumers add.
ENVELOPE = ("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "correlationid", "data")
HEADERS = ("x-reason", "x-routing-key", "x-queue", "x-sealed-by", "x-death", "reason", "queue", "exchange", "routing-keys")
ADDRESSES = ("Callback",)
_NAMED = re.compile(
    rf"""(?ix)
    ((?:{secret_names.pattern()})
    (?:\\?["'])? \s* (?:=|:|%3d) \s* (?:\\?["'])?)
    [^\s"'&,;)}}\]\\]+"""
)
# A run of this length without a space is no word but base64, hexadecimal or a key's id.
_KEY_LIKE = re.compile(r"[A-Za-z0-9+/=_*-]{16,}")


def body(raw: bytes) -> str:
    """The body of a message: indented JSON with its secrets masked, or the masked beginning of another or oversized body."""
    try:
        if len(raw) > MAX_PARSED:
            raise event_errors.InvalidEvent("", "too large to be indented")
        # JSON can contain lone surrogates, which neither a header nor a terminal can hold.
        text = json.dumps(masked(codec.parse(raw)), ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace").decode()
    except event_errors.InvalidEvent:
        beginning = raw[: 4 * MAX_RAW].decode("utf-8", "replace")
        shown = _KEY_LIKE.sub(MASK, _NAMED.sub(rf"\1{MASK}", beginning))[:MAX_RAW]
        return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in shown) + _rest(len(raw), MAX_RAW)
    return text[:MAX_SHOWN] + _rest(len(text), MAX_SHOWN)


def masked(value: Any, depth: int = 0) -> Any:
    """The value with every secret masked, ready for JSON. A bare text is taken for a sentence of the recorder."""
    match value:
        case _ if depth > MAX_DEPTH:
            return "…"
        case Mapping():
            return {str(name): _field(str(name), inner, depth + 1) for name, inner in value.items()}
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
    if name in _shown_fields() or isinstance(value, Mapping | None | bool | int | float):
        return masked(value, depth)
    if isinstance(value, list | tuple):
        return [_field(name, inner, depth + 1) for inner in value] if depth <= MAX_DEPTH else "…"
    return MASK if value else value


@functools.cache
def _shown_fields() -> frozenset[str]:
    """The fields whose text may be shown."""
    return frozenset({*ENVELOPE, *HEADERS, *_names(codec.schemas())} - secret_names.fields())


def _names(schema: Any) -> Iterator[str]:
    """The names of a schema's fields, at any depth."""
    if isinstance(schema, list):
        for inner in schema:
            yield from _names(inner)
    elif isinstance(schema, Mapping):
        yield from schema.get("properties", {})
        for inner in schema.values():
            yield from _names(inner)


def _rest(size: int, shown: int) -> str:
    return f"\n… {size - shown} more" if size > shown else ""
