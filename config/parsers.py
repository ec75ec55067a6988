"""Parsers of settings: durations, sizes, lists, keys by application, addresses.

Rule: a parser raises ValueError with a fixed message, never with the text, which may be a secret.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
BYTES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
# A century: a time in milliseconds that far ahead still fits the database's columns.
MAX_SECONDS = 36_525 * 86_400.0
MAX_SDK_APP_ID = 2**32 - 1

_NUMBER = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)", re.ASCII)


def seconds(text: str) -> float:
    """`90`, `90s`, `1.5m`, `72h`, `7d` or `500ms`, in seconds; at most MAX_SECONDS."""
    number, unit = _number(text)
    if unit not in SECONDS or number * SECONDS[unit] > MAX_SECONDS:
        raise ValueError("not a duration")
    return number * SECONDS[unit]


def size_bytes(text: str) -> int:
    """`1048576`, `512MiB` or `2GB`, in bytes."""
    number, unit = _number(text)
    if unit.upper() not in BYTES:
        raise ValueError("not a size")
    return int(number * BYTES[unit.upper()])


def items(text: str) -> tuple[str, ...]:
    """A comma-separated list; spaces around items and empty items are dropped."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def token(text: str) -> str:
    """A bearer token: one printable word, as a header allows."""
    if not re.fullmatch(r"[\x21-\x7e]{1,512}", text):
        raise ValueError("not a token")
    return text


def encryption_key(text: str) -> str:
    """A key of 32 bytes in base64 of either alphabet, with or without padding. Returned in the form that Fernet requires."""
    written = text.rstrip("=").replace("+", "-").replace("/", "_")
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}", written):
        raise ValueError("not a key")
    # The last character carries only four bits: encoded again, so that a key has one spelling and one id.
    return base64.urlsafe_b64encode(base64.urlsafe_b64decode(written + "=")).decode()


def host_or_network(text: str) -> str:
    """A host name, an address, or a network such as 10.0.0.0/8."""
    if "/" in text:
        ipaddress.ip_network(text)
    elif not re.fullmatch(r"[A-Za-z0-9_.:\[\]-]{1,253}", text):
        raise ValueError("not a host")
    return text


def keys_by_application(text: str) -> dict[int, str]:
    """`1400000001=key,1400000002=key`, or the same as a JSON object."""
    pairs: Mapping[str, object] = json.loads(text) if text.lstrip().startswith("{") else dict(_pair(part) for part in items(text))
    return {_sdk_app_id(name): _key(key) for name, key in pairs.items()}


def http_endpoint(text: str) -> str:
    """`http://host:port` or `https://host`, with nothing after it."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise ValueError("not an endpoint")
    _ = parts.port  # raises ValueError for an invalid port
    ipaddress.ip_address(parts.hostname)  # likewise: the COS client connects to an address and sends the bucket's host name
    return text.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a server bound to this host can be reached only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _number(text: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        raise ValueError("not a number with a unit")
    return float(found[1]), found[2]


def _pair(text: str) -> tuple[str, str]:
    name, equals, key = text.partition("=")
    if not equals:
        raise ValueError("not id=key")
    return name.strip(), key.strip()


def _sdk_app_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MAX_SDK_APP_ID):
        raise ValueError("not an SdkAppId")
    return int(text)


def _key(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("not a key")
    return value


ROLES = ("api", "machine", "worker")


def role(text: str) -> str:
    """One of the roles a process may have."""
    if text not in ROLES:
        raise ValueError("not a role")
    return text


PROGRESS_EVENTS = ("recording-started", "recording-interrupted", "recording-resumed", "recording-progress")


def progress_event(text: str) -> str:
    """One of the events that report how a recording goes on."""
    if text not in PROGRESS_EVENTS:
        raise ValueError("not an event of progress")
    return text
