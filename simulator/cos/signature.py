"""Verification of a COS request's signature, in its Authorization header or in the query of a presigned URL.

Rule: it verifies the bytes that arrived: the names in `q-header-list` and `q-url-param-list`, and the received values. Source:
COS docs "Request Signature" (XML API, document 436/7778):

    SignKey       HMAC-SHA1(SecretKey, q-key-time), hexadecimal
    FormatString  method in lower case, decoded path, parameters, headers – each with a newline
    StringToSign  "sha1", q-sign-time, SHA1(FormatString) – each with a newline
    Signature     HMAC-SHA1(SignKey, StringToSign), hexadecimal
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from simulator.cos import responses

TOKEN = "x-cos-security-token"  # noqa: S105 - the name of a header


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A pair of keys that COS knows; with `token` they are temporary and every request must bring it along.

    `expires_s` is the Unix time at which a temporary key ends (None = never).
    """

    secret_id: str
    secret_key: str
    token: str = ""
    expires_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """The signed data of a request. Header names in lower case; parameters in received order, decoded."""

    method: str
    path: bytes
    parameters: Sequence[tuple[str, str]]
    headers: Mapping[str, str]


def parse(method: str, raw_path: str, headers: Mapping[str, str]) -> Signed:
    """Take a request apart: only this method decodes the raw target of the request line."""
    path, _, query = raw_path.partition("?")
    parameters = parse_qsl(query, keep_blank_values=True)
    lower = {name.lower(): value for name, value in headers.items()}
    return Signed(method=method, path=unquote_to_bytes(path), parameters=parameters, headers=lower)


def verify(signed: Signed, accounts: Mapping[str, Account], now_s: float) -> Account:
    """The account that signed this request. Raises answers.Refused (403) in COS's words."""
    fields = _fields(signed)
    account = accounts.get(fields["q-ak"])
    if account is None:
        raise responses.Refused(403, "InvalidAccessKeyId", "The Access Key Id you provided does not exist in our records")
    if not hmac.compare_digest(sign(signed, account.secret_key, fields), fields["q-signature"]):
        raise responses.Refused(
            403, "SignatureDoesNotMatch", "The Signature you specified is invalid. Please check your key and signature."
        )
    _check_time(fields, now_s)
    _check_token(signed, account, now_s)
    return account


def sign(signed: Signed, secret_key: str, fields: Mapping[str, str]) -> str:
    """The signature that `fields` (times, header list, parameter list) must carry for this request."""
    sign_key = _hmac(secret_key, fields["q-key-time"])
    query = {name.lower(): value for name, value in signed.parameters}
    parts = [
        signed.method.lower().encode(),
        signed.path,
        _listed(fields["q-url-param-list"], query),
        _listed(fields["q-header-list"], signed.headers),
        b"",
    ]
    digest = hashlib.sha1(b"\n".join(parts), usedforsecurity=False).hexdigest()
    return _hmac(sign_key, f"sha1\n{fields['q-sign-time']}\n{digest}\n")


def _fields(signed: Signed) -> dict[str, str]:
    authorization = signed.headers.get("authorization", "")
    pairs = [part.partition("=") for part in authorization.split("&")] if authorization else []
    found = {name.strip(): value.strip() for name, _, value in pairs} if pairs else dict(signed.parameters)
    fields = {name: value for name, value in found.items() if name.startswith("q-")}
    if not fields:
        raise responses.Refused(403, "AccessDenied", "Access Denied.")
    needed = ("q-ak", "q-sign-time", "q-key-time", "q-header-list", "q-url-param-list", "q-signature")
    if fields.get("q-sign-algorithm") != "sha1" or not all(name in fields for name in needed):
        raise responses.Refused(400, "InvalidArgument", "The authorization is incomplete.")
    return fields


def _listed(names: str, values: Mapping[str, str]) -> bytes:
    """The `a=1&b=2` of the names in a list; a name that the request lacks makes the signature wrong, as it must."""
    decoded = [unquote_to_bytes(name).decode(errors="replace") for name in names.split(";") if name]
    pairs = [(_encode(name).lower(), _encode(values.get(name.lower(), "\0missing"))) for name in decoded]
    return "&".join(f"{name}={value}" for name, value in sorted(pairs)).encode()


def _encode(text: str) -> str:
    return quote(text.encode(errors="surrogateescape"), safe="-_.~")


def _check_time(fields: Mapping[str, str], now_s: float) -> None:
    begin, _, end = fields["q-sign-time"].partition(";")
    if not (begin.isdecimal() and end.isdecimal()):
        raise responses.Refused(400, "InvalidArgument", "q-sign-time is not two times.")
    if now_s >= int(end):
        raise responses.Refused(403, "AccessDenied", "Request has expired")
    if now_s < int(begin) - 900:
        raise responses.Refused(403, "RequestTimeTooSkewed", "The difference between the request time and now is too large.")


def _check_token(signed: Signed, account: Account, now_s: float) -> None:
    if account.token:
        token = signed.headers.get(TOKEN) or dict(signed.parameters).get(TOKEN, "")
        if not hmac.compare_digest(token.encode(), account.token.encode()):
            raise responses.Refused(403, "InvalidAccessKeyId", "The security token does not belong to this key.")
    if account.expires_s is not None and now_s >= account.expires_s:
        raise responses.Refused(403, "ExpiredToken", "The security token has expired.")


def _hmac(key: str, text: str) -> str:
    return hmac.new(key.encode(), text.encode(), hashlib.sha1).hexdigest()
