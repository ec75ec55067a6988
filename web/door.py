"""The door that every request goes through: its id, its bearer token, its one line in the log, and its last resort.

May import `machine`. Rules: a request without a right token is answered before anything of it is read; an error that nobody
expected is logged whole and answered with nothing of our inside. Where no token is asked for, which is on loopback only, a web
page must not get in through the browser of whoever sits at this machine: neither under a name of its own that it lets point to
127.0.0.1 (DNS rebinding: its Host header tells), nor by a form (which cannot send JSON).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from starlette import datastructures, requests, types

from machine import errors
from web import answers, files, given

# Asked without a token: by probes, and by TRTC, which signs instead.
OPEN_PATHS = ("/healthz", "/readyz", "/trtc/callbacks")
PROBES = ("/healthz", "/readyz")
CLIENT_GONE = 499  # as nginx calls it: the client left before the answer

FOREIGN_HOST = (
    "Without API_TOKENS the service answers only to localhost, 127.0.0.1 and [::1], and the header Host names another. Ask it"
    " under one of these, or set API_TOKENS."
)
NOT_JSON = "Without API_TOKENS a body must be sent as JSON: set the header Content-Type to application/json."

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

    def __init__(self, app: types.ASGIApp, api: given.Api) -> None:
        self._app = app
        self._new_id = api.new_id
        self._tokens = tuple(_digest(token.encode()) for token in api.tokens)

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
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, sent)
            else:
                answer = answers.failed(request_id, refusal.status, refusal.code, refusal.message, refusal.headers)
                await answer(scope, receive, sent)
        except requests.ClientDisconnect:
            sent.status = CLIENT_GONE
        except Exception:
            log.exception("http.failed")
            if sent.started:
                raise
            answer = answers.failed(request_id, 500, "InternalError", answers.UNEXPECTED)
            await answer(scope, receive, sent)
        finally:
            _log_line(scope, sent.status, time.perf_counter() - begun)

    def _refusal(self, scope: types.Scope) -> Refusal | None:
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(files.PREFIX):
            return None
        headers = datastructures.Headers(scope=scope)
        if not self._tokens:
            return _foreign(scope["method"], headers)
        if self._knows(headers.get("authorization", "")):
            return None
        error = errors.Unauthorized()
        challenge = {"WWW-Authenticate": "Bearer"}
        return Refusal(status=error.http_status, code=error.code, message=error.message, headers=challenge)

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        given_digest = _digest(token.strip().encode("latin-1"))
        # All of them are compared, so that the time taken says nothing about which one was nearly right.
        matches = [hmac.compare_digest(given_digest, known) for known in self._tokens]
        return bool(scheme.lower() == "bearer" and any(matches))


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
            headers = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode()), (b"cache-control", b"no-store")]
            message = {**message, "headers": headers}
        await self._send(message)


def _log_line(scope: types.Scope, status: int, took_s: float) -> None:
    """The request's one line: the path's template and not the path, which may be anything."""
    template = getattr(scope.get("route"), "path", "")
    say = log.debug if template in PROBES and status < HTTPStatus.BAD_REQUEST else log.info
    say("http.request", method=scope["method"], path=template, status=status, took_ms=round(took_s * 1000, 1))


def _foreign(method: str, headers: datastructures.Headers) -> Refusal | None:
    """What a browser could have been talked into."""
    if not _is_loopback(headers.get("host", "")):
        return Refusal(status=403, code="Forbidden", message=FOREIGN_HOST)
    sends = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if method == "POST" and sends and kind != "application/json" and not kind.endswith("+json"):
        return Refusal(status=415, code="UnsupportedMediaType", message=NOT_JSON)
    return None


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


def _digest(token: bytes) -> bytes:
    """Of one length, whatever the token's."""
    return hashlib.sha256(token).digest()
