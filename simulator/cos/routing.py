"""Bucket, key and operation of a COS request.

Rule: the bucket is in the Host, `{bucket}.cos.{region}.myqcloud.com`, or leads the path after `/cos/`; the key comes from the raw
target, decoded once and never normalised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from simulator.cos import responses

PATH_STYLE = "/cos/"
_HOST = re.compile(r"([a-z0-9][a-z0-9-]*)\.cos(?:-internal)?\.[a-z0-9-]+\.(?:myqcloud\.com|tencentcos\.cn)(?::\d+)?", re.I)
_BUCKET = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.I)
_SUB_RESOURCES = {"acl", "append", "cors", "lifecycle", "policy", "restore", "tagging", "versioning", "versions"}

PUT_BUCKET, HEAD_BUCKET, LIST_OBJECTS, LIST_UPLOADS = "put-bucket", "head-bucket", "list-objects", "list-uploads"
PUT_OBJECT, HEAD_OBJECT, GET_OBJECT, DELETE_OBJECT = "put-object", "head-object", "get-object", "delete-object"
INITIATE, UPLOAD_PART, LIST_PARTS, COMPLETE, ABORT = "initiate", "upload-part", "list-parts", "complete", "abort"

_BUCKET_OPERATIONS = {
    ("HEAD", ""): HEAD_BUCKET,
    ("PUT", ""): PUT_BUCKET,
    ("GET", ""): LIST_OBJECTS,
    ("GET", "uploads"): LIST_UPLOADS,
}
_OBJECT_OPERATIONS = {
    ("PUT", ""): PUT_OBJECT,
    ("HEAD", ""): HEAD_OBJECT,
    ("GET", ""): GET_OBJECT,
    ("DELETE", ""): DELETE_OBJECT,
    ("POST", "uploads"): INITIATE,
    ("PUT", "uploadId"): UPLOAD_PART,
    ("GET", "uploadId"): LIST_PARTS,
    ("POST", "uploadId"): COMPLETE,
    ("DELETE", "uploadId"): ABORT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The target of a request; `key` is "" for the bucket itself."""

    bucket: str
    key: str
    query: Mapping[str, str]


def concerns(host: str, raw_path: str) -> bool:
    """Whether a request is meant for COS."""
    return _HOST.fullmatch(host) is not None or raw_path.startswith(PATH_STYLE)


def target(host: str, raw_path: str) -> Target:
    """The bucket, key and query. Raises answers.Refused (400 InvalidBucketName)."""
    path, _, raw_query = raw_path.partition("?")
    match = _HOST.fullmatch(host)
    if match:
        bucket, key = match[1], path.removeprefix("/")
    else:
        bucket, _, key = path.removeprefix(PATH_STYLE).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise responses.Refused(400, "InvalidBucketName", "The specified bucket is not valid.")
    return Target(bucket=bucket, key=unquote(key), query=dict(parse_qsl(raw_query, keep_blank_values=True)))


def operation(method: str, about: Target, *, copies: bool) -> str:
    """The name of the operation. Raises answers.Refused (501 NotImplemented) for an operation that the simulator lacks."""
    table = _OBJECT_OPERATIONS if about.key else _BUCKET_OPERATIONS
    resource = next((name for name in ("uploadId", "uploads") if name in about.query), "")
    name = table.get((method, resource))
    if name is None or copies or not _SUB_RESOURCES.isdisjoint(about.query):
        raise responses.Refused(501, "NotImplemented", "The simulator does not offer this operation.")
    return name
