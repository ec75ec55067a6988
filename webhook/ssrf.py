"""Guard against server-side request forgery: which addresses a callback URL may lead to. Pure.

Rules: an address is judged as a number, whatever its spelling. Only addresses known to be public, and those that the operator
lists, are allowed. Every refusal names its rule.
Sources: IANA's registries of special-purpose addresses, multicast, and Azure's public address of its metadata service. They are
listed here because Python's `ipaddress` changed its meaning of global between patch releases.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SPECIAL_V4 = {
    "0.0.0.0/8": "this-network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier-shared",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local (cloud metadata)",
    "168.63.129.16/32": "cloud metadata",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "protocol-assignments",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "as112",
    "192.52.193.0/24": "amt",
    "192.88.99.0/24": "6to4-relay",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "as112",
    "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
_SPECIAL_V6 = {
    "2001::/23": "protocol-assignments (Teredo among them)",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "2620:4f:8000::/48": "as112",
    "3fff::/20": "documentation",
}
_NAMED_V6 = {  # everything outside 2000::/3 is refused; these get a better name
    "::1/128": "loopback",
    "::/128": "unspecified",
    "64:ff9b:1::/48": "nat64-local",
    "100::/64": "discard",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "ff00::/8": "multicast",
}
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_RULES: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), rule) for network, rule in (_SPECIAL_V4 | _SPECIAL_V6 | _NAMED_V6).items()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowList:
    """Destinations that the operator allows although they are not public: networks, and host names in lower case."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()


def allow_list(entries: Iterable[str]) -> AllowList:
    """Parse the entries of CALLBACK_ALLOW: an address or CIDR is a network, anything else a host name. Raises ValueError for a
    CIDR with host bits set."""
    networks: list[Network] = []
    hosts: set[str] = set()
    for entry in (one.strip() for one in entries):
        if "/" in entry or _is_literal(entry):
            networks.append(ipaddress.ip_network(entry))
        elif entry:
            hosts.add(plain_host(entry))
    return AllowList(networks=tuple(networks), hosts=frozenset(hosts))


def plain_host(host: str) -> str:
    """Normalize a host name for comparison: lower case, no trailing dot."""
    return host.lower().rstrip(".")


def refusal(address: str, allowed: AllowList, host: str = "") -> str:
    """The rule that forbids connecting to `address` (a numeric address, as the socket would get it), or "" if none does.

    `host` is the name or literal in the URL. A host on the allow-list may lead anywhere.
    """
    if host and plain_host(host) in allowed.hosts:
        return ""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "not-an-address"
    if any(parsed in network for network in allowed.networks):
        return ""
    embedded, kind = _embedded(parsed)
    if embedded is None:
        return _rule(parsed)
    if any(embedded in network for network in allowed.networks):
        return ""
    rule = _rule(embedded)
    return f"{kind} of {rule}" if rule else ""


def _embedded(address: Address) -> tuple[Address | None, str]:
    """The IPv4 address that the operating system or a NAT64 gateway would connect to, and the kind of embedding."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped, "v4-mapped"
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF), "nat64"
    return None, ""


def _rule(address: Address) -> str:
    for network, rule in _RULES:
        if address in network:
            return rule
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_V6:
        return "not-global"
    return ""


def _is_literal(entry: str) -> bool:
    try:
        ipaddress.ip_address(entry)
    except ValueError:
        return False
    return True
