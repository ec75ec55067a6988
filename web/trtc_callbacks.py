"""Endpoint of TRTC's event callbacks.

Rules: the signature is verified on the raw bytes before the body is parsed. A request that cannot have a valid signature is
refused before its body is read. A signature never expires, so a callback is accepted only within TRTC_CALLBACK_WINDOW: otherwise
an attacker could send an old one again.
Source: TRTC's event callbacks: headers `SdkAppId` and `Sign`; TRTC retries unless `{"code": 0}` arrives within 5 s.
"""

from __future__ import annotations

import time
from typing import Any

import fastapi
import structlog

from events import codec, reader
from machine import errors, trtc_callback
from web import dependencies, models, openapi, request_body, responses

MAX_SDK_APP_ID = 2**32 - 1
LOG_EVERY_S = 10.0
MAX_UNKNOWN = 100  # unknown types that are logged one by one
SIGN_LENGTH = 44  # base64 of 32 bytes
STALE = (
    "The signature is valid, but the time in CallbackTs differs from this machine's clock by more than TRTC_CALLBACK_WINDOW."
    " Check the clock."
)

log = structlog.get_logger()
FORGED = (
    "The signature is invalid: the header Sign is not the HMAC-SHA256 of the body with the key of TRTC_CALLBACK_KEYS for the"
    " application in the header SdkAppId."
)


def router(api: dependencies.Api) -> fastapi.APIRouter:
    """The route of one service."""
    routes = fastapi.APIRouter(prefix="/trtc", tags=["TRTC"])
    taken = _TakenCallbacks()

    @routes.post(
        "/callbacks",
        summary="TRTC's event callbacks",
        response_model=models.TakenBody,
        response_description="Taken.",
        responses=openapi.failures(400, 401, 408, 413, 503, anywhere=(500,)),
        openapi_extra=openapi.trtc_callback(),
    )
    async def callback(request: fastapi.Request) -> fastapi.Response:
        given = {name: value.decode("latin-1") for name, value in request.scope["headers"] if name in (b"sdkappid", b"sign")}
        sdk_app_id, sign = _sdk_app_id(given.get(b"sdkappid", "")), given.get(b"sign", "")
        if not api.knows_callbacks(sdk_app_id) or len(sign.strip()) != SIGN_LENGTH:
            raise errors.Unauthorized(FORGED)
        body = await request_body.raw(request)
        if not api.verify_callback(sdk_app_id, body, sign):
            raise errors.Unauthorized(FORGED)
        structlog.contextvars.bind_contextvars(sdk_app_id=sdk_app_id)
        fields = request_body.parse(body)
        _check_age(api, fields)
        # First, because it needs no database; TRTC repeats the callbacks that the recorder cannot take, to the receiver too.
        api.forward_callback(sdk_app_id, body, sign.strip())
        mapped = api.map_callback(sdk_app_id, fields)
        if isinstance(mapped, trtc_callback.IgnoredCallback):
            structlog.contextvars.bind_contextvars(ignored=mapped.reason)
            taken.note_ignored(mapped)
        else:
            await api.take_callback(_event(api, mapped))
        taken.note()
        return responses.ok(request, {"code": 0})

    return routes


class _TakenCallbacks:
    """Logs the first callback, and then how many there were, every LOG_EVERY_S at most: a line for each would cost more than the
    callback. An unknown type is logged when it first comes."""

    def __init__(self) -> None:
        self._taken = 0
        self._ignored = 0
        self._unknown: set[str] = set()
        self._next_log_s = 0.0

    def note_ignored(self, callback: trtc_callback.IgnoredCallback) -> None:
        """Count one that changes nothing."""
        self._ignored += 1
        if callback.unknown and callback.reason not in self._unknown and len(self._unknown) < MAX_UNKNOWN:
            self._unknown.add(callback.reason)
            log.warning("trtc.callback_unknown", reason=callback.reason)

    def note(self) -> None:
        """Count one."""
        self._taken += 1
        now_s = time.monotonic()
        if now_s >= self._next_log_s:
            log.info("trtc.callbacks_taken", callbacks=self._taken, ignored=self._ignored)
            self._taken, self._ignored, self._next_log_s = 0, 0, now_s + LOG_EVERY_S


def _check_age(api: dependencies.Api, fields: dict[str, Any]) -> None:
    """Compare CallbackTs, the time of sending, with the clock, in both directions because of clock skew. A retry by TRTC has a
    new time; the last one is sent after a minute. Raises InvalidParameter, Unauthorized."""
    sent_ms = reader.number(fields.get("CallbackTs"))
    if isinstance(sent_ms, bool) or not isinstance(sent_ms, int):
        raise errors.InvalidParameter("CallbackTs must be an integer.", field="CallbackTs")
    age_ms = api.clock() - sent_ms
    if api.callback_window_ms and abs(age_ms) > api.callback_window_ms:
        log.warning("trtc.callback_stale", age_s=age_ms // 1000)
        raise errors.Unauthorized(STALE)


def _sdk_app_id(header: str) -> int:
    """The application in the header; 0, which no application has, for a malformed one."""
    number = int(header) if header.isascii() and header.isdigit() and len(header) <= len(str(MAX_SDK_APP_ID)) else 0
    return number if number <= MAX_SDK_APP_ID else 0


def _event(api: dependencies.Api, mapped: trtc_callback.CallbackEvent) -> codec.Event:
    """The event, with the fields of the callback that its schema has, and checked by it. Raises InvalidEvent."""
    structlog.contextvars.bind_contextvars(event_id=mapped.id, event_type=mapped.type)
    names = codec.schemas()["$defs"].get(mapped.type, {}).get("properties", {})
    data = {name: value for name, value in mapped.data.items() if name in names and value is not None}
    return codec.Event(id=mapped.id, type=mapped.type, time_ms=api.clock(), data=codec.check(mapped.type, data))
