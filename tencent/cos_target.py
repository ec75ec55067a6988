"""The target of a finished file: bucket, region, object key and URL. Pure.

Rule: every `CosTarget` names a host under `.myqcloud.com` and a legal key, whatever the request contained. Sources: COS's pages
on bucket naming and on object keys; the key and the URL are contract.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote

from events import object_attributes
from machine import errors, states

MAX_KEY_BYTES = 850
# The longest parts of a key after its folder, by the limits of events/schemas.json.
NO_TASK_ID = "0" * 26
MAX_N = 1_000_000
LONGEST_SPEAKER = "\U0010ffff" * 64

# `fullmatch` only: `$` would accept a trailing newline.
_REGION = re.compile(r"[a-z]{2}-[a-z]{2,20}(-[a-z0-9]{1,10}){0,3}|accelerate")
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,48}[a-z0-9])?-[0-9]{5,12}")
# COS's first generation: for these the SDK uses another host than the contract's URL.
_OLD_REGIONS = frozenset({"cn-north", "cn-south", "cn-east", "cn-south-2", "cn-southwest"})
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class CosTarget:
    """One object in one bucket, with its attributes. `endpoint` (scheme, IP address, port) sends the requests to another server,
    such as the simulator, while host name, bucket and signature stay real. Raises errors.InvalidParameter for an unusable
    name."""

    region: str
    bucket: str
    key: str
    endpoint: tuple[str, str, int] | None = None
    attributes: object_attributes.ObjectAttributes = object_attributes.NONE

    def __post_init__(self) -> None:
        check_names(self.region, self.bucket)
        check_key(self.key)
        if self.endpoint is not None:
            _check_endpoint(*self.endpoint)


def check_names(region: str, bucket: str) -> None:
    """Raise errors.InvalidParameter (field CosConfig.Region or CosConfig.Bucket) unless both are valid COS names."""
    if not _REGION.fullmatch(region) or region in _OLD_REGIONS:
        raise errors.InvalidParameter("CosConfig.Region must be a COS region such as ap-guangzhou.", field="CosConfig.Region")
    if not _BUCKET.fullmatch(bucket):
        message = "CosConfig.Bucket must be the full name with the APPID, such as recordings-1250000000."
        raise errors.InvalidParameter(message, field="CosConfig.Bucket")


def check_path(path: str) -> None:
    """Raise errors.InvalidParameter (field CosConfig.Path) unless `path` is valid as the folder of an object key."""
    if not _is_text(path) or _CONTROL.search(path) or "\\" in path:
        message = "CosConfig.Path must be text without control characters and backslashes."
        raise errors.InvalidParameter(message, field="CosConfig.Path")
    if any(segment in (".", "..") for segment in path.split("/")):
        raise errors.InvalidParameter("CosConfig.Path must not have a folder named . or .. in it.", field="CosConfig.Path")
    if len(path.encode()) > MAX_KEY_BYTES:
        raise errors.InvalidParameter(f"CosConfig.Path must be at most {MAX_KEY_BYTES} bytes.", field="CosConfig.Path")


def check_key(key: str) -> None:
    """Raise errors.InvalidParameter (field CosConfig.Path) unless `key` is a legal object key."""
    check_path(key)
    if not key or key.startswith("/"):
        raise errors.InvalidParameter("An object key is not empty and does not begin with a slash.", field="CosConfig.Path")


def check_longest_key(path: str, speakers: Collection[str]) -> None:
    """Raise errors.InvalidParameter (field CosConfig.Path) if the key of some file of a session could be illegal. `speakers` are
    those whom the session records; empty for everybody, with ids of any length."""
    check_path(path)
    longest = max(map(safe_speaker, speakers or (LONGEST_SPEAKER,)), key=len)
    rest = len(f"/{NO_TASK_ID}/{longest}_{MAX_N}.mp4")
    if len(path.strip("/").encode()) > MAX_KEY_BYTES - rest:
        raise errors.InvalidParameter(
            f"CosConfig.Path must be at most {MAX_KEY_BYTES - rest} bytes: an object key, with the TaskId and the longest name of"
            f" a speaker, has {MAX_KEY_BYTES} at most.",
            field="CosConfig.Path",
        )


def object_key(path: str, task_id: str, speaker: str, n: int, mode: str, number: int = 1) -> str:
    """`{Path without outer "/"}/{TaskId}/{safe speaker}_{n}.mp3|mp4`. Where a recording needed several files, `-{number}` follows
    `n` in the second and later ones. Raises errors.InvalidParameter (CosConfig.Path, Mode)."""
    if mode not in states.EXTENSION:
        raise errors.InvalidParameter("Mode must be 00, 01 or 02.", field="Mode")
    folder = path.strip("/")
    key = f"{folder}/" if folder else ""
    key += f"{task_id}/{safe_speaker(speaker)}_{n}{f'-{number}' if number > 1 else ''}.{states.EXTENSION[mode]}"
    check_key(key)
    return key


def manifest_key(path: str, task_id: str) -> str:
    """`{Path without outer "/"}/{TaskId}/manifest.json`. Raises errors.InvalidParameter (CosConfig.Path)."""
    key = f"{path.strip('/')}/{task_id}/manifest.json".lstrip("/")
    check_key(key)
    return key


def safe_speaker(speaker: str) -> str:
    """The speaker's id as part of a name: unchanged if it has only `[A-Za-z0-9_-]` and does not begin with `b64-`, else `b64-` +
    base64url of its UTF-8 without padding, so that no two ids share a name."""
    if _PLAIN_NAME.fullmatch(speaker) and not speaker.startswith("b64-"):
        return speaker
    encoded = base64.urlsafe_b64encode(speaker.encode("utf-8", "surrogatepass"))
    return "b64-" + encoded.decode("ascii").rstrip("=")


def content_type(key: str) -> str:
    """The object's Content-Type for browsers and players."""
    types = {"mp3": "audio/mpeg", "mp4": "video/mp4", "json": "application/json"}
    return types.get(key.rpartition(".")[2], "application/octet-stream")


def content_disposition(key: str) -> str:
    """The object's Content-Disposition: browsers play it, and save it under the last part of its key, which is ASCII."""
    return f'inline; filename="{key.rpartition("/")[2]}"'


def host(target: CosTarget) -> str:
    """The bucket's host name, `{Bucket}.cos.{Region}.myqcloud.com`."""
    return f"{target.bucket}.cos.{target.region}.myqcloud.com"


def url(target: CosTarget) -> str:
    """The object's URL, `https://{Bucket}.cos.{Region}.myqcloud.com/{percent-encoded key}`."""
    return f"https://{host(target)}/{quote(target.key, safe='/-_.~')}"


def origin(target: CosTarget) -> str:
    """Scheme, host and port of the object's URL, or of the server in the place of COS."""
    if target.endpoint is None:
        return f"https://{host(target)}"
    scheme, ip, port = target.endpoint
    return f"{scheme}://{f'[{ip}]' if ':' in ip else ip}:{port}"


def _is_text(value: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in value)


def _check_endpoint(scheme: str, ip: str, port: int) -> None:
    message = "The COS endpoint must be http or https, an IP address and a port."
    if scheme not in ("http", "https") or not 0 < port < 65536:
        raise errors.InvalidParameter(message, field="COS_ENDPOINT")
    try:
        ipaddress.ip_address(ip)
    except ValueError as error:
        raise errors.InvalidParameter(message, field="COS_ENDPOINT") from error
