"""Which route asks for what: the literal table. Imports `machine`.

Rule: every route of the application stands here, or the application is not built; what a request may do is known before it is
routed, by the same patterns that route it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette import routing

from machine import api_keys

# Not a key's business: probes; TRTC, which signs; other nodes, which show CLUSTER_TOKEN.
OPEN = "open"
SIGNED = "signed"
CLUSTER = "cluster"
UNGUARDED = (OPEN, SIGNED, CLUSTER)

TABLE: dict[tuple[str, str], str] = {
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("POST", "/trtc/callbacks"): SIGNED,
    ("GET", "/internal/segments"): CLUSTER,
    ("GET", "/openapi.json"): api_keys.READ,
    ("GET", "/sessions"): api_keys.READ,
    ("GET", "/sessions/{TaskId}"): api_keys.READ,
    ("GET", "/results"): api_keys.READ,
    ("POST", "/sessions"): api_keys.START,
    ("POST", "/sessions/{TaskId}/stop"): api_keys.OPERATE,
    ("POST", "/sessions/{TaskId}/replay"): api_keys.OPERATE,
}


def _pattern(path: str) -> re.Pattern[str]:
    return routing.compile_path(path)[0]


_PATTERNS = [(_pattern(path), method, needed) for (method, path), needed in TABLE.items()]


def needed(method: str, path: str) -> str:
    """The scope that a request needs, or one of `UNGUARDED`; "" for what is no route: any key may learn that."""
    asked = "GET" if method == "HEAD" else method
    for pattern, of, scope in _PATTERNS:
        if pattern.match(path) and (of == asked or scope in UNGUARDED):
            return scope
    return ""


def missing(routes: Iterable[object]) -> list[str]:
    """The routes of an application that do not stand in the table, as `METHOD path`."""
    found = [(method, path) for route in routes for path, methods in leaves(route) for method in methods - {"HEAD"}]
    return sorted(f"{method} {path}" for method, path in found if (method, path) not in TABLE)


def leaves(route: object) -> list[tuple[str, set[str]]]:
    """(path, methods) of a route, or of every route of a router that was included or mounted."""
    contexts = getattr(route, "effective_route_contexts", None)
    if contexts is not None:
        return [(context.path, set(context.methods)) for context in contexts()]
    if isinstance(route, routing.Route):
        return [(route.path, set(route.methods or ()))]
    return [(str(getattr(route, "path", route)), {"MOUNT"})]
