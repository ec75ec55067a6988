"""Verification of a Tencent Cloud API request's signature: TC3-HMAC-SHA256.

Rule: it verifies the bytes that arrived; a request that is too old is reported so only if its signature matches. Source: Tencent
Cloud API 3.0, "Signature method v3":

    CanonicalRequest  method, path, query, signed headers (`name:value`, lower case, each with a newline), their names, and the
                      SHA-256 of the body – joined by newlines
    StringToSign      "TC3-HMAC-SHA256", timestamp, `date/service/tc3_request`, SHA-256 of CanonicalRequest – joined by newlines
    Signature         HMAC-SHA256 with a key derived from "TC3" + SecretKey by date, service and "tc3_request"; hexadecimal
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from simulator.cos import signature

ALGORITHM = "TC3-HMAC-SHA256"
AGE_S = 300
UNSIGNED = "UNSIGNED-PAYLOAD"
_AUTHORIZATION = re.compile(
    rf"{ALGORITHM} Credential=([^/,\s]+)/(\d{{4}}-\d\d-\d\d)/(\w+)/tc3_request,"
    r" *SignedHeaders=([\w;-]+), *Signature=([0-9a-f]{64})"
)


class Refused(Exception):
    """The API refuses a request: Tencent's code and a message in English."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """The signed data of a request. Header names in lower case, values unchanged."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


def parse(method: str, raw_path: str, headers: Mapping[str, str], body: bytes) -> Signed:
    """Take a request apart; `raw_path` is the target of the request line."""
    path, _, query = raw_path.partition("?")
    lower = {name.lower(): value for name, value in headers.items()}
    return Signed(method=method, path=path, query=query, headers=lower, body=body)


def verify(signed: Signed, accounts: Mapping[str, signature.Account], now_s: float, *, service: str) -> signature.Account:
    """The account that signed this request. Raises Refused (AuthFailure.…) in Tencent's words."""
    match = _AUTHORIZATION.fullmatch(signed.headers.get("authorization", "").strip())
    if match is None:
        raise Refused("AuthFailure.InvalidAuthorization", "The header Authorization is missing or not of TC3-HMAC-SHA256.")
    secret_id, date, named_service, names, given = match.groups()
    account = accounts.get(secret_id)
    if account is None:
        raise Refused("AuthFailure.SecretIdNotFound", "The SecretId is not found, please ensure that your SecretId is correct.")
    timestamp = signed.headers.get("x-tc-timestamp", "")
    if not timestamp.isdecimal() or date != _date(int(timestamp)) or named_service != service:
        raise _wrong("The date, the service or X-TC-Timestamp does not fit the request.")
    if not {"content-type", "host"} <= set(names.split(";")):
        raise _wrong("content-type and host must be signed.")
    if not hmac.compare_digest(sign(signed, account.secret_key, date, service, names), given):
        raise _wrong("Please check your SecretKey and what is signed.")
    _check_age(int(timestamp), account, now_s)
    if account.token and not hmac.compare_digest(signed.headers.get("x-tc-token", "").encode(), account.token.encode()):
        raise Refused("AuthFailure.TokenFailure", "The token does not belong to this SecretId.")
    return account


def sign(signed: Signed, secret_key: str, date: str, service: str, names: str) -> str:
    """The signature of a request whose signed headers are `names`, joined by `;`."""
    listed = "".join(f"{name}:{signed.headers.get(name, '').strip().lower()}\n" for name in names.split(";"))
    unsigned = signed.headers.get("x-tc-content-sha256") == UNSIGNED
    payload = hashlib.sha256(UNSIGNED.encode() if unsigned else signed.body).hexdigest()
    request = "\n".join([signed.method, signed.path, signed.query, listed, names, payload])
    scope = f"{date}/{service}/tc3_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join([ALGORITHM, signed.headers.get("x-tc-timestamp", ""), scope, digest])
    key = f"TC3{secret_key}".encode()
    for step in (date, service, "tc3_request"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _check_age(timestamp_s: int, account: signature.Account, now_s: float) -> None:
    if abs(now_s - timestamp_s) > AGE_S:
        message = f"The difference between X-TC-Timestamp and the server's time is larger than {AGE_S} seconds."
        raise Refused("AuthFailure.SignatureExpire", message)
    if account.expires_s is not None and now_s >= account.expires_s:
        raise Refused("AuthFailure.TokenFailure", "The token has expired.")


def _date(timestamp_s: int) -> str:
    return datetime.fromtimestamp(min(timestamp_s, 2**33), UTC).strftime("%Y-%m-%d")


def _wrong(why: str) -> Refused:
    return Refused("AuthFailure.SignatureFailure", f"The provided credentials could not be validated. {why}")
