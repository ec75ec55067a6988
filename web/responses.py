"""Responses: JSON bodies with a RequestId, and every error as `{"Code", "Message", "RequestId"}`.

Rule: an error names the field and the reason, never a value and no internals.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import fastapi
import structlog
from fastapi import exceptions, responses
from starlette import exceptions as starlette_exceptions

from events import errors as event_errors
from machine import errors

# Codes of errors that the HTTP layer itself finds; all others come from machine.errors.
CODES = {
    400: "InvalidParameter",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    413: "RequestTooLarge",
    503: "ServiceUnavailable",
}
MESSAGES = {
    404: "There is no such path; GET /openapi.json lists the paths.",
    405: "The path does not have this method; the header Allow lists its methods.",
}
# The end of a session cannot be predicted, so one retry a minute is often enough. TRTC repeats a callback every 10 s.
RETRY_AFTER_S: dict[int, str] = {HTTPStatus.TOO_MANY_REQUESTS: "60", HTTPStatus.SERVICE_UNAVAILABLE: "10"}
UNEXPECTED = "Internal error; the service's log has the reason under this RequestId."


# Built once: building an encoder costs more than encoding a small answer. Otherwise as the framework's.
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class Answer(responses.JSONResponse):
    """A JSON body."""

    def render(self, content: Any) -> bytes:
        """As the framework's."""
        return _JSON.encode(content).encode()


def ok(request: fastapi.Request, body: Mapping[str, Any], status: int = 200) -> Answer:
    """A success, with the RequestId."""
    return Answer({**body, "RequestId": request_id(request)}, status)


async def large(request: fastapi.Request, make: Callable[[], Mapping[str, Any]]) -> responses.JSONResponse:
    """A success whose body can be large: a thread makes and serializes it, so that other requests need not wait."""
    return await asyncio.to_thread(lambda: ok(request, make()))


def failed(
    request_id: str,
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
) -> responses.JSONResponse:
    """An error; its code also goes to the request's log line."""
    structlog.contextvars.bind_contextvars(code=code)
    # A message can contain the name of a field as the client sent it, and JSON has characters that UTF-8 cannot encode.
    text = message.encode("utf-8", "backslashreplace").decode()
    return responses.JSONResponse({"Code": code, "Message": text, **(details or {}), "RequestId": request_id}, status, headers)


def request_id(request: fastapi.Request) -> str:
    """The id of this request, in the log and in the answer. Without an Idempotency-Key it is the event's id."""
    return str(request.state.request_id)


def install(app: fastapi.FastAPI) -> None:
    """Register a response for every error that a route can raise."""
    app.add_exception_handler(errors.RecorderError, _recorder_error)
    app.add_exception_handler(event_errors.InvalidEvent, _invalid_event)
    app.add_exception_handler(exceptions.RequestValidationError, _invalid_query)
    app.add_exception_handler(starlette_exceptions.HTTPException, _http_error)


async def _recorder_error(request: fastapi.Request, error: Exception) -> fastapi.Response:
    assert isinstance(error, errors.RecorderError)  # noqa: S101 - registered for this class only; tells the type checker
    if error.http_status != HTTPStatus.INTERNAL_SERVER_ERROR:
        details = error.details if isinstance(error, errors.Refused) else None
        headers = retry_after(error.http_status)
        return failed(request_id(request), error.http_status, error.code, error.message, headers, details)
    if error.retry:
        unavailable = errors.Unavailable()
        headers = retry_after(unavailable.http_status)
        return failed(request_id(request), unavailable.http_status, unavailable.code, unavailable.message, headers)
    structlog.get_logger().error("http.failed", exc_info=error)
    return failed(request_id(request), 500, "InternalError", UNEXPECTED)


def retry_after(status: int) -> dict[str, str] | None:
    """The header that tells when to try again, for a status that has one."""
    return {"Retry-After": RETRY_AFTER_S[status]} if status in RETRY_AFTER_S else None


async def _invalid_event(request: fastapi.Request, error: Exception) -> fastapi.Response:
    return failed(request_id(request), 400, CODES[400], str(error))


async def _invalid_query(request: fastapi.Request, error: Exception) -> fastapi.Response:
    return failed(request_id(request), 400, CODES[400], reason(error))


def reason(error: Exception) -> str:
    """Why a request is invalid, in one line: the field and the reason."""
    if not isinstance(error, exceptions.RequestValidationError):
        return str(error)
    first = error.errors()[0]
    why = "is not a known parameter" if first["type"] == "extra_forbidden" else str(first["msg"])
    return f"{str(first['loc'][-1])[:64]}: {why}"


async def _http_error(request: fastapi.Request, error: Exception) -> fastapi.Response:
    assert isinstance(error, starlette_exceptions.HTTPException)  # noqa: S101 - as above
    status = error.status_code
    message = MESSAGES.get(status) or str(error.detail)
    return failed(request_id(request), status, CODES.get(status, "InvalidRequest"), message, error.headers)
