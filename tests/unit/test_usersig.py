"""UserSig: generated ones have Tencent's format, and the reader of the expiry survives any text."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import zlib

import pytest
import TLSSigAPIv2

from machine import errors
from tencent import usersig

APP = 1400000001
KEY = "5bd2850fff3ecb11d7c805251c51ee463a25727bddc2385f3fa8bfee1bb93b5e"


def claims_of(sig: str) -> dict[str, object]:
    packed = base64.b64decode(sig.translate(str.maketrans("*-_", "+/=")))
    claims: dict[str, object] = json.loads(zlib.decompress(packed))
    return claims


def packed(claims: object) -> str:
    raw = zlib.compress(json.dumps(claims).encode())
    return base64.b64encode(raw).decode().translate(str.maketrans("+/=", "*-_"))


def test_minted_sig_is_signed_with_the_key() -> None:
    """The signature inside is Tencent's HMAC over user, application, time and lifetime."""
    claims = claims_of(usersig.mint(APP, KEY, "recorder_1", 3600))
    signed = f"TLS.identifier:recorder_1\nTLS.sdkappid:{APP}\nTLS.time:{claims['TLS.time']}\nTLS.expire:{claims['TLS.expire']}\n"
    expected = hmac.new(KEY.encode(), signed.encode(), hashlib.sha256).digest()
    assert claims["TLS.sig"] == base64.b64encode(expected).decode()
    assert (claims["TLS.identifier"], claims["TLS.sdkappid"], claims["TLS.expire"]) == ("recorder_1", APP, 3600)


def test_remaining_time_is_read_back() -> None:
    """A UserSig made for an hour expires in an hour, and has expired after two."""
    now_s = int(time.time())
    sig = usersig.mint(APP, KEY, "recorder_1", 3600)
    remaining = usersig.remaining_s(sig, now_s)
    assert remaining is not None
    assert 3595 <= remaining <= 3605
    late = usersig.remaining_s(sig, now_s + 7200)
    assert late is not None
    assert late < 0


@pytest.mark.parametrize("ahead_s", [-90_000, 0, 3_600])
def test_the_clock_of_a_minted_sig(ahead_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is that of the given clock, and not of the machine."""
    monkeypatch.setattr(TLSSigAPIv2, "time", TLSSigAPIv2.time)
    now_s = int(time.time()) + ahead_s
    usersig.mint_by(lambda: now_s * 1000 + 7)
    assert claims_of(usersig.mint(APP, KEY, "recorder_1", 3600))["TLS.time"] == now_s


@pytest.mark.parametrize(
    "sig",
    [
        "",
        "not a sig",
        "eJw",
        "签名",
        "A" * 10_000,
        packed([]),
        packed(None),
        packed({"TLS.time": 1}),
        packed({"TLS.time": "1", "TLS.expire": 2}),
        packed("x" * 100_000),
        base64.b64encode(zlib.compress(b"[" * 10_000)).decode(),
    ],
)
def test_unreadable_sig_has_no_expiry(sig: str) -> None:
    """Text that is no UserSig, or decompresses without end, gives None and raises nothing."""
    assert usersig.expires_s(sig) is None
    assert usersig.remaining_s(sig, 0) is None


@pytest.mark.parametrize(("key", "user_id", "expire_s"), [("", "u", 1), (KEY, "", 1), (KEY, "u", 0)])
def test_unusable_arguments_are_refused(key: str, user_id: str, expire_s: int) -> None:
    """No key, no user or no lifetime is an error that does not repeat the key."""
    with pytest.raises(errors.InvalidParameter) as caught:
        usersig.mint(APP, key, user_id, expire_s)
    assert KEY not in caught.value.message
