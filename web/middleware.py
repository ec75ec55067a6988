"""Layers in front of all routes: `RequestFrame` with request id, one log line and the last error handler; `AccessGate` with
authentication, scope and rate limit.

Rules:
- A request without a valid token or key, without the scope, or above the rate limit is refused before its body is read.
- An unexpected error is logged with its traceback; the answer contains no internals.
- Without tokens and keys, which only loopback allows, a web page must not get in through a browser on this machine. The check of
  Host stops a foreign name that resolves to 127.0.0.1 (DNS rebinding). The check of Content-Type stops a form, which cannot send
  JSON. The check of Sec-Fetch-Site and Origin stops a request without a body from another site.

Source: Fetch Metadata Request Headers (W3C), and the Fetch standard: a browser sends Origin with every method but GET and HEAD.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from starlette import datastructures, requests, routing, types

from events import codec
from machine import errors, metrics, tracing
from web import authentication, dependencies, metrics_page, rate_limit, responses, scopes
from web.console import frame as console_frame

# Their successes are logged at level debug only, because there are so many.
PROBES = ("/healthz", "/readyz", "/metrics")
QUIET = (*PROBES, "/trtc/callbacks")
SAFE = ("GET", "HEAD", "OPTIONS")  # they change nothing here
METHODS = (*SAFE, "POST", "PUT", "PATCH", "DELETE")
CLIENT_GONE = 499  # nginx's status for a client that disconnects before the answer

FOREIGN_HOST = (
    "Without API_TOKENS the service answers only to localhost, 127.0.0.1 and [::1], but the header Host has another name. Use one"
    " of these names, or set API_TOKENS."
)
WRONG_SCOPE = "This needs the scope {needed}, which the key does not have; `recorder keys create` makes a key with it."
FIRST_KEY = "This needs a key of the scope {needed}; `recorder keys create` on the service's machine makes the first one."
TOO_OFTEN = "Too many requests: retry after the seconds of the header Retry-After."
FOREIGN_PAGE = (
    "Without API_TOKENS a web page of another site may change nothing here; Sec-Fetch-Site or Origin names one. Send the request"
    " without a browser, or set API_TOKENS."
)
NOT_JSON = "Without API_TOKENS a body must be sent as JSON: set the header Content-Type to application/json."

# Defaults for every answer. An answer is data, never a page: it loads nothing, is neither framed nor cached, and a browser must
# not guess another type than its Content-Type.
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_RAW_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

log = structlog.get_logger()


def direct_routes(
    routes: Iterable[routing.BaseRoute], handlers: Mapping[Any, Any], new_id: Callable[[], str]
) -> dict[tuple[str, str], types.ASGIApp]:
    """(method, path) → a route that is served without the framework's layers, search and checks, which cost more than a callback.
    Their endpoints take a request, return a response, and guard themselves; `handlers` answer their errors."""
    return {
        (method, route.path): RequestFrame(_DirectRoute(route, handlers), new_id)
        for route in routes
        if isinstance(route, routing.Route)
        for method in route.methods or ()
        if scopes.required(method, route.path) in scopes.UNGUARDED
    }


class _DirectRoute:
    """One route as an ASGI application."""

    def __init__(self, route: routing.Route, handlers: Mapping[Any, Any]) -> None:
        self._route = route
        self._handlers: dict[type[Exception], Any] = {
            kind: handler for kind, handler in handlers.items() if isinstance(kind, type)
        }

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        scope["route"] = self._route
        request = requests.Request(scope, receive, send)
        try:
            response = await self._route.endpoint(request)
        except tuple(self._handlers) as error:
            handler = next(self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers)
            response = await handler(request, error)
        await response(scope, receive, send)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRefusal:
    """The error that a request gets in place of its route."""

    status: int
    code: str
    message: str
    headers: dict[str, str] | None = None

    def answer(self, request_id: str) -> types.ASGIApp:
        """The answer to a program."""
        return responses.failed(request_id, self.status, self.code, self.message, self.headers)

    def page(self, scope: types.Scope, console: console_frame.Frame) -> types.ASGIApp:
        """The answer to a browser."""
        return console.refused(scope, self.status, self.message, self.headers)


class RequestFrame:
    """The outermost ASGI layer of a request."""

    def __init__(self, app: types.ASGIApp, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id
        # Bound once: to look up a logger costs more than not to log.
        self._log = log.bind()

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = _Response(send, request_id)
        if scope["path"] in PROBES:
            await self._serve(scope, receive, response, request_id)
            return
        with tracing.span(_method(scope), "server", codec.traceparent(datastructures.Headers(scope=scope))):
            await self._serve(scope, receive, response, request_id)
            tracing.note({"http.route": _template(scope), "http.response.status_code": response.status})

    async def _serve(self, scope: types.Scope, receive: types.Receive, response: _Response, request_id: str) -> None:
        started_s = time.perf_counter()
        try:
            await self._app(scope, receive, response)
        except requests.ClientDisconnect:
            response.status = CLIENT_GONE
        except errors.Unavailable as error:
            if response.started:
                raise
            headers = responses.retry_after(error.http_status)
            await responses.failed(request_id, error.http_status, error.code, error.message, headers)(scope, receive, response)
        except Exception:
            log.exception("http.failed")
            if response.started:
                raise
            answer = responses.failed(request_id, 500, "InternalError", responses.UNEXPECTED)
            await answer(scope, receive, response)
        finally:
            self._log_request(scope, response.status, time.perf_counter() - started_s)

    def _log_request(self, scope: types.Scope, status: int, duration_s: float) -> None:
        """Log the request with the route's template, not with its path, which can be any text."""
        template = _template(scope)
        quiet = template in QUIET and status < HTTPStatus.BAD_REQUEST
        counter, histogram = _measures(template, _method(scope), status)
        counter.inc()
        histogram.observe(duration_s)
        write = self._log.debug if quiet else log.info
        write("http.request", method=scope["method"], path=template, status=status, took_ms=round(duration_s * 1000, 1))


class AccessGate:
    """The ASGI layer that refuses requests."""

    def __init__(
        self,
        app: types.ASGIApp,
        api: dependencies.Api,
        authenticator: authentication.Authenticator,
        console: console_frame.Frame | None,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._console = console
        self._rate_limiter = rate_limit.RateLimiter(api.requests_per_minute)

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Serve one request (ASGI), or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        console = self._console if scope["path"].startswith(console_frame.PREFIX) else None
        app: types.ASGIApp | None = console.again(scope) if console is not None else None
        if app is None and (refusal := await self._refusal(scope, console)) is not None:
            app = refusal.page(scope, console) if console is not None else refusal.answer(scope["state"]["request_id"])
        await (app or self._app)(scope, receive, send)

    async def _refusal(self, scope: types.Scope, console: console_frame.Frame | None) -> AccessRefusal | None:
        needed = scopes.required(scope["method"], scope["path"])
        headers = datastructures.Headers(scope=scope)
        authorization = console.authorization(scope) if console is not None else headers.get("authorization", "")
        if needed in scopes.UNGUARDED:
            return None
        if scope["path"] == metrics_page.PATH and self._authenticator.may_scrape(authorization):
            return None
        if await self._authenticator.open_to_all():
            scope["state"]["caller"], scope["state"]["scopes"] = authentication.LOCAL.caller, authentication.LOCAL.scopes
            if needed and needed not in authentication.LOCAL.scopes:
                return AccessRefusal(status=403, code="Forbidden", message=FIRST_KEY.format(needed=needed))
            # A form of the console carries a token, which no other page knows.
            return _refuse_browser(scope["method"], scope["scheme"], headers, forms=console is not None)
        identity = await self._authenticator.identify(authorization)
        if identity is None:
            error = errors.Unauthorized()
            challenge = {"WWW-Authenticate": "Bearer"}
            return AccessRefusal(status=error.http_status, code=error.code, message=error.message, headers=challenge)
        scope["state"]["caller"], scope["state"]["scopes"] = identity.caller, identity.scopes
        structlog.contextvars.bind_contextvars(caller=identity.caller.name)
        wait_s = self._rate_limiter.wait_s(identity.caller.name)
        if wait_s:
            retry_after = {"Retry-After": str(math.ceil(wait_s))}
            return AccessRefusal(status=429, code=errors.QuotaReached.code, message=TOO_OFTEN, headers=retry_after)
        if needed and needed not in identity.scopes:
            return AccessRefusal(status=403, code="Forbidden", message=WRONG_SCOPE.format(needed=needed))
        return None


class _Response:
    """Forwards messages to the server, notes the status, and adds the request's id and the default headers."""

    def __init__(self, send: types.Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False
        self.status = HTTPStatus.INTERNAL_SERVER_ERROR.value

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            given = [(name.lower(), value) for name, value in message.get("headers", ())]
            names = {name for name, _ in given}
            defaults = [(name, value) for name, value in _RAW_HEADERS if name not in names]
            own = (b"x-request-id", self._request_id.encode())
            message = {**message, "headers": [*given, own, *defaults]}
        await self._send(message)


@functools.cache
def _measures(template: str, method: str, status: int) -> tuple[Any, Any]:
    """Counter and histogram of a kind of request. To look them up costs more than to count; there are few kinds."""
    return metrics.HTTP_REQUESTS.labels(template, method, str(status)), metrics.HTTP_SECONDS.labels(template)


def _template(scope: types.Scope) -> str:
    """The path of the route, "" for none."""
    return str(getattr(scope.get("route"), "path", ""))


def _method(scope: types.Scope) -> str:
    """The method, which can be any text, as one of a few."""
    return str(scope["method"]) if scope["method"] in METHODS else "other"


def _refuse_browser(method: str, scheme: str, headers: datastructures.Headers, *, forms: bool) -> AccessRefusal | None:
    """The refusal of a request that a web page could have made a browser send; else None. `forms`: a body may be a form."""
    host = headers.get("host", "")
    if not _is_loopback(host):
        return AccessRefusal(status=403, code="Forbidden", message=FOREIGN_HOST)
    if method not in SAFE and _is_from_another_page(f"{scheme}://{host}", headers):
        return AccessRefusal(status=403, code="Forbidden", message=FOREIGN_PAGE)
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if method == "POST" and has_body and not forms and kind != "application/json" and not kind.endswith("+json"):
        return AccessRefusal(status=415, code="UnsupportedMediaType", message=NOT_JSON)
    return None


def _is_from_another_page(here: str, headers: datastructures.Headers) -> bool:
    """Whether a browser reports a page of another origin. Programs send neither header."""
    if headers.get("sec-fetch-site", "none").strip().lower() not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.strip().lower() != here.lower()


def _is_loopback(host: str) -> bool:
    """Whether a Host header, with or without a port, names only this machine."""
    before, _, port = host.rpartition(":")
    name = before if port.isdecimal() else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name).is_loopback
    except ValueError:
        return False
