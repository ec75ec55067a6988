"""The door that every request goes through: its id, its bearer token, its one line in the log, and its last resort.

May import `machine`. Rules: a request without a right token is answered before anything of it is read; an error that nobody
expected is logged whole and answered with nothing of our inside.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from http import HTTPStatus
from typing import Any

import structlog
from starlette import requests, types

from machine import errors
from web import answers, given

# Asked without a token: by probes, and by TRTC, which signs instead.
OPEN_PATHS = ("/healthz", "/readyz", "/trtc/callbacks")
PROBES = ("/healthz", "/readyz")
CLIENT_GONE = 499  # as nginx calls it: the client left before the answer

log = structlog.get_logger()


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
            if self._admits(scope):
                await self._app(scope, receive, sent)
            else:
                refusal = errors.Unauthorized()
                headers = {"WWW-Authenticate": "Bearer"}
                answer = answers.failed(request_id, refusal.http_status, refusal.code, refusal.message, headers)
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

    def _admits(self, scope: types.Scope) -> bool:
        if not self._tokens or scope["path"] in OPEN_PATHS:
            return True
        header = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = header.partition(b" ")
        given_digest = _digest(token.strip())
        # All of them are compared, so that the time taken says nothing about which one was nearly right.
        matches = [hmac.compare_digest(given_digest, known) for known in self._tokens]
        return bool(scheme.lower() == b"bearer" and any(matches))


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


def _digest(token: bytes) -> bytes:
    """Of one length, whatever the token's."""
    return hashlib.sha256(token).digest()
