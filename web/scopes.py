"""Scopes of the routes, as literal tables.

Rule: every route of the application is in a table, or the application is not built. The scope of a request is found before
routing, with the same patterns.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable

from starlette import routing

from machine import api_keys

# Routes without a key: the probes; TRTC's callbacks, which are signed; the other nodes, which send CLUSTER_TOKEN.
OPEN = "open"
SIGNED = "signed"
CLUSTER = "cluster"
UNGUARDED = (OPEN, SIGNED, CLUSTER)

TABLE: dict[tuple[str, str], str] = {
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("POST", "/trtc/callbacks"): SIGNED,
    ("GET", "/internal/segments"): CLUSTER,
    ("GET", "/internal/arrivals"): CLUSTER,
    ("GET", "/internal/live"): CLUSTER,
    ("GET", "/metrics"): api_keys.READ,  # or METRICS_TOKEN
    ("GET", "/openapi.json"): api_keys.READ,
    ("GET", "/sessions"): api_keys.READ,
    ("GET", "/sessions/{TaskId}"): api_keys.READ,
    ("GET", "/sessions/{TaskId}/live"): api_keys.WATCH,
    ("GET", "/results"): api_keys.READ,
    ("POST", "/sessions"): api_keys.START,
    ("POST", "/sessions/{TaskId}/stop"): api_keys.OPERATE,
    ("POST", "/sessions/{TaskId}/replay"): api_keys.OPERATE,
    ("POST", "/sessions/{TaskId}/resend"): api_keys.OPERATE,
    ("POST", "/bulk/replay"): api_keys.OPERATE,
    ("POST", "/bulk/stop"): api_keys.OPERATE,
    ("POST", "/bulk/resend"): api_keys.OPERATE,
    ("GET", "/parked"): api_keys.OPERATE,
    ("GET", "/parked/{Id}"): api_keys.OPERATE,
    ("POST", "/parked/requeue"): api_keys.OPERATE,
    ("POST", "/parked/drop"): api_keys.OPERATE,
    ("GET", "/audit"): api_keys.OPERATE,
    ("GET", "/keys"): api_keys.ADMIN,
    ("POST", "/keys"): api_keys.ADMIN,
    ("POST", "/keys/{Id}/revoke"): api_keys.ADMIN,
    ("GET", "/nodes"): api_keys.READ,
    ("POST", "/nodes/{Node}/cordon"): api_keys.OPERATE,
    ("POST", "/nodes/{Node}/drain"): api_keys.OPERATE,
    ("POST", "/nodes/{Node}/uncordon"): api_keys.OPERATE,
}
# The pages of the console. Its cookie stands for a key; a page that needs none shows nothing of the service.
CONSOLE: dict[tuple[str, str], str] = {
    ("GET", "/console/static/{name}"): OPEN,
    ("GET", "/console/signin"): OPEN,
    ("POST", "/console/signin"): OPEN,
    ("POST", "/console/preferences"): OPEN,
    ("POST", "/console/signout"): api_keys.READ,
    ("GET", "/console"): api_keys.READ,
    ("GET", "/console/sessions"): api_keys.READ,
    ("GET", "/console/live"): api_keys.READ,
    ("GET", "/console/sessions/{TaskId}"): api_keys.READ,
    ("GET", "/console/sessions/{TaskId}/live"): api_keys.WATCH,
    ("GET", "/console/sessions/{TaskId}/file"): api_keys.WATCH,
    ("POST", "/console/sessions/{TaskId}/stop"): api_keys.OPERATE,
    ("POST", "/console/sessions/{TaskId}/replay"): api_keys.OPERATE,
    ("POST", "/console/sessions/{TaskId}/resend"): api_keys.OPERATE,
    ("GET", "/console/bulk/{Action}"): api_keys.OPERATE,
    ("POST", "/console/bulk/{Action}"): api_keys.OPERATE,
    ("GET", "/console/nodes"): api_keys.READ,
    ("POST", "/console/nodes/{Node}/{Action}"): api_keys.OPERATE,
    ("GET", "/console/parked"): api_keys.OPERATE,
    ("GET", "/console/parked/{Id}"): api_keys.OPERATE,
    ("POST", "/console/parked/{Action}"): api_keys.OPERATE,
    ("GET", "/console/audit"): api_keys.OPERATE,
    ("GET", "/console/keys"): api_keys.ADMIN,
    ("POST", "/console/keys"): api_keys.ADMIN,
    ("POST", "/console/keys/{Id}/revoke"): api_keys.ADMIN,
    # Last: the addresses of no page.
    ("GET", "/console/{rest:path}"): api_keys.READ,
}
ALL = collections.ChainMap(TABLE, CONSOLE)


def _pattern(path: str) -> re.Pattern[str]:
    return routing.compile_path(path)[0]


_PATTERNS = [(_pattern(path), method, scope) for (method, path), scope in ALL.items()]


def required(method: str, path: str) -> str:
    """The scope that a request needs, or one of `UNGUARDED`; "" without a route, because a 404 needs no more than a valid key."""
    method = "GET" if method == "HEAD" else method
    if (method, path) in ALL:
        return ALL[method, path]
    for pattern, route_method, scope in _PATTERNS:
        if pattern.match(path) and (route_method == method or scope in UNGUARDED):
            return scope
    return ""


def missing(routes: Iterable[object]) -> list[str]:
    """The routes of an application that the table does not have, as `METHOD path`."""
    found = [(method, path) for route in routes for path, methods in leaves(route) for method in methods - {"HEAD"}]
    return sorted(f"{method} {path}" for method, path in found if (method, path) not in ALL)


def leaves(route: object) -> list[tuple[str, set[str]]]:
    """(path, methods) of a route, or of every route of an included or mounted router."""
    contexts = getattr(route, "effective_route_contexts", None)
    if contexts is not None:
        return [(context.path, set(context.methods)) for context in contexts()]
    if isinstance(route, routing.Route):
        return [(route.path, set(route.methods or ()))]
    return [(str(getattr(route, "path", route)), {"MOUNT"})]
