"""Attempts to lead a webhook to an address that is not public, each with the rule that it breaks.

`{port}` is the port of a listener on every address of this machine. A name resolves to `answers`, one tuple per query, the last
one forever. A name without answers leads to 127.0.0.1, the worst possible answer. The refusal contains `rule`.
"""

from __future__ import annotations

from dataclasses import dataclass

_URL = "is not a URL"
_SCHEME = "must begin with http:// or https://"
_TEXT = "printable ASCII"
_HOST = "has a host that is neither a name nor an address"
_NO_HOST = "has no usable host and port"
_CREDENTIALS = "must not have credentials"
_PORT = "other services than HTTP"
_UNREACHED = "could not be reached"  # only the public address is tried, and a test cannot reach it


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One URL; `refused_unresolved`: the URL alone is enough to refuse it."""

    url: str
    rule: str
    answers: tuple[tuple[str, ...], ...] = (("127.0.0.1",),)
    refused_unresolved: bool = True


def _literals() -> list[Attempt]:
    """At least one address of every row of IANA's two registries, of multicast and of the metadata services, in the usual
    notation."""
    return [Attempt(url=f"http://{host}:{{port}}/", rule=f"({rule})") for host, rule in _ADDRESSES.items()]


def _names() -> list[Attempt]:
    """The same addresses behind a name, which only the resolver reveals."""
    found = [
        Attempt(url="http://rebound.example:{port}/", rule=f"({rule})", answers=((host.strip("[]"),),), refused_unresolved=False)
        for host, rule in _ADDRESSES.items()
        if "%" not in host
    ]
    return found + [Attempt(url=url, rule=rule, answers=answers, refused_unresolved=False) for url, answers, rule in _RESOLVED]


_ADDRESSES = {
    # IPv4: every row of the registry
    "0.0.0.0": "this-network",
    "0.1.2.3": "this-network",
    "10.0.0.1": "private",
    "10.255.255.255": "private",
    "100.64.0.1": "carrier-shared",
    "100.100.100.200": "carrier-shared",  # a cloud's metadata
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "168.63.129.16": "cloud metadata",
    "169.254.0.23": "link-local (cloud metadata)",
    "169.254.169.254": "link-local (cloud metadata)",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.1": "protocol-assignments",
    "192.0.0.8": "protocol-assignments",
    "192.0.0.170": "protocol-assignments",
    "192.0.0.192": "protocol-assignments",  # a cloud's metadata
    "192.0.2.1": "documentation",
    "192.31.196.1": "as112",
    "192.52.193.1": "amt",
    "192.88.99.2": "6to4-relay",
    "192.168.0.1": "private",
    "192.175.48.1": "as112",
    "198.18.0.1": "benchmarking",
    "198.19.255.255": "benchmarking",
    "198.51.100.1": "documentation",
    "203.0.113.1": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    # IPv6: every row of the registry, and older blocks
    "[::1]": "loopback",
    "[::]": "unspecified",
    "[::ffff:127.0.0.1]": "v4-mapped of loopback",
    "[::ffff:7f00:1]": "v4-mapped of loopback",
    "[::ffff:a9fe:a9fe]": "v4-mapped of link-local (cloud metadata)",
    "[0:0:0:0:0:ffff:10.0.0.1]": "v4-mapped of private",
    "[::127.0.0.1]": "not-global",  # v4-compatible
    "[::8.8.8.8]": "not-global",
    "[64:ff9b::7f00:1]": "nat64 of loopback",
    "[64:ff9b::169.254.169.254]": "nat64 of link-local (cloud metadata)",
    "[64:ff9b::10.0.0.1]": "nat64 of private",
    "[64:ff9b:1::1]": "nat64-local",
    "[64:ff9b:1::7f00:1]": "nat64-local",
    "[100::1]": "discard",
    "[100:0:0:1::1]": "not-global",  # the dummy prefix
    "[2001::1]": "protocol-assignments (Teredo among them)",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]": "protocol-assignments (Teredo among them)",
    "[2001:1::1]": "protocol-assignments (Teredo among them)",
    "[2001:2::1]": "protocol-assignments (Teredo among them)",
    "[2001:3::1]": "protocol-assignments (Teredo among them)",
    "[2001:4:112::1]": "protocol-assignments (Teredo among them)",
    "[2001:10::1]": "protocol-assignments (Teredo among them)",
    "[2001:20::1]": "protocol-assignments (Teredo among them)",
    "[2001:30::1]": "protocol-assignments (Teredo among them)",
    "[2001:db8::1]": "documentation",
    "[2002:7f00:1::]": "6to4",
    "[2002:a9fe:a9fe::]": "6to4",
    "[2620:4f:8000::1]": "as112",
    "[3fff::1]": "documentation",
    "[5f00::1]": "not-global",  # segment routing
    "[4000::1]": "not-global",
    "[fc00::1]": "private",
    "[fd00:ec2::254]": "private",  # a cloud's metadata
    "[fd20:ce::254]": "private",  # a cloud's metadata
    "[fe80::1]": "link-local",
    "[fe80::1%25lo]": "link-local",
    "[fe80::1%lo]": "link-local",
    "[::1%25lo]": "loopback",
    "[fec0::1]": "not-global",  # site-local
    "[ff02::1]": "multicast",
    "[0000:0000:0000:0000:0000:0000:0000:0001]": "loopback",
}

_RESOLVED: list[tuple[str, tuple[tuple[str, ...], ...], str]] = [
    ("http://metadata.tencentyun.com:{port}/latest/meta-data/", (("169.254.0.23",),), "(link-local (cloud metadata))"),
    ("http://metadata.google.internal:{port}/", (("169.254.169.254",),), "(link-local (cloud metadata))"),
    ("http://127.0.0.1.nip.example:{port}/", (("127.0.0.1",),), "(loopback)"),
    ("https://tls.example:{port}/", (("127.0.0.1",),), "(loopback)"),
    # rebinding: public at the check, private at the connection
    ("http://rebinding.example:{port}/", (("93.184.215.14",), ("127.0.0.1",)), "(loopback)"),
    ("http://rebinding.example:{port}/", (("2606:4700::1111",), ("::1",)), "(loopback)"),
    ("http://rebinding.example:{port}/", (("93.184.215.14",), ("169.254.169.254",)), "(link-local (cloud metadata))"),
    ("http://rebinding.example:{port}/", (("93.184.215.14",), ("::ffff:127.0.0.1",)), "(v4-mapped of loopback)"),
    # several addresses: the internal ones are skipped, in any order
    ("http://several.example:{port}/", (("127.0.0.1", "10.0.0.1", "::1"),), "not public"),
    ("http://several.example:{port}/", (("93.184.215.14", "127.0.0.1"),), _UNREACHED),
    ("http://several.example:{port}/", (("127.0.0.1", "93.184.215.14"),), _UNREACHED),
    ("http://several.example:{port}/", (("::1", "2606:4700::1111", "127.0.0.1"),), _UNREACHED),
    # resolver answers that are no address
    ("http://odd.example:{port}/", (("0177.0.0.1",),), "(not-an-address)"),
    ("http://odd.example:{port}/", (("localhost",),), "(not-an-address)"),
]

_WRITTEN = [  # other notations of loopback and metadata: octal, hex, one number, two, three, the root's dot
    ("http://127.1:{port}/", "(loopback)"),
    ("http://127.0.1:{port}/", "(loopback)"),
    ("http://0177.0.0.1:{port}/", "(loopback)"),
    ("http://0177.0.0.01:{port}/", "(loopback)"),
    ("http://00000177.0.0.1:{port}/", "(loopback)"),
    ("http://0x7f.0.0.1:{port}/", "(loopback)"),
    ("http://0x7F.1:{port}/", "(loopback)"),
    ("http://0x7f000001:{port}/", "(loopback)"),
    ("http://0X7F000001:{port}/", "(loopback)"),
    ("http://2130706433:{port}/", "(loopback)"),
    ("http://017700000001:{port}/", "(loopback)"),
    ("http://0:{port}/", "(this-network)"),
    ("http://0x0:{port}/", "(this-network)"),
    ("http://127.0.0.1.:{port}/", "(loopback)"),
    ("http://2130706433.:{port}/", "(loopback)"),
    ("http://2852039166:{port}/", "(link-local (cloud metadata))"),
    ("http://0xa9fea9fe:{port}/", "(link-local (cloud metadata))"),
    ("http://0251.0376.0251.0376:{port}/", "(link-local (cloud metadata))"),
    ("http://169.16689662:{port}/", "(link-local (cloud metadata))"),
    ("http://0xA.0x0.0x0.0x1:{port}/", "(private)"),
    ("http://192.168.257:{port}/", "(private)"),
    ("http://localhost:{port}/", "(loopback)"),
    ("http://LOCALHOST.:{port}/", "(loopback)"),
    ("http://inner.localhost:{port}/", "(loopback)"),
    # numbers that are no address but that some parser accepts as one
    ("http://4294967296:{port}/", _HOST),
    ("http://256.0.0.1:{port}/", _HOST),
    ("http://127.0.0.1.5:{port}/", _HOST),
    ("http://127.0.0.08:{port}/", _HOST),
    ("http://127.0.0.0x:{port}/", _HOST),
    ("http://127.0.0.1..:{port}/", _HOST),
    # letters that become digits and dots when a name is normalized
    ("http://１２７.0.0.1:{port}/", _TEXT),
    ("http://127。0。0。1:{port}/", _TEXT),
    ("http://①②⑦.0.0.1:{port}/", _TEXT),
    ("http://ⓛocalhost:{port}/", _TEXT),
    ("http://loc\u00adalhost:{port}/", _TEXT),
    ("http://127.0.0.1\u200b:{port}/", _TEXT),
    # percent signs in a host
    ("http://%31%32%37.0.0.1:{port}/", _HOST),
    ("http://127%2e0%2e0%2e1:{port}/", _HOST),
    ("http://127.0.0.1%00.example:{port}/", _HOST),
    ("http://127.0.0.1%2f.example:{port}/", _HOST),
]

_BROKEN = [  # two URL parsers may disagree about these
    ("http://public.example@127.0.0.1:{port}/", _CREDENTIALS),
    ("http://127.0.0.1:{port}@public.example/", _CREDENTIALS),
    ("http://user:password@127.0.0.1:{port}/", _CREDENTIALS),
    ("http://:@127.0.0.1:{port}/", _CREDENTIALS),
    ("http://public.example\\@127.0.0.1:{port}/", _TEXT),
    ("http://127.0.0.1:{port}\\@public.example/", _TEXT),
    ("http:\\\\127.0.0.1:{port}\\", _TEXT),
    ("http://127.0.0.1:{port} /", _TEXT),
    (" http://127.0.0.1:{port}/", _TEXT),
    ("http://127.0.0.1:{port}/\tx", _TEXT),
    ("http://127.0.0.1:{port}/\r\nHost: inner", _TEXT),
    ("http://127.0.0.1:{port}/%0d\n", _TEXT),
    ("http://public.example\r\n@127.0.0.1:{port}/", _TEXT),
    ("http://127.0.0.1\x00.public.example:{port}/", _TEXT),
    ("http://<127.0.0.1>:{port}/", _TEXT),
    ('http://"127.0.0.1":{port}/', _TEXT),
    ("http:///127.0.0.1:{port}/", _NO_HOST),
    ("http:127.0.0.1:{port}/", _NO_HOST),
    ("http://:{port}/", _NO_HOST),
    ("//127.0.0.1:{port}/", _SCHEME),
    ("http://[127.0.0.1]:{port}/", _URL),
    ("http://[::1:{port}/", _URL),
    ("http://[::1]127.0.0.1:{port}/", _URL),
    ("http://127.0.0.1:{port}:80/", _URL),
    ("http://127.0.0.1,public.example:{port}/", _HOST),
    ("http://127.0.0.1;public.example:{port}/", _HOST),
    ("http://127.0.0.1&.public.example:{port}/", _HOST),
    # a fragment or a query is no host
    ("http://127.0.0.1:{port}#@public.example/", "(loopback)"),
    ("http://127.0.0.1:{port}?@public.example/", "(loopback)"),
    # schemes
    ("file:///etc/passwd", _SCHEME),
    ("file://127.0.0.1:{port}/", _SCHEME),
    ("gopher://127.0.0.1:{port}/_POST", _SCHEME),
    ("ftp://127.0.0.1:{port}/", _SCHEME),
    ("dict://127.0.0.1:{port}/", _SCHEME),
    ("ldap://127.0.0.1:{port}/", _SCHEME),
    ("ws://127.0.0.1:{port}/", _SCHEME),
    ("javascript:alert(1)//127.0.0.1:{port}/", _SCHEME),
    ("data:text/plain,127.0.0.1:{port}", _SCHEME),
    ("unix:///run/docker.sock", _SCHEME),
    ("http+unix://%2frun%2fdocker.sock/", _SCHEME),
    ("127.0.0.1:{port}/", _SCHEME),
    # ports
    ("http://public.example:0/", _NO_HOST),
    ("http://public.example:65536/", _URL),
    ("http://public.example:-1/", _URL),
    ("http://public.example:{port}x/", _URL),
    ("http://public.example:22/", _PORT),
    ("http://public.example:25/", _PORT),
    ("http://public.example:465/", _PORT),
    ("http://public.example:3306/", _PORT),
    ("http://public.example:6379/", _PORT),
    ("http://public.example:11211/", _PORT),
    ("http://public.example:2375/", _PORT),
    ("http://127.0.0.1:{port}/" + "x" * 3000, _TEXT),
]

ATTEMPTS = [
    *_literals(),
    *_names(),
    *(Attempt(url=url, rule=rule) for url, rule in _WRITTEN + _BROKEN),
]

# (status, Location): redirects of a public receiver that try to lead the sender on. `{inside}` is a listener that must get no
# connection.
REDIRECTS = [
    *((status, "http://127.0.0.1:{inside}/") for status in (300, 301, 302, 303, 305, 307, 308)),
    (302, "http://[::1]:{inside}/"),
    (302, "http://2130706433:{inside}/"),
    (302, "//127.0.0.1:{inside}/"),
    (302, "https://127.0.0.1:{inside}/"),
    (302, "file:///etc/passwd"),
    (302, "gopher://127.0.0.1:{inside}/_x"),
    (307, "http://169.254.169.254/latest/meta-data/"),
    (308, "http://metadata.tencentyun.com:{inside}/"),
    (302, "/again"),
]
