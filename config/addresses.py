"""Addresses of database, broker and API: the forms that people paste, each rewritten to the one that the service uses.

Rule: a fault names what to change and never repeats the address, which may hold a password.
Source: libpq, "Connection URIs" and "Parameter Key Words"; RabbitMQ, "URI Specification".
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

SQLITE = "sqlite+aiosqlite:///"
POSTGRESQL = "postgresql+asyncpg://"
_SQLITE_FORMS = ("sqlite", "sqlite+aiosqlite")
_POSTGRESQL_FORMS = ("postgres", "postgresql", "postgresql+asyncpg")
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VALUES = {
    "sslmode": _MODES,
    "target_session_attrs": ("any", "primary", "standby", "prefer-standby", "read-write", "read-only"),
}
# Parameters of libpq and of PostgreSQL that the driver takes.
_TAKEN = (
    *_VALUES, "host", "port", "dbname", "user", "password", "passfile", "sslrootcert", "sslcert", "sslkey", "sslcrl",
    "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "options", "search_path",
)  # fmt: skip
# Parameters of libpq without a meaning here: the recorder has its own timeouts, name and encoding.
_DROPPED = (
    "connect_timeout", "application_name", "fallback_application_name", "client_encoding", "keepalives", "keepalives_idle",
    "keepalives_interval", "keepalives_count", "tcp_user_timeout", "gssencmode",
)  # fmt: skip
_FILES = ("passfile", "sslrootcert", "sslcert", "sslkey", "sslcrl", "cafile", "certfile", "keyfile")
_HOST = re.compile(r"[\w.-]+")
_ENCODE = "percent-encode special characters of user and password (@ is %40, / %2F, ? %3F, # %23, : %3A)"


class Fault(ValueError):
    """An address cannot be used. The text continues the setting's name and can be shown."""


def database(text: str) -> str:
    """The address of a SQLite file, or of a PostgreSQL server and its database, as the store takes it. Raises Fault, and
    ValueError for another kind of address."""
    scheme, _, rest = text.partition("://")
    if scheme in _SQLITE_FORMS and rest.startswith("/"):
        if "?" in rest:
            raise Fault("a SQLite file takes no parameters: remove the ? and what follows it, or set DATA_DIR instead")
        return SQLITE + rest[1:]
    if scheme not in _POSTGRESQL_FORMS or not rest:
        raise ValueError("not a database's address")
    parts = _parts(text)
    auth, hosts = _authority(parts)
    for host in hosts if hosts != [""] else ():  # none: a Unix socket
        _check_host(host)
    query = _query(parts)
    named = dict(query)
    if "host" not in named and len(hosts) > 1:
        # Without this a standby that answers first would be taken.
        named.setdefault("target_session_attrs", "read-write")
    place = f"{auth}{','.join(hosts)}{parts.path}"
    return POSTGRESQL + place + (f"?{urlencode(named)}" if named else "")


def broker(text: str) -> str:
    """Addresses of the broker's hosts, separated by commas: one for each host. Raises Fault, and ValueError for another kind of
    address."""
    return ",".join(host for one in re.split(r"\s*[,;]\s*(?=amqps?://)", text) for host in _broker_hosts(one))


def _broker_hosts(text: str) -> list[str]:
    parts = _parts(text)
    if parts.scheme not in ("amqp", "amqps"):
        raise ValueError("not a broker's address")
    auth, hosts = _authority(parts)
    for host in hosts:
        _check_host(host)
    _check_files(_pairs(parts.query))
    rest = parts.path.replace(",", "%2C") + (f"?{parts.query.replace(',', '%2C')}" if parts.query else "")
    return [f"{parts.scheme}://{auth}{host}{rest}" for host in hosts]


def host(text: str) -> str:
    """A host name, or an IPv4 or IPv6 address, the latter also in brackets. No port."""
    name = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    _check_name(name)
    return text


def node(text: str) -> str:
    """`http://host:port` or `https://host`, at which another machine finds this one."""
    parts = _parts(text)
    if parts.scheme not in ("http", "https"):
        raise ValueError("not an address")
    _check_host(parts.netloc)
    return text.rstrip("/")


def _parts(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
    except ValueError as error:  # a bracket without its other half
        raise Fault(f"it cannot be read: {_ENCODE}") from error
    if parts.fragment or "@" in parts.path or "@" in parts.query:
        raise Fault(f"a password seems to end early in it: {_ENCODE}")
    return parts


def _authority(parts: SplitResult) -> tuple[str, list[str]]:
    """User and password with the `@`, or "", and the hosts. No host has an `@` or a comma in it."""
    auth, at, hosts = parts.netloc.rpartition("@")
    return auth.replace("@", "%40").replace(",", "%2C") + at, hosts.split(",")


def _check_host(text: str) -> None:
    try:
        parts = urlsplit(f"//{unquote(text)}")
        if unquote(text).startswith("/"):  # the folder of a Unix socket
            return
        _ = parts.port
        _check_name(parts.hostname or "")
        if parts.netloc.endswith(":"):
            raise ValueError("no port")
    except ValueError as error:
        raise Fault(f"a host or port in it is wrong: correct it, and {_ENCODE}") from error


def _check_name(name: str) -> None:
    if ":" in name:
        ipaddress.IPv6Address(name)
    elif not _HOST.fullmatch(name):
        raise ValueError("not a host")
    name.encode("idna")


def _query(parts: SplitResult) -> list[tuple[str, str]]:
    """The parameters for PostgreSQL's driver."""
    found = [("sslmode" if name == "ssl" else name, value) for name, value in _pairs(parts.query)]
    given = dict(found)
    for name, value in found:
        if name == "channel_binding":
            # The driver has none. A verified certificate protects from the same: a server in the middle.
            if value == "require" and given.get("sslmode") != "verify-full":
                raise Fault("channel_binding=require is not available: remove it, and set sslmode=verify-full instead of it")
        elif name in _VALUES and value not in _VALUES[name]:
            raise Fault(f"{name} in it must be one of {', '.join(_VALUES[name])}")
        elif name not in _TAKEN and name not in _DROPPED:
            shown = f"`{name}`" if re.fullmatch(r"[A-Za-z_]{1,32}", name) else "one"
            raise Fault(f"of the parameters after its ?, {shown} is unknown to PostgreSQL's driver: remove it")
    _check_files(found)
    if "port" in given and not all(port.isdecimal() and 0 < int(port) < 65536 for port in given["port"].split(",")):
        raise Fault("port in it must be a number from 1 to 65535")
    return [(name, value) for name, value in found if name in _TAKEN]


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, strict_parsing=True) if query else []
    except ValueError as error:
        raise Fault("the parameters after its ? must be name=value, joined by &") from error


def _check_files(pairs: Sequence[tuple[str, str]]) -> None:
    for name, value in pairs:
        if name in _FILES and not os.access(value, os.R_OK):
            raise Fault(f"the file of {name} in it cannot be read: correct its path, or make it readable for this user")
