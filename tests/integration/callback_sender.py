"""Callback sender: TRTC's event callbacks, signed as TRTC signs them, posted to a running service."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from tests.integration import api_service


def trtc(type_: int, **info: Any) -> dict[str, Any]:
    group = 1 if type_ < 200 else 2
    info = {"RoomId": 8489, "EventMsTs": api_service.now_ms(), "UserId": "alice"} | info
    return {"EventGroupId": group, "EventType": type_, "CallbackTs": api_service.now_ms(), "EventInfo": info}


def signed(raw: bytes, key: str = api_service.CALLBACK_KEY) -> dict[str, str]:
    sign = base64.b64encode(hmac.new(key.encode(), raw, hashlib.sha256).digest()).decode()
    return {"Sign": sign, "SdkAppId": str(api_service.SDK_APP_ID), "Content-Type": "application/json"}


async def deliver(
    service: api_service.Service, body: dict[str, Any], key: str = api_service.CALLBACK_KEY
) -> tuple[int, dict[str, Any]]:
    raw = json.dumps(body).encode()
    return await service.ask("POST", "/trtc/callbacks", data=raw, headers=signed(raw, key))
