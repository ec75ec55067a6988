"""TRTC's UserSig: generated with an application's key, and read (not verified) for its expiry.

Rules: a UserSig is a secret that no message contains; the reader accepts any text. Source: the package tls-sig-api-v2, whose only
format this is (zlib-packed JSON in a URL-safe alphabet).
"""

from __future__ import annotations

import base64
import binascii
import json
import types
import zlib
from collections.abc import Callable

import TLSSigAPIv2

from machine import errors

_MAX_CHARS = 8192
_MAX_UNPACKED_BYTES = 16384


def mint(sdk_app_id: int, key: str, user_id: str, expire_s: int) -> str:
    """A UserSig for `user_id`, valid for `expire_s` seconds from now. Raises errors.InvalidParameter for an unusable argument."""
    if not key:
        raise errors.InvalidParameter("The application's key is empty, so no UserSig can be minted.", field="UserSig")
    if not user_id:
        raise errors.InvalidParameter("UserId is empty.", field="UserId")
    if expire_s <= 0:
        raise errors.InvalidParameter("A UserSig must be valid for at least one second.", field="UserSig")
    return str(TLSSigAPIv2.TLSSigAPIv2(sdk_app_id, key).gen_sig(user_id, expire_s))


def mint_by(clock: Callable[[], int]) -> None:
    """Mint by this clock (Unix ms) and not by the machine's: TRTC refuses a UserSig whose lifetime is over, and a machine may be
    days behind until its clock is set. The package has no parameter for it."""
    TLSSigAPIv2.time = types.SimpleNamespace(time=lambda: clock() / 1000)


def expires_s(user_sig: str) -> int | None:
    """The expiry that this UserSig states, in Unix seconds; None if it cannot be parsed."""
    if not 0 < len(user_sig) <= _MAX_CHARS or not user_sig.isascii():
        return None
    try:
        packed = base64.b64decode(user_sig.translate(_TO_BASE64), validate=True)
        claims = json.loads(zlib.decompressobj().decompress(packed, _MAX_UNPACKED_BYTES))
        issued, lifetime = claims["TLS.time"], claims["TLS.expire"]
    except (binascii.Error, zlib.error, ValueError, KeyError, TypeError, RecursionError):
        return None
    if isinstance(issued, int) and isinstance(lifetime, int):
        return issued + lifetime
    return None


def remaining_s(user_sig: str, now_s: int) -> int | None:
    """Seconds until this UserSig expires (negative: since then); None if it cannot be parsed."""
    expires = expires_s(user_sig)
    return None if expires is None else expires - now_s


_TO_BASE64 = str.maketrans("*-_", "+/=")
