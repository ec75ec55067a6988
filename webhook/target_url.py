"""Parser of callback URLs: the URL is read once, by the HTTP client's own parser, and used unchanged. Pure.

Rules: nothing is resolved or rewritten. A URL that two parsers could read differently is refused. A refusal names the field and
never repeats the value.
Sources: the Fetch standard's list of blocked ports; the URL standard's rule that a host whose last label is a number is an
address.
"""

from __future__ import annotations

import re
import socket

import yarl

from machine import errors

MAX_URL_CHARS = 2048

_HOST = re.compile(r"[A-Za-z0-9_.-]+")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_LOCALHOST = re.compile(r"(?:.*\.)?localhost", re.IGNORECASE)  # RFC 6761: always loopback, without a resolver
# Blocked by the Fetch standard: services other than HTTP listen there and may take lines of a request for commands.
_BLOCKED_PORTS = frozenset(
    (
        *(1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110, 111),
        *(113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548),
        *(554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566),
        *(6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080),
    )
)
# Databases and control ports of containers. A network on the allow-list may have them, and no receiver listens there.
_INNER_PORTS = frozenset([2375, 2376, 2379, 2380, 3306, 5432, 5672, 6379, 9200, 10250, 11211, 27017])


def parse(url: str) -> yarl.URL:
    """Parse a URL as the HTTP client does, so that the checked URL is the one in use.

    Raises errors.InvalidParameter(field="Callback") unless it is http or https, of printable ASCII, with a host that is a name
    or an address, a port that is not blocked, and no credentials.
    """
    if not url.isascii() or not url.isprintable() or len(url) > MAX_URL_CHARS or any(char in url for char in ' \\"<>'):
        raise _wrong(f"must be at most {MAX_URL_CHARS} printable ASCII characters without spaces, quotes and backslashes")
    try:
        parsed = yarl.URL(url, encoded=True)
        port = parsed.port
    except ValueError as error:
        raise _wrong("is not a URL") from error
    if parsed.scheme not in ("http", "https"):
        raise _wrong("must begin with http:// or https://")
    if not parsed.raw_host or not port:
        raise _wrong("has no usable host and port")
    if "@" in parsed.raw_authority:
        raise _wrong("must not have credentials in it")
    if port in _BLOCKED_PORTS or port in _INNER_PORTS:
        raise _wrong("names a port on which other services than HTTP listen")
    _check_host(parsed.raw_host)
    return parsed


def literal(host: str) -> str:
    """The address that a host spells, in any notation (octal, hex, one number, three), or "" for a name."""
    if ":" in host:
        return host.partition("%")[0]
    if _LOCALHOST.fullmatch(host.rstrip(".")):
        return "127.0.0.1"
    try:
        return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
    except OSError:
        return ""


def _check_host(host: str) -> None:
    if ":" in host:  # in brackets, which the parser checked
        return
    last = host.rstrip(".").rpartition(".")[2]
    if not _HOST.fullmatch(host) or host.endswith("..") or (_NUMBER.fullmatch(last) and not literal(host)):
        raise _wrong("has a host that is neither a name nor an address")


def _wrong(fault: str) -> errors.InvalidParameter:
    return errors.InvalidParameter(f"Callback {fault}.", field="Callback")
