"""Single COS requests through the official SDK. Each blocks, and returns or raises `RequestFailed`.

Rules: one call is one request; the caller decides whether to retry (`failed.temporary`). Errors carry COS's code, message and
request id, never a key or a token. A malformed, oversized or endless response costs little and becomes `RequestFailed`. Sources:
the SDK's `cos_client.py` (1.9.44) and COS's page of error codes.
"""

from __future__ import annotations

import io
import logging
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus, cookiejar
from typing import Any, TypeVar

import qcloud_cos
import requests
from qcloud_cos import cos_auth

from machine import errors
from machine.reasons import Reason
from tencent import cos_target
from tencent import credentials as credentials_module

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10
# The limit of silence, not of the whole request: within it COS must send or accept bytes.
SILENCE_TIMEOUT_S = 30
# COS joins the parts of a large object before it answers; the SDK's own limit is 20 minutes.
COMPLETE_TIMEOUT_S = 300
# The longest valid responses, a thousand parts or the uploads of a long key, have 300 KB. The SDK reads without a limit, and its
# parsed result takes a hundred times as much memory.
MOST_ANSWER_BYTES = 512 * 1024
MOST_ERROR_BYTES = 64 * 1024
# COS would list a thousand; a key rarely has more than one.
MOST_UPLOADS = 100
_SENT_BYTES = 64 * 1024

_EXPIRED = frozenset({"ExpiredToken", "RequestTimeTooSkewed", "RequestHasExpired", "TokenExpired"})
_THROTTLED = frozenset({"SlowDown", "RequestLimitExceeded", "TooManyRequests", "QpsLimitExceeded"})
# The data arrived changed or incomplete: the network is the cause, not the request.
_DAMAGED = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "EntitySizeNotMatch"})
_TAG = {name: re.compile(rf"<{name}>(.*?)</{name}>", re.DOTALL) for name in ("Code", "Message", "RequestId")}
_URL = re.compile(r"(with url: \S+|https?://\S+)")

ADVICE = {
    "NoSuchBucket": "Create the bucket, or correct CosConfig.Bucket and CosConfig.Region, then replay.",
    "AccessDenied": "Allow this key to upload to the bucket (cos:PutObject and the multipart actions), then replay.",
    "InvalidAccessKeyId": "Correct CosConfig.SecretId, or bring fresh credentials with a replay.",
    "SignatureDoesNotMatch": "Correct CosConfig.SecretKey, or bring fresh credentials with a replay.",
    "ExpiredToken": "Bring fresh credentials with a replay; the upload goes on where it was.",
    "RequestTimeTooSkewed": "Set the clock of the database's machine right; the upload goes on by itself.",
    "FileAlreadyExists": "Another object has this key already and overwriting is forbidden.",
}
# Nothing was recorded yet, so there is nothing to replay.
START_ADVICE = {
    "NoSuchBucket": "Create the bucket, or correct CosConfig.Bucket and CosConfig.Region, then start again.",
    "InvalidAccessKeyId": "Correct CosConfig.SecretId, or the service's own key if the start has none, then start again.",
    "SignatureDoesNotMatch": "Correct CosConfig.SecretKey, or the service's own key if the start has none, then start again.",
    "ExpiredToken": "Start again with fresh credentials, before or while it records.",
    "RequestTimeTooSkewed": "Set the clock of the database's machine right.",
}


class RequestFailed(Exception):
    """One request to COS failed. `status` is 0 without a response."""

    def __init__(self, reason: Reason, *, code: str = "", status: int = 0, message: str = "", request_id: str = "") -> None:
        super().__init__(f"{reason} {status} {code}")
        self.reason = reason
        self.code = code
        self.status = status
        self.message = message
        self.request_id = request_id

    @property
    def temporary(self) -> bool:
        """Whether a retry with the same credentials may succeed soon."""
        return self.reason in (Reason.THROTTLED, Reason.SERVER, Reason.NETWORK)

    def as_upload_failed(self, what: str, advice: Mapping[str, str] = ADVICE) -> errors.UploadFailed:
        """Convert to the package's public error; `what` names the action ("sending part 3"), `advice` the next
        step by COS's code."""
        pieces = [f"COS {self.status} {self.code or 'without a code'} while {what}" if self.status else f"No answer while {what}"]
        pieces += [self.message] if self.message else []
        pieces += [f"Request {self.request_id}"] if self.request_id else []
        pieces += [advice[self.code].rstrip(".")] if self.code in advice else []
        detail = ". ".join(piece.rstrip(". ") for piece in pieces) + "."
        return errors.UploadFailed(detail, reason=self.reason, retry=self.reason != Reason.REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part in COS: its number from 1, its size in bytes, and its ETag without quotes (the MD5 in hex)."""

    number: int
    size: int
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSeen:
    """An object's size in bytes and its CRC-64/XZ as a decimal string ("" if COS gives none), from HEAD."""

    size_bytes: int
    crc64: str


class Client:
    """The requests of an upload, for one target and one key pair. Every method blocks."""

    def __init__(
        self,
        target: cos_target.CosTarget,
        credentials: credentials_module.Credentials,
        session: requests.Session,
        *,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
    ) -> None:
        self._target = target
        self._at = {"Bucket": target.bucket, "Key": target.key}
        self._sdk = _sdk(target, credentials, session, silence_timeout_s)
        self._patient_sdk = _sdk(target, credentials, session, max(COMPLETE_TIMEOUT_S, silence_timeout_s))

    def create(self) -> str:
        """Create a multipart upload for an object with the target's attributes; returns its UploadId."""
        return _ask(lambda: _text(self._sdk.create_multipart_upload(**self._at, **self._described()), "UploadId"))

    def put(self, data: bytes, md5_base64: str) -> str:
        """Write a small object with the target's attributes, by one request; returns the CRC-64 that COS gives for it, "" if it
        gives none."""
        described = self._described() | {"ContentMD5": md5_base64}
        answer = _ask(lambda: self._sdk.put_object(**self._at, Body=io.BytesIO(data), **described))
        return str(_lower(answer).get("x-cos-hash-crc64ecma", ""))

    def _described(self) -> dict[str, str]:
        return self._target.attributes.given() | {
            "ContentType": cos_target.content_type(self._target.key),
            "ContentDisposition": cos_target.content_disposition(self._target.key),
        }

    def put_part(self, upload_id: str, number: int, data: bytes, md5_base64: str) -> str:
        """Send one part with its Content-MD5; returns its ETag without quotes."""
        # A stream, not bytes: a plain-HTTP socket applies its time limit to one whole send. A stream is sent in blocks, so a slow
        # line does not look dead.
        answer = _ask(
            lambda: self._sdk.upload_part(
                **self._at, Body=io.BytesIO(data), PartNumber=number, UploadId=upload_id, ContentMD5=md5_base64
            )
        )
        return _text(answer, "ETag").strip('"')

    def list_parts(self, upload_id: str) -> tuple[Part, ...]:
        """All parts of this upload in COS, in order."""
        parts: list[Part] = []
        marker = 0
        while True:
            page, following = _ask(partial(self._page_of_parts, upload_id, marker))
            parts += page
            if following is None:
                return tuple(parts)
            if following <= marker:
                raise RequestFailed(Reason.SERVER, status=200, message="The list of parts does not end")
            marker = following

    def _page_of_parts(self, upload_id: str, marker: int) -> tuple[list[Part], int | None]:
        page = self._sdk.list_parts(**self._at, UploadId=upload_id, PartNumberMarker=marker)
        parts = [_part(entry) for entry in page.get("Part", ())]
        return parts, int(_text(page, "NextPartNumberMarker")) if page.get("IsTruncated") == "true" else None

    def list_uploads(self) -> tuple[str, ...]:
        """The UploadIds of the first unfinished uploads (one page) under exactly this key."""
        return _ask(self._page_of_uploads)

    def _page_of_uploads(self) -> tuple[str, ...]:
        at = {"Bucket": self._target.bucket, "Prefix": self._target.key}
        page = self._sdk.list_multipart_uploads(**at, MaxUploads=MOST_UPLOADS)
        begun = [entry for entry in page.get("Upload", ()) if _lower(entry).get("key") == self._target.key]
        return tuple(_text(entry, "UploadId") for entry in begun)

    def complete(self, upload_id: str, parts: Sequence[Part]) -> str:
        """Complete the upload; returns the CRC-64 that COS gives for the whole object, "" if it gives none."""
        listed = {"Part": [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]}
        answer = _ask(lambda: self._patient_sdk.complete_multipart_upload(**self._at, UploadId=upload_id, MultipartUpload=listed))
        return str(_lower(answer).get("x-cos-hash-crc64ecma", ""))

    def abort(self, upload_id: str) -> None:
        """Abort an upload; COS deletes its parts."""
        _ask(lambda: self._sdk.abort_multipart_upload(**self._at, UploadId=upload_id))

    def head(self) -> ObjectSeen | None:
        """The object under the key; None if there is none."""
        try:
            answer = _lower(_ask(lambda: self._sdk.head_object(**self._at)))
        except RequestFailed as failed:
            if failed.status == 404:
                return None
            raise self._explained(failed) from failed
        try:
            return ObjectSeen(size_bytes=int(answer["content-length"]), crc64=str(answer.get("x-cos-hash-crc64ecma", "")))
        except (KeyError, ValueError) as error:
            raise RequestFailed(Reason.SERVER, status=200, message="The answer to HEAD has no length") from error

    def head_bucket(self) -> None:
        """Raise RequestFailed unless the bucket exists and the key may read it."""
        try:
            _ask(lambda: self._sdk.head_bucket(Bucket=self._target.bucket))
        except RequestFailed as failed:
            if failed.status == 404:
                raise RequestFailed(Reason.REFUSED, code="NoSuchBucket", status=404, request_id=failed.request_id) from failed
            raise self._explained(failed) from failed

    def _explained(self, failed: RequestFailed) -> RequestFailed:
        """A response to HEAD has no body and so no error code: get the code from a GET that is refused for the same key."""
        if failed.status not in (400, 403):
            return failed
        try:
            _ask(lambda: self._sdk.list_objects(Bucket=self._target.bucket, Prefix=self._target.key, MaxKeys=1))
        except RequestFailed as explained:
            return explained
        return RequestFailed(Reason.REFUSED, code="AccessDenied", status=failed.status, request_id=failed.request_id)


def session(connections: int) -> requests.Session:
    """A connection pool for our uploads: the SDK's own is shared by the whole process and never closed.

    It ignores proxy variables, keeps no cookie from one customer to the next, and reads a response within its limits.
    """
    pool = requests.Session()
    pool.trust_env = False
    pool.headers["Accept-Encoding"] = "identity"
    pool.cookies.set_policy(cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        pool.mount(scheme, _Bounded(pool_connections=connections, pool_maxsize=connections))
    return pool


class _Bounded(requests.adapters.HTTPAdapter):
    """Reads a response up to COS's maximum length, decompresses nothing, and rejects input that grows in parsing."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Like the library's method, with larger blocks: each one costs a call."""
        super().init_poolmanager(*args, **options | {"blocksize": _SENT_BYTES})

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Like the library's method; raises RequestException for a response that is too long or declares XML entities, which COS
        never does. An oversized error response is cut: its status is enough."""
        answer = super().send(request, *args, **options | {"stream": True})
        failed = answer.status_code >= HTTPStatus.BAD_REQUEST
        most = MOST_ERROR_BYTES if failed else MOST_ANSWER_BYTES
        raw = answer.raw
        try:
            body = raw.read(most + 1, decode_content=False)
        except BaseException:
            raw.close()
            raise
        if len(body) > most:
            raw.close()  # the rest of the response is dropped
        raw.release_conn()
        # Multi-byte encodings have zeros between these letters; all others contain the letters.
        grows = b"<!ENTITY" in body.replace(b"\0", b"")
        if not failed and (grows or len(body) > most):
            raise requests.RequestException("The answer declares entities" if grows else "The answer is too long")
        answer.raw = io.BytesIO(b"" if grows else body[:most])
        return answer


def presigned(target: cos_target.CosTarget, credentials: credentials_module.Credentials, valid_s: int) -> str:
    """A URL by which anybody can GET the object for `valid_s` seconds, made without a request. At an endpoint in the place of COS
    the path has the bucket, because a browser sends the endpoint's own name as Host."""
    key = target.key if target.endpoint is None else f"cos/{target.bucket}/{target.key}"
    about = {"x-cos-security-token": credentials.token} if credentials.token else {}
    sdk = _sdk(target, credentials, None, CONNECT_TIMEOUT_S)
    signs_host = target.endpoint is None
    return str(sdk.get_presigned_url(target.bucket, key, "GET", Expired=valid_s, Params=about, SignHost=signs_host))


def silence_sdk() -> None:
    """Switch off the SDK's log: at DEBUG it prints keys, at INFO URLs; our errors carry its ERROR texts."""
    logging.getLogger("qcloud_cos").setLevel(logging.CRITICAL + 1)


def sign_by(clock: Callable[[], int]) -> None:
    """Let the SDK sign by this clock (Unix ms) and not by the machine's: COS refuses requests of a machine whose clock is more
    than 15 minutes ahead. The SDK has no parameter for it."""
    cos_auth.time = types.SimpleNamespace(time=lambda: clock() / 1000)


def _sdk(
    target: cos_target.CosTarget, credentials: credentials_module.Credentials, pool: requests.Session | None, timeout_s: float
) -> Any:
    scheme, ip, port = target.endpoint or ("https", None, None)
    config = qcloud_cos.CosConfig(
        Region=target.region,
        SecretId=credentials.secret_id,
        SecretKey=credentials.secret_key,
        Token=credentials.token or None,  # CredentialInstance would never send it
        Scheme=scheme,
        IP=ip,
        Port=port,
        Timeout=(CONNECT_TIMEOUT_S, timeout_s),
        AllowRedirects=False,
    )
    if config.get_host(Bucket=target.bucket) != cos_target.host(target):
        # The SDK rewrites some first-generation names; the object would not be at its URL.
        raise errors.InvalidParameter("CosConfig.Region must be a COS region such as ap-guangzhou.", field="CosConfig.Region")
    return qcloud_cos.CosS3Client(config, retry=0, session=pool)


def _ask(request: Callable[[], T]) -> T:
    """Make a request and read its response. Raises RequestFailed."""
    try:
        return request()
    except RequestFailed:
        raise
    except qcloud_cos.CosServiceError as error:
        raise _from_answer(error) from None  # the SDK's error holds the whole response
    except qcloud_cos.CosClientError as error:
        raise RequestFailed(Reason.NETWORK, message=_URL.sub("", str(error))[:200].strip()) from None
    except Exception as error:  # noqa: BLE001 - the SDK evaluates what it parsed: nearly any error comes of another shape
        raise RequestFailed(
            Reason.SERVER, status=200, message=f"The answer was not understood ({type(error).__name__})"
        ) from None


def _from_answer(error: Any) -> RequestFailed:
    """Convert the SDK's error. Its own getters raise for a missing tag, so the tags are read here."""
    status = int(error.get_status_code())
    origin = error.get_origin_msg()
    if isinstance(origin, bytes):
        origin = origin.decode("utf-8", "replace")
    found: Mapping[str, object] = error.get_digest_msg() if isinstance(error.get_digest_msg(), Mapping) else {}
    if isinstance(origin, str) and "<Code>" in origin:
        found = {name.lower(): match.group(1).strip() for name, tag in _TAG.items() if (match := tag.search(origin))}
    code = _printable(found.get("code", ""), 80)
    return RequestFailed(
        _reason(status, code),
        code=code,
        status=status,
        message=_printable(found.get("message", ""), 300),
        request_id=_printable(found.get("requestid") or found.get("x-cos-request-id") or "", 80),
    )


def _printable(said: object, most: int) -> str:
    """A server's text made safe for messages, logs and databases: no NUL, no line break, no lone surrogate."""
    return "".join(char if char.isprintable() else " " for char in str(said)[:most]).strip()


def _reason(status: int, code: str) -> Reason:
    """The reason of a response. A 4xx is fatal unless its code or status says otherwise."""
    if code in _EXPIRED:
        return Reason.EXPIRED_TOKEN
    if status == 429 or code in _THROTTLED:
        return Reason.THROTTLED
    if status == 408 or code in _DAMAGED:
        return Reason.NETWORK
    if status >= 500 or status < 400:
        return Reason.SERVER
    if status == 409 and code != "FileAlreadyExists":
        return Reason.SERVER  # another request works on the same key or bucket; only FileAlreadyExists is permanent
    return Reason.REFUSED


def _text(answer: Any, name: str) -> str:
    """A field of a response. If it is missing, the server redirected or is not COS."""
    value = _lower(answer).get(name.lower())
    if not isinstance(value, str) or not value:
        raise RequestFailed(Reason.SERVER, status=200, message=f"The answer has no {name}")
    return value


def _part(entry: Any) -> Part:
    return Part(number=int(_text(entry, "PartNumber")), size=int(_text(entry, "Size")), etag=_text(entry, "ETag").strip('"'))


def _lower(answer: Any) -> dict[str, Any]:
    return {str(name).lower(): value for name, value in dict(answer).items()}
