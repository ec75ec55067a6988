"""Webhook sender: delivers a result to the callback URL that a publisher chose.

Rules: a connection goes to an allowed address or is not opened. The check is on the socket's numeric address, after resolving. No
redirect is followed, and no proxy, cookie or credential is used. A delivery ends after 10 s and 64 KB of response.
Source of headers, signature and schedule: the Standard Webhooks specification.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import socket
from collections.abc import AsyncIterator, Iterable

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver

from machine import errors, failpoints
from machine.reasons import Reason
from webhook import dns, ssrf, status_line, target_url

TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 1.0
# Shorter than many servers keep an idle connection (5 s and more).
KEPT_S = 4.0
MAX_RESPONSE_BYTES = 64 * 1024

_SECRET_PREFIX = "whsec_"  # noqa: S105 (the specification's prefix, not a secret)


def sign(secret: str, webhook_id: str, now_s: int, body: bytes) -> str:
    """The header `webhook-signature`: `v1,` + base64 of HMAC-SHA256 of "id.timestamp.body".

    `secret` is `whsec_` + base64 of the key, or the key as plain text. Raises errors.InvalidParameter(CALLBACK_SECRET).
    """
    signed = f"{webhook_id}.{now_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode("ascii")


class WebhookSender:
    """Sends one body to one URL per call, without state between calls.

    Without `secret` the requests are unsigned. `allow` lists hosts and CIDRs that may be reached although they are not public.
    `resolver` replaces the system's in tests. Raises errors.InvalidParameter for an unusable secret or allow-list.
    """

    def __init__(
        self,
        *,
        secret: str = "",
        allow: Iterable[str] = (),
        timeout_s: float = TIMEOUT_S,
        resolver: AbstractResolver | None = None,
    ) -> None:
        if secret:
            _key(secret)
        try:
            self._allowed = ssrf.allow_list(allow)
        except ValueError as error:
            raise errors.InvalidParameter(f"CALLBACK_ALLOW: {error}.", field="CALLBACK_ALLOW") from error
        self._secret = secret
        self._timeout_s = timeout_s
        self._resolver = resolver or dns.Resolver()
        self._checks = resolver or dns.Resolver(dns.CHECK_THREADS)

    def check(self, url: str) -> None:
        """Check a URL without resolving it. Raises errors.InvalidParameter(field="Callback") for an invalid URL and for a literal
        address that is not public. The address of a name is checked when the connection is opened."""
        target = target_url.parse(url)
        try:
            _Guard(target.raw_host or "", self._allowed).check_literal()
        except errors.DeliveryFailed as error:
            raise errors.InvalidParameter(f"Callback: {error.detail}", field="Callback") from None

    async def unreachable(self, url: str) -> str:
        """Look up the host of a URL that `check` accepts. Returns why no result could be posted there now, or "". Without a time
        limit."""
        host = target_url.parse(url).raw_host or ""
        if target_url.literal(host):
            return ""
        try:
            found = await self._checks.resolve(host, 0, socket.AF_UNSPEC)
        except OSError:
            found = []
        if not found:
            return "its host has no address in the DNS"
        rules = [ssrf.refusal(str(each["host"]), self._allowed, host) for each in found]
        if not all(rules):
            return ""
        return f"its host leads to an address that is not public ({rules[0]}) and not listed in CALLBACK_ALLOW"

    async def send(self, url: str, body: bytes, *, webhook_id: str, now_s: int) -> None:
        """POST `body` (JSON). `webhook_id` is the same in every retry, `now_s` is Unix seconds.

        Only a 2xx is success. Raises errors.DeliveryFailed with reason "status", "redirect", "timeout" or "network" (retry),
        "gone" (410), "private-address" or "bad-url" (no retry).
        """
        failpoints.hit("callback.send.before")
        status = await self.post(url, body, self._headers(webhook_id, now_s, body))
        failpoints.hit("callback.send.after")
        _check_status(status)

    @contextlib.asynccontextmanager
    async def kept(self, url: str, most: int) -> AsyncIterator[aiohttp.ClientSession]:
        """Connections to the host of a URL that `check` accepts, `most` at a time, which stay open between posts for a moment."""
        guard = _Guard(target_url.parse(url).raw_host or "", self._allowed)
        connector = aiohttp.TCPConnector(
            limit=most, keepalive_timeout=KEPT_S, use_dns_cache=False, resolver=self._resolver, socket_factory=guard.open_socket
        )
        async with _session(connector) as session:
            yield session

    async def post(self, url: str, body: bytes, headers: dict[str, str], kept: aiohttp.ClientSession | None = None) -> int:
        """POST `body` with these headers alone, over a `kept` connection if there is one; returns the status. Raises
        errors.DeliveryFailed as `send`, if there is none."""
        try:
            target = target_url.parse(url)
        except errors.InvalidParameter as error:
            raise errors.DeliveryFailed(error.message, reason=Reason.BAD_URL, retry=False) from error
        guard = _Guard(target.raw_host or "", self._allowed)
        guard.check_literal()
        waiting: list[str] = []
        dns.waiting.set(waiting)
        try:
            if kept is not None:
                try:
                    return await self._exchange(kept, target, body, headers)
                except TimeoutError:
                    raise
                except (aiohttp.ClientError, OSError, ValueError):
                    # A receiver may close a kept connection at any time. What a new one meets decides.
                    pass
            return await self._post(target, body, headers, guard)
        except TimeoutError as error:
            detail = f"The callback URL did not answer within {self._timeout_s:g} s."
            if waiting:
                detail = f"All lookups of names were busy for {self._timeout_s:g} s, so the callback URL was not tried."
            failed = errors.DeliveryFailed(detail, reason=Reason.TIMEOUT, retry=True)
            failed.tried = not waiting
            raise failed from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if guard.refused and not guard.opened:
                raise guard.failure() from None
            # Only the type: the text of these errors has addresses, and may have text of the server.
            detail = f"The callback URL could not be reached ({type(error).__name__})."
            raise errors.DeliveryFailed(detail, reason=Reason.NETWORK, retry=True) from error

    async def _post(self, target: yarl.URL, body: bytes, headers: dict[str, str], guard: _Guard) -> int:
        line = status_line.StatusLine()
        connector = status_line.Connector(
            line, force_close=True, use_dns_cache=False, resolver=self._resolver, socket_factory=guard.open_socket
        )
        try:
            async with _session(connector) as session:
                return await self._exchange(session, target, body, headers)
        except (aiohttp.ClientError, ValueError):
            # Headers that are too long, too many or malformed: the receiver has answered all the same.
            if line.status is None:
                raise
            return line.status

    async def _exchange(self, session: aiohttp.ClientSession, target: yarl.URL, body: bytes, headers: dict[str, str]) -> int:
        async with (
            asyncio.timeout(self._timeout_s),
            session.post(target, data=body, headers=headers, allow_redirects=False) as response,
        ):
            # The response body is unused. Reading some of it spares the server a reset connection. The status counts even if
            # the body never ends.
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    await response.content.readexactly(MAX_RESPONSE_BYTES)
            return response.status

    def _headers(self, webhook_id: str, now_s: int, body: bytes) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "recorder",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(now_s),
        }
        if self._secret:
            headers["webhook-signature"] = sign(self._secret, webhook_id, now_s, body)
        return headers


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)


class _Guard:
    """Opens the sockets of one delivery, for allowed addresses only. `refused` is the rule of the last refusal."""

    def __init__(self, host: str, allowed: ssrf.AllowList) -> None:
        self._host = host
        self._allowed = allowed
        self.refused = ""
        self.opened = False

    def check_literal(self) -> None:
        """Raise DeliveryFailed if the host is a literal address, in any notation, that is not allowed."""
        literal = target_url.literal(self._host)
        if not literal:
            return
        self.refused = ssrf.refusal(literal, self._allowed, self._host)
        if self.refused:
            raise self.failure()

    def open_socket(self, info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """Open a socket for aiohttp, which calls this for every address before it connects. Raises OSError for a refused one."""
        family, kind, protocol, _, address = info
        rule = ssrf.refusal(str(address[0]), self._allowed, self._host)
        if rule:
            self.refused = rule
            raise OSError(f"refused: {rule}")
        self.opened = True
        return socket.socket(family, kind, protocol)

    def failure(self) -> errors.DeliveryFailed:
        """The error of a refused delivery."""
        detail = (
            f"The callback URL leads to an address that is not public ({self.refused}). "
            "If this is intended, list its host or network in CALLBACK_ALLOW."
        )
        return errors.DeliveryFailed(detail, reason=Reason.PRIVATE_ADDRESS, retry=False)


def _check_status(status: int) -> None:
    if 200 <= status < 300:
        return
    if status == 410:
        detail = "The callback URL answered 410: it accepts no further results."
        raise errors.DeliveryFailed(detail, reason=Reason.GONE, retry=False)
    if 300 <= status < 400:
        detail = f"The callback URL answered {status}, a redirect. Redirects are not followed; give the final URL."
        raise errors.DeliveryFailed(detail, reason=Reason.REDIRECT, retry=True)
    raise errors.DeliveryFailed(f"The callback URL answered {status}.", reason=Reason.STATUS, retry=True)


def _key(secret: str) -> bytes:
    if not secret.startswith(_SECRET_PREFIX):
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:  # binascii.Error is one
        key = b""
    if not key:
        message = "CALLBACK_SECRET begins with whsec_, but base64 must follow."
        raise errors.InvalidParameter(message, field="CALLBACK_SECRET")
    return key
