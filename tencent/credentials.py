"""Tencent Cloud credentials: the caller's own, or the first pair from the credential chain.

Rules: no `repr`, message or log field contains a secret; the environment arrives as a mapping, and every address is an argument.
Order of the chain: explicit → SCF → environment → profile → CVM role → TKE. Sources: SCF's page on execution roles (its variable
names differ from the SDK's), and the SDK's `credential.py` (profile, CVM metadata, TKE by AssumeRoleWithWebIdentity), which
misses SCF and queries the metadata without a time limit.
"""

from __future__ import annotations

import asyncio
import configparser
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import structlog
from tencentcloud.common import common_client
from tencentcloud.common.exception import tencent_cloud_sdk_exception
from tencentcloud.common.profile import client_profile, http_profile

from machine import errors

log = structlog.get_logger()

METADATA_URL = "http://metadata.tencentyun.com/latest/meta-data"
STS_ENDPOINT = ("https", "sts.tencentcloudapi.com")
# The service is on the same machine. A start, which waits 2 s for all its checks, is to learn that there is no role.
METADATA_TIMEOUT_S = 1.0
STS_TIMEOUT_S = 10
STS_DURATION_S = 7200
RENEW_BEFORE_MS = 60_000
# A search without a result holds for this long. Otherwise each start without keys waits for the metadata, one after the other.
MISSING_FOR_MS = 5_000

_MAX_ANSWER_BYTES = 64 * 1024
_SECRET = re.compile(r"[\x21-\x7e]+")  # other characters cannot travel in a header, and the header's error would print them
_PLACES = (
    "CosConfig.SecretId and SecretKey",
    "TENCENTCLOUD_SECRETID and TENCENTCLOUD_SECRETKEY (SCF)",
    "TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY",
    "the profile ~/.tencentcloud/credentials",
    "the role of this CVM",
    "the TKE_… variables",
)


class NoCredentials(errors.InvalidParameter):
    """No credentials for Tencent Cloud were found; give CosConfig.SecretId and SecretKey, or run with a role."""

    retry = True  # for a job: a role may be bound a moment later

    def __init__(self, looked_at: Sequence[str], *, temporary: bool) -> None:
        message = f"{(type(self).__doc__ or '').strip()} Looked at: {'; '.join(looked_at)}."
        super().__init__(message, field="CosConfig.SecretId")
        self.looked_at = tuple(looked_at)
        # Whether a role exists and its service fails at the moment.
        self.temporary = temporary


class _Down(str):
    """Why a role's service gave no credentials now, although there is a role."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A key pair, with the session token of a temporary pair (else ""). `expires_ms` is Unix milliseconds, None if unknown or
    never. `source` is explicit, scf, environment, profile, cvm-role or tke."""

    secret_id: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)
    expires_ms: int | None = None
    source: str = "explicit"

    def __post_init__(self) -> None:
        for name, value in (("SecretId", self.secret_id), ("SecretKey", self.secret_key), ("Token", self.token or "-")):
            if not _SECRET.fullmatch(value):
                message = f"{name} is empty or holds characters that no key has."
                raise errors.InvalidParameter(message, field=f"CosConfig.{name}")


class CredentialChain:
    """Finds credentials, and caches temporary ones until 60 s before they expire.

    `environment` is a mapping of the process's variables, `clock` Unix milliseconds. `home` is the folder of `.tencentcloud`
    (default: HOME of the environment). `metadata_url` and `sts_endpoint` (scheme, host[:port]) are for tests.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        clock: Callable[[], int],
        home: Path | None = None,
        system_profile: Path = Path("/etc/tencentcloud/credentials"),
        metadata_url: str = METADATA_URL,
        sts_endpoint: tuple[str, str] = STS_ENDPOINT,
    ) -> None:
        self._environment = environment
        self._clock = clock
        self._home = home or (Path(environment["HOME"]) if environment.get("HOME") else None)
        self._system_profile = system_profile
        self._metadata_url = metadata_url.rstrip("/")
        self._sts_endpoint = sts_endpoint
        self._searching: asyncio.Task[Credentials] | None = None
        self._cached: Credentials | None = None
        self._missing: tuple[int, NoCredentials] | None = None
        # Sources that gave credentials before.
        self._found: set[str] = set()

    async def resolve(self, given: Mapping[str, Any] | None = None) -> Credentials:
        """The caller's own credentials if `given` (such as CosConfig) has a SecretId, else the first pair that the chain finds.

        Raises NoCredentials, whose message names every place and its result, and InvalidParameter for a broken key. A role that
        gave credentials before, or is configured, and whose service fails, is `temporary`.
        """
        if given and given.get("SecretId"):
            return Credentials(secret_id=given["SecretId"], secret_key=given["SecretKey"], token=given.get("Token") or "")
        if self._cached is not None and self._is_fresh(self._cached):
            return self._cached
        if self._missing is not None and 0 <= self._clock() - self._missing[0] < MISSING_FOR_MS:
            before = self._missing[1]
            raise NoCredentials(before.looked_at, temporary=before.temporary)
        if self._searching is None or self._searching.done():
            self._searching = asyncio.create_task(self._search())
            self._searching.add_done_callback(_retrieve)
        # One search for all who wait, and none of them ends it by giving up: its threads could not be cancelled anyway.
        return await asyncio.shield(self._searching)

    def forget(self) -> None:
        """Drop the cached pair after the server refused it as expired."""
        self._cached = self._missing = None

    def _is_fresh(self, credentials: Credentials) -> bool:
        return credentials.expires_ms is not None and credentials.expires_ms - self._clock() > RENEW_BEFORE_MS

    async def _search(self) -> Credentials:
        looked_at, temporary = [f"{_PLACES[0]}: not given"], False
        searches = (self._from_scf, self._from_environment, self._from_profile, self._from_cvm_role, self._from_tke)
        for place, search in zip(_PLACES[1:], searches, strict=True):
            found = await search()
            if isinstance(found, Credentials):
                log.info("credentials.found", source=found.source, expires_ms=found.expires_ms)
                self._found.add(found.source)
                # Here, because those who wait may have given up.
                self._cached = found
                return found
            temporary = temporary or isinstance(found, _Down)
            looked_at.append(f"{place}: {found}")
        missing = NoCredentials(looked_at, temporary=temporary)
        self._missing = (self._clock(), missing)
        raise missing

    async def _from_scf(self) -> Credentials | str:
        return self._from_variables("TENCENTCLOUD_SECRETID", "TENCENTCLOUD_SECRETKEY", "TENCENTCLOUD_SESSIONTOKEN", "scf")

    async def _from_environment(self) -> Credentials | str:
        return self._from_variables("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY", "", "environment")

    def _from_variables(self, secret_id: str, secret_key: str, token: str, source: str) -> Credentials | str:
        return _usable(self._environment.get(secret_id), self._environment.get(secret_key), self._environment.get(token), source)

    async def _from_profile(self) -> Credentials | str:
        return await asyncio.to_thread(self._read_profile)

    def _read_profile(self) -> Credentials | str:
        places = [self._home / ".tencentcloud" / "credentials"] if self._home else []
        path = next((one for one in (*places, self._system_profile) if one.is_file()), None)
        if path is None:
            return "no such file"
        parser = configparser.RawConfigParser()  # no interpolation: a key may hold "%"
        try:
            parser.read_string(path.read_text("utf-8"))
            section = dict(parser["default"])
        except (OSError, UnicodeDecodeError, configparser.Error, KeyError) as error:
            return f"{path} is not readable as a profile ({type(error).__name__})"
        return _usable(section.get("secret_id", "").strip(), section.get("secret_key", "").strip(), None, "profile")

    async def _from_cvm_role(self) -> Credentials | str:
        folder = f"{self._metadata_url}/cam/security-credentials/"
        try:
            async with asyncio.timeout(METADATA_TIMEOUT_S), aiohttp.ClientSession() as session:
                role = (await _get(session, folder)).decode("utf-8").strip()
                answer = json.loads(await _get(session, folder + quote(role, safe=""))) if role else {}
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            # Outside of Tencent Cloud nothing answers under the metadata's name.
            exists = isinstance(error, aiohttp.ClientResponseError) or "cvm-role" in self._found
            reason = f"the metadata service did not answer ({type(error).__name__})"
            return _Down(reason) if exists else reason
        if not isinstance(answer, dict) or answer.get("Code") != "Success":
            return "no role is bound to it"
        return _usable_temporary(answer, answer.get("ExpiredTime"), "cvm-role")

    async def _from_tke(self) -> Credentials | str:
        names = ("TKE_REGION", "TKE_PROVIDER_ID", "TKE_WEB_IDENTITY_TOKEN_FILE", "TKE_ROLE_ARN")
        missing = [name for name in names if not self._environment.get(name)]
        if missing:
            return "not set: " + ", ".join(missing)
        try:
            response = await asyncio.to_thread(self._assume_role)
            refused = response.get("Error")  # the SDK raises for it only with the exact Content-Type application/json
        except OSError as error:
            return _Down(f"TKE_WEB_IDENTITY_TOKEN_FILE cannot be read ({type(error).__name__})")
        except tencent_cloud_sdk_exception.TencentCloudSDKException as error:
            return _refusal(error.get_code(), error.get_request_id())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return _Down("the answer of STS was not understood")  # the SDK uses it without a check
        if isinstance(refused, Mapping):
            return _refusal(refused.get("Code"), response.get("RequestId"))
        return _usable_temporary(response.get("Credentials"), response.get("ExpiredTime"), "tke")

    def _assume_role(self) -> Mapping[str, object]:
        """AssumeRoleWithWebIdentity like the SDK's OIDCRoleArnCredential, but from our mapping and to our endpoint."""
        logging.getLogger("tencentcloud_sdk_common").setLevel(logging.CRITICAL)  # at DEBUG it logs the whole response
        scheme, endpoint = self._sts_endpoint
        profile = client_profile.ClientProfile(
            httpProfile=http_profile.HttpProfile(protocol=scheme, endpoint=endpoint, reqTimeout=STS_TIMEOUT_S)
        )
        client = common_client.CommonClient("sts", "2018-08-13", None, self._environment["TKE_REGION"], profile)
        parameters = {
            "ProviderId": self._environment["TKE_PROVIDER_ID"],
            "WebIdentityToken": Path(self._environment["TKE_WEB_IDENTITY_TOKEN_FILE"]).read_text("utf-8"),
            "RoleArn": self._environment["TKE_ROLE_ARN"],
            "RoleSessionName": f"recorder-{self._clock()}",
            "DurationSeconds": STS_DURATION_S,
        }
        answer = client.call_json("AssumeRoleWithWebIdentity", parameters, options={"SkipSign": True})
        response: Mapping[str, object] = answer["Response"]
        return response


def _retrieve(search: asyncio.Task[Credentials]) -> None:
    """Mark the error as seen: nobody may be waiting any more."""
    if not search.cancelled():
        search.exception()


async def _get(session: aiohttp.ClientSession, address: str) -> bytes:
    async with session.get(address, allow_redirects=False) as response:
        if response.status != 200:
            if response.status >= 500:
                response.raise_for_status()
            return b""
        return await response.content.read(_MAX_ANSWER_BYTES)


def _refusal(code: object, request_id: object) -> str:
    """Why STS gave no credentials. Faults of the network and of STS itself pass."""
    reason = f"STS refused: {code} (request {request_id})"
    passing = ("ClientNetworkError", "ServerNetworkError", "InternalError", "RequestLimitExceeded", "ResourceUnavailable")
    return _Down(reason) if str(code).startswith(passing) else reason


def _usable(
    secret_id: object, secret_key: object, token: object, source: str, expires_ms: int | None = None
) -> Credentials | str:
    if not isinstance(secret_id, str) or not isinstance(secret_key, str) or not secret_id or not secret_key:
        return "not set"
    try:
        return Credentials(
            secret_id=secret_id,
            secret_key=secret_key,
            token=token if isinstance(token, str) else "",
            expires_ms=expires_ms,
            source=source,
        )
    except errors.InvalidParameter as error:
        return error.message


def _usable_temporary(answer: object, expired_s: object, source: str) -> Credentials | str:
    """Credentials from Tencent's TmpSecretId, TmpSecretKey and Token, with their expiry in Unix seconds."""
    if not isinstance(answer, Mapping) or not answer.get("Token") or not isinstance(expired_s, int):
        return "its answer was not understood"
    return _usable(answer.get("TmpSecretId"), answer.get("TmpSecretKey"), answer["Token"], source, expired_s * 1000)
