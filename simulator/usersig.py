"""Parsing and verification of a UserSig, as TRTC does it with one made by TLSSigAPIv2.

Rule: with the application's key everything is verified. Without it only the readable content counts, since a simulator without
the key must not refuse everybody. Source: Tencent's tls-sig-api (zlib-packed JSON in base64 with `*-_` for `+/=`, HMAC-SHA256
over five lines).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import zlib
from typing import Any

OK, MISSING, INVALID, EXPIRED = "ok", "UserSig missing", "UserSig invalid", "UserSig expired"


def check(user_sig: str, *, sdk_app_id: int, user_id: str, key: str, now_s: float) -> str:
    """OK, MISSING, INVALID or EXPIRED. `key` "" = unknown: any signature that has not visibly expired is accepted."""
    if not user_sig:
        return MISSING
    fields = _fields(user_sig)
    if not key and not fields:
        return OK
    if key and not _genuine(fields, sdk_app_id, user_id, key):
        return INVALID
    return EXPIRED if fields.get("TLS.time", 0) + fields.get("TLS.expire", 0) <= now_s else OK


def _fields(user_sig: str) -> dict[str, Any]:
    try:
        packed = base64.b64decode(user_sig.translate(str.maketrans("*-_", "+/=")), validate=True)
        fields = json.loads(zlib.decompress(packed))
    except (binascii.Error, zlib.error, ValueError):
        return {}
    numbers = isinstance(fields, dict) and all(isinstance(fields.get(f"TLS.{n}"), int) for n in ("time", "expire"))
    return fields if numbers else {}


def _genuine(fields: dict[str, Any], sdk_app_id: int, user_id: str, key: str) -> bool:
    if fields.get("TLS.sdkappid") != sdk_app_id or fields.get("TLS.identifier") != user_id:
        return False
    lines = [f"TLS.{name}:{fields[f'TLS.{name}']}" for name in ("identifier", "sdkappid", "time", "expire")]
    if "TLS.userbuf" in fields:
        lines.append(f"TLS.userbuf:{fields['TLS.userbuf']}")
    text = "".join(f"{line}\n" for line in lines)
    expected = base64.b64encode(hmac.new(key.encode(), text.encode(), hashlib.sha256).digest())
    return hmac.compare_digest(expected, str(fields.get("TLS.sig", "")).encode())
