"""The door that every request goes through: its id, who asks and for what, its one line in the log, and its last resort.

May import `machine`. Rules: a request without a right token or key, with too few rights or too many requests before it, is
answered before anything of it is read; an error that nobody expected is logged whole and answered with nothing of our inside.
Where no token is asked for, which is on loopback only, a web page must not get in through the browser of whoever sits at this
machine: neither under a name of its own that it lets point to 127.0.0.1 (DNS rebinding: its Host header tells), nor by a form
(which cannot send JSON), nor by a request without a body from its own place (Sec-Fetch-Site and Origin tell).
Source: Fetch Metadata Request Headers (W3C), and the Fetch standard: a browser sends Origin with every method but GET and HEAD.
"""

from __future__ import annotations

import ipaddress
import math
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from starlette import datastructures, requests, types

from machine import errors
from web import authentication, dependencies, rate_limit, responses, scopes

PROBES = ("/healthz", "/readyz")
SAFE = ("GET", "HEAD", "OPTIONS")  # nothing here changes by them
CLIENT_GONE = 499  # as nginx calls it: the client left before the answer

FOREIGN_HOST = (
    "Without API_TOKENS the service answers only to localhost, 127.0.0.1 and [::1], and the header Host names another. Ask it"
    " under one of these, or set API_TOKENS."
)
WRONG_SCOPE = "This needs the scope {needed}, which the key does not have; `recorder keys create` makes one that has it."
TOO_OFTEN = "Too many requests: the header Retry-After says when the next one may come."
FOREIGN_PAGE = (
    "Without API_TOKENS a web page of another site may change nothing here, and the headers Sec-Fetch-Site or Origin tell of one."
    " Ask without a browser, or set API_TOKENS."
)
NOT_JSON = "Without API_TOKENS a body must be sent as JSON: set the header Content-Type to application/json."

# On every answer that does not say otherwise itself. An answer of the API is data, and never a page: it may load nothing, stand
# in no frame, be kept nowhere, and be nothing but what its Content-Type says.
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not let in."""

    status: int
    code: str
    message: str
    headers: dict[str, str] | None = None


class Door:
    """The outermost layer around the routes."""

    def __init__(self, app: types.ASGIApp, api: dependencies.Api) -> None:
        self._app = app
        self._new_id = api.new_id
        self._access = authentication.Access(api)
        self._rates = rate_limit.Rates(api.requests_per_minute)

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        await self._serve(scope, receive, _Sent(send, request_id), request_id)

    async def _serve(self, scope: types.Scope, receive: types.Receive, sent: _Sent, request_id: str) -> None:
        begun = time.perf_counter()
        try:
            refusal = await self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, sent)
            else:
                answer = responses.failed(request_id, refusal.status, refusal.code, refusal.message, refusal.headers)
                await answer(scope, receive, sent)
        except requests.ClientDisconnect:
            sent.status = CLIENT_GONE
        except errors.Unavailable as error:
            if sent.started:
                raise
            await responses.failed(request_id, error.http_status, error.code, error.message)(scope, receive, sent)
        except Exception:
            log.exception("http.failed")
            if sent.started:
                raise
            answer = responses.failed(request_id, 500, "InternalError", responses.UNEXPECTED)
            await answer(scope, receive, sent)
        finally:
            _log_line(scope, sent.status, time.perf_counter() - begun)

    async def _refusal(self, scope: types.Scope) -> Refusal | None:
        needed = scopes.needed(scope["method"], scope["path"])
        if needed in scopes.UNGUARDED:
            return None
        headers = datastructures.Headers(scope=scope)
        if await self._access.open_to_all():
            scope["state"]["caller"] = authentication.LOCAL.caller
            return _foreign(scope["method"], scope["scheme"], headers)
        known = await self._access.known(headers.get("authorization", ""))
        if known is None:
            error = errors.Unauthorized()
            challenge = {"WWW-Authenticate": "Bearer"}
            return Refusal(status=error.http_status, code=error.code, message=error.message, headers=challenge)
        scope["state"]["caller"] = known.caller
        structlog.contextvars.bind_contextvars(caller=known.caller.name)
        wait_s = self._rates.wait_s(known.caller.name)
        if wait_s:
            again = {"Retry-After": str(math.ceil(wait_s))}
            return Refusal(status=429, code=errors.QuotaReached.code, message=TOO_OFTEN, headers=again)
        if needed and needed not in known.scopes:
            return Refusal(status=403, code="Forbidden", message=WRONG_SCOPE.format(needed=needed))
        return None


class _Sent:
    """Passes messages on to the server; knows the status, and adds the request's id to the headers."""

    def __init__(self, send: types.Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False
        self.status = HTTPStatus.INTERNAL_SERVER_ERROR.value

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = datastructures.MutableHeaders(raw=list(message.get("headers", ())))
            headers["x-request-id"] = self._request_id
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            message = {**message, "headers": headers.raw}
        await self._send(message)


def _log_line(scope: types.Scope, status: int, took_s: float) -> None:
    """The request's one line: the path's template and not the path, which may be anything."""
    template = getattr(scope.get("route"), "path", "")
    say = log.debug if template in PROBES and status < HTTPStatus.BAD_REQUEST else log.info
    say("http.request", method=scope["method"], path=template, status=status, took_ms=round(took_s * 1000, 1))


def _foreign(method: str, scheme: str, headers: datastructures.Headers) -> Refusal | None:
    """What a browser could have been talked into."""
    host = headers.get("host", "")
    if not _is_loopback(host):
        return Refusal(status=403, code="Forbidden", message=FOREIGN_HOST)
    if method not in SAFE and _is_of_another_page(f"{scheme}://{host}", headers):
        return Refusal(status=403, code="Forbidden", message=FOREIGN_PAGE)
    sends = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if method == "POST" and sends and kind != "application/json" and not kind.endswith("+json"):
        return Refusal(status=415, code="UnsupportedMediaType", message=NOT_JSON)
    return None


def _is_of_another_page(here: str, headers: datastructures.Headers) -> bool:
    """Whether a browser says that a page of another origin asks. Programs have neither header."""
    if headers.get("sec-fetch-site", "none").strip().lower() not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.strip().lower() != here.lower()


def _is_loopback(host: str) -> bool:
    """Whether a Host header, port or not, names this machine and nothing else."""
    before, _, port = host.rpartition(":")
    name = before if port.isdecimal() else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name).is_loopback
    except ValueError:
        return False
