"""The endpoint that TRTC posts its event callbacks to. May import `machine` and `events`.

Rule: nothing of a callback is parsed, and nothing done, before its signature was verified on the raw bytes.
Source: TRTC's event callbacks: headers `SdkAppId` and `Sign`, an answer of `{"code": 0}` within 5 s, else it comes again.
"""

from __future__ import annotations

from typing import Any

import fastapi
import structlog

from events import codec
from machine import errors
from web import answers, bodies, given, openapi

MAX_SDK_APP_ID = 2**32 - 1
FORGED = (
    "The signature does not hold: the header Sign is not the HMAC-SHA256 of the body under the key that TRTC_CALLBACK_KEYS has"
    " for the application in the header SdkAppId."
)


def router(api: given.Api) -> fastapi.APIRouter:
    """The route, for one service."""
    routes = fastapi.APIRouter(prefix="/trtc", tags=["TRTC"])

    @routes.post("/callbacks", summary="TRTC's event callbacks", **openapi.callback())
    async def callback(request: fastapi.Request) -> fastapi.Response:
        body = await bodies.raw(request)
        sdk_app_id = _sdk_app_id(request.headers.get("sdkappid", ""))
        if not api.verify_callback(sdk_app_id, body, request.headers.get("sign", "")):
            raise errors.Unauthorized(FORGED)
        structlog.contextvars.bind_contextvars(sdk_app_id=sdk_app_id)
        mapped = api.map_callback(sdk_app_id, bodies.parse(body))
        if isinstance(mapped, given.Ignored):
            structlog.contextvars.bind_contextvars(ignored=mapped.reason)
        else:
            await api.decide(bodies.event(api, mapped.type, id=mapped.id, data=_known(mapped)))
        return answers.ok(request, {"code": 0})

    return routes


def _sdk_app_id(header: str) -> int:
    """0 for what cannot be one: no application has it, so no signature holds for it."""
    number = int(header) if header.isascii() and header.isdigit() and len(header) <= len(str(MAX_SDK_APP_ID)) else 0
    return number if number <= MAX_SDK_APP_ID else 0


def _known(mapped: given.Understood) -> dict[str, Any]:
    """The fields that the event's schema has, of all that the callback said."""
    names = codec.schemas()["$defs"].get(mapped.type, {}).get("properties", {})
    return {name: value for name, value in mapped.data.items() if name in names and value is not None}
