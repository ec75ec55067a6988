"""COS's responses on the wire: headers, XML bodies, ranges, refusals.

Rule: every response carries an `x-cos-request-id`, every object its CRC-64 and quoted ETag.
"""

from __future__ import annotations

import base64
import contextlib
import uuid
from email.utils import formatdate
from typing import Any

from aiohttp import web

from simulator.cos import attributes, objects, responses

CRC64 = "x-cos-hash-crc64ecma"
XML = "application/xml"


async def refusal(request: web.Request, refused: responses.Refused) -> web.Response:
    """The XML of a refusal, sent after the rest of the body is read, so that a client that is still sending can read it."""
    with contextlib.suppress(ConnectionError):  # a client that has closed reads no response
        while await request.content.readany():
            pass
    request_id = _request_id()
    body = responses.error(refused, resource=request.headers.get("Host", "") + request.raw_path, request_id=request_id)
    headers = {"x-cos-request-id": request_id}
    return web.Response(status=refused.status, body=body, content_type=XML, headers=headers)


def _request_id() -> str:
    return base64.b64encode(uuid.uuid4().hex.encode()).decode()


def response(status: int, headers: dict[str, str] | None = None) -> web.Response:
    """A response without a body."""
    return web.Response(status=status, headers={"x-cos-request-id": _request_id()} | (headers or {}))


def document(name: str, fields: dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    """A response with an XML document."""
    answer = response(200, headers)
    answer.body = responses.document(name, fields)
    answer.content_type = XML
    return answer


def described(request: web.Request) -> dict[str, Any]:
    """The request's statements about the new object: content type, `x-cos-meta-*`, disposition, storage class, encryption, tags.
    Raises answers.Refused (400 InvalidArgument, InvalidStorageClass, InvalidTag) for those that COS does not take."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    metadata = {name: value for name, value in headers.items() if name.startswith("x-cos-meta-") or name in attributes.HEADERS}
    attributes.check(metadata)
    return {"content_type": request.headers.get("Content-Type", "application/octet-stream"), "metadata": metadata}


def object_headers(stored: objects.Stored) -> dict[str, str]:
    """The headers of GET and HEAD."""
    return {
        "ETag": f'"{stored.etag}"',
        "Content-Type": stored.content_type,
        "Last-Modified": formatdate(stored.modified_s, usegmt=True),
        "Accept-Ranges": "bytes",
        CRC64: stored.crc64,
        "x-cos-request-id": _request_id(),
    } | {name: value for name, value in stored.metadata.items() if name != attributes.TAGGING}


def byte_range(request: web.Request, size: int) -> tuple[int, int]:
    """First byte and the one behind the last. Raises answers.Refused (416 InvalidRange)."""
    try:
        start, stop, _ = request.http_range.indices(size)
    except ValueError:
        start = stop = size
    if "Range" in request.headers and start >= stop:
        raise responses.Refused(416, "InvalidRange", "The requested range cannot be satisfied.")
    return start, stop
