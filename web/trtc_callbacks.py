"""The endpoint that TRTC posts its event callbacks to. May import `machine` and `events`.

Rules: nothing of a callback is parsed, and nothing done, before its signature was verified on the raw bytes; what could not be
signed rightly anyway is refused before its body is read. A signature is good for ever, so a callback is taken only while it is
young: who has recorded an old one cannot play it again.
Source: TRTC's event callbacks: headers `SdkAppId` and `Sign`, an answer of `{"code": 0}` within 5 s, else it comes again.
"""

from __future__ import annotations

from typing import Any

import fastapi
import structlog

from events import codec
from machine import errors, trtc_callback
from web import dependencies, models, openapi, request_body, responses

MAX_SDK_APP_ID = 2**32 - 1
SIGN_LENGTH = 44  # base64 of 32 bytes
STALE = (
    "The callback is genuine, but was sent longer ago than TRTC_CALLBACK_WINDOW, or will be sent: is the clock of this machine"
    " right?"
)

log = structlog.get_logger()
FORGED = (
    "The signature does not hold: the header Sign is not the HMAC-SHA256 of the body under the key that TRTC_CALLBACK_KEYS has"
    " for the application in the header SdkAppId."
)


def router(api: dependencies.Api) -> fastapi.APIRouter:
    """The route, for one service."""
    routes = fastapi.APIRouter(prefix="/trtc", tags=["TRTC"])

    @routes.post(
        "/callbacks",
        summary="TRTC's event callbacks",
        response_model=models.TakenBody,
        response_description="Taken.",
        responses=openapi.failures(400, 401, 408, 413, 503, anywhere=(500,)),
        openapi_extra=openapi.trtc_callback(),
    )
    async def callback(request: fastapi.Request) -> fastapi.Response:
        sdk_app_id, sign = _sdk_app_id(request.headers.get("sdkappid", "")), request.headers.get("sign", "")
        if not api.knows_callbacks(sdk_app_id) or len(sign.strip()) != SIGN_LENGTH:
            raise errors.Unauthorized(FORGED)
        body = await request_body.raw(request)
        if not api.verify_callback(sdk_app_id, body, sign):
            raise errors.Unauthorized(FORGED)
        structlog.contextvars.bind_contextvars(sdk_app_id=sdk_app_id)
        said = request_body.parse(body)
        _check_age(api, said)
        mapped = api.map_callback(sdk_app_id, said)
        if isinstance(mapped, trtc_callback.IgnoredCallback):
            structlog.contextvars.bind_contextvars(ignored=mapped.reason)
        else:
            await api.decide(request_body.event(api, mapped.type, id=mapped.id, data=_known(mapped)), None)
        return responses.ok(request, {"code": 0})

    return routes


def _check_age(api: dependencies.Api, said: dict[str, Any]) -> None:
    """CallbackTs is when TRTC sent it (a retry of TRTC is sent anew; the last comes after a minute). Raises InvalidParameter,
    Unauthorized. The window is open to both sides, for clocks that are not the same."""
    sent_ms = said.get("CallbackTs")
    if isinstance(sent_ms, bool) or not isinstance(sent_ms, int):
        raise errors.InvalidParameter("CallbackTs must be an integer.", field="CallbackTs")
    age_ms = api.clock() - sent_ms
    if api.callback_window_ms and abs(age_ms) > api.callback_window_ms:
        log.warning("trtc.callback_stale", age_s=age_ms // 1000)
        raise errors.Unauthorized(STALE)


def _sdk_app_id(header: str) -> int:
    """0 for what cannot be one: no application has it, so no signature holds for it."""
    number = int(header) if header.isascii() and header.isdigit() and len(header) <= len(str(MAX_SDK_APP_ID)) else 0
    return number if number <= MAX_SDK_APP_ID else 0


def _known(mapped: trtc_callback.CallbackEvent) -> dict[str, Any]:
    """The fields that the event's schema has, of all that the callback said."""
    names = codec.schemas()["$defs"].get(mapped.type, {}).get("properties", {})
    return {name: value for name, value in mapped.data.items() if name in names and value is not None}
