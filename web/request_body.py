"""From an HTTP request to an event: the body within its limits, the event's id, and the check against the schema.

Rule: a body is parsed only after its size was checked.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

import fastapi
import pydantic
import structlog
from starlette import exceptions, requests

from events import codec, errors, reader
from web import dependencies, responses

MAX_BODY_BYTES = 256 * 1024
BODY_TIMEOUT_S = 30.0
# Text of a query parameter: PostgreSQL's text has no NUL.
TEXT = r"^[^\x00]*$"

Body = TypeVar("Body", bound=pydantic.BaseModel)

_KEY = re.compile(r"[\x20-\x7e]{1,128}")
_TOO_LARGE = f"The body is larger than {MAX_BODY_BYTES // 1024} KB."


async def raw(request: fastapi.Request) -> bytes:
    """The whole body. Raises HTTPException 413 above `MAX_BODY_BYTES`, announced or not, and 408 after `BODY_TIMEOUT_S`."""
    # Read here, not by the request: its headers and its stream cost more than a callback.
    announced = next((value for name, value in request.scope["headers"] if name == b"content-length"), b"0").decode("latin-1")
    if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
        raise exceptions.HTTPException(413, _TOO_LARGE)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise requests.ClientDisconnect
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MAX_BODY_BYTES:
                    raise exceptions.HTTPException(413, _TOO_LARGE)
    except TimeoutError:
        raise exceptions.HTTPException(408, f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from None
    return bytes(body)


async def json_object(request: fastapi.Request, *, optional: bool = False) -> dict[str, Any]:
    """The body as a JSON object; an empty one is {} if `optional`. Raises InvalidEvent."""
    body = await raw(request)
    return {} if optional and not body.removeprefix(reader.BOM).strip() else parse(body)


def parse(body: bytes) -> dict[str, Any]:
    """As codec.parse."""
    try:
        return codec.parse(body)
    except RecursionError:
        raise errors.InvalidEvent("", f"the body nests deeper than {codec.MAX_DEPTH} levels") from None


def event(api: dependencies.Api, type_: str, *, id: str, data: dict[str, Any]) -> codec.Event:
    """An event of this moment, read and checked by its schema. Raises InvalidEvent."""
    structlog.contextvars.bind_contextvars(event_id=id, event_type=type_)
    try:
        return codec.make(type_, id=id, time_ms=api.clock(), data=data)
    except UnicodeEncodeError:
        raise errors.InvalidEvent("", "the body contains a character that is not valid text") from None


def event_id(request: fastapi.Request, scope: str) -> str:
    """The event's id, which makes a repeated request idempotent: the Idempotency-Key within its `scope` and API key (no key may
    get another key's answer), or else the request's id.

    Raises InvalidEvent for an Idempotency-Key that is not 1 to 128 printable ASCII characters."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return responses.request_id(request)
    if not _KEY.fullmatch(key):
        raise errors.InvalidEvent("Idempotency-Key", "must be 1 to 128 printable ASCII characters")
    key_id = request.state.caller.key_id
    return f"http-{scope}-{key_id}-{key}" if key_id else f"http-{scope}-{key}"


async def model(request: fastapi.Request, kind: type[Body]) -> Body:
    """The body as a value of the model. Raises InvalidEvent, which names the field."""
    data = await json_object(request)
    try:
        return kind.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise errors.InvalidEvent(".".join(map(str, first["loc"])), _reason(first["type"], first["msg"])) from None


def _reason(kind: str, message: str) -> str:
    return {"missing": "is required", "extra_forbidden": "is not a known field"}.get(kind, message)
